//! A ring and peers to make plans from.

use std::net::IpAddr;

use jiff::Timestamp;
use secureoverlay_agent::{
    plan::{Plan, Stage, desired},
    roster::{Peer, Peers},
};
use secureoverlay_common::{
    ring::{Enforcement, Generation, Ring, Role, VERSION},
    secret::SecretBytes,
    suite::Suite,
    uid::Uid,
    wire::End,
};

/// One node of a cluster that enforces encryption.
pub struct Cluster {
    pub local: End,
    pub peers: Peers,
    pub ring: Ring,
}

impl Cluster {
    /// A node with this many peers and one active generation.
    pub fn of(peers: u16) -> Self {
        let peer = |n: u16| {
            let end = end(n);
            (end.addr, Peer { name: format!("node{n}"), end, excluded: false, new: false })
        };
        Self {
            local: end(0),
            peers: (1..=peers).map(peer).collect(),
            ring: Ring {
                version: VERSION,
                revision: 1,
                installation: None,
                enforcement: Enforcement::Enforcing,
                next_rotation: None,
                pending: [].into(),
                generations: vec![generation(1, Role::Active)],
            },
        }
    }

    /// What this node should hold now.
    pub fn plan(&self) -> Plan {
        desired(&self.ring, &self.local, &self.peers, Stage::Normal)
    }

    /// A second generation comes.
    pub fn stage(&mut self) {
        self.ring.generations.push(generation(2, Role::Staged));
    }

    /// The second generation is sent with.
    pub fn activate(&mut self) {
        for generation in &mut self.ring.generations {
            generation.role = if generation.id == 1 { Role::Retiring } else { Role::Active };
        }
    }

    /// The first generation goes.
    pub fn retire(&mut self) {
        self.ring.generations.retain(|generation| generation.id != 1);
    }
}

fn end(n: u16) -> End {
    let [high, low] = n.to_be_bytes();
    let id = |kind| Uid::from_random([kind, high, low, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    End { addr: IpAddr::from([198, 18, high, low]), node: id(1), boot: id(2) }
}

fn generation(id: u8, role: Role) -> Generation {
    let suite = Suite::default();
    Generation {
        id: id.into(),
        uid: Uid::from_random([id; 16]),
        role,
        suite,
        key: SecretBytes::copy_from(&vec![id; suite.key_len()]),
        spi_seed: SecretBytes::copy_from(&[id; 16]),
        created_at: Timestamp::UNIX_EPOCH,
        role_since: Timestamp::UNIX_EPOCH,
        incarnations: [].into(),
    }
}
