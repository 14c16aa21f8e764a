//! Formats everything here that may hold keys, and searches for them.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../../keyring/tests/shown/mod.rs"]
mod shown;

use std::time::{Duration, Instant};

use jiff::Timestamp;
use secureoverlay_keyring::{
    keyring::{Excluded, Identities, KeyRing, Role},
    settings::Settings,
    suite::Suite,
};
use secureoverlay_rotation::{
    DelayTracker, History, Inputs, Installation, Pace, Phase, Requests, RotationMemory, RotationTimes, apply,
    decide,
};
use shown::{KEY, SEED, assert_hidden, document};

#[test]
fn decisions_and_their_inputs_show_no_key() {
    let ring = KeyRing::parse(document().as_bytes()).unwrap();
    assert!(shown::shows(&document(), &KEY));
    let mut tracker = DelayTracker::new(Duration::from_secs(180));
    let evidence = tracker.observe(Some(&ring), Instant::now());
    let settings = Settings { cipher_suite: Suite::Aes256Gcm16, ..Settings::default() };
    let now = Timestamp::UNIX_EPOCH;
    let inputs = Inputs {
        ring: None,
        last: None,
        installation: Installation::Unknown,
        evidence: &evidence,
        settings: &settings,
        excluded: &Excluded::default(),
        requests: &Requests::default(),
        identities: Identities::Announced,
        times: RotationTimes::interval(Duration::from_secs(60), now, now),
        pace: Pace::default(),
        history: History::Consistent,
        now,
    };
    let decision = decide(&inputs);
    // Two ackIds, the uid, the key, the seed.
    let mut draws = [vec![1; 16], vec![2; 16], vec![3; 16], [KEY, SEED].concat(), SEED.to_vec()].into_iter();
    let fill = |bytes: &mut [u8]| {
        bytes.copy_from_slice(&draws.next().unwrap());
        Ok::<_, std::convert::Infallible>(())
    };
    let applied = apply(&inputs, &decision, fill).unwrap();
    assert_eq!(applied.ring.with_role(Role::Staged).unwrap().key.expose(), [KEY, SEED].concat());
    let mut memory = RotationMemory::default();
    memory.handle_written(decision.action, None, Some(&ring), &applied.ring, Instant::now());
    let with = Inputs { ring: Some(&ring), last: Some(&applied.ring), ..inputs };
    let text = format!(
        "{applied:?} {applied:#?} {decision:?} {with:?} {with:#?} {memory:?} {tracker:?} {:?}",
        Phase::of(Some(&ring))
    );
    assert!(text.contains("secret bytes"), "{text}");
    assert_hidden(&text, &[&KEY, &SEED]);
}
