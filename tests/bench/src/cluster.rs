//! A ring and peers to make plans from.

use std::{collections::BTreeSet, sync::Arc};

use secureoverlay_agent_core::{
    entry::Entry,
    exclusion::Exclusion,
    identity::{Identity, LocalIdentity},
    network::LocalNetwork,
    pair::PairStates,
    peers::{Peer, Peers},
    plan::{DesiredInput, Plan, Planner, ReconcileTarget},
    teardown::TeardownPhase,
};
use secureoverlay_keyring::{
    address::NodeAddress,
    derivation::EndpointKey,
    keyring::{Enforcement, Generation, Identities, KeyRing, Role, Traffic},
    node_key::NodeKeyPair,
    secret::SecretBytes,
    settings::Settings,
    suite::Suite,
    uid::Uid,
};

/// One node of a cluster that enforces encryption, all of whose pairs are proven.
#[derive(Clone)]
pub struct Cluster {
    ring: KeyRing,
    identity: Arc<LocalIdentity>,
    network: Arc<LocalNetwork>,
    peers: Arc<Peers>,
    pairs: PairStates,
}

impl Cluster {
    /// A node with this many peers and one active generation.
    pub fn of(peers: u16) -> anyhow::Result<Self> {
        let own = address(0)?;
        let peer = |n: u16| {
            let entries = vec![Entry::from(&identity(n)?.sender(address(n)?))];
            anyhow::Ok((format!("node{n}"), Peer { entries }))
        };
        let by_name = (1..=peers).map(peer).collect::<anyhow::Result<_>>()?;
        let generations = vec![generation(1, Role::Active)];
        let ring = KeyRing::off(1, Uid::from_random([9; 16]), None, Settings::default());
        let mut cluster = Self {
            ring: KeyRing { enforcement: Enforcement::Enforcing, generations, ..ring },
            identity: Arc::new(LocalIdentity::Announced(identity(0)?)),
            network: Arc::new(LocalNetwork {
                tunnel_addresses: vec![own],
                all_addresses: BTreeSet::from([own]),
                ..LocalNetwork::default()
            }),
            peers: Arc::new(Peers { by_name, ..Peers::default() }),
            pairs: PairStates::new(),
        };
        cluster.prove();
        Ok(cluster)
    }

    /// How many peers there are.
    pub fn peers(&self) -> usize {
        self.peers.by_name.len()
    }

    /// What this node's kernel is to be brought to now.
    pub fn target(&self) -> ReconcileTarget {
        let input = DesiredInput {
            ring: Arc::new(self.ring.clone()),
            identity: self.identity.clone(),
            network: self.network.clone(),
            peers: self.peers.clone(),
            exclusion: Arc::new(Exclusion::default()),
            pairs: Some(Arc::new(self.pairs.clone())),
            announced: true,
        };
        ReconcileTarget { teardown: TeardownPhase::Inactive, input: Some(input) }
    }

    /// Agrees upon a key with every peer, as a first plan does.
    pub fn agree(&self) -> anyhow::Result<()> {
        let LocalIdentity::Announced(own) = &*self.identity else { return Ok(()) };
        for entry in self.peers.by_name.values().flat_map(|peer| &peer.entries) {
            if let EndpointKey::Public(key) = &entry.key {
                std::hint::black_box(own.key_pair.agree(key)?);
            }
        }
        Ok(())
    }

    /// What it should hold.
    pub fn plan(&self) -> Plan {
        Planner::default().plan(&self.target())
    }

    /// Every peer answers by every SA that there is to send with.
    fn prove(&mut self) {
        for (pair, planned) in self.plan().pairs {
            let state = self.pairs.entry(pair).or_default();
            state.proven.extend(&planned.offered);
            state.pin = planned.plan.offer.active.or(state.pin);
        }
    }

    /// A second generation comes. What is sent with it are pings.
    pub fn stage(&mut self) {
        self.ring.generations.push(generation(2, Role::Staged));
    }

    /// It is proven, and traffic moves to it.
    pub fn activate(&mut self) {
        self.prove();
        for generation in &mut self.ring.generations {
            generation.role = if generation.id == 1 { Role::Retiring } else { Role::Active };
        }
    }

    /// The first generation goes.
    pub fn retire(&mut self) {
        self.prove();
        self.ring.generations.retain(|generation| generation.id != 1);
    }
}

fn address(n: u16) -> anyhow::Result<NodeAddress> {
    let [high, low] = n.to_be_bytes();
    Ok(format!("198.18.{high}.{low}").parse()?)
}

fn identity(n: u16) -> anyhow::Result<Identity> {
    let [high, low] = n.to_be_bytes();
    let mut private = [7; 32];
    // Not the first byte: the lowest three bits of it do not count (RFC 7748, section 5).
    (private[1], private[2]) = (high, low);
    let key_pair = NodeKeyPair::from_private(&SecretBytes::copy_from(&private))?;
    let instance = Uid::from_random([1, high, low, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]).into();
    Ok(Identity { instance, key_pair })
}

fn generation(id: u8, role: Role) -> Generation {
    let suite = Suite::default();
    Generation {
        id: id.into(),
        uid: Uid::from_random([id; 16]),
        role,
        suite,
        traffic: Traffic::Ipip,
        identities: Identities::Announced,
        key: SecretBytes::copy_from(&vec![id; suite.key_len()]),
        spi_seed: SecretBytes::copy_from(&[id; 16]),
        created_at: Default::default(),
        role_since: Default::default(),
    }
}
