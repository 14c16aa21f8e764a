//! What a node says of itself.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    ring::{Enforcement, Generation},
    rotation::Incarnations,
    uid::Uid,
};

/// What a node says of itself. Everything in it is an identity, so that what is said of a boot, an installation or a
/// generation is never taken for another's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Acknowledgement {
    /// UID of its Node.
    pub node: Uid,
    /// Boot ID of its kernel.
    pub boot: Uid,
    /// UID of the agents' DaemonSet; absent where the agent may not read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation: Option<Uid>,
    /// The generations, by uid, that it receives with from every peer that it knows, and the incarnations (by Node UID)
    /// under which it does.
    #[serde(default)]
    pub receives: BTreeMap<Uid, BTreeMap<Uid, u32>>,
    /// The one generation that it sends with, to every peer; absent while that is none, or more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sends: Option<Uid>,
    /// It sends with no generation at all; absent where it sends with one, or nobody knows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub silent: bool,
    /// Revision of the ring that it has applied.
    #[serde(default)]
    pub revision: u64,
    /// It encrypts to every peer that it knows and that takes part; absent where it does not, to pending or new ones for
    /// instance, or nobody knows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encrypts: bool,
    /// Its own incarnations, by generation, under which it lost SAs and that it can't go on with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub burnt: Incarnations,
    /// Generations that ought to be replaced before their time: an SA of theirs has reached a limit, or two senders have
    /// one SPI.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub spent: BTreeSet<Uid>,
    /// The highest id of a generation that it has seen in this installation.
    #[serde(default)]
    pub newest: u64,
    /// How far it insists: enforcing as long as anything in its kernel does, permissive where SAs are there and nothing
    /// insists.
    #[serde(default)]
    pub enforcement: Enforcement,
    /// Why it would be a lie to insist here, in sentences for people: something lets traffic past the policies.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 400)))]
    pub obstacles: BTreeSet<String>,
    /// Peers, by Node UID, that ESP did not reach, or did not come back from; absent until that was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub unreachable: Option<BTreeSet<Uid>>,
    /// The tunnel's MTU leaves no room for ESP, and it does not want to begin with it before it does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oversized: bool,
}

impl Acknowledgement {
    /// It receives and sends under the incarnations of this very generation.
    pub(crate) fn uses(&self, active: &Generation) -> bool {
        self.receives.get(&active.uid) == Some(&active.incarnations) && self.sends == Some(active.uid)
    }
}
