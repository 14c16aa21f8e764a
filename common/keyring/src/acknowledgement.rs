//! `NodeEncryption.status.acknowledgement`: what a node reports to the manager.

use std::{collections::BTreeSet, fmt};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use sha2::{Digest, Sha256};

use crate::{
    address::NodeAddress,
    keyring::{Enforcement, is_node_name},
    peer::Instance,
    uid::Uid,
};

/// Most generations that a node can report about: a ring has no more.
pub const MAX_GENERATIONS: usize = 3;
/// Most blockers that are reported.
pub const MAX_BLOCKERS: usize = 32;
/// Longest reason of a blocker, in bytes.
pub const MAX_REASON: usize = 64;
/// Longest detail of a blocker, in bytes.
pub const MAX_DETAIL: usize = 400;
/// Most names in [`UnprovenPairs::nodes`].
pub const MAX_NAMES: usize = 20;
/// Most addresses in [`UnknownGateways::addresses`].
pub const MAX_ADDRESSES: usize = 20;
/// Most hashes in [`UnprovenPairs::hashes`].
pub const MAX_HASHES: usize = 1000;

/// What a node reports of itself under one `ackId` of the ring. Identities everywhere, so that what was said of one
/// ring, node or generation is never taken for another's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Acknowledgement {
    /// The `ackId` of the ring that it has applied.
    pub ack_id: Uid,
    /// UID of its Node.
    pub node_uid: Uid,
    /// Its newest instance; its boot ID where it announces none.
    pub instance: Instance,
    /// Generations that it receives with from every sender that it knows.
    #[schemars(length(max = 3))]
    pub receivable: BTreeSet<Uid>,
    /// Generations that every pinned pair of this node is proven with.
    #[schemars(length(max = 3))]
    pub proven_generations: BTreeSet<Uid>,
    /// The one generation that it sends with, to every pinned peer; absent while that is none, or more than one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_generation: Option<Uid>,
    /// It sends with no generation at all.
    pub sends_none: bool,
    /// Every peer that takes part has a proven SA pinned: this node sends nothing to them in the clear.
    pub all_pairs_proven: bool,
    /// Generations to be replaced before their time: an SA of theirs has reached a limit.
    #[schemars(length(max = 3))]
    pub exhausted_generations: BTreeSet<Uid>,
    /// The highest id of an active generation that it has applied, 0 for none.
    pub highest_generation_seen: u64,
    /// How far it enforces: enforcing as long as anything in its kernel does.
    pub enforcement: Enforcement,
    /// Reasons why this node cannot guarantee encryption.
    #[schemars(length(max = 32))]
    pub enforcement_blockers: BTreeSet<EnforcementBlocker>,
    /// Pairs that are not proven, for each generation that has any.
    #[schemars(length(max = 3))]
    pub unproven_pairs: Vec<UnprovenPairs>,
    /// The tunnel's MTU leaves no room for ESP.
    pub tunnel_mtu_too_large: bool,
    /// Next hops of tunnel routes that no node announces.
    pub unknown_gateways: UnknownGateways,
    /// It knows no other node.
    pub no_peers: bool,
}

/// Next hops of tunnel routes that no node announces: traffic to them is not encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UnknownGateways {
    /// How many.
    pub count: u32,
    /// Some of them.
    #[schemars(length(max = 20))]
    pub addresses: BTreeSet<NodeAddress>,
}

impl FromIterator<NodeAddress> for UnknownGateways {
    fn from_iter<I: IntoIterator<Item = NodeAddress>>(all: I) -> Self {
        let mut addresses: BTreeSet<NodeAddress> = all.into_iter().collect();
        let count = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        if let Some(first) = addresses.iter().nth(MAX_ADDRESSES).copied() {
            addresses.split_off(&first);
        }
        Self { count, addresses }
    }
}

/// A reason why a node cannot guarantee encryption.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct EnforcementBlocker {
    /// For programs: one word in CamelCase.
    #[schemars(length(min = 1, max = 64))]
    pub reason: String,
    /// For people.
    #[serde(default)]
    #[schemars(length(max = 400))]
    pub detail: String,
}

/// The pairs, from this node to a peer, that are not proven with one generation. For a staged generation pairs count
/// that have an SA pinned; for the active one all do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UnprovenPairs {
    /// The generation.
    pub generation: Uid,
    /// How many.
    pub count: u32,
    /// Names of some of the peers' Nodes.
    #[serde(default)]
    #[schemars(length(max = 20), inner(length(max = 253)))]
    pub nodes: BTreeSet<String>,
    /// All of them by [`NodeHash`], where they are not more than 1,000: base64 of 4 bytes each, in ascending order.
    #[serde(default)]
    pub hashes: NodeHashes,
}

