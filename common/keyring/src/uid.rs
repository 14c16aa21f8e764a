//! UUIDs as Kubernetes and the kernel write them.

use std::{fmt, str::FromStr};

use rand_core::TryCryptoRng;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A UUID in its 36-character lower-case text: UIDs of objects and generations, boot IDs.
///
/// The nil UUID is refused: where a boot ID should be, it is a sign that the kubelet has not reported it yet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uid([u8; 36]);

/// The text is not a UUID that can be used as an identity.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID: 36 characters of lower-case hexadecimal digits and hyphens, not all zero")]
pub struct InvalidUid;

impl Uid {
    const HYPHENS: [usize; 4] = [8, 13, 18, 23];

    /// A random (version 4) UUID from 16 random bytes (RFC 9562, section 5.4).
    #[must_use]
    pub fn from_random(mut random: [u8; 16]) -> Self {
        random[6] = random[6] & 0x0f | 0x40;
        random[8] = random[8] & 0x3f | 0x80;
        let mut digits = random
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 15])
            .map(|d| b"0123456789abcdef"[usize::from(d)]);
        let mut text = [b'-'; 36];
        for (at, place) in text.iter_mut().enumerate() {
            if !Self::HYPHENS.contains(&at) {
                *place = digits.next().unwrap_or(b'0');
            }
        }
        Self(text)
    }

    /// A random (version 4) UUID.
    ///
    /// # Errors
    /// The random number generator's.
    pub fn generate<R: TryCryptoRng>(rng: &mut R) -> Result<Self, R::Error> {
        let mut random = [0; 16];
        rng.try_fill_bytes(&mut random)?;
        Ok(Self::from_random(random))
    }

    /// The text's bytes, as they enter the key derivation.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 36] {
        &self.0
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).expect("only ASCII passes from_str and from_random")
    }
}

impl FromStr for Uid {
    type Err = InvalidUid;

    fn from_str(text: &str) -> Result<Self, InvalidUid> {
        let bytes: [u8; 36] = text.as_bytes().try_into().map_err(|_| InvalidUid)?;
        let shaped = bytes.iter().enumerate().all(|(at, byte)| match byte {
            b'-' => Self::HYPHENS.contains(&at),
            b'0'..=b'9' | b'a'..=b'f' => !Self::HYPHENS.contains(&at),
            _ => false,
        });
        let nil = bytes.iter().all(|byte| matches!(byte, b'-' | b'0'));
        if shaped && !nil { Ok(Self(bytes)) } else { Err(InvalidUid) }
    }
}

impl JsonSchema for Uid {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Uid".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "minLength": 36, "maxLength": 36})
    }
}

impl TryFrom<String> for Uid {
    type Error = InvalidUid;

    fn try_from(text: String) -> Result<Self, InvalidUid> {
        text.parse()
    }
}

impl From<Uid> for String {
    fn from(uid: Uid) -> Self {
        uid.as_str().to_owned()
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_the_kernel_and_kubernetes_write() {
        let text = "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6d";
        assert_eq!(text.parse::<Uid>().unwrap().as_str(), text);
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            "unknown",
            "00000000-0000-0000-0000-000000000000",
            "0F3C9B1E-8D1F-4C57-9B43-5A9F3F1F2B6D",
            "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6",
            "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6d\n",
            "0f3c9b1e08d1f04c5709b4305a9f3f1f2b6d",
            "-f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6d",
        ] {
            assert_eq!(text.parse::<Uid>(), Err(InvalidUid), "{text:?}");
        }
    }

    #[test]
    fn random_ones_are_version_4() {
        let uid = Uid::from_random([0xff; 16]);
        assert_eq!(uid.as_str(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(uid.as_str().parse(), Ok(uid));
    }
}
