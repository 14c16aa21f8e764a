//! What Prometheus sees.

use std::fmt;

use jiff::Timestamp;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use secureoverlay_common::ring::{Ring, Role};

use crate::{ages::Ages, journal::Keeping, kernel::xfrm_stat, mtu::Finding, worker::Attempted};

/// One label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RoleLabel {
    role: &'static str,
}

/// One label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    result: &'static str,
}

/// One label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct InterfaceLabel {
    interface: String,
}

/// One label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RuleLabel {
    rule: &'static str,
}

/// One label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WatchLabel {
    /// What is watched.
    pub watch: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeepingLabel {
    keeping: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CounterLabel {
    counter: String,
}

/// All metrics of the agent. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    ring_valid: Gauge,
    ring_revision: Gauge,
    next_rotation: Gauge,
    generation: Family<RoleLabel, Gauge>,
    role_since: Family<RoleLabel, Gauge>,
    node_problems: Gauge,
    peers_desired: Gauge,
    peers_programmed: Gauge,
    states_desired: Gauge,
    policies_desired: Gauge,
    findings: Gauge,
    changes: Counter,
    failed_changes: Counter,
    reconciles: Family<ResultLabel, Counter>,
    reconcile_seconds: Histogram,
    last_success: Gauge,
    mtu_tunnel: Family<InterfaceLabel, Gauge>,
    mtu_limit: Family<RuleLabel, Gauge>,
    mtu_valid: Gauge,
    obstacles: Gauge,
    astray: Gauge,
    watch_errors: Family<WatchLabel, Counter>,
    removing: Gauge,
    lost: Counter,
    burnt: Gauge,
    spent: Gauge,
    journal: Family<KeepingLabel, Gauge>,
    esp_unreachable: Gauge,
    probes_ignored: Counter,
    acknowledgements: Family<ResultLabel, Counter>,
    ages: Ages,
}

impl Metrics {
    /// The metrics, and the registry that they are in.
    #[must_use]
    pub fn new() -> (Self, Registry) {
        let metrics = Self {
            ring_valid: Gauge::default(),
            ring_revision: Gauge::default(),
            next_rotation: Gauge::default(),
            generation: Family::default(),
            role_since: Family::default(),
            node_problems: Gauge::default(),
            peers_desired: Gauge::default(),
            peers_programmed: Gauge::default(),
            states_desired: Gauge::default(),
            policies_desired: Gauge::default(),
            findings: Gauge::default(),
            changes: Counter::default(),
            failed_changes: Counter::default(),
            reconciles: Family::default(),
            reconcile_seconds: Histogram::new(exponential_buckets(0.001, 4.0, 8)),
            last_success: Gauge::default(),
            mtu_tunnel: Family::default(),
            mtu_limit: Family::default(),
            mtu_valid: Gauge::default(),
            obstacles: Gauge::default(),
            astray: Gauge::default(),
            watch_errors: Family::default(),
            removing: Gauge::default(),
            lost: Counter::default(),
            burnt: Gauge::default(),
            spent: Gauge::default(),
            journal: Family::default(),
            esp_unreachable: Gauge::default(),
            probes_ignored: Counter::default(),
            acknowledgements: Family::default(),
            ages: Ages::default(),
        };
        let mut registry = Registry::with_prefix("secureoverlay_agent");
        metrics.register(&mut registry);
        registry.register_collector(Box::new(XfrmCounters));
        registry.register_collector(Box::new(metrics.ages.clone()));
        (metrics, registry)
    }

