//! Formats every public type that holds keys, and searches for them.

#![allow(clippy::unwrap_used)]

mod shown;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use jiff::Timestamp;
use secureoverlay_common::{
    ring::{Ring, RingError, Role},
    rotation::{
        Action, DelayTracker, EnforcementGoal, Evidence, Installation, Readiness, RotationSchedule, Settings,
        apply,
    },
    secret::SecretBytes,
    suite::Suite,
    wire::{End, fingerprint, sa_key},
};
use shown::{KEY, SEED, assert_hidden, document, shows};

fn ring() -> Ring {
    Ring::parse(document().as_bytes()).unwrap()
}

#[test]
fn the_search_finds_keys_in_every_form() {
    let hex: String = KEY.iter().map(|byte| format!("{byte:02x}")).collect();
    for text in [
        document(),
        format!("{KEY:?}"),
        format!("{KEY:#?}"),
        format!("{KEY:02X?}"),
        format!("{KEY:#04x?}"),
        hex.clone(),
        hex.to_uppercase(),
        hex.replace("64", "64:"),
        BASE64.encode(KEY),
        BASE64.encode([b"x", &KEY[..]].concat()),
        BASE64.encode([b"xy", &KEY[..], b"z"].concat()),
        BASE64.encode(document()).split_at(300).0.to_owned() + &BASE64.encode(KEY),
    ] {
        assert!(shows(&text, &KEY), "{text}");
    }
    let ascii = SecretBytes::copy_from(b"a key of letters");
    assert!(shows(&String::from_utf8_lossy(ascii.expose()), ascii.expose()));
    for text in ["", "SPI 0x1f2e3d4c of 192.0.2.1", "the key ring is empty", "[16 secret bytes]"] {
        assert!(!shows(text, &KEY) && !shows(text, &SEED), "{text}");
    }
}

#[test]
fn values_show_no_key() {
    let ring = ring();
    let generation = ring.active().unwrap();
    let end = |last: u8| End {
        addr: [192, 0, 2, last].into(),
        node: format!("9d0f5a37-62a5-4d5f-8a3d-1c1ad0f2b00{last}").parse().unwrap(),
        boot: format!("1c6e2f7a-0b9d-4e8c-b3a4-77d5e0c1a00{last}").parse().unwrap(),
    };
    let derived = sa_key(generation, &end(1), &end(2));
    let mut timed = DelayTracker::new(std::time::Duration::from_secs(180));
    let facts = timed.observe(Some(&ring), std::time::Instant::now());
    let text = format!(
        "{ring:?} {ring:#?} {generation:?} {generation:#?} {derived:?} {derived:#?} {:?} {:#?} {:?} {timed:?} \
         {facts:?} {} {:?}",
        generation.key,
        generation.spi_seed,
        Some(vec![&derived]),
        fingerprint(&generation.key),
        Settings {
            schedule: RotationSchedule::Every(std::time::Duration::from_secs(1)),
            suite: Suite::default(),
            goal: EnforcementGoal::Off
        },
    );
    assert!(text.contains("secret bytes"), "{text}");
    assert_hidden(&text, &[&KEY, &SEED, derived.expose()]);
}

#[test]
fn a_ring_that_was_just_made_shows_no_key() {
    let settings = Settings {
        schedule: RotationSchedule::Every(std::time::Duration::from_secs(60)),
        suite: Suite::Aes256Gcm16,
        goal: EnforcementGoal::Auto,
    };
    let mut draws = [vec![0; 16], [KEY, SEED].concat(), vec![0; 16]].into_iter();
    let fill = |bytes: &mut [u8]| {
        bytes.copy_from_slice(&draws.next().unwrap());
        Ok::<_, std::convert::Infallible>(())
    };
    let facts = Evidence::of(Readiness::Ready, Readiness::Ready);
    let now = Timestamp::UNIX_EPOCH;
    let made = apply(None, Action::Bootstrap, Installation::Unknown, &facts, now, &settings, fill).unwrap();
    assert_eq!(made.with_role(Role::Staged).unwrap().key.expose(), [KEY, SEED].concat());
    assert_hidden(&format!("{made:?} {made:#?}"), &[&KEY, &SEED]);
}

#[test]
fn errors_show_no_key() {
    let key = BASE64.encode(KEY);
    for (from, to) in [
        ("aes128gcm8", key.as_str()),
        (&key, "AAEC"),
        (&key, &format!("'*{key}'")),
        (&key, &format!("{key}{key}")),
        (&key, &format!("[{key}]")),
        (&key, &format!("{{{key}: {key}}}")),
        (&key, &format!("!{key} x")),
        (&key, &format!("&{key} x")),
        (&key, &format!("*{key}")),
        (&key, &format!("\"{key}\\q\"")),
        ("spiSeed", &key),
        ("id: 2", &format!("id: {key}")),
        ("role: staged", &format!("role: {key}")),
        ("revision: 118", &format!("revision: {key}")),
        ("version: 1", &format!("version: {key}")),
        ("enforcement: permissive", &format!("enforcement: {key}")),
        ("2026-11-20T03:00:00Z", &key),
        ("9d0f5a37-62a5-4d5f-8a3d-1c1ad0f2b001", &key),
        ("0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b62", &key),
        ("pending: []", &format!("pending: [{key}]")),
    ] {
        let error: RingError = Ring::parse(document().replace(from, to).as_bytes()).unwrap_err();
        let mut text = format!("{error} {error:?} {error:#?}");
        let mut cause: &dyn std::error::Error = &error;
        while let Some(source) = cause.source() {
            text += &format!(" {source} {source:?}");
            cause = source;
        }
        assert_hidden(&text, &[&KEY, &SEED]);
    }
}
