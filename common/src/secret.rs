//! Bytes that must not be seen.

use std::fmt;

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
