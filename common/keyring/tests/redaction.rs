//! Formats every public type that holds keys, and searches for them.

#![allow(clippy::unwrap_used)]

mod shown;

use std::error::Error;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use jiff::Timestamp;
use rand::{SeedableRng, rngs::StdRng};
use secureoverlay_keyring::{
    derivation::{Derivation, SaPath},
    keyring::{Generation, Identities, KeyRing, Role},
    node_key::{NodeKeyPair, PublicKey},
    peer::{Instance, Sender},
    secret::SecretBytes,
    suite::Suite,
    uid::Uid,
};
use shown::{KEY, SEED, assert_hidden, document, shows};

fn with_sources(error: &dyn Error) -> String {
    let mut text = format!("{error} {error:?} {error:#?}");
    let mut cause = error;
    while let Some(source) = cause.source() {
        text += &format!(" {source} {source:?}");
        cause = source;
    }
    text
}

#[test]
fn private_keys_shared_secrets_and_sa_keys_are_not_shown() {
    let ring = KeyRing::parse(document().as_bytes()).unwrap();
    let active = ring.active().unwrap();
    let private = [KEY, SEED].concat();
    let own = NodeKeyPair::from_private(&SecretBytes::copy_from(&private)).unwrap();
    let peer = NodeKeyPair::from_private(&SecretBytes::copy_from(&[7; 32])).unwrap();
    let shared = own.agree(peer.public()).unwrap();
    let sender = |n: u8, keys: &NodeKeyPair| Sender {
        instance: Instance::from(Uid::from_random([n; 16])),
        address: format!("192.0.2.{n}").parse().unwrap(),
        public_key: *keys.public(),
    };
    let path = SaPath::announced(&sender(1, &own), &sender(2, &peer));
    let sa = Derivation::new(active).derive_sa(&path, Some(&shared)).unwrap();
    let text = format!(
        "{ring:?} {ring:#?} {active:?} {own:?} {own:#?} {shared:?} {shared:#?} {sa:?} {sa:#?} {path:?} {:?} {}",
        own.private(),
        sa.key.fingerprint(),
    );
    assert!(text.contains("secret bytes") && text.contains(&own.public().to_string()), "{text}");
    assert_hidden(&text, &[&KEY, &SEED, &private, shared.expose(), sa.key.expose()]);
    assert!(shows(&format!("{:?}", own.private().expose()), &private), "the search finds private keys");
}

#[test]
fn generation_that_was_just_drawn_shows_no_key() {
    let mut rng = StdRng::seed_from_u64(1);
    let now = Timestamp::UNIX_EPOCH;
    let drawn = Generation::generate(1, Suite::Aes256Gcm16, Identities::Announced, now, &mut rng).unwrap();
    assert_eq!((drawn.role, drawn.key.len(), drawn.spi_seed.len()), (Role::Staged, 32, 16));
    assert!(drawn.key.expose() != [0; 32] && drawn.spi_seed.expose() != [0; 16]);
    assert_hidden(&format!("{drawn:?} {drawn:#?}"), &[drawn.key.expose(), drawn.spi_seed.expose()]);
    let another = Generation::generate(2, Suite::Aes256Gcm16, Identities::Announced, now, &mut rng).unwrap();
    assert!(drawn.key != another.key && drawn.spi_seed != another.spi_seed && drawn.uid != another.uid);
    let keys = NodeKeyPair::generate(&mut rng).unwrap();
    let stored = NodeKeyPair::from_private(&keys.private()).unwrap();
    assert_eq!(stored.public(), keys.public());
    assert_hidden(&format!("{keys:?} {keys:#?}"), &[keys.private().expose()]);
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
        (&key, &format!("*{key}")),
        (&key, &format!("\"{key}\\q\"")),
        ("spiSeed", &key),
        ("id: 2", &format!("id: {key}")),
        ("role: staged", &format!("role: {key}")),
        ("traffic: ipip", &format!("traffic: {key}")),
        ("identities: announced", &format!("identities: {key}")),
        ("revision: 118", &format!("revision: {key}")),
        ("version: 1", &format!("version: {key}")),
        ("enforcement: permissive", &format!("enforcement: {key}")),
        ("interval: 12h", &format!("interval: {key}")),
        ("- node-17", &format!("- {key}")),
        ("- 192.0.2.17", &format!("- {key}")),
        ("2026-11-20T03:00:00Z", &key),
        ("5d2e9a40-3c1b-4f76-8e0d-9b7a6c5d4e3f", &key),
        ("0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b62", &key),
    ] {
        let error = KeyRing::parse(document().replace(from, to).as_bytes()).unwrap_err();
        assert_hidden(&with_sources(&error), &[&KEY, &SEED]);
    }
    // A private key where a public one is expected.
    let error = key.parse::<PublicKey>().unwrap_err();
    assert_hidden(&with_sources(&error), &[&KEY]);
    let error = NodeKeyPair::from_private(&SecretBytes::copy_from(&KEY)).unwrap_err();
    assert_hidden(&with_sources(&error), &[&KEY]);
}
