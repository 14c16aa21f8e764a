//! Nodes that take no part: `docs/rotation.md`, section 9.

use std::collections::BTreeSet;

use secureoverlay_keyring::{
    address::NodeAddress,
    keyring::{Excluded, MAX_EXCLUDED, is_node_name},
    peer::EncryptionPeerSpec,
};

use crate::NodeFacts;

/// Bytes of a document that exclusions may take: the rest of it is never longer than some thousand.
const ROOM: usize = (1 << 20) - (1 << 16);
/// Bytes that an entry takes beside its text: indentation, quotes, line break.
const ENTRY: usize = 8;

/// Exclusions, and what was wrong with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclusions {
    /// As the ring is to hold them.
    pub excluded: Excluded,
    /// Excluded nodes with an address that an included node has, too: it is not excluded.
    pub conflicts: BTreeSet<(String, NodeAddress)>,
    /// Nodes and addresses that the ring has no room for.
    pub left_out: usize,
}

/// The exclusions that labels of the Nodes ask for. `peers`: what is announced, by the Node's name.
#[must_use]
pub fn exclusions<'p>(
    nodes: &[NodeFacts],
    peers: impl Iterator<Item = (&'p str, &'p EncryptionPeerSpec)>,
) -> Exclusions {
    let names: BTreeSet<&str> =
        nodes.iter().filter(|node| node.excluded).map(|node| node.name.as_str()).collect();
    if names.is_empty() {
        return Exclusions::default();
    }
    let (mut excluded, mut included) = (BTreeSet::new(), BTreeSet::new());
    let mut add = |name: &str, addresses: &mut dyn Iterator<Item = NodeAddress>| {
        for address in addresses {
            if names.contains(name) {
                excluded.insert((address, name.to_owned()));
            } else {
                included.insert(address);
            }
        }
    };
    for node in nodes {
        add(&node.name, &mut node.addresses.iter().copied());
    }
    for (name, spec) in peers {
        add(name, &mut spec.senders.iter().map(|sender| sender.address));
    }
    let (conflicts, alone): (BTreeSet<_>, BTreeSet<_>) =
        excluded.into_iter().partition(|(address, _)| included.contains(address));
    let addresses = alone.into_iter().map(|(address, _)| address).collect();
    let names = names.into_iter().filter(|name| is_node_name(name)).map(str::to_owned).collect();
    let (excluded, left_out) = fitting(names, addresses);
    let conflicts = conflicts.into_iter().map(|(address, name)| (name, address)).collect();
    Exclusions { excluded, conflicts, left_out }
}

/// As much as a ring can hold.
fn fitting(nodes: BTreeSet<String>, addresses: BTreeSet<NodeAddress>) -> (Excluded, usize) {
    let (all, mut room) = (nodes.len() + addresses.len(), ROOM);
    let mut fits = |len: usize| {
        let left = room.checked_sub(len + ENTRY);
        room = left.unwrap_or(room);
        left.is_some()
    };
    let addresses: BTreeSet<NodeAddress> =
        addresses.into_iter().take(MAX_EXCLUDED).filter(|address| fits(address.to_string().len())).collect();
    let nodes: BTreeSet<String> =
        nodes.into_iter().take(MAX_EXCLUDED).filter(|name| fits(name.len())).collect();
    let left_out = all - nodes.len() - addresses.len();
    (Excluded { nodes, addresses }, left_out)
}

#[cfg(test)]
mod tests {
    use secureoverlay_keyring::keyring::{Enforcement, KeyRing, MAX_LEN, Role};

    use super::*;
    use crate::testing::{address, node, ring, spec};

    fn excluded(name: &str, last: u8) -> NodeFacts {
        NodeFacts { excluded: true, ..node(name, last) }
    }

    #[test]
    fn addresses_of_included_nodes_are_never_excluded() {
        let nodes = [excluded("a", 1), node("b", 2)];
        // What the excluded one announces beside its own: the address of b.
        let (a, b) = (spec(1, &[11, 2]), spec(2, &[12]));
        let found = exclusions(&nodes, [("a", &a), ("b", &b)].into_iter());
        assert_eq!(found.excluded.nodes, ["a".to_owned()].into());
        assert_eq!(found.excluded.addresses, [address(1), address(11)].into());
        assert_eq!(found.conflicts, [("a".to_owned(), address(2))].into());
        let found = exclusions(&nodes[1..], [("b", &b)].into_iter());
        assert_eq!(found, Exclusions::default());
    }

    #[test]
    fn exclusions_that_do_not_fit_are_left_out() {
        // Names of one label may have 63 characters only; these have 253 bytes, in four labels.
        let longest = |n: usize| format!("{n:05}{}.{1}.{1}.{1}", "a".repeat(56), "a".repeat(63));
        let nodes: Vec<NodeFacts> = (0..12_000).map(|n| excluded(&longest(n), 1)).collect();
        let found = exclusions(&nodes, std::iter::empty());
        assert_eq!(found.excluded.nodes.len() + 1 + found.left_out, 12_001);
        let ring = ring(Enforcement::Permissive, &[Role::Active]);
        let ring = KeyRing { excluded: found.excluded, ..ring };
        assert!(found.left_out > 7_000 && ring.to_yaml().len() <= MAX_LEN, "{}", ring.to_yaml().len());
    }
}
