//! A key ring with known keys, and the search for them in text.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

mod search;
pub use search::*;

/// A key ring of three generations with these keys.
pub fn document() -> String {
    let (key, seed) = (BASE64.encode(KEY), BASE64.encode(SEED));
    let generation = |id: u64, role: &str| {
        format!(
            "- id: {id}\n  uid: 0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6{id}\n  role: {role}\n  suite: aes128gcm8\n  \
             traffic: ipip\n  identities: announced\n  key: {key}\n  spiSeed: {seed}\n  \
             createdAt: 2026-11-20T03:00:00Z\n  roleSince: 2026-11-20T03:05:00Z\n"
        )
    };
    format!(
        "version: 1\nrevision: 118\nackId: 5d2e9a40-3c1b-4f76-8e0d-9b7a6c5d4e3f\nenforcement: permissive\n\
         nextRotation: 2026-11-21T03:00:00Z\nsettings:\n  enforcement: Auto\n  cipherSuite: aes128gcm8\n  rotation:\n    \
         interval: 12h\n    minimumInterval: 5m\n    historyLimit: 10\n  deletionPolicy: Disable\n\
         excluded:\n  nodes:\n  - node-17\n  addresses:\n  - 192.0.2.17\ngenerations:\n{}{}{}",
        generation(1, "retiring"),
        generation(2, "active"),
        generation(3, "staged")
    )
}
