//! A manager, its clocks, and what it says.

use std::time::{Duration, Instant};

use jiff::SignedDuration;
use kube::runtime::watcher::Event;
use prometheus_client::{encoding::text::encode, registry::Registry};
use rand::{TryRng, rngs::SysRng};
use secureoverlay_common::{ring::Role, rotation::EnforcementGoal, suite::Suite};
use secureoverlay_manager::{
    cluster::Cluster,
    metrics::Metrics,
    notices::{self, Notice, Reason},
    schedule::Schedule,
    source::Acknowledgements,
    turn::{Manager, Now, Options, Outcome, TurnError},
};
use tokio::sync::mpsc::Receiver;

use super::Fake;

pub const DELAY: Duration = Duration::from_secs(180);
pub const INTERVAL: Duration = Duration::from_secs(12 * 3600);
pub const LIMIT: Duration = Duration::from_secs(3600);

pub struct Bench {
    pub fake: Fake,
    pub manager: Manager,
    pub now: Now,
    pub cluster: Cluster,
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
        let (cluster, (outbox, notices)) = (Cluster::default(), notices::queue());
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let manager = Manager::new(fake.client(), options, metrics, cluster.clone(), outbox);
        Self { fake: fake.clone(), manager, now, cluster, notices, registry }
    }

    pub async fn turn(&mut self) -> Result<Outcome, TurnError> {
        let now = self.now;
        self.manager.turn(|| now).await
    }

    pub fn advance(&mut self, by: Duration) {
        self.now.monotonic += by;
        self.now.wall += SignedDuration::try_from(by).unwrap();
    }

    /// Turns until there is nothing to do, and what the ring holds then.
    pub async fn settle(&mut self) -> Vec<(u64, Role)> {
        while self.turn().await.unwrap() == Outcome::Written {}
        self.fake.ring().generations.iter().map(|generation| (generation.id, generation.role)).collect()
    }

    /// With generation 1 active.
    pub async fn steady(fake: &Fake) -> Self {
        let mut bench = Self::new(fake);
        bench.settle().await;
        bench.advance(DELAY);
        assert_eq!(bench.settle().await, [(1, Role::Active)]);
        fake.writes();
        bench
    }

    /// The watches bring what is there now.
    pub fn watch(&self) {
        let state = self.fake.state();
        self.cluster.nodes(Ok(Event::Init));
        for node in state.nodes.values() {
            self.cluster.nodes(Ok(Event::InitApply(serde_json::from_value(node.clone()).unwrap())));
        }
        self.cluster.nodes(Ok(Event::InitDone));
        self.cluster.encryptions(Ok(Event::Init));
        for object in state.encryptions.values() {
            self.cluster.encryptions(Ok(Event::InitApply(serde_json::from_value(object.clone()).unwrap())));
        }
        self.cluster.encryptions(Ok(Event::InitDone));
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
    pub fn events(&mut self) -> Vec<Reason> {
        let reason = |notice| match notice {
            Notice::Event { reason, .. } => Some(reason),
            Notice::Awaited { .. } | Notice::Lift { .. } => None,
        };
        self.told().into_iter().filter_map(reason).collect()
    }
}

pub fn options() -> Options {
    Options {
        schedule: Schedule::Every(INTERVAL),
        suite: Suite::Aes128Gcm8,
        goal: EnforcementGoal::Permissive,
        acknowledgements: Acknowledgements::Auto,
        delay: DELAY,
        limit: LIMIT,
        startup_taint: None,
        random: |bytes| SysRng.try_fill_bytes(bytes),
    }
}
