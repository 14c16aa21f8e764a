//! What a comparison found that a person should know.

use std::fmt;

use crate::xfrm::{PolicyId, SaId};

/// Something in the kernel that stands in the way, or is missing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// An SA that is not ours has the id of one that we need.
    ForeignSa(SaId),
    /// A policy that is not ours has the selector of one that we need.
    ForeignPolicy(PolicyId),
    /// Outbound SAs were removed by another program. Their keys can't be used again.
    LostOutbound(usize),
    /// Inbound SAs were removed by another program, and are made again.
    LostInbound(usize),
    /// SAs of ours that no generation of the ring explains are kept.
    Orphaned(usize),
    /// The journal can't be written, so that no outbound SA may be added.
    Journal(String),
}

impl Finding {
    /// In one word.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::ForeignSa(_) => "ForeignSA",
            Self::ForeignPolicy(_) => "ForeignPolicy",
            Self::LostOutbound(_) => "OutboundSALost",
            Self::LostInbound(_) => "InboundSALost",
            Self::Orphaned(_) => "OrphanedSAs",
            Self::Journal(_) => "StateDirectoryFull",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForeignSa(id) => write!(
                f,
                "an SA that is not ours has {id}, which is needed: the pair can't use this generation; remove the SA \
                 or rotate the keys"
            ),
            Self::ForeignPolicy(id) => {
                write!(f, "a policy that is not ours has the selector {id}: it is left alone; remove it")
            }
            Self::LostOutbound(count) => write!(
                f,
                "{count} outbound SAs were removed by another program; their keys are not used again: this node \
                 announces a new instance, and holds the traffic back until its peers have answered"
            ),
            Self::LostInbound(count) => write!(
                f,
                "{count} inbound SAs were removed by another program and are made again: packets that were recorded \
                 before could be replayed once, until the peer answers"
            ),
            Self::Orphaned(count) => {
                write!(f, "{count} SAs of ours belong to no generation of the ring: kept for now")
            }
            Self::Journal(error) => {
                write!(f, "failed to write the journal: {error}; no outbound SA is added before that works")
            }
        }
    }
}
