//! The key ring's parser against documents that are broken, hostile or too large: an error without key material, never
//! a panic, never for long.

#![allow(clippy::unwrap_used)]

mod shown;

use std::time::{Duration, Instant};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use proptest::{prelude::*, sample::Index};
use secureoverlay_keyring::{
    keyring::{Enforcement, KeyRing, KeyRingError, MAX_EXCLUDED, MAX_LEN, Role},
    settings::InvalidSettings,
};
use shown::{KEY, SEED, assert_hidden, document};

/// Parses and holds the parser to its promises.
fn parse(document: &[u8]) -> Result<KeyRing, KeyRingError> {
    let started = Instant::now();
    let outcome = KeyRing::parse(document);
    let took = started.elapsed();
    // Far above what any takes on a busy machine, far below what a bomb would.
    assert!(took < Duration::from_secs(60), "{} bytes took {took:?}", document.len());
    match &outcome {
        Ok(ring) => assert_hidden(&format!("{ring:?} {ring:#?}"), &[&KEY, &SEED]),
        Err(error) => assert_hidden(&format!("{error} {error:?} {error:#?}"), &[&KEY, &SEED]),
    }
    outcome
}

fn refused(from: &str, to: &str) -> KeyRingError {
    let broken = document().replacen(from, to, 1);
    assert_ne!(broken, document(), "{from:?} is not in the document");
    parse(broken.as_bytes()).unwrap_err()
}

#[test]
fn key_ring_is_written_as_it_was_read() {
    let ring = parse(document().as_bytes()).unwrap();
    assert_eq!(KeyRing::parse(ring.to_yaml().as_bytes()), Ok(ring.clone()));
    let ids = [ring.retiring(), ring.active(), ring.staged()].map(|generation| generation.unwrap().id);
    assert_eq!((ids, ring.highest_id()), ([1, 2, 3], 3));
    let active = ring.active().unwrap();
    assert_eq!(ring.generation(&active.uid), Some(active));
    let off = KeyRing::off(119, ring.ack_id, ring.installation, ring.settings.clone());
    assert_eq!(KeyRing::parse(off.to_yaml().as_bytes()), Ok(off));
}

#[test]
fn document_that_breaks_a_rule_is_refused_with_the_reason() {
    assert_eq!(parse(b" \n"), Err(KeyRingError::Empty));
    assert_eq!(parse(&[0xff, 0xfe]), Err(KeyRingError::NotText));
    assert_eq!(parse(&vec![b'a'; MAX_LEN + 1]), Err(KeyRingError::TooLong(MAX_LEN + 1)));
    assert_eq!(refused("version: 1\n", "version: 2\n"), KeyRingError::Version(2));
    let key = BASE64.encode(KEY);
    let length = KeyRingError::Length { id: 1, field: "key", actual: 3, expected: 16 };
    assert_eq!(refused(&format!("key: {key}"), "key: AAEC"), length);
    assert_eq!(refused("role: staged", "role: active"), KeyRingError::RoleOrder(Role::Active));
    assert_eq!(refused("role: retiring", "role: staged"), KeyRingError::RoleOrder(Role::Active));
    assert_eq!(refused("id: 3", "id: 2"), KeyRingError::Order(2));
    assert_eq!(refused("id: 3", "id: 18446744073709551615"), KeyRingError::Id(u64::MAX));
    let uid = |n| format!("0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6{n}");
    assert_eq!(refused(&uid(3), &uid(2)), KeyRingError::DuplicateUid(uid(2).parse().unwrap()));
    let off = KeyRingError::Enforcement(Enforcement::Off);
    assert_eq!(refused("enforcement: permissive", "enforcement: off"), off);
    assert_eq!(refused("- node-17", "- Node_17"), KeyRingError::NodeName);
    for (from, to) in [
        ("aes128gcm8", "rot13"),
        ("traffic: ipip", "traffic: vxlan"),
        ("identities: announced", "identities: guessed"),
        ("role: staged", "role: sstaged"),
        ("ackId: 5d2e9a40-3c1b-4f76-8e0d-9b7a6c5d4e3f\n", ""),
        ("- 192.0.2.17", "- 127.0.0.1"),
        ("interval: 12h", "interval: 0h"),
        ("minimumInterval: 5m", "minimumInterval: yesterday"),
        ("2026-11-20T03:05:00Z", "yesterday"),
        ("  traffic: ipip\n", ""),
    ] {
        let error = refused(from, to);
        assert!(matches!(error, KeyRingError::Malformed { .. }), "{from:?} to {to:?}: {error:?}");
    }
    let settings = parse(document().as_bytes()).unwrap().settings;
    let mut ring = parse(document().as_bytes()).unwrap();
    ring.settings.rotation.history_limit = u32::MAX;
    assert_eq!(ring.check(), Err(KeyRingError::Settings(InvalidSettings::History)));
    assert_ne!(ring.settings, settings);
}

#[test]
fn largest_exclusion_is_read_and_a_larger_one_refused() {
    let with = |count: usize| {
        let names: String = (0..count).map(|n| format!("  - node-{n}\n")).collect();
        let addresses: String =
            (0..count).map(|n| format!("  - 10.9.{}.{}\n", n / 250, n % 250 + 1)).collect();
        let excluded = format!("  nodes:\n{names}  addresses:\n{addresses}");
        document().replace("  nodes:\n  - node-17\n  addresses:\n  - 192.0.2.17\n", &excluded)
    };
    let ring = KeyRing::parse(with(MAX_EXCLUDED).as_bytes()).unwrap();
    assert_eq!((ring.excluded.nodes.len(), ring.excluded.addresses.len()), (MAX_EXCLUDED, MAX_EXCLUDED));
    assert_eq!(KeyRing::parse(ring.to_yaml().as_bytes()), Ok(ring));
    let error = KeyRing::parse(with(MAX_EXCLUDED + 1).as_bytes()).unwrap_err();
    assert_eq!(error, KeyRingError::Excluded(MAX_EXCLUDED + 1));
}

#[test]
fn bombs_are_refused() {
    let mut aliases = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..40 {
        let references = vec![format!("*a{}", level - 1); 9].join(", ");
        aliases += &format!("a{level}: &a{level} [{references}]\n");
    }
    let documents = [
        document() + &aliases,
        format!("{aliases}generations: *a39\n{}", document().split("generations").next().unwrap()),
        document().replace("  nodes:\n  - node-17\n", &format!("  nodes: {}\n", "[".repeat(100_000))),
        document().replace("interval: 12h", &format!("interval: {}h", "1".repeat(500_000))),
        "- ".repeat(MAX_LEN / 2),
        "&a ".repeat(MAX_LEN / 3),
        "\0".repeat(1000),
    ];
    for document in documents {
        let shown = document.chars().take(40).collect::<String>();
        assert!(parse(document.as_bytes()).is_err(), "{shown:?} was taken for a key ring");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

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

    /// What is taken for a key ring can be written and is read back the same.
    #[test]
    fn what_is_read_survives_a_round_trip(at: Index, value in b' '..b'~') {
        let mut bytes = document().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok(ring) = parse(&bytes) {
            prop_assert_eq!(KeyRing::parse(ring.to_yaml().as_bytes()), Ok(ring));
        }
    }
}
