//! A cluster on the fake: Nodes, and what their agents say.

use std::{collections::BTreeSet, time::Duration};

use secureoverlay_keyring::{
    acknowledgement::{Acknowledgement, UnknownGateways},
    keyring::{
        KeyRing,
        Role::{self, Active, Staged},
    },
    node_key::PublicKey,
    uid::Uid,
};
use secureoverlay_manager_core::controller::Outcome;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Fake,
    bench::{Bench, INTERVAL, Options, options},
};

/// So long a wait is not told of.
pub const QUIET: Duration = Duration::from_secs(15);

pub fn uid(kind: u8, node: usize) -> Uid {
    let mut bytes = [kind; 16];
    bytes[15] = u8::try_from(node).unwrap();
    Uid::from_random(bytes)
}

pub fn name(node: usize) -> String {
    format!("node-{node}")
}

pub fn node(number: usize, ready: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name(number), "uid": uid(1, number), "resourceVersion": "1"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": format!("192.0.2.{number}")}],
            "conditions": [{"type": "Ready", "status": ready}],
            "nodeInfo": {"bootID": uid(2, number)},
        },
    })
}

/// What the agent of `node` announces.
pub fn peer(node: usize) -> Value {
    let key: String = PublicKey::try_from([u8::try_from(node).unwrap(); 32]).unwrap().into();
    let sender = json!({"instance": uid(3, node), "address": format!("192.0.2.{node}"), "publicKey": key});
    json!({
        "apiVersion": "secureoverlay.io/v1alpha1", "kind": "EncryptionPeer",
        "metadata": {"name": name(node), "uid": uid(4, node), "resourceVersion": "1"},
        "spec": {"nodeUid": uid(1, node), "senders": [sender], "podNetworks": []},
    })
}

/// What the agent of `node` acknowledges when it has done all that the ring wants.
pub fn ack(node: usize, ring: &KeyRing) -> Acknowledgement {
    let active = ring.active().map(|active| active.uid);
    Acknowledgement {
        ack_id: ring.ack_id,
        node_uid: uid(1, node),
        instance: uid(3, node).into(),
        receivable: ring.generations.iter().map(|generation| generation.uid).collect(),
        proven_generations: BTreeSet::new(),
        active_generation: active,
        sends_none: active.is_none(),
        all_pairs_proven: true,
        exhausted_generations: BTreeSet::new(),
        highest_generation_seen: ring.active().map_or(0, |active| active.id),
        enforcement: ring.enforcement,
        enforcement_blockers: BTreeSet::new(),
        unproven_pairs: Vec::new(),
        tunnel_mtu_too_large: false,
        unknown_gateways: UnknownGateways::default(),
        no_peers: false,
    }
}

/// A cluster of `nodes` that may be watched, and whose agents are alive.
pub struct Case {
    pub bench: Bench,
    pub nodes: usize,
}

impl Case {
    pub fn new(nodes: usize) -> Self {
        Self::with(nodes, options())
    }

    pub fn with(nodes: usize, options: Options) -> Self {
        let fake = Fake::new();
        fake.state().may_list_nodes = true;
        for number in 1..=nodes {
            fake.state().nodes.insert(name(number), node(number, "True"));
            fake.state().peers.insert(name(number), peer(number));
        }
        let bench = Bench::with(&fake, options);
        bench.watch();
        Self { bench, nodes }
    }

    pub async fn steady(nodes: usize) -> Self {
        let mut case = Self::new(nodes);
        assert_eq!(case.settle().await, [Staged]);
        case.speak();
        assert_eq!(case.settle().await, [Active]);
        case.speak();
        case.settle().await;
        case.bench.told();
        case.fake().calls();
        case
    }

    /// Two generations, the younger one staged.
    pub async fn staged(nodes: usize) -> Self {
        let mut case = Self::steady(nodes).await;
        case.bench.advance(INTERVAL);
        assert_eq!(case.settle().await, [Active, Staged]);
        case.fake().calls();
        case
    }

    pub fn fake(&self) -> &Fake {
        &self.bench.fake
    }

    /// That is the acknowledgement of `node`, readable or not.
    pub fn say(&self, node: usize, ack: impl Serialize) {
        let object = json!({
            "apiVersion": "secureoverlay.io/v1alpha1", "kind": "NodeEncryption",
            "metadata": {"name": name(node), "uid": uid(5, node), "resourceVersion": "1"},
            "spec": {}, "status": {"acknowledgement": json!(ack)},
        });
        self.fake().state().encryptions.insert(name(node), object);
    }

    /// Those agents do what the ring wants, and say so.
    pub fn speak_of(&self, nodes: impl IntoIterator<Item = usize>) {
        let ring = self.fake().ring();
        for node in nodes {
            self.say(node, ack(node, &ring));
        }
        self.bench.watch();
    }

    pub fn speak(&self) {
        self.speak_of(1..=self.nodes);
    }

    pub async fn settle(&mut self) -> Vec<Role> {
        self.bench.settle().await
    }

    /// What the manager waits for.
    pub async fn waits(&mut self) -> String {
        match self.bench.turn().await.unwrap() {
            Outcome::Waiting { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    pub fn annotate(&self, name: &str, value: &str) {
        self.fake().state().secret.as_mut().unwrap()["metadata"]["annotations"][name] = json!(value);
    }

    pub fn annotation(&self, name: &str) -> Option<String> {
        let state = self.fake().state();
        let annotations = &state.secret.as_ref().unwrap()["metadata"]["annotations"];
        annotations[name].as_str().map(str::to_owned)
    }
}
