//! Why an identity is drawn anew, and how: with SPIs that no other sender has.

use std::collections::BTreeSet;

use rand_core::TryCryptoRng;
use secureoverlay_keyring::{address::NodeAddress, derivation::Derivation, keyring::KeyRing, peer::Instance};

use super::Facts;
use crate::{entry::Entry, identity::Identity};

/// Tries to find an instance without an SPI of another sender.
const SPI_DRAWS: usize = 100;

/// Why an identity is drawn anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DrawCause {
    /// The virtual machine was copied or put back.
    NewVmGeneration,
    /// An entry that this boot never wrote is in the object that it wrote.
    StrangeEntry,
    /// An older object of another node lists this instance or key.
    Duplicate,
    /// An outbound key is needed that was used, and its SA is missing.
    LostOutbound,
    /// Its SPI is that of another sender.
    SpiCollision,
    /// A peer does not hear an SA that it is sent to with.
    DeadSa,
}

impl DrawCause {
    /// In one word.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NewVmGeneration => "NewVMGeneration",
            Self::StrangeEntry => "StrangeEntry",
            Self::Duplicate => "DuplicateIdentity",
            Self::LostOutbound => "OutboundSALost",
            Self::SpiCollision => "SPICollision",
            Self::DeadSa => "DeadSA",
        }
    }

    /// Whether the key pair is drawn anew, too.
    const fn both(self) -> bool {
        matches!(self, Self::NewVmGeneration | Self::StrangeEntry | Self::Duplicate)
    }
}

/// Whether an entry of this node has an SPI, under any generation, that one of the others has.
#[must_use]
pub fn collides<'e>(
    ring: &KeyRing,
    instance: Instance,
    addresses: &[NodeAddress],
    others: impl Iterator<Item = &'e Entry>,
) -> bool {
    let derivations: Vec<Derivation<'_>> = ring.generations.iter().map(Derivation::new).collect();
    let offsets = |instance: Instance, address: NodeAddress| {
        derivations
            .iter()
            .map(move |derivation| (address.ip().is_ipv4(), derivation.sender_offset(&instance, address)))
            .collect::<Vec<_>>()
    };
    let own: BTreeSet<(bool, u32)> =
        addresses.iter().flat_map(|address| offsets(instance, *address)).collect();
    if own.len() < addresses.len() * derivations.len() {
        return true;
    }
    others
        .filter(|other| other.instance != instance)
        .any(|other| offsets(other.instance, other.address).iter().any(|offset| own.contains(offset)))
}

/// Draws another identity whose SPIs are those of no other sender.
///
/// # Errors
/// The random number generator's.
pub fn draw<R: TryCryptoRng>(
    identity: &Identity,
    cause: DrawCause,
    facts: &Facts<'_>,
    rng: &mut R,
) -> Result<Identity, R::Error> {
    let mut drawn = if cause.both() { Identity::generate(rng)? } else { identity.with_new_instance(rng)? };
    let others = facts.peers.entries();
    for _ in 0..SPI_DRAWS {
        let clash =
            |ring: &KeyRing| collides(ring, drawn.instance, &facts.network.tunnel_addresses, others.keys());
        if !facts.ring.is_some_and(clash) {
            break;
        }
        drawn = drawn.with_new_instance(rng)?;
    }
    Ok(drawn)
}