/// The first 4 bytes of the SHA-256 of a Node's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeHash(pub [u8; 4]);

impl NodeHash {
    /// That of this node.
    #[must_use]
    pub fn of(node_name: &str) -> Self {
        let digest: [u8; 32] = Sha256::digest(node_name).into();
        Self([digest[0], digest[1], digest[2], digest[3]])
    }
}

/// A set of nodes by their hashes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeHashes(BTreeSet<NodeHash>);

impl NodeHashes {
    /// The hashes.
    #[must_use]
    pub const fn set(&self) -> &BTreeSet<NodeHash> {
        &self.0
    }

    /// Whether the set has a node of this name, or one with the same hash.
    #[must_use]
    pub fn contains(&self, node_name: &str) -> bool {
        self.0.contains(&NodeHash::of(node_name))
    }
}

impl FromIterator<NodeHash> for NodeHashes {
    fn from_iter<I: IntoIterator<Item = NodeHash>>(hashes: I) -> Self {
        Self(hashes.into_iter().collect())
    }
}

/// The text is not a list of hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("hashes is base64 of at most {MAX_HASHES} times 4 bytes")]
pub struct InvalidHashes;

impl TryFrom<String> for NodeHashes {
    type Error = InvalidHashes;

    fn try_from(text: String) -> Result<Self, InvalidHashes> {
        let bytes = BASE64.decode(text).map_err(|_| InvalidHashes)?;
        let (hashes, []) = bytes.as_chunks::<4>() else { return Err(InvalidHashes) };
        if hashes.len() > MAX_HASHES {
            return Err(InvalidHashes);
        }
        Ok(hashes.iter().copied().map(NodeHash).collect())
    }
}

impl From<NodeHashes> for String {
    fn from(hashes: NodeHashes) -> Self {
        BASE64.encode(hashes.0.iter().flat_map(|hash| hash.0).collect::<Vec<_>>())
    }
}

impl JsonSchema for NodeHashes {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "NodeHashes".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 5336, "pattern": "^[A-Za-z0-9+/]*={0,2}$"})
    }
}

/// Parts that contradict each other or are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAcknowledgement {
    /// A set is larger than what it is about.
    #[error("{field} has {actual} entries; at most {most} are read")]
    TooMany {
        /// The set.
        field: &'static str,
        /// Its size.
        actual: usize,
        /// The largest.
        most: usize,
    },
    /// A text that is empty or too long.
    #[error("a blocker's reason has 1 to {MAX_REASON} bytes, its detail at most {MAX_DETAIL}")]
    Blocker,
    /// Not the name of a node.
    #[error("unprovenPairs names a node whose name is no RFC 1123 subdomain")]
    NodeName,
    /// A generation is both, or is listed twice.
    #[error("generation {0} has unproven pairs twice, or is proven as well")]
    Contradiction(Uid),
    /// A count that is lower than what it counts.
    #[error(
        "unprovenPairs of generation {0} has a count below the number of its nodes or hashes, or no pair at all"
    )]
    Count(Uid),
    /// Sends with a generation, and with none.
    #[error("activeGeneration and sendsNone exclude each other")]
    Sends,
}

impl UnprovenPairs {
    /// How many of them are left when pairs toward the `excused` nodes do not count. Pairs that `hashes` leaves out
    /// count always.
    #[must_use]
    pub fn remaining<'n>(&self, excused: impl IntoIterator<Item = &'n str>) -> u32 {
        let excused = excused.into_iter().filter(|name| self.hashes.contains(name)).count();
        self.count.saturating_sub(u32::try_from(excused).unwrap_or(u32::MAX))
    }

    fn check(&self) -> Result<(), InvalidAcknowledgement> {
        at_most("unprovenPairs.nodes", self.nodes.len(), MAX_NAMES)?;
        at_most("unprovenPairs.hashes", self.hashes.set().len(), MAX_HASHES)?;
        if !self.nodes.iter().all(|name| is_node_name(name)) {
            return Err(InvalidAcknowledgement::NodeName);
        }
        let listed = self.nodes.len().max(self.hashes.set().len()).max(1);
        if usize::try_from(self.count).is_ok_and(|count| count < listed) {
            return Err(InvalidAcknowledgement::Count(self.generation));
        }
        Ok(())
    }
}

impl Acknowledgement {
    /// The unproven pairs of a generation, where it has any.
    #[must_use]
    pub fn unproven(&self, generation: &Uid) -> Option<&UnprovenPairs> {
        self.unproven_pairs.iter().find(|pairs| pairs.generation == *generation)
    }

