//! What unit tests share.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use secureoverlay_keyring::{
    acknowledgement::{Acknowledgement, NodeHash, UnknownGateways, UnprovenPairs},
    address::NodeAddress,
    keyring::{Enforcement, Generation, Identities, KeyRing, Role, SPI_SEED_LEN, Traffic},
    node_key::PublicKey,
    peer::{EncryptionPeerSpec, Instance, Sender},
    secret::SecretBytes,
    settings::Settings,
    suite::Suite,
    uid::Uid,
};

use crate::{AckTracker, Action, ClusterSnapshot, Evidence, NodeFacts, Object, Readiness, RotationMemory};

pub(crate) const NOW: Timestamp = Timestamp::UNIX_EPOCH;

pub(crate) fn uid(n: u8) -> Uid {
    Uid::from_random([n; 16])
}

/// `ackId` of the rings here.
pub(crate) fn ack_id() -> Uid {
    uid(80)
}

/// A ring of an installation with generations 1, 2, … in these roles.
pub(crate) fn ring(enforcement: Enforcement, roles: &[Role]) -> KeyRing {
    let generation = |(id, role): (u8, &Role)| Generation {
        id: id.into(),
        uid: uid(id),
        role: *role,
        suite: Suite::default(),
        traffic: Traffic::Ipip,
        identities: Identities::Announced,
        key: SecretBytes::copy_from(&[id; 16]),
        spi_seed: SecretBytes::copy_from(&[id; SPI_SEED_LEN]),
        created_at: NOW,
        role_since: NOW,
    };
    let generations = (1..).zip(roles).map(generation).collect();
    let ring =
        KeyRing { enforcement, generations, ..KeyRing::off(1, ack_id(), Some(uid(90)), Settings::default()) };
    assert_eq!(KeyRing::parse(ring.to_yaml().as_bytes()).as_ref(), Ok(&ring));
    ring
}

pub(crate) fn address(last: u8) -> NodeAddress {
    format!("192.0.2.{last}").parse().unwrap()
}

/// A Ready node; its uid and address come from `n`.
pub(crate) fn node(name: &str, n: u8) -> NodeFacts {
    NodeFacts {
        name: name.to_owned(),
        uid: Some(uid(100 + n)),
        ready: true,
        excluded: false,
        linux: true,
        addresses: [address(n)].into(),
    }
}

/// What a node announces that sends with instance `instance` at these addresses.
pub(crate) fn spec(instance: u8, addresses: &[u8]) -> EncryptionPeerSpec {
    let sender = |last: &u8| Sender {
        instance: Instance::from(uid(instance)),
        address: address(*last),
        public_key: PublicKey::try_from([instance.max(1); 32]).unwrap(),
    };
    EncryptionPeerSpec {
        node_uid: uid(100),
        senders: addresses.iter().map(sender).collect(),
        pod_networks: BTreeSet::new(),
    }
}

/// A cluster of Ready nodes `n1`, `n2`, … that announce and have acknowledged all that the ring has.
pub(crate) struct Cluster {
    pub(crate) tracker: AckTracker,
    pub(crate) memory: RotationMemory,
    pub(crate) ring: KeyRing,
    pub(crate) nodes: Vec<NodeFacts>,
    pub(crate) peers: BTreeMap<String, Object<EncryptionPeerSpec>>,
    pub(crate) acks: BTreeMap<String, Object<Acknowledgement>>,
    pub(crate) pods: BTreeSet<String>,
    pub(crate) now: Instant,
}

/// How long a node that is not Ready is waited for.
pub(crate) const LIMIT: Duration = Duration::from_secs(3600);

