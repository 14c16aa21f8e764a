//! The ring's parser against documents that are broken, hostile or too large: an error without key material, never a
//! panic, never for long.

#![allow(clippy::unwrap_used)]

mod shown;

use std::time::{Duration, Instant};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use proptest::{prelude::*, sample::Index};
use secureoverlay_common::ring::{MAX_LEN, Ring, RingError};
use shown::{KEY, SEED, assert_hidden, document};

/// Parses and holds the parser to its promises.
fn parse(document: &[u8]) -> Result<Ring, RingError> {
    let started = Instant::now();
    let outcome = Ring::parse(document);
    let took = started.elapsed();
    // Far above what any takes, far below what a bomb would.
    assert!(took < Duration::from_secs(20), "{} bytes took {took:?}", document.len());
    match &outcome {
        Ok(ring) => assert_hidden(&format!("{ring:?} {ring:#?}"), &[&KEY, &SEED]),
        Err(error) => assert_hidden(&format!("{error} {error:?} {error:#?}"), &[&KEY, &SEED]),
    }
    outcome
}

#[test]
fn the_document_that_is_damaged_below_is_a_ring() {
    assert!(parse(document().as_bytes()).is_ok());
}

#[test]
fn bombs_are_refused() {
    let mut aliases = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..40 {
        let references = vec![format!("*a{}", level - 1); 9].join(", ");
        aliases += &format!("a{level}: &a{level} [{references}]\n");
    }
    let merges: String = (0..2000).map(|at| format!("m{at}: &m{at} {{<<: *m{at}}}\n")).collect();
    let deep = |open: &str, close: &str| open.repeat(100_000) + &close.repeat(100_000);
    let documents = [
        aliases.clone(),
        document() + &aliases,
        format!("{aliases}generations: *a39\n{}", document().split("generations").next().unwrap()),
        merges,
        deep("[", "]"),
        deep("{a: ", "}"),
        format!("version: 1\nrevision: 1\nenforcement: off\ngenerations: {}", deep("[", "]")),
        "- ".repeat(MAX_LEN / 2),
        "? ".repeat(MAX_LEN / 2),
        format!("version: {}", "1".repeat(MAX_LEN - 9)),
        format!("version: \"{}\"", "\\u0031".repeat(100_000)),
        (0..50_000).map(|at| format!("k{at}: &x{at} 1\n")).collect(),
        "!".repeat(MAX_LEN),
        "&a ".repeat(MAX_LEN / 3),
        "*a ".repeat(MAX_LEN / 3),
        "a: |\n".to_owned() + &" \n".repeat(MAX_LEN / 2 - 3),
        "%YAML 1.2\n---\n".repeat(10_000),
        "\0".repeat(1000),
        "\u{feff}".repeat(1000),
    ];
    for document in documents {
        let shown = document.chars().take(40).collect::<String>();
        assert!(parse(document.as_bytes()).is_err(), "{shown:?} was taken for a ring");
    }
}

#[test]
fn a_key_in_the_wrong_place_is_not_quoted() {
    let key = BASE64.encode(KEY);
    let hex: String = KEY.iter().map(|byte| format!("{byte:02x}")).collect();
    for misplaced in [key, hex] {
        for name in [
            "version:",
            "revision:",
            "enforcement:",
            "nextRotation:",
            "pending:",
            "generations:",
            "id:",
            "uid:",
            "role:",
            "suite:",
            "createdAt:",
            "incarnations:",
        ] {
            let lines = document();
            let broken: Vec<String> = lines
                .lines()
                .map(|line| match line.split_once(name) {
                    Some((before, _)) if before.trim_matches(['-', ' ']).is_empty() => {
                        format!("{before}{name} {misplaced}")
                    }
                    _ => line.to_owned(),
                })
                .collect();
            assert!(parse(broken.join("\n").as_bytes()).is_err(), "{name}");
        }
        assert!(parse(misplaced.as_bytes()).is_err());
        assert!(
            parse(format!("{}{misplaced}: 1\n", document()).as_bytes()).is_ok(),
            "unknown fields are passed over"
        );
        assert!(parse((document() + &misplaced).as_bytes()).is_err());
        assert!(parse((document() + "version: " + &misplaced).as_bytes()).is_err(), "a field twice");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
        let _ = parse(&bytes);
    }

    #[test]
    fn any_yaml_like_text_is_read_without_panic(text in "[-a-z0-9:{}\\[\\],&*!|>'\"%#?~<. \n\t]{0,300}") {
        let _ = parse(text.as_bytes());
        let _ = parse(format!("version: 1\n{text}").as_bytes());
    }

    #[test]
    fn damaged_documents_are_read_without_panic(
        damage in prop::collection::vec((any::<Index>(), any::<u8>()), 1..6), cut: Index, keep_all: bool,
    ) {
        let mut bytes = document().into_bytes();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if !keep_all {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = parse(&bytes);
    }

    #[test]
    fn rearranged_documents_are_read_without_panic(
        swaps in prop::collection::vec((any::<Index>(), any::<Index>(), any::<bool>()), 1..6),
    ) {
        let text = document();
        let mut lines: Vec<&str> = text.lines().collect();
        for (from, to, copy) in swaps {
            let (from, to) = (from.index(lines.len()), to.index(lines.len()));
            if copy { lines.insert(to, lines[from]) } else { lines.swap(from, to) }
        }
        let _ = parse(lines.join("\n").as_bytes());
    }

    /// What is taken for a ring can be written and is read back the same.
    #[test]
    fn what_is_read_survives_a_round_trip(at: Index, value in b' '..b'~') {
        let mut bytes = document().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok(ring) = parse(&bytes) {
            prop_assert_eq!(Ring::parse(ring.to_yaml().as_bytes()), Ok(ring));
        }
    }
}
