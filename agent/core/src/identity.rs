//! This node's identity: who sends (the instance), and the key pair that its SAs are derived with.
//!
//! Drawing anew is always safe: it costs one announcement and one proof for each pair, and no key can repeat. Both are
//! kept in the state directory until the node boots, in a file of three lines:
//!
//! ```text
//! secureoverlay-identity 1
//! instance <uuid>
//! private <base64 of 32 bytes>
//! ```

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use rand_core::TryCryptoRng;
use secureoverlay_keyring::{
    address::NodeAddress,
    node_key::NodeKeyPair,
    peer::{Instance, Sender},
    secret::SecretBytes,
    uid::Uid,
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{Time, entry::Entry};

const HEADER: &str = "secureoverlay-identity 1";
/// The longest pause between two draws.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// After so long without a draw, the pauses begin anew.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// Instance and key pair.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Who sends.
    pub instance: Instance,
    /// What is sent to this node is derived with it, and so is what it sends.
    pub key_pair: NodeKeyPair,
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        (self.instance, self.key_pair.public()) == (other.instance, other.key_pair.public())
    }
}

impl Eq for Identity {}

/// What this node sends and is sent to with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalIdentity {
    /// It is announced.
    Announced(Identity),
    /// The boot ID of the running kernel, where nothing can be announced.
    BootId(Uid),
}

impl LocalIdentity {
    /// Who sends.
    #[must_use]
    pub fn instance(&self) -> Instance {
        match self {
            Self::Announced(identity) => identity.instance,
            Self::BootId(boot_id) => (*boot_id).into(),
        }
    }

    /// This node's entry at one of its addresses.
    #[must_use]
    pub fn entry(&self, address: NodeAddress) -> Entry {
        match self {
            Self::Announced(identity) => Entry::from(&identity.sender(address)),
            Self::BootId(boot_id) => Entry::of_boot_id(address, *boot_id),
        }
    }
}

impl Identity {
    /// Draws both.
    ///
    /// # Errors
    /// The random number generator's.
    pub fn generate<R: TryCryptoRng>(rng: &mut R) -> Result<Self, R::Error> {
        Ok(Self { instance: Instance::generate(rng)?, key_pair: NodeKeyPair::generate(rng)? })
    }

    /// Draws a new instance beside the same key pair.
    ///
    /// # Errors
    /// The random number generator's.
    pub fn with_new_instance<R: TryCryptoRng>(&self, rng: &mut R) -> Result<Self, R::Error> {
        Ok(Self { instance: Instance::generate(rng)?, key_pair: self.key_pair.clone() })
    }

    /// Its announced entry at an address.
    #[must_use]
    pub fn sender(&self, address: NodeAddress) -> Sender {
        Sender { instance: self.instance, address, public_key: *self.key_pair.public() }
    }

    /// The file's content.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let private = Zeroizing::new(BASE64.encode(self.key_pair.private().expose()));
        let text = format!("{HEADER}\ninstance {}\nprivate {}\n", self.instance, private.as_str());
        Zeroizing::new(text.into_bytes())
    }

    /// Reads the file's content; `None` if it is not what [`Self::to_bytes`] writes: the key is lost then.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut lines = str::from_utf8(bytes).ok()?.strip_suffix('\n')?.split('\n');
        let (header, instance, private) = (lines.next()?, lines.next()?, lines.next()?);
        if header != HEADER || lines.next().is_some() {
            return None;
        }
        let private = Zeroizing::new(BASE64.decode(private.strip_prefix("private ")?).ok()?);
        Some(Self {
            instance: instance.strip_prefix("instance ")?.parse().ok()?,
            key_pair: NodeKeyPair::from_private(&SecretBytes::copy_from(&private)).ok()?,
        })
    }
}

/// How often this boot has drawn lately. Persisted, so that a restart shortens no pause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrawPace {
    /// Draws without a long pause between them; the one at boot is none.
    #[serde(default)]
    count: u32,
    /// When the last one was, in milliseconds since boot.
    #[serde(default)]
    last_ms: u64,
}

impl DrawPace {
    /// When the next draw may be.
    #[must_use]
    pub fn next(&self) -> Time {
        let pause = match self.count {
            0 => return Time::ZERO,
            count => Duration::from_secs(1 << (count - 1).min(6)).min(LONGEST_PAUSE),
        };
        Time::from_millis(self.last_ms) + pause
    }

    /// Takes a draw.
    pub fn note(&mut self, now: Time) {
        if now > Time::from_millis(self.last_ms) + FORGET_AFTER {
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        self.last_ms = now.as_millis().try_into().unwrap_or(u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn identity_is_read_as_it_was_written() {
        let mut rng = StdRng::seed_from_u64(1);
        let identity = Identity::generate(&mut rng).unwrap();
        let bytes = identity.to_bytes();
        let read = Identity::parse(&bytes).unwrap();
        assert_eq!((read.instance, read.key_pair.public()), (identity.instance, identity.key_pair.public()));
        let redrawn = identity.with_new_instance(&mut rng).unwrap();
        assert_ne!(redrawn.instance, identity.instance);
        assert_eq!(redrawn.key_pair.public(), identity.key_pair.public());
    }

    #[test]
    fn damaged_identity_is_lost() {
        let bytes = Identity::generate(&mut StdRng::seed_from_u64(1)).unwrap().to_bytes();
        for length in 0..bytes.len() {
            assert!(Identity::parse(&bytes[..length]).is_none(), "cut off after {length} bytes");
        }
        assert!(Identity::parse(&[&bytes[..], b"more\n"].concat()).is_none());
        assert!(Identity::parse(&bytes.iter().map(|_| b'a').collect::<Vec<_>>()).is_none());
    }

    #[test]
    fn draws_are_further_and_further_apart_until_they_stop() {
        let mut pace = DrawPace::default();
        let mut now = Time::from_secs(5);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            now = now.max(pace.next());
            pace.note(now);
            pauses.push((pace.next() - now).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        pace.note(now + FORGET_AFTER + Duration::from_secs(1));
        assert_eq!(pace.next() - now - FORGET_AFTER, Duration::from_secs(2));
    }
}
