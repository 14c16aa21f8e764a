//! Byte strings to be searched for, in every form in which a program may let them slip.

use std::collections::{BTreeSet, HashMap};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Bytes that forms are told apart by; nothing shorter is searched for.
const PREFIX: usize = 8;

/// The secrets, and what they look like.
#[derive(Debug, Default)]
pub struct Needles {
    secrets: BTreeSet<Vec<u8>>,
    /// Name and whole text of every form, by its first bytes.
    forms: HashMap<[u8; PREFIX], Vec<(&'static str, Vec<u8>)>>,
}

impl Needles {
    /// Adds a secret of at least 16 bytes.
    pub fn add(&mut self, secret: &[u8]) {
        if secret.len() >= 16 && self.secrets.insert(secret.to_vec()) {
            for (name, text) in forms(secret) {
                if let Some(prefix) = text.first_chunk() {
                    self.forms.entry(*prefix).or_default().push((name, text));
                }
            }
        }
    }

    /// Number of secrets.
    pub fn secrets(&self) -> usize {
        self.secrets.len()
    }

    /// Number of forms that are searched for.
    pub fn forms(&self) -> usize {
        self.forms.values().map(Vec::len).sum()
    }

    /// All forms.
    pub fn texts(&self) -> impl Iterator<Item = &[u8]> {
        self.forms.values().flatten().map(|(_, text)| text.as_slice())
    }

    /// Names of the forms found in `text`, and where.
    pub fn find(&self, text: &[u8]) -> Vec<(&'static str, usize)> {
        let mut found = Vec::new();
        for (at, window) in text.windows(PREFIX).enumerate() {
            let Some(forms) = window.first_chunk().and_then(|prefix| self.forms.get(prefix)) else {
                continue;
            };
            let here = forms.iter().filter(|(_, form)| text[at..].starts_with(form));
            found.extend(here.map(|(name, _)| (*name, at)));
        }
        found
    }
}

fn forms(secret: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let hex = |upper: bool| -> String {
        secret.iter().map(|b| if upper { format!("{b:02X}") } else { format!("{b:02x}") }).collect()
    };
    let decimal: Vec<String> = secret.iter().map(ToString::to_string).collect();
    let mut forms = vec![
        ("raw", secret.to_vec()),
        ("hex", hex(false).into_bytes()),
        ("HEX", hex(true).into_bytes()),
        // As Debug prints bytes.
        ("decimal", decimal.join(", ").into_bytes()),
        ("escaped", secret.escape_ascii().to_string().into_bytes()),
    ];
    for inner in in_base64(secret) {
        forms.extend(in_base64(&inner).into_iter().map(|outer| ("base64 of base64", outer)));
        forms.push(("base64", inner));
    }
    let mut seen = BTreeSet::new();
    forms.retain(|(_, text)| text.len() >= PREFIX && seen.insert(text.clone()));
    forms
}

/// What is certain to appear when `bytes` is a part of something in base64, wherever in it they begin: each three
/// bytes make four characters, so there are three ways.
fn in_base64(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut texts = Vec::new();
    for before in 0..3_usize {
        let padded: Vec<u8> = std::iter::repeat_n(0, before).chain(bytes.iter().copied()).collect();
        // The first and the last characters depend on the neighbours too.
        let (first, end) = ((8 * before).div_ceil(6), 8 * padded.len() / 6);
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            texts.push(engine.encode(&padded).as_bytes()[first..end].to_vec());
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};

    use super::*;

    const SECRET: &[u8] = b"\xff\x01sixteen \x00bytes\xfb\xfc";

    #[test]
    fn every_form_is_found_anywhere() {
        let mut needles = Needles::default();
        needles.add(SECRET);
        assert_eq!(needles.secrets(), 1);
        for before in 0..6 {
            let hidden = [&b"abcdef"[..before], SECRET, b"xyz"].concat();
            let hex: String = hidden.iter().map(|b| format!("{b:02x}")).collect();
            let once = STANDARD.encode(&hidden);
            let texts = [
                hidden.clone(),
                hex.to_uppercase().into(),
                hex.into(),
                format!("{hidden:?}").into(),
                URL_SAFE.encode(&hidden).into(),
                STANDARD.encode(format!("- key: {once}\n")).into(),
                once.into(),
            ];
            for text in texts {
                assert!(!needles.find(&text).is_empty(), "{}", String::from_utf8_lossy(&text));
            }
        }
    }

    #[test]
    fn nothing_else_is_found() {
        let mut needles = Needles::default();
        needles.add(SECRET);
        needles.add(b"too short");
        assert_eq!(needles.secrets(), 1);
        let almost = [&SECRET[..SECRET.len() - 1], b"?"].concat();
        assert!(needles.find(&almost).is_empty());
        assert!(needles.find(STANDARD.encode(almost).as_bytes()).is_empty());
        assert!(needles.find(b"").is_empty());
    }
}
