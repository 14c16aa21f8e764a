//! A manager, its clocks, and what it says.

use std::time::{Duration, Instant};

use jiff::SignedDuration;
use prometheus_client::{encoding::text::encode, registry::Registry};
use rand::{TryRng, rngs::SysRng};
use secureoverlay_k8s::{object::Object, watch::Update};
use secureoverlay_keyring::{
    keyring::Role,
    settings::{EnforcementGoal, Settings},
};
use secureoverlay_manager::{
    io::{
        cluster_cache::ClusterCache,
        outbox::{self, Notice},
    },
    run::driver::{Driver, Random, ReconcileError},
    telemetry::metrics::Metrics,
};
use secureoverlay_manager_core::{
    controller::{ControllerOptions, Now, Outcome},
    notification::EventReason,
    rollout_mode::RolloutMode,
};
use serde_json::json;
use tokio::sync::mpsc::Receiver;

use super::Fake;

pub const DELAY: Duration = Duration::from_secs(180);
pub const INTERVAL: Duration = Duration::from_secs(12 * 3600);
pub const LIMIT: Duration = Duration::from_secs(3600);

pub struct Bench {
    pub fake: Fake,
    pub driver: Driver,
    pub now: Now,
    pub cluster: ClusterCache,
    notices: Receiver<Notice>,
    registry: Registry,
}

impl Bench {
    /// With the mode that the manager chooses by its rights.
    pub fn new(fake: &Fake) -> Self {
        Self::with(fake, options())
    }

    pub fn with(fake: &Fake, options: Options) -> Self {
        let now = Now { wall: "2026-11-20T03:00:00Z".parse().unwrap(), monotonic: Instant::now() };
        let (cluster, (outbox, notices)) = (ClusterCache::default(), outbox::queue());
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let Options { settings, objects, mode, startup_taint, random } = options;
        let options = ControllerOptions {
            settings: (!objects).then_some(settings),
            objects,
            mode,
            delay: DELAY,
            limit: LIMIT,
            poll_interval: Duration::from_secs(2),
            startup_taint: startup_taint.is_some(),
        };
        let client = fake.client();
        let driver = Driver::new(client, options, startup_taint, random, metrics, cluster.clone(), outbox);
        Self { fake: fake.clone(), driver, now, cluster, notices, registry }
    }

    pub async fn turn(&mut self) -> Result<Outcome, ReconcileError> {
        let now = self.now;
        self.driver.reconcile(|| now).await
    }

    pub fn advance(&mut self, by: Duration) {
        self.now.monotonic += by;
        self.now.wall += SignedDuration::try_from(by).unwrap();
    }

    /// Turns until there is nothing to do, and what the ring holds then.
    pub async fn settle(&mut self) -> Vec<Role> {
        while self.turn().await.unwrap() == Outcome::Written {}
        self.fake.ring().generations.iter().map(|generation| generation.role).collect()
    }

    /// With one generation, in use.
    pub async fn steady(fake: &Fake) -> Self {
        let mut bench = Self::new(fake);
        bench.settle().await;
        bench.advance(DELAY);
        assert_eq!(bench.settle().await, [Role::Active]);
        fake.writes();
        bench
    }

    /// The watches bring what is there now.
    pub fn watch(&self) {
        let state = self.fake.state();
        self.cluster.nodes(list(state.nodes.values()));
        self.cluster.peers(list(state.peers.values()));
        self.cluster.encryptions(list(state.encryptions.values()));
        self.cluster.rotations(list(state.rotations.values()));
    }

    /// An operator edits the ClusterEncryption.
    pub fn goal(&self, goal: &str) {
        let metadata = json!({"name": "default", "resourceVersion": "1", "generation": 1});
        let object = json!({"metadata": metadata, "spec": {"enforcement": goal}});
        self.cluster.settings(list([object].iter()));
    }

    /// What was told is carried out.
    pub async fn deliver(&mut self) {
        let (outbox, receiver) = outbox::queue();
        self.told().into_iter().for_each(|notice| outbox.put(notice));
        drop(outbox);
        outbox::deliver(self.fake.client(), receiver).await;
        self.watch();
    }

    /// A metric, `secureoverlay_manager_` left out.
    pub fn metric(&self, name: &str) -> i64 {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        let line = format!("secureoverlay_manager_{name} ");
        let value = text.lines().find_map(|text| text.strip_prefix(&line));
        value.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
    }

    /// What was told since the last call.
    pub fn told(&mut self) -> Vec<Notice> {
        std::iter::from_fn(|| self.notices.try_recv().ok()).collect()
    }

    /// The Events among it.
    pub fn events(&mut self) -> Vec<EventReason> {
        let reason = |notice| match notice {
            Notice::Event { reason, .. } => Some(reason),
            Notice::Delete(_) | Notice::RemoveTaint { .. } | Notice::Write(_) => None,
        };
        self.told().into_iter().filter_map(reason).collect()
    }
}

fn list<'v, T: secureoverlay_k8s::object::Content>(
    objects: impl Iterator<Item = &'v serde_json::Value>,
) -> Update<T> {
    Update::List { objects: objects.cloned().map(Object::read).collect(), went_back: false }
}

/// What tests change.
pub struct Options {
    pub settings: Settings,
    /// Operators ask by objects; `settings` do not count then.
    pub objects: bool,
    pub mode: RolloutMode,
    /// Its key.
    pub startup_taint: Option<String>,
    pub random: Random,
}

pub fn options() -> Options {
    Options {
        settings: Settings { enforcement: EnforcementGoal::Permissive, ..Settings::default() },
        objects: false,
        mode: RolloutMode::Auto,
        startup_taint: None,
        random: |bytes| SysRng.try_fill_bytes(bytes),
    }
}
