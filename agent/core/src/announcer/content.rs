//! What this node's EncryptionPeer should hold.

use secureoverlay_keyring::{
    derivation::Derivation,
    peer::{EncryptionPeerSpec, MAX_POD_NETWORKS, MAX_SENDERS, Sender},
    uid::Uid,
};

use super::{Announcer, Facts, GRACE};
use crate::{Time, entry::Entry, peers::Content, xfrm::SaId};

impl Announcer {
    /// What the object should hold; `None` while this node has no address.
    pub(super) fn wanted(
        &mut self,
        facts: &Facts<'_>,
        node_uid: Uid,
        now: Time,
    ) -> Option<EncryptionPeerSpec> {
        let Facts { identity, network, table, .. } = facts;
        if network.tunnel_addresses.is_empty() {
            return None;
        }
        let own = table.own().and_then(|own| own.content.as_ref().ok());
        let there: &[Sender] = match own {
            Some(Content::Announced(spec)) => &spec.senders,
            _ => &[],
        };
        let mut senders: Vec<Sender> = Vec::new();
        let newest = network.receiving().map(|address| identity.sender(address));
        for sender in newest.take(MAX_SENDERS) {
            senders.push(sender);
        }
        let all_there = senders.iter().all(|sender| there.contains(sender));
        let mut stale = false;
        for former in there.iter().filter(|former| !senders.contains(former)).copied().collect::<Vec<_>>() {
            // SAs from an address that is lost stay with their generation, and nothing is sent with them.
            let needed = former.instance != identity.instance && is_in_use(&former, facts);
            // What nothing needs is taken out with the next write, or by one after a while.
            let leave = !needed && (!all_there || self.stale.is_some_and(|since| since + GRACE <= now));
            stale |= !needed && !leave;
            if !leave && senders.len() < MAX_SENDERS && one_key(&senders, &former) {
                senders.push(former);
            }
        }
        self.stale = stale.then(|| self.stale.unwrap_or(now));
        let pod_networks = network.pod_networks.iter().take(MAX_POD_NETWORKS).copied().collect();
        Some(EncryptionPeerSpec { node_uid, senders, pod_networks })
    }
}

/// An instance has one key.
fn one_key(senders: &[Sender], other: &Sender) -> bool {
    senders.iter().all(|sender| sender.instance != other.instance || sender.public_key == other.public_key)
}

/// Whether the kernel holds an SA that this entry sends with. SPIs need no private key, so this finds entries of an
/// identity that was lost.
fn is_in_use(sender: &Sender, facts: &Facts<'_>) -> bool {
    let (Some(ring), Some(sas)) = (facts.ring, facts.sas) else { return true };
    let entry = Entry::from(sender);
    let derivations: Vec<Derivation<'_>> = ring.generations.iter().map(Derivation::new).collect();
    let mut peers = facts.peers.by_name.values().flat_map(|peer| &peer.entries);
    peers.any(|peer| {
        let path = entry.path_to(peer.endpoint());
        derivations
            .iter()
            .any(|derivation| sas.contains(&SaId { dst: peer.address.ip(), spi: derivation.spi(&path) }))
    })
}
