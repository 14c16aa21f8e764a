//! Wire scheme, version 1: how SA keys and SPIs come from the ring.
//!
//! A ring key is never an SA key: the kernel derives its IVs from sequence numbers, so two SAs with one AES key
//! would repeat nonces. Every pair of nodes, direction, generation, boot and incarnation gets a key of its own
//! (HKDF-SHA256, RFC 5869).

use std::net::IpAddr;

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::{ring::Generation, secret::SecretBytes, suite::Suite, uid::Uid};

const SALT: &[u8] = b"secureoverlay/1";
/// SPIs up to 255 are reserved (RFC 4303, section 2.1).
const FIRST_SPI: u32 = 256;

/// One end of a pair: a node as the key derivation sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct End {
    /// The node's tunnel address.
    pub addr: IpAddr,
    /// UID of its Node object.
    pub node: Uid,
    /// Boot ID of its kernel.
    pub boot: Uid,
}

impl End {
    fn info(&self, incarnation: u32) -> [u8; 92] {
        let mut info = [0; 92];
        info[..16].copy_from_slice(&addr16(self.addr));
        info[16..52].copy_from_slice(self.node.as_bytes());
        info[52..88].copy_from_slice(self.boot.as_bytes());
        info[88..].copy_from_slice(&incarnation.to_be_bytes());
        info
    }
}

/// IPv4 as IPv4-mapped IPv6 (RFC 4291, section 2.5.5.2).
fn addr16(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The derivations of one generation, with what all of them have in common done once.
#[derive(Clone)]
pub struct Derivation<'g> {
    generation: &'g Generation,
    spis: Hmac<Sha256>,
    keys: Hkdf<Sha256>,
}

impl<'g> Derivation<'g> {
    /// Prepares the derivations of `generation`.
    #[must_use]
    pub fn new(generation: &'g Generation) -> Self {
        Self {
            generation,
            spis: Hmac::new_from_slice(generation.spi_seed.expose()).expect("HMAC takes keys of any length"),
            keys: Hkdf::new(Some(SALT), generation.key.expose()),
        }
    }

    /// The generation that they are for.
    #[must_use]
    pub const fn generation(&self) -> &'g Generation {
        self.generation
    }

    /// The SPI with which the node at `src` sends, the same toward all receivers.
    #[must_use]
    pub fn spi(&self, src: &End) -> u32 {
        self.spi_of(src.addr, &src.node)
    }

    /// [`Self::spi`], which does not depend on the boot.
    #[must_use]
    pub fn spi_of(&self, addr: IpAddr, node: &Uid) -> u32 {
        let mut mac = self.spis.clone();
        mac.update(&addr16(addr));
        mac.update(&self.generation.incarnation(node).to_be_bytes());
        let digest = mac.finalize().into_bytes();
        let hash = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
        FIRST_SPI + hash % (u32::MAX - FIRST_SPI + 1)
    }

    /// Key and salt of the SA from `src`, which sends with `spi`, to `dst`, as the kernel takes them: AES key, then
    /// 4 bytes of salt.
    #[must_use]
    pub fn sa_key(&self, src: &End, dst: &End, spi: u32) -> SecretBytes {
        let generation = self.generation;
        let spi = spi.to_be_bytes();
        let info: [&[u8]; 6] = [
            generation.suite.name().as_bytes(),
            &[0],
            generation.uid.as_bytes(),
            &src.info(generation.incarnation(&src.node)),
            &dst.info(generation.incarnation(&dst.node)),
            &spi,
        ];
        SecretBytes::try_fill(generation.suite.key_len() + Suite::SALT_LEN, |okm| {
            self.keys.expand_multi_info(&info, okm)
        })
        .expect("36 bytes at most, HKDF-SHA256 gives 8160")
    }
}

/// [`Derivation::spi`] for one.
#[must_use]
pub fn spi(generation: &Generation, src: &End) -> u32 {
    Derivation::new(generation).spi(src)
}

/// [`Derivation::sa_key`] for one.
#[must_use]
pub fn sa_key(generation: &Generation, src: &End, dst: &End) -> SecretBytes {
    let derivation = Derivation::new(generation);
    derivation.sa_key(src, dst, derivation.spi(src))
}

/// [`SecretBytes::fingerprint`].
#[must_use]
pub fn fingerprint(key: &SecretBytes) -> u64 {
    key.fingerprint()
}