    /// What reading checks beyond the shape; an agent checks it before it writes.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), InvalidAcknowledgement> {
        at_most("receivable", self.receivable.len(), MAX_GENERATIONS)?;
        at_most("provenGenerations", self.proven_generations.len(), MAX_GENERATIONS)?;
        at_most("exhaustedGenerations", self.exhausted_generations.len(), MAX_GENERATIONS)?;
        at_most("unprovenPairs", self.unproven_pairs.len(), MAX_GENERATIONS)?;
        at_most("unknownGateways.addresses", self.unknown_gateways.addresses.len(), MAX_ADDRESSES)?;
        at_most("enforcementBlockers", self.enforcement_blockers.len(), MAX_BLOCKERS)?;
        for EnforcementBlocker { reason, detail } in &self.enforcement_blockers {
            if reason.is_empty() || reason.len() > MAX_REASON || detail.len() > MAX_DETAIL {
                return Err(InvalidAcknowledgement::Blocker);
            }
        }
        for (at, pairs) in self.unproven_pairs.iter().enumerate() {
            pairs.check()?;
            let generation = pairs.generation;
            let twice = self.unproven_pairs[..at].iter().any(|earlier| earlier.generation == generation);
            if twice || self.proven_generations.contains(&generation) {
                return Err(InvalidAcknowledgement::Contradiction(generation));
            }
        }
        if self.sends_none && self.active_generation.is_some() {
            return Err(InvalidAcknowledgement::Sends);
        }
        Ok(())
    }
}

fn at_most(field: &'static str, actual: usize, most: usize) -> Result<(), InvalidAcknowledgement> {
    if actual > most { Err(InvalidAcknowledgement::TooMany { field, actual, most }) } else { Ok(()) }
}

impl<'de> Deserialize<'de> for Acknowledgement {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Unchecked {
            ack_id: Uid,
            node_uid: Uid,
            instance: Instance,
            #[serde(default)]
            receivable: BTreeSet<Uid>,
            #[serde(default)]
            proven_generations: BTreeSet<Uid>,
            #[serde(default)]
            active_generation: Option<Uid>,
            #[serde(default)]
            sends_none: bool,
            #[serde(default)]
            all_pairs_proven: bool,
            #[serde(default)]
            exhausted_generations: BTreeSet<Uid>,
            #[serde(default)]
            highest_generation_seen: u64,
            enforcement: Enforcement,
            #[serde(default)]
            enforcement_blockers: BTreeSet<EnforcementBlocker>,
            #[serde(default)]
            unproven_pairs: Vec<UnprovenPairs>,
            #[serde(default)]
            tunnel_mtu_too_large: bool,
            #[serde(default)]
            unknown_gateways: UnknownGateways,
            #[serde(default)]
            no_peers: bool,
        }
        let read = Unchecked::deserialize(deserializer)?;
        let acknowledgement = Self {
            ack_id: read.ack_id,
            node_uid: read.node_uid,
            instance: read.instance,
            receivable: read.receivable,
            proven_generations: read.proven_generations,
            active_generation: read.active_generation,
            sends_none: read.sends_none,
            all_pairs_proven: read.all_pairs_proven,
            exhausted_generations: read.exhausted_generations,
            highest_generation_seen: read.highest_generation_seen,
            enforcement: read.enforcement,
            enforcement_blockers: read.enforcement_blockers,
            unproven_pairs: read.unproven_pairs,
            tunnel_mtu_too_large: read.tunnel_mtu_too_large,
            unknown_gateways: read.unknown_gateways,
            no_peers: read.no_peers,
        };
        acknowledgement.check().map_err(D::Error::custom)?;
        Ok(acknowledgement)
    }
}

