//! What unit tests share.

use secureoverlay_common::ring::{Enforcement, Ring};
use serde_json::json;

/// A ring of generations with these ids and roles.
pub fn ring(enforcement: Enforcement, roles: &[(u64, &str)]) -> Ring {
    let mut ring = Ring { enforcement, ..Ring::off(1, None) };
    for (id, role) in roles {
        let generation = json!({
            "id": id, "uid": format!("9d0f5a37-62a5-4d5f-8a3d-1c1ad0f2b{id:03}"), "role": role,
            "suite": "aes128gcm8", "key": "AAECAwQFBgcICQoLDA0ODw==", "spiSeed": "AAECAwQFBgcICQoLDA0ODw==",
            "createdAt": "2026-11-20T03:00:00Z", "roleSince": "2026-11-20T03:00:00Z",
        });
        ring.generations.push(serde_json::from_value(generation).unwrap());
    }
    ring
}
