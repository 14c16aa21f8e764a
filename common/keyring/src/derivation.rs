//! How SPI and key of every SA come from a generation and the identities of both ends.
//!
//! A ring key is never an SA key: the kernel derives its IVs from sequence numbers, so two SAs with one AES key would
//! repeat nonces. Every direction of every pair gets a key of its own under every generation, and another one with
//! every instance of the sender and every key of the receiver (HKDF-SHA256, RFC 5869).

use std::collections::BTreeMap;

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::{
    address::NodeAddress,
    keyring::{Generation, Identities},
    node_key::{KEY_LEN, PublicKey, SharedSecret},
    peer::{Instance, Sender},
    secret::SecretBytes,
    suite::Suite,
    uid::Uid,
};

/// Names the scheme and its version wherever a hash is taken.
const SCHEME: &[u8] = b"secureoverlay/1";
/// SPIs up to 255 are reserved (RFC 4303, section 2.1).
const FIRST_SPI: u32 = 256;
/// How many SPIs there are, 2³² − 256: what sums of offsets are reduced by.
const SPIS: u64 = (1 << 32) - FIRST_SPI as u64;

/// What stands for an end's key in a derivation: its public key, or the 32 hexadecimal digits of its boot ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointKey {
    /// Under [`Identities::Announced`].
    Public(PublicKey),
    /// Under [`Identities::BootId`].
    BootId(Uid),
}

impl EndpointKey {
    /// The 32 bytes that enter the derivation.
    #[must_use]
    pub fn bytes(&self) -> [u8; KEY_LEN] {
        match self {
            Self::Public(key) => *key.as_bytes(),
            Self::BootId(boot_id) => {
                let mut digits = boot_id.as_bytes().iter().filter(|byte| **byte != b'-');
                std::array::from_fn(|_| *digits.next().expect("a UUID has 32 digits"))
            }
        }
    }

    const fn identities(&self) -> Identities {
        match self {
            Self::Public(_) => Identities::Announced,
            Self::BootId(_) => Identities::BootId,
        }
    }
}

/// One end of an SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Where packets come from, or go to.
    pub address: NodeAddress,
    /// The key of the node there.
    pub key: EndpointKey,
}

impl From<&Sender> for Endpoint {
    fn from(sender: &Sender) -> Self {
        Self { address: sender.address, key: EndpointKey::Public(sender.public_key) }
    }
}

/// One direction of one pair, which has one SA under each generation. Equal values derive equal keys, whatever object
/// lists them; values that differ derive different ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SaPath {
    /// The sender's instance; its boot ID under [`Identities::BootId`].
    pub instance: Instance,
    /// The sender.
    pub src: Endpoint,
    /// The receiver, whose instance does not matter.
    pub dst: Endpoint,
}

impl SaPath {
    /// From an entry of the sender to an entry of the receiver.
    #[must_use]
    pub fn announced(src: &Sender, dst: &Sender) -> Self {
        Self { instance: src.instance, src: src.into(), dst: dst.into() }
    }

    /// Between two nodes of which only addresses and boot IDs are known.
    #[must_use]
    pub fn by_boot_id((src, src_boot): (NodeAddress, Uid), (dst, dst_boot): (NodeAddress, Uid)) -> Self {
        let end = |address, boot_id| Endpoint { address, key: EndpointKey::BootId(boot_id) };
        Self { instance: src_boot.into(), src: end(src, src_boot), dst: end(dst, dst_boot) }
    }
}

/// An SA that was derived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DerivedSa {
    /// Its SPI, at least 256.
    pub spi: u32,
    /// Its key as the kernel takes it: AES key, then 4 bytes of salt (RFC 4106, section 8.1).
    pub key: SecretBytes,
}

/// There is no SA of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DerivationError {
    /// IPv4 to IPv6, or the reverse.
    #[error("no SA between {0} and {1}: an IPv4 and an IPv6 address")]
    Families(NodeAddress, NodeAddress),
    /// The ends are identified in another way than the generation asks for.
    #[error("the generation's identities are {0:?}; an end has another kind")]
    Identities(Identities),
    /// None where one is needed, one where none is, or that of another pair.
    #[error("the shared secret is not that of this pair of nodes")]
    SharedSecret,
}

/// The derivations of one generation, with what all of them have in common done once.
#[derive(Clone)]
pub struct Derivation<'g> {
    generation: &'g Generation,
    /// Keyed with the generation's SPI seed.
    offsets: Hmac<Sha256>,
    /// Keyed with [`SCHEME`], which is HKDF's salt as well.
    scheme: Hmac<Sha256>,
}

impl<'g> Derivation<'g> {
    /// Prepares the derivations of `generation`.
    #[must_use]
    pub fn new(generation: &'g Generation) -> Self {
        Self { generation, offsets: hmac(generation.spi_seed.expose()), scheme: hmac(SCHEME) }
    }