    fn register(&self, registry: &mut Registry) {
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| registry.register(name, help, gauge.clone());
        gauge("ring_valid", "1 while the source shows a key ring that counts", &self.ring_valid);
        gauge("ring_revision", "Revision of the key ring that counts", &self.ring_revision);
        gauge(
            "next_rotation_timestamp_seconds",
            "When the next rotation is due, 0 if unknown",
            &self.next_rotation,
        );
        gauge("node_problems", "Nodes that can't be used as they are, see the log", &self.node_problems);
        gauge("peers_desired", "Nodes to encrypt with", &self.peers_desired);
        gauge(
            "peers_programmed",
            "Nodes whose SAs and policies are all in the kernel",
            &self.peers_programmed,
        );
        gauge("states_desired", "SAs that the kernel should hold", &self.states_desired);
        gauge("policies_desired", "Policies that the kernel should hold", &self.policies_desired);
        gauge("findings", "Things in the kernel that stand in the way, see the log", &self.findings);
        gauge(
            "last_success_timestamp_seconds",
            "When the kernel last was as it should be",
            &self.last_success,
        );
        gauge("mtu_valid", "1 while the tunnel's MTU leaves room for encryption", &self.mtu_valid);
        gauge("obstacles", "Things that let traffic past encryption, see the log", &self.obstacles);
        gauge(
            "routes_around_tunnel",
            "Routes to pods of other nodes that lead around the tunnel, unencrypted",
            &self.astray,
        );
        gauge("removing", "1 while or after everything of ours is taken off this node", &self.removing);
        gauge(
            "burnt_generations",
            "Generations for which this node has asked for a new incarnation, because SAs were lost",
            &self.burnt,
        );
        gauge(
            "spent_generations",
            "Generations that this node wants replaced: an SA is past a limit, or two nodes have one SPI",
            &self.spent,
        );
        gauge(
            "esp_unreachable_peers",
            "Peers that ESP probes got no answer from; 0 also while nothing is probed",
            &self.esp_unreachable,
        );
        registry.register(
            "probes_ignored",
            "Packets at the probe port that were malformed, from nobody known, or an answer to nothing",
            self.probes_ignored.clone(),
        );
        registry.register("lost_states", "SAs that somebody else took out of the kernel", self.lost.clone());
        registry.register("journal", "1 for how used keys are remembered", self.journal.clone());
        registry.register(
            "acknowledgement_writes",
            "Attempts to write this node's NodeEncryption",
            self.acknowledgements.clone(),
        );
        registry.register("generation", "Number of the generation with this role", self.generation.clone());
        registry.register(
            "generation_role_since_timestamp_seconds",
            "Since when the generation has this role",
            self.role_since.clone(),
        );
        registry.register("changes", "Changes made to the kernel", self.changes.clone());
        registry.register("failed_changes", "Changes that the kernel refused", self.failed_changes.clone());
        registry.register("reconcile", "Comparisons of the kernel with the plan", self.reconciles.clone());
        registry.register_with_unit(
            "reconcile",
            "Time they took",
            Unit::Seconds,
            self.reconcile_seconds.clone(),
        );
        registry.register_with_unit(
            "mtu_tunnel",
            "MTU of the tunnel device",
            Unit::Bytes,
            self.mtu_tunnel.clone(),
        );
        registry.register_with_unit(
            "mtu_limit",
            "Largest MTU that fits",
            Unit::Bytes,
            self.mtu_limit.clone(),
        );
        registry.register("watch_errors", "Failures to watch the API", self.watch_errors.clone());
    }

    /// Shows the ring that counts, and whether the source still shows it, at `now`.
    pub fn ring(&self, ring: Option<&Ring>, valid: bool, now: Timestamp) {
        self.ages.ring(ring, now);
        self.ring_valid.set(valid.into());
        self.generation.clear();
        self.role_since.clear();
        let Some(ring) = ring else { return };
        self.ring_revision.set(gauge(ring.revision));
        self.next_rotation.set(ring.next_rotation.map_or(0, Timestamp::as_second));
        for generation in &ring.generations {
            let role = match generation.role {
                Role::Retiring => "retiring",
                Role::Active => "active",
                Role::Staged => "staged",
            };
            self.generation.get_or_create(&RoleLabel { role }).set(gauge(generation.id));
            self.role_since.get_or_create(&RoleLabel { role }).set(generation.role_since.as_second());
        }
    }

    /// Shows how many problems the Nodes have.
    pub fn node_problems(&self, count: usize) {
        self.node_problems.set(gauge(count));
    }

    /// Counts an attempt, which ended at `now` (seconds since 1970).
    pub fn attempt(&self, attempted: &Attempted, now: i64) {
        self.states_desired.set(gauge(attempted.states));
        self.policies_desired.set(gauge(attempted.policies));
        self.reconcile_seconds.observe(attempted.took.as_secs_f64());
        let result = match &attempted.run {
            Ok(outcome) => {
                self.peers_desired.set(gauge(outcome.peers_desired));
                self.peers_programmed.set(gauge(outcome.peers_programmed));
                self.findings.set(gauge(outcome.findings.len() + attempted.collisions.len()));
                self.changes.inc_by(outcome.changed as u64);
                self.failed_changes.inc_by(outcome.failed.len() as u64);
                self.lost.inc_by(outcome.lost as u64);
                self.burnt.set(gauge(outcome.burnt.len()));
                self.spent.set(gauge(outcome.spent.len()));
                self.journal.clear();
                if let Some(keeping) = outcome.journal.map(Keeping::name) {
                    self.journal.get_or_create(&KeepingLabel { keeping }).set(1);
                }
                if outcome.is_complete() { "complete" } else { "partial" }
            }
            Err(_) => "failed",
        };
        if result == "complete" {
            self.last_success.set(now);
        }
        self.reconciles.get_or_create(&ResultLabel { result }).inc();
    }

