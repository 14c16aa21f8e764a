//! Cipher suites of the ring.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An AEAD as RFC 4106 uses it in ESP: AES-GCM with an explicit 8-byte IV and a 4-byte salt.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum Suite {
    /// AES-128-GCM with a 64-bit ICV: what MKE's SecureOverlay used.
    #[default]
    #[serde(rename = "aes128gcm8")]
    Aes128Gcm8,
    /// AES-128-GCM with a 128-bit ICV.
    #[serde(rename = "aes128gcm16")]
    Aes128Gcm16,
    /// AES-256-GCM with a 128-bit ICV.
    #[serde(rename = "aes256gcm16")]
    Aes256Gcm16,
}

impl Suite {
    /// Every suite, in the order of their strength.
    pub const ALL: [Self; 3] = [Self::Aes128Gcm8, Self::Aes128Gcm16, Self::Aes256Gcm16];

    /// Bytes of salt that follow the key in the kernel's key material (RFC 4106, section 8.1).
    pub const SALT_LEN: usize = 4;

    /// The name in the ring, in flags and in the key derivation.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes128Gcm8 => "aes128gcm8",
            Self::Aes128Gcm16 => "aes128gcm16",
            Self::Aes256Gcm16 => "aes256gcm16",
        }
    }

    /// Bytes of AES key, without the salt.
    #[must_use]
    pub const fn key_len(self) -> usize {
        match self {
            Self::Aes128Gcm8 | Self::Aes128Gcm16 => 16,
            Self::Aes256Gcm16 => 32,
        }
    }

    /// Bytes of integrity check value at the end of each packet.
    #[must_use]
    pub const fn icv_len(self) -> usize {
        match self {
            Self::Aes128Gcm8 => 8,
            Self::Aes128Gcm16 | Self::Aes256Gcm16 => 16,
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name is none of [`Suite::ALL`].
#[derive(Debug, thiserror::Error)]
#[error("unknown suite: use aes128gcm8, aes128gcm16 or aes256gcm16")]
pub struct UnknownSuite;

impl FromStr for Suite {
    type Err = UnknownSuite;

    fn from_str(name: &str) -> Result<Self, UnknownSuite> {
        Self::ALL.into_iter().find(|suite| suite.name() == name).ok_or(UnknownSuite)
    }
}
