//! The search for secrets in text.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

/// The ring key in the documents of tests.
pub const KEY: [u8; 16] = *b"\xa7\x1d\xc3\x52\xf0\x9b\x64\x3e\x88\x05\xda\x71\x2c\xe6\x4f\x90";
/// The SPI seed in the documents of tests.
pub const SEED: [u8; 16] = *b"\x5e\xb2\x07\xc9\x31\xfa\x86\x4d\xd0\x6b\x13\x98\xe4\x2f\x7a\xc5";

/// Whether three bytes of `secret` in a row can be read in `text`: raw, in hexadecimal, in decimal or in base64.
pub fn shows(text: &str, secret: &[u8]) -> bool {
    let lower = text.to_lowercase();
    let packed: String =
        lower.chars().filter(|c| !c.is_whitespace() && !matches!(c, ',' | ':' | '_')).collect();
    let separated: String = lower.split_whitespace().collect();
    let windows = || secret.windows(3);
    let hex =
        windows().any(|bytes| packed.contains(&bytes.iter().map(|b| format!("{b:02x}")).collect::<String>()));
    let prefixed = windows().any(|b| separated.contains(&format!("0x{:x},0x{:x},0x{:x}", b[0], b[1], b[2])));
    let decimal = windows().any(|b| separated.contains(&format!("{},{},{}", b[0], b[1], b[2])));
    let raw = windows().any(|bytes| text.as_bytes().windows(3).any(|shown| shown == bytes));
    // A secret inside something longer has another base64, depending on where it begins.
    let base64 = (0..3).any(|shift| {
        let encoded = BASE64.encode([&vec![0; shift], secret].concat());
        let known = &encoded.as_bytes()[(4 * shift).div_ceil(3)..encoded.trim_end_matches('=').len() - 1];
        known.windows(5).any(|five| text.as_bytes().windows(5).any(|shown| shown == five))
    });
    hex || prefixed || decimal || raw || base64
}

/// None of `secrets` can be read in `text`.
pub fn assert_hidden(text: &str, secrets: &[&[u8]]) {
    for (at, secret) in secrets.iter().enumerate() {
        assert!(!shows(text, secret), "secret {at} shows in: {text}");
    }
}
