//! A ring with known keys, and the search for them in text.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

#[path = "../../keyring/tests/shown/search.rs"]
mod search;
pub use search::*;

/// A ring of three generations with these keys.
pub fn document() -> String {
    let (key, seed) = (BASE64.encode(KEY), BASE64.encode(SEED));
    let generation = |id: u64, role: &str| {
        format!(
            "- id: {id}\n  uid: 0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6{id}\n  role: {role}\n  suite: aes128gcm8\n  \
             key: {key}\n  spiSeed: {seed}\n  createdAt: 2026-11-20T03:00:00Z\n  \
             roleSince: 2026-11-20T03:05:00Z\n  incarnations: {{9d0f5a37-62a5-4d5f-8a3d-1c1ad0f2b001: 2}}\n"
        )
    };
    format!(
        "version: 1\nrevision: 118\nenforcement: permissive\nnextRotation: 2026-11-21T03:00:00Z\npending: []\n\
         generations:\n{}{}{}",
        generation(1, "retiring"),
        generation(2, "active"),
        generation(3, "staged")
    )
}