    /// Shows the tunnel's MTU.
    pub fn mtu(&self, finding: Option<&Finding>) {
        self.mtu_tunnel.clear();
        self.mtu_limit.clear();
        self.mtu_valid.set(finding.is_none_or(Finding::valid).into());
        if let Some(finding) = finding {
            let interface = finding.tunnel.interface.clone();
            self.mtu_tunnel.get_or_create(&InterfaceLabel { interface }).set(finding.tunnel.mtu.into());
            for (rule, limit) in [("mke", finding.bound.mke), ("kernel", finding.bound.kernel)] {
                self.mtu_limit.get_or_create(&RuleLabel { rule }).set(limit.into());
            }
        }
    }

    /// Shows how many peers ESP does not reach.
    pub fn esp_unreachable(&self, count: usize) {
        self.esp_unreachable.set(gauge(count));
    }

    /// Counts a packet at the probe port that is no probe of a peer's.
    pub fn probe_ignored(&self) {
        self.probes_ignored.inc();
    }

    /// How many such packets there were.
    #[cfg(test)]
    pub fn probes_ignored(&self) -> u64 {
        self.probes_ignored.get()
    }

    /// Shows how many things let traffic past encryption.
    pub fn obstacles(&self, count: usize) {
        self.obstacles.set(gauge(count));
    }

    /// Shows how many routes lead around the tunnel.
    pub fn astray(&self, count: usize) {
        self.astray.set(gauge(count));
    }

    /// Counts a failure to watch `watch`.
    pub fn watch_error(&self, watch: &'static str) {
        self.watch_errors.get_or_create(&WatchLabel { watch }).inc();
    }

    /// Counts an attempt to write this node's NodeEncryption.
    pub fn acknowledgement(&self, result: &'static str) {
        self.acknowledgements.get_or_create(&ResultLabel { result }).inc();
    }

    /// How many such attempts had this result.
    #[cfg(test)]
    pub fn acknowledgements(&self, result: &'static str) -> u64 {
        self.acknowledgements.get_or_create(&ResultLabel { result }).get()
    }

    /// Shows that encryption is taken off this node.
    pub fn removing(&self) {
        self.removing.set(1);
    }
}

fn gauge(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

/// The kernel's own counters of packets that IPsec dropped, read at each scrape.
#[derive(Debug)]
struct XfrmCounters;

impl Collector for XfrmCounters {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        // Kernels without CONFIG_XFRM_STATISTICS have none.
        let Ok(counters) = xfrm_stat() else { return Ok(()) };
        let help =
            "Packets that the kernel's IPsec dropped, by its own name for the reason (/proc/net/xfrm_stat)";
        let mut metric = encoder.encode_descriptor("xfrm_drops", help, None, MetricType::Counter)?;
        for (counter, value) in counters {
            ConstCounter::new(value).encode(metric.encode_family(&CounterLabel { counter })?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::reconcile::Outcome;

    #[test]
    fn every_metric_has_the_prefix_and_is_well_formed() {
        let (metrics, registry) = Metrics::new();
        metrics.ring(Some(&Ring::off(7, None)), true, Timestamp::now());
        metrics.acknowledgement("written");
        let outcome = Outcome {
            changed: 3,
            peers_desired: 2,
            peers_programmed: 2,
            lost: 5,
            journal: Some(Keeping::File),
            ..Outcome::default()
        };
        let took = Duration::from_millis(3);
        metrics
            .attempt(&Attempted { run: Ok(outcome), states: 8, policies: 2, collisions: vec![], took }, 1234);
        metrics.watch_error("nodes");
        metrics.obstacles(4);
        metrics.astray(3);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.starts_with("secureoverlay_agent_"), "{line}");
        }
        for line in [
            "secureoverlay_agent_ring_revision 7",
            "secureoverlay_agent_ring_valid 1",
            "secureoverlay_agent_reconcile_total{result=\"complete\"} 1",
            "secureoverlay_agent_reconcile_seconds_count 1",
            "secureoverlay_agent_changes_total 3",
            "secureoverlay_agent_lost_states_total 5",
            "secureoverlay_agent_obstacles 4",
            "secureoverlay_agent_routes_around_tunnel 3",
            "secureoverlay_agent_journal{keeping=\"file\"} 1",
            "secureoverlay_agent_acknowledgement_writes_total{result=\"written\"} 1",
            "secureoverlay_agent_last_success_timestamp_seconds 1234",
            "secureoverlay_agent_watch_errors_total{watch=\"nodes\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }
}
