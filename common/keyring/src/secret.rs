//! Bytes that must not be seen.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Key material: wiped when dropped, compared in constant time, never printed.
///
/// Boxed, so that a move copies a pointer and leaves no second copy of the bytes behind.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SecretBytes(Box<[u8]>);

impl SecretBytes {
    /// Takes a copy; wiping `bytes` is up to the caller.
    #[must_use]
    pub fn copy_from(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// `len` bytes, written in place by `fill`.
    ///
    /// # Errors
    /// What `fill` returns.
    pub fn try_fill<E>(len: usize, fill: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Self, E> {
        let mut secret = Self(vec![0; len].into_boxed_slice());
        fill(&mut secret.0)?;
        Ok(secret)
    }

    /// The bytes, for a cipher or the kernel and for nothing else.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Names the secret without telling anything about it: the first 8 bytes of its SHA-256, most significant first.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let digest: [u8; 32] = Sha256::digest(&self.0).into();
        digest[..8].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl PartialEq for SecretBytes {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SecretBytes {}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} secret bytes]", self.0.len())
    }
}

/// Serde for a secret as base64 text (RFC 4648, section 4). The text is wiped on both ways.
pub mod base64_text {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use zeroize::Zeroizing;

    use super::SecretBytes;

    /// Writes the base64 text.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(secret: &SecretBytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD.encode(secret.expose())))
    }

    /// Reads base64 text.
    ///
    /// # Errors
    /// "not base64", without any of the text.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretBytes, D::Error> {
        let text: Zeroizing<String> = Zeroizing::new(Deserialize::deserialize(deserializer)?);
        let bytes =
            Zeroizing::new(STANDARD.decode(text.as_bytes()).map_err(|_| D::Error::custom("not base64"))?);
        Ok(SecretBytes::copy_from(&bytes))
    }
}
