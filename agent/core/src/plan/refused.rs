//! Why an entry of a peer has no SA.

use std::fmt;

use secureoverlay_keyring::{address::NodeAddress, uid::Uid};

/// Why there is no SA.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// A peer claims an address of this node.
    OwnAddress {
        /// The peer.
        peer: String,
        /// The address.
        address: NodeAddress,
    },
    /// Two senders have one SPI: the kernel can't tell them apart.
    SpiCollision {
        /// The sender that is programmed.
        programmed: String,
        /// The sender that is not.
        left_out: String,
        /// The generation.
        generation: Uid,
    },
    /// The generation's keys derive from another kind of identity, or the key agreement fails.
    Derivation {
        /// The peer.
        peer: String,
        /// What is wrong.
        error: String,
    },
}

impl Refused {
    /// In one word.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::OwnAddress { .. } => "AddressConflict",
            Self::SpiCollision { .. } => "SPICollision",
            Self::Derivation { .. } => "NoSA",
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnAddress { peer, address } => {
                write!(
                    f,
                    "node {peer} announces {address}, an address of this node: correct one of the two nodes"
                )
            }
            Self::SpiCollision { programmed, left_out, generation } => write!(
                f,
                "nodes {programmed} and {left_out} have one SPI under generation {generation}: {left_out} can't send \
                 encrypted to this node until it has announced a new instance"
            ),
            Self::Derivation { peer, error } => write!(f, "no SA with node {peer}: {error}"),
        }
    }
}
