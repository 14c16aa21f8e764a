//! `EncryptionPeer.spec` as another node, or an attacker with its token, may write it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use secureoverlay_keyring::{node_key::NodeKeyPair, peer::EncryptionPeerSpec, secret::SecretBytes};

fuzz_target!(|object: &[u8]| {
    let Ok(spec) = serde_json::from_slice::<EncryptionPeerSpec>(object) else { return };
    assert_eq!(spec.check(), Ok(()));
    assert!((1..=spec.senders.len()).contains(&spec.newest().count()));
    let own = NodeKeyPair::from_private(&SecretBytes::copy_from(&[7; 32])).expect("32 bytes");
    for sender in &spec.senders {
        let shared = own.agree(&sender.public_key).expect("no accepted key is of low order");
        assert_ne!(shared.expose(), [0; 32]);
    }
    let written = serde_json::to_vec(&spec).expect("text and lists");
    assert_eq!(
        serde_json::from_slice::<EncryptionPeerSpec>(&written).ok(),
        Some(spec),
        "not as it was written"
    );
});