    /// The generation that they are for.
    #[must_use]
    pub const fn generation(&self) -> &'g Generation {
        self.generation
    }

    /// `f`: the sender's part of its SPIs, the same toward all receivers. Two senders collide everywhere or nowhere.
    #[must_use]
    pub fn sender_offset(&self, instance: &Instance, address: NodeAddress) -> u32 {
        offset(self.offsets.clone(), &[b"sender", &address.addr16(), instance.as_bytes()])
    }

    /// The SPI of the SA on `path`.
    #[must_use]
    pub fn spi(&self, path: &SaPath) -> u32 {
        let receiver = keyed_receiver_offset(self.scheme.clone(), &path.dst.key);
        spi(self.sender_offset(&path.instance, path.src.address), receiver)
    }

    /// SPI and key of the SA on `path`; `shared` is the key agreement of both ends under [`Identities::Announced`],
    /// and `None` under [`Identities::BootId`].
    ///
    /// # Errors
    /// The parts do not go together.
    pub fn derive_sa(
        &self,
        path: &SaPath,
        shared: Option<&SharedSecret>,
    ) -> Result<DerivedSa, DerivationError> {
        let SaPath { src, dst, .. } = path;
        if !src.address.same_family(dst.address) {
            return Err(DerivationError::Families(src.address, dst.address));
        }
        let identities = self.generation.identities;
        let shared = match (identities, &src.key, &dst.key, shared) {
            (Identities::Announced, EndpointKey::Public(one), EndpointKey::Public(other), Some(shared))
                if shared.is_between(one, other) =>
            {
                shared.expose()
            }
            (Identities::BootId, EndpointKey::BootId(_), EndpointKey::BootId(_), None) => &[],
            (_, one, other, _) if one.identities() != identities || other.identities() != identities => {
                return Err(DerivationError::Identities(identities));
            }
            _ => return Err(DerivationError::SharedSecret),
        };
        let spi = self.spi(path);
        let key = self.expand(path, shared, spi);
        Ok(DerivedSa { spi, key })
    }

    fn expand(&self, path: &SaPath, shared: &[u8], spi: u32) -> SecretBytes {
        let Generation { suite, uid, key, .. } = self.generation;
        let extract = self.scheme.clone().chain_update(key.expose()).chain_update(shared);
        let prk: Zeroizing<[u8; 32]> = Zeroizing::new(extract.finalize().into_bytes().into());
        let hkdf = Hkdf::<Sha256>::from_prk(&*prk).expect("as long as a hash");
        let info: [&[u8]; 9] = [
            suite.name().as_bytes(),
            &[0],
            uid.as_bytes(),
            path.instance.as_bytes(),
            &path.src.address.addr16(),
            &path.dst.address.addr16(),
            &path.src.key.bytes(),
            &path.dst.key.bytes(),
            &spi.to_be_bytes(),
        ];
        SecretBytes::try_fill(suite.key_len() + Suite::SALT_LEN, |okm| hkdf.expand_multi_info(&info, okm))
            .expect("36 bytes at most, HKDF-SHA256 gives 8160")
    }
}

/// `g`: the receiver's part of the SPIs toward it, the same under all generations.
#[must_use]
pub fn receiver_offset(key: &EndpointKey) -> u32 {
    keyed_receiver_offset(hmac(SCHEME), key)
}

fn keyed_receiver_offset(scheme: Hmac<Sha256>, key: &EndpointKey) -> u32 {
    offset(scheme, &[b"receiver", &key.bytes()])
}

/// The SPI of the SA whose ends have these offsets.
#[must_use]
pub fn spi(sender_offset: u32, receiver_offset: u32) -> u32 {
    let sum = (u64::from(sender_offset) + u64::from(receiver_offset)) % SPIS;
    FIRST_SPI + u32::try_from(sum).expect("below 2³² − 256")
}

fn hmac(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// The first four bytes, most significant first, mod 2³² − 256.
fn offset(mut hmac: Hmac<Sha256>, parts: &[&[u8]]) -> u32 {
    for part in parts {
        hmac.update(part);
    }
    let digest: [u8; 32] = hmac.finalize().into_bytes().into();
    let hash = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    u32::try_from(u64::from(hash) % SPIS).expect("below 2³² − 256")
}

/// A sender under a generation, as receivers tell it apart.
pub type SenderOf = (Uid, Instance, NodeAddress);

/// Senders that receivers could not tell apart: each pair of a sender and a generation whose SPIs are those of an
/// earlier one, toward every receiver, with that earlier one.
///
/// `senders` in the order in which an SPI belongs to them; for one sender, the earlier generation has it.
pub fn collisions<'a>(
    generations: impl IntoIterator<Item = &'a Generation>,
    senders: impl IntoIterator<Item = (Instance, NodeAddress)>,
) -> Vec<(SenderOf, SenderOf)> {
    let derivations: Vec<Derivation<'a>> = generations.into_iter().map(Derivation::new).collect();
    let mut owners: BTreeMap<(bool, u32), SenderOf> = BTreeMap::new();
    let mut collisions = Vec::new();
    for (instance, address) in senders {
        for derivation in &derivations {
            let sender = (derivation.generation.uid, instance, address);
            // An SA is known by destination and SPI, and a sender has destinations of its own family only.
            let key = (address.ip().is_ipv4(), derivation.sender_offset(&instance, address));
            let owner = owners.entry(key).or_insert(sender);
            if *owner != sender {
                collisions.push((sender, *owner));
            }
        }
    }
    collisions
}