impl fmt::Display for EnforcementBlocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason, detail } = self;
        if detail.is_empty() { f.write_str(reason) } else { write!(f, "{reason}: {detail}") }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json, to_value};

    use super::*;

    fn uid(n: u8) -> Uid {
        Uid::from_random([n; 16])
    }

    fn unproven(names: &[&str]) -> UnprovenPairs {
        UnprovenPairs {
            generation: uid(2),
            count: names.len().try_into().unwrap(),
            nodes: names.iter().take(MAX_NAMES).map(|name| (*name).to_owned()).collect(),
            hashes: names.iter().take(MAX_HASHES).map(|name| NodeHash::of(name)).collect(),
        }
    }

    fn acknowledgement() -> Acknowledgement {
        Acknowledgement {
            ack_id: uid(9),
            node_uid: uid(8),
            instance: uid(7).into(),
            receivable: [uid(1), uid(2)].into(),
            proven_generations: [uid(1)].into(),
            active_generation: Some(uid(1)),
            sends_none: false,
            all_pairs_proven: true,
            exhausted_generations: [uid(1)].into(),
            highest_generation_seen: 1_796_040_000,
            enforcement: Enforcement::Permissive,
            enforcement_blockers: [EnforcementBlocker {
                reason: "PlaintextBypass".to_owned(),
                detail: "a route to 10.244.3.0/24 leaves by eth1".to_owned(),
            }]
            .into(),
            unproven_pairs: vec![unproven(&["node-3", "node-4"])],
            tunnel_mtu_too_large: false,
            unknown_gateways: ["192.0.2.7".parse().unwrap()].into_iter().collect(),
            no_peers: false,
        }
    }

    #[test]
    fn acknowledgement_is_written_as_it_was_read() {
        let written = to_value(acknowledgement()).unwrap();
        assert_eq!(from_value::<Acknowledgement>(written.clone()).unwrap(), acknowledgement());
        let pairs = &written["unprovenPairs"][0];
        assert_eq!(pairs["nodes"], json!(["node-3", "node-4"]));
        assert_eq!(pairs["hashes"].as_str().unwrap().len(), 12, "base64 of 8 bytes");
        assert_eq!(
            acknowledgement().enforcement_blockers.first().unwrap().to_string(),
            "PlaintextBypass: a route to 10.244.3.0/24 leaves by eth1"
        );
    }

    #[test]
    fn pairs_toward_excused_nodes_do_not_count() {
        let pairs = unproven(&["node-3", "node-4"]);
        assert_eq!(pairs.remaining([]), 2);
        assert_eq!(pairs.remaining(["node-3", "node-5"]), 1);
        assert_eq!(pairs.remaining(["node-3", "node-4", "node-5"]), 0);
        let many = UnprovenPairs { count: 5000, ..pairs };
        assert_eq!(many.remaining(["node-3", "node-4"]), 4998, "those without a hash count");
    }

    #[test]
    fn acknowledgement_that_contradicts_itself_is_refused() {
        let with = |pointer: &str, value: Value| {
            let mut written = to_value(acknowledgement()).unwrap();
            *written.pointer_mut(pointer).unwrap() = value;
            from_value::<Acknowledgement>(written).map_err(|error| error.to_string())
        };
        for (pointer, value) in [
            ("/sendsNone", json!(true)),
            ("/provenGenerations", json!([uid(2)])),
            ("/receivable", json!([uid(1), uid(2), uid(3), uid(4)])),
            ("/unprovenPairs/0/count", json!(1)),
            ("/unprovenPairs/0/nodes", json!(["Node 3"])),
            ("/unprovenPairs/0/nodes", json!((0..21).map(|n| format!("n{n}")).collect::<Vec<_>>())),
            ("/unprovenPairs/0/hashes", json!("AAAA")),
            ("/unprovenPairs/0/hashes", json!("?")),
            ("/unprovenPairs", json!([unproven(&["a"]), unproven(&["b"])])),
            ("/unprovenPairs", json!([UnprovenPairs { count: 0, ..unproven(&[]) }])),
            ("/unknownGateways/addresses", json!(["everywhere"])),
            (
                "/unknownGateways/addresses",
                json!((0..21).map(|n| format!("192.0.2.{n}")).collect::<Vec<_>>()),
            ),
            ("/enforcementBlockers/0/reason", json!("")),
            ("/enforcementBlockers/0/detail", json!("x".repeat(MAX_DETAIL + 1))),
            (
                "/enforcementBlockers",
                json!((0..33).map(|n| json!({"reason": format!("R{n}")})).collect::<Vec<_>>()),
            ),
            ("/ackId", json!("mine")),
            ("/highestGenerationSeen", json!(-1)),
            ("/enforcement", json!("Enforcing")),
        ] {
            assert!(with(pointer, value.clone()).is_err(), "{pointer}: {value}");
        }
        assert!(with("/sendsNone", json!(false)).is_ok());
    }

    #[test]
    fn twenty_of_many_gateways_are_named() {
        let gateways = |count: u8| -> UnknownGateways {
            (0..count).map(|n| format!("192.0.2.{}", n + 1).parse().unwrap()).collect()
        };
        for count in [0, 19, 20, 21, 100] {
            let gateways = gateways(count);
            assert_eq!(gateways.count, u32::from(count));
            assert_eq!(gateways.addresses.len(), usize::from(count).min(MAX_ADDRESSES));
        }
    }

    #[test]
    fn hashes_beyond_the_limit_are_refused() {
        let text = |count: u32| -> String {
            (0..count).map(|n| NodeHash(n.to_be_bytes())).collect::<NodeHashes>().into()
        };
        assert_eq!(text(1000).len(), 5336, "the schema's maxLength");
        assert!(NodeHashes::try_from(text(1000)).is_ok());
        assert_eq!(NodeHashes::try_from(text(1001)), Err(InvalidHashes));
    }
}
