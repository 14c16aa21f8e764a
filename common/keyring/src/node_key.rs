//! The key pair of a node (X25519, RFC 7748), and the secrets that it shares with its peers.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use rand_core::TryCryptoRng;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use x25519_dalek::{PublicKey as CurvePoint, StaticSecret};
use zeroize::Zeroizing;

use crate::secret::SecretBytes;

/// Bytes of a private key and of a public key.
pub const KEY_LEN: usize = 32;

/// A public key that a shared secret can be made with: a u-coordinate below the field's prime in its one canonical
/// encoding, and not of low order. Written as base64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; KEY_LEN]);

/// Why bytes or text are no public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPublicKey {
    /// Not base64, or not of 32 bytes.
    #[error("not a public key: base64 of {KEY_LEN} bytes is needed")]
    Length,
    /// Not below the prime: the same point has another encoding.
    #[error("not a public key: not the canonical encoding of a point (RFC 7748, section 5)")]
    NotCanonical,
    /// The shared secret would be zero, whatever the other key.
    #[error("not a public key: a point of low order (RFC 7748, section 6.1)")]
    LowOrder,
}

/// The u-coordinates of low order below the prime, on the curve and on its twist: 0, 1, −1 and two of order 8.
pub const LOW_ORDER: [[u8; KEY_LEN]; 5] = [
    [0; KEY_LEN],
    {
        let mut one = [0; KEY_LEN];
        one[0] = 1;
        one
    },
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda,
        0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04,
        0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
    ],
    {
        let mut minus_one = PRIME;
        minus_one[0] -= 1;
        minus_one
    },
];

/// 2²⁵⁵ − 19, least significant byte first.
const PRIME: [u8; KEY_LEN] = {
    let mut prime = [0xff; KEY_LEN];
    prime[0] = 0xed;
    prime[KEY_LEN - 1] = 0x7f;
    prime
};

impl PublicKey {
    /// The 32 bytes, as they enter the derivation.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

impl TryFrom<[u8; KEY_LEN]> for PublicKey {
    type Error = InvalidPublicKey;

    fn try_from(bytes: [u8; KEY_LEN]) -> Result<Self, InvalidPublicKey> {
        if !bytes.iter().rev().lt(PRIME.iter().rev()) {
            return Err(InvalidPublicKey::NotCanonical);
        }
        if LOW_ORDER.contains(&bytes) {
            return Err(InvalidPublicKey::LowOrder);
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for PublicKey {
    type Error = InvalidPublicKey;

    fn try_from(text: String) -> Result<Self, InvalidPublicKey> {
        text.as_str().parse()
    }
}

impl std::str::FromStr for PublicKey {
    type Err = InvalidPublicKey;

    fn from_str(text: &str) -> Result<Self, InvalidPublicKey> {
        let bytes = BASE64.decode(text).map_err(|_| InvalidPublicKey::Length)?;
        <[u8; KEY_LEN]>::try_from(bytes).map_err(|_| InvalidPublicKey::Length)?.try_into()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        BASE64.encode(key.0)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl JsonSchema for PublicKey {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PublicKey".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 44, "pattern": "^[A-Za-z0-9+/]{43}=$"})
    }
}

/// A node's key pair. The private key is wiped when dropped and never printed.
#[derive(Clone)]
pub struct NodeKeyPair {
    private: StaticSecret,
    public: PublicKey,
}

/// A private key of the wrong length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a private key is {KEY_LEN} bytes long, not {0}")]
pub struct InvalidPrivateKey(pub usize);

/// The key agreement gave zeros: the peer's key is of low order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the key agreement with the public key {0} gives zeros: refused (RFC 7748, section 6.1)")]
pub struct ZeroSharedSecret(pub PublicKey);

impl NodeKeyPair {
    /// Draws a key pair.
    ///
    /// # Errors
    /// The random number generator's.
    pub fn generate<R: TryCryptoRng>(rng: &mut R) -> Result<Self, R::Error> {
        let private = SecretBytes::try_fill(KEY_LEN, |bytes| rng.try_fill_bytes(bytes))?;
        Ok(Self::from_private(&private).expect("drawn with this length"))
    }

    /// The key pair with this private key, as [`Self::private`] gave it.
    ///
    /// # Errors
    /// It is not [`KEY_LEN`] bytes long.
    pub fn from_private(private: &SecretBytes) -> Result<Self, InvalidPrivateKey> {
        let bytes: Zeroizing<[u8; KEY_LEN]> =
            Zeroizing::new(private.expose().try_into().map_err(|_| InvalidPrivateKey(private.len()))?);
        let private = StaticSecret::from(*bytes);
        // A clamped scalar times the base point has prime order, and comes out reduced.
        let public = PublicKey(CurvePoint::from(&private).to_bytes());
        Ok(Self { private, public })
    }

    /// The private key's 32 bytes, for the node's own storage and for nothing else.
    #[must_use]
    pub fn private(&self) -> SecretBytes {
        SecretBytes::copy_from(self.private.as_bytes())
    }

    /// The key that peers derive with.
    #[must_use]
    pub const fn public(&self) -> &PublicKey {
        &self.public
    }

    /// What both ends of a pair, and nothing else, can compute.
    ///
    /// # Errors
    /// It is zero, as with a point of low order.
    pub fn agree(&self, peer: &PublicKey) -> Result<SharedSecret, ZeroSharedSecret> {
        let shared = self.private.diffie_hellman(&CurvePoint::from(peer.0));
        if !shared.was_contributory() {
            return Err(ZeroSharedSecret(*peer));
        }
        Ok(SharedSecret { secret: SecretBytes::copy_from(shared.as_bytes()), own: self.public, peer: *peer })
    }
}

impl fmt::Debug for NodeKeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeKeyPair").field("public", &self.public).finish_non_exhaustive()
    }
}

/// The 32 bytes of a key agreement, with the two public keys that it is between, so that it enters no other pair's
/// derivation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedSecret {
    secret: SecretBytes,
    own: PublicKey,
    peer: PublicKey,
}

impl SharedSecret {
    /// The secret bytes, for the derivation.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        self.secret.expose()
    }

    /// Whether it is between these two keys, in either order.
    #[must_use]
    pub fn is_between(&self, one: &PublicKey, other: &PublicKey) -> bool {
        (self.own, self.peer) == (*one, *other) || (self.own, self.peer) == (*other, *one)
    }
}
