//! What unit tests share.

use secureoverlay_keyring::{
    keyring::{Enforcement, KeyRing},
    settings::Settings,
    uid::Uid,
};
use serde_json::json;

pub fn uid(n: u8) -> Uid {
    Uid::from_random([n; 16])
}

/// A ring of generations with these ids and roles.
pub fn ring(enforcement: Enforcement, roles: &[(u64, &str)]) -> KeyRing {
    let mut ring = KeyRing { enforcement, ..KeyRing::off(1, uid(80), None, Settings::default()) };
    for (id, role) in roles {
        let generation = json!({
            "id": id, "uid": format!("9d0f5a37-62a5-4d5f-8a3d-1c1ad0f2b{id:03}"), "role": role,
            "suite": "aes128gcm8", "traffic": "ipip", "identities": "announced",
            "key": "AAECAwQFBgcICQoLDA0ODw==", "spiSeed": "AAECAwQFBgcICQoLDA0ODw==",
            "createdAt": "2026-11-20T03:00:00Z", "roleSince": "2026-11-20T03:00:00Z",
        });
        ring.generations.push(serde_json::from_value(generation).unwrap());
    }
    ring
}
