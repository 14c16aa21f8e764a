//! A cluster on the fake: Nodes, and what their agents say.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use secureoverlay_common::{
    acknowledgement::Acknowledgement,
    ring::{
        Ring,
        Role::{self, Active, Staged},
    },
    uid::Uid,
};
use secureoverlay_manager_core::controller::Outcome;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Fake,
    bench::{Bench, INTERVAL, Options, options},
};

/// How long nobody is told of a wait.
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

/// What the agent of `node` says when it has done all that the ring wants.
pub fn word(node: usize, ring: &Ring) -> Acknowledgement {
    Acknowledgement {
        node: uid(1, node),
        boot: uid(2, node),
        installation: None,
        receives: ring.generations.iter().map(|g| (g.uid, g.incarnations.clone())).collect(),
        sends: ring.active().map(|active| active.uid),
        silent: false,
        revision: ring.revision,
        encrypts: ring.active().is_some(),
        burnt: BTreeMap::new(),
        spent: BTreeSet::new(),
        newest: ring.newest(),
        enforcement: ring.enforcement,
        obstacles: BTreeSet::new(),
        unreachable: Some([].into()),
        oversized: false,
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
        }
        let bench = Bench::with(&fake, options);
        bench.watch();
        Self { bench, nodes }
    }

    pub async fn steady(nodes: usize) -> Self {
        let mut case = Self::new(nodes);
        assert_eq!(case.settle().await, [(1, Staged)]);
        case.speak();
        assert_eq!(case.settle().await, [(1, Active)]);
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
        assert_eq!(case.settle().await, [(1, Active), (2, Staged)]);
        case.fake().calls();
        case
    }

    pub fn fake(&self) -> &Fake {
        &self.bench.fake
    }

    /// That is the acknowledgement of `node`, readable or not.
    pub fn say(&self, node: usize, word: impl Serialize) {
        let object = json!({
            "apiVersion": "secureoverlay.io/v1alpha1", "kind": "NodeEncryption",
            "metadata": {"name": name(node), "resourceVersion": "1"},
            "spec": {}, "status": {"acknowledgement": json!(word)},
        });
        self.fake().state().encryptions.insert(name(node), object);
    }

    /// Those agents do what the ring wants, and say so.
    pub fn speak_of(&self, nodes: impl IntoIterator<Item = usize>) {
        let ring = self.fake().ring();
        for node in nodes {
            self.say(node, word(node, &ring));
        }
        self.bench.watch();
    }

    pub fn speak(&self) {
        self.speak_of(1..=self.nodes);
    }

    pub async fn settle(&mut self) -> Vec<(u64, Role)> {
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