impl Cluster {
    /// `drawn`: this process wrote the ring's `ackId` just now.
    pub(crate) fn new(count: u8, enforcement: Enforcement, roles: &[Role], drawn: bool) -> Self {
        let mut cluster = Self {
            tracker: AckTracker::new(LIMIT),
            memory: RotationMemory::default(),
            ring: ring(enforcement, roles),
            nodes: Vec::new(),
            peers: BTreeMap::new(),
            acks: BTreeMap::new(),
            pods: BTreeSet::new(),
            now: Instant::now() + Duration::from_secs(1_000_000),
        };
        for n in 1..=count {
            cluster.add(n);
        }
        if drawn {
            cluster.memory.handle_written(Action::Stage, None, None, &cluster.ring, cluster.now);
        }
        cluster
    }

    pub(crate) fn name(n: u8) -> String {
        format!("n{n}")
    }

    /// Node `n` comes, announces and acknowledges.
    pub(crate) fn add(&mut self, n: u8) {
        let name = Self::name(n);
        self.nodes.push(node(&name, n));
        self.pods.insert(name.clone());
        let created = Some(NOW + SignedDuration::from_secs(i64::from(n)));
        self.peers.insert(name, Object { uid: Some(uid(200)), created, content: Some(spec(n, &[n])) });
        self.acknowledge(n, |_| ());
    }

    /// Node `n` acknowledges the ring as it is, but for a change.
    pub(crate) fn acknowledge(&mut self, n: u8, change: impl FnOnce(&mut Acknowledgement)) {
        let active = self.ring.active().map(|generation| generation.uid);
        let mut ack = Acknowledgement {
            ack_id: self.ring.ack_id,
            node_uid: uid(100 + n),
            instance: uid(n).into(),
            receivable: self.ring.generations.iter().map(|generation| generation.uid).collect(),
            proven_generations: BTreeSet::new(),
            active_generation: active,
            sends_none: active.is_none(),
            all_pairs_proven: true,
            exhausted_generations: BTreeSet::new(),
            highest_generation_seen: 1,
            enforcement: self.ring.enforcement,
            enforcement_blockers: BTreeSet::new(),
            unproven_pairs: Vec::new(),
            tunnel_mtu_too_large: false,
            unknown_gateways: UnknownGateways::default(),
            no_peers: false,
        };
        change(&mut ack);
        self.acks.insert(Self::name(n), Object { uid: Some(uid(201)), created: None, content: Some(ack) });
    }

    /// Pairs toward `peers` that are not proven with `generation`.
    pub(crate) fn unproven(generation: Uid, peers: &[u8]) -> UnprovenPairs {
        let names: Vec<String> = peers.iter().map(|n| Self::name(*n)).collect();
        UnprovenPairs {
            generation,
            count: u32::try_from(peers.len()).unwrap(),
            hashes: names.iter().map(|name| NodeHash::of(name)).collect(),
            nodes: names.into_iter().collect(),
        }
    }

    pub(crate) fn node(&mut self, n: u8) -> &mut NodeFacts {
        self.nodes.iter_mut().find(|node| node.name == Self::name(n)).unwrap()
    }

    pub(crate) fn snapshot(&self) -> ClusterSnapshot<'_> {
        let Self { ring, nodes, peers, acks, pods, .. } = self;
        ClusterSnapshot { ring: Some(ring), nodes, peers, acks, ready_pods: pods }
    }

    pub(crate) fn after(&mut self, time: Duration) -> Evidence {
        self.now += time;
        self.memory.observe(Some(&self.ring), self.now);
        let Self { tracker, memory, ring, nodes, peers, acks, pods, now } = self;
        let snapshot = ClusterSnapshot { ring: Some(ring), nodes, peers, acks, ready_pods: pods };
        let minimum = Duration::from_secs(300);
        tracker.observe(snapshot, memory, minimum, (*now, NOW))
    }

    pub(crate) fn evidence(&mut self) -> Evidence {
        self.after(Duration::ZERO)
    }
}

/// The numbers of the nodes that are missing; `None` where nothing is missing.
pub(crate) fn missing(readiness: &Readiness) -> Option<Vec<&str>> {
    match readiness {
        Readiness::Waiting(unmet) => Some(unmet.nodes.iter().map(String::as_str).collect()),
        Readiness::Ready | Readiness::After(_) | Readiness::Unknown => None,
    }
}
