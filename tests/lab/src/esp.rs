//! ESP packets as they are on the wire, opened with keys that we derived ourselves (RFC 4303, RFC 4106).

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::aes::{Aes128, Aes256, cipher::consts::U12};
use aes_gcm::{AesGcm, KeyInit, Nonce};
use secureoverlay_keyring::secret::SecretBytes;
use secureoverlay_keyring::suite::Suite;

const HEADER: usize = 8;
const IV: usize = 8;

/// The fields of a packet that are sent in the clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Esp<'a> {
    /// Security parameters index.
    pub spi: u32,
    /// The lower half of the sequence number.
    pub sequence: u32,
    /// Initialisation vector.
    pub iv: [u8; IV],
    /// Ciphertext and ICV.
    sealed: &'a [u8],
}

/// What was inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Protocol of the payload; 4 is an IPv4 packet.
    pub next_header: u8,
    /// The payload without padding.
    pub payload: Vec<u8>,
}

impl<'a> Esp<'a> {
    /// Splits what follows an IP header; `None` if it is too short.
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        let (header, sealed) = packet.split_at_checked(HEADER + IV)?;
        let word =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        Some(Self { spi: word(0), sequence: word(4), iv: header[HEADER..].try_into().ok()?, sealed })
    }

    /// Verifies the ICV and decrypts; `None` if the packet was not made with this key. `key` is AES key and salt,
    /// `high` the upper half of the sequence number, which is not sent.
    pub fn open(&self, suite: Suite, key: &SecretBytes, high: u32) -> Option<Opened> {
        let (key, salt) = key.expose().split_at_checked(suite.key_len())?;
        let nonce: Nonce<U12> = [salt, &self.iv].concat().as_slice().try_into().ok()?;
        let aad = [self.spi, high, self.sequence].map(u32::to_be_bytes).concat();
        let message = Payload { msg: self.sealed, aad: &aad };
        let mut payload = match suite {
            Suite::Aes128Gcm8 => {
                use aes_gcm::aes::cipher::consts::U8;
                AesGcm::<Aes128, U12, U8>::new_from_slice(key).ok()?.decrypt(&nonce, message)
            }
            Suite::Aes128Gcm16 => AesGcm::<Aes128, U12>::new_from_slice(key).ok()?.decrypt(&nonce, message),
            Suite::Aes256Gcm16 => AesGcm::<Aes256, U12>::new_from_slice(key).ok()?.decrypt(&nonce, message),
        }
        .ok()?;
        let next_header = payload.pop()?;
        let padding = usize::from(payload.pop()?);
        let length = payload.len().checked_sub(padding)?;
        let counted = payload[length..].iter().zip(1..).all(|(byte, expected)| *byte == expected);
        payload.truncate(length);
        counted.then_some(Opened { next_header, payload })
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD as BASE64;
    use secureoverlay_keyring::derivation::{Derivation, SaPath};
    use secureoverlay_keyring::keyring::KeyRing;
    use secureoverlay_keyring::node_key::NodeKeyPair;
    use secureoverlay_keyring::peer::Sender;
    use serde_json::Value;

    use super::*;
    use crate::sa_keys::key_pair;

    fn unhex(text: &Value) -> Vec<u8> {
        let text = text.as_str().unwrap();
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// The published packets are opened, and no bit of them can be changed.
    #[test]
    fn opens_the_published_packets_and_no_others() {
        let vectors: Value = serde_json::from_str(include_str!("../../vectors/wire-v1.json")).unwrap();
        let ring = KeyRing::parse(vectors["ring"].to_string().as_bytes()).unwrap();
        let mut suites = Vec::new();
        let announced = |entry: &&Value| entry["src"].as_str().unwrap().contains('.');
        for entry in vectors["packets"].as_array().unwrap().iter().filter(announced) {
            let generation =
                ring.generations.iter().find(|g| Some(g.id) == entry["generation"].as_u64()).unwrap();
            let end = |name: &str| -> (Sender, NodeKeyPair) {
                let (node, at) = entry[name].as_str().unwrap().split_once('.').unwrap();
                let sender = &vectors["nodes"][node]["senders"][at.parse::<usize>().unwrap()];
                let private = unhex(&vectors["keys"][sender["key"].as_str().unwrap()]["private"]);
                let keys = key_pair(&format!("private {}", BASE64.encode(private))).unwrap();
                (serde_json::from_value(sender.clone()).unwrap(), keys)
            };
            let ((src, own), (dst, _)) = (end("src"), end("dst"));
            let shared = own.agree(&dst.public_key).unwrap();
            let sa = |src, dst| {
                Derivation::new(generation)
                    .derive_sa(&SaPath::announced(src, dst), Some(&shared))
                    .unwrap()
                    .key
            };
            let (suite, key) = (generation.suite, sa(&src, &dst));
            let high = (entry["sequence"].as_u64().unwrap() >> 32) as u32;
            let packet = unhex(&entry["esp"]);
            let opened = Esp::parse(&packet).unwrap().open(suite, &key, high).unwrap();
            assert_eq!(opened, Opened { next_header: 4, payload: unhex(&entry["inner"]) });
            suites.push(suite);
            assert_eq!(Esp::parse(&packet).unwrap().open(suite, &key, high ^ 1), None, "upper half");
            let back = sa(&dst, &src);
            assert_eq!(
                Esp::parse(&packet).unwrap().open(suite, &back, high),
                None,
                "the other direction's key"
            );
            for bit in 0..packet.len() * 8 {
                let mut changed = packet.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Esp::parse(&changed).unwrap().open(suite, &key, high), None, "bit {bit}");
            }
            for length in 0..packet.len() {
                let cut = Esp::parse(&packet[..length]).and_then(|esp| esp.open(suite, &key, high));
                assert_eq!(cut, None, "{length} bytes");
            }
        }
        assert!(Suite::ALL.iter().all(|suite| suites.contains(suite)), "{suites:?}");
    }
}
