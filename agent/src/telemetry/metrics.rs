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
use secureoverlay_agent_kernel::xfrm_stat;
use secureoverlay_k8s::node_encryption::Durability;
use secureoverlay_keyring::keyring::{KeyRing, Role};

use crate::{kernel::ReconcileAttempt, network::mtu::Finding, telemetry::ages::Ages};

/// One label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoleLabel {
    role: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeyLabels {
    role: &'static str,
    generation: u64,
    suite: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InterfaceLabel {
    interface: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RuleLabel {
    rule: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WatchLabel {
    watch: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DurabilityLabel {
    durability: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabel {
    version: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CounterLabel {
    counter: String,
}

/// All metrics of the agent. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    ring_valid: Gauge,
    ring_revision: Gauge,
    next_rotation: Gauge,
    keys: Family<KeyLabels, Gauge>,
    role_since: Family<RoleLabel, Gauge>,
    peer_problems: Gauge,
    pairs: Family<StateLabel, Gauge>,
    unproven_pairs: Gauge,
    sas_desired: Gauge,
    policies_desired: Gauge,
    findings: Gauge,
    changes: Counter,
    failed_changes: Counter,
    reconciles: Family<ResultLabel, Counter>,
    reconcile_duration: Option<Histogram>,
    last_success: Gauge,
    tunnel_mtu: Family<InterfaceLabel, Gauge>,
    tunnel_mtu_limit: Family<RuleLabel, Gauge>,
    mtu_valid: Gauge,
    enforcement_blockers: Gauge,
    bypassing_routes: Gauge,
    watch_errors: Family<WatchLabel, Counter>,
    uninstalling: Gauge,
    lost_sas: Counter,
    policy_flushes: Counter,
    unanswered_pairs: Gauge,
    instances_drawn: Counter,
    exhausted_generations: Gauge,
    journal: Family<DurabilityLabel, Gauge>,
    build: Family<VersionLabel, Gauge>,
    probes_ignored: Counter,
    status_writes: Family<ResultLabel, Counter>,
    ages: Ages,
}

impl Metrics {
    /// The metrics, and the registry that they are in.
    #[must_use]
    pub fn new() -> (Self, Registry) {
        let reconcile_duration = Some(Histogram::new(exponential_buckets(0.001, 4.0, 8)));
        let metrics = Self { reconcile_duration, ..Self::default() };
        metrics.build.get_or_create(&VersionLabel { version: env!("CARGO_PKG_VERSION") }).set(1);
        let mut registry = Registry::with_prefix("secureoverlay_agent");
        metrics.register(&mut registry);
        registry.register_collector(Box::new(XfrmCounters));
        registry.register_collector(Box::new(metrics.ages.clone()));
        (metrics, registry)
    }

    fn register(&self, registry: &mut Registry) {
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| registry.register(name, help, gauge.clone());
        gauge("ring_valid", "1 while the source shows a valid key ring", &self.ring_valid);
        gauge("ring_revision", "Revision of the key ring in use", &self.ring_revision);
        gauge(
            "next_rotation_timestamp_seconds",
            "Time of the next rotation, 0 if unknown",
            &self.next_rotation,
        );
        gauge("peer_problems", "Objects of peers that can't be used, see the log", &self.peer_problems);
        gauge(
            "unproven_pairs",
            "Peers that have not answered by ESP with the active generation",
            &self.unproven_pairs,
        );
        gauge(
            "unanswered_pairs",
            "Pairs whose last three pings by the SA that is sent with got no answer",
            &self.unanswered_pairs,
        );
        gauge("sas_desired", "SAs that the kernel should hold", &self.sas_desired);
        gauge("policies_desired", "Policies that the kernel should hold", &self.policies_desired);
        gauge("findings", "Problems found in the kernel, see the log", &self.findings);
        gauge(
            "last_success_timestamp_seconds",
            "Time when the kernel last was as it should be",
            &self.last_success,
        );
        gauge("mtu_valid", "1 while the tunnel's MTU leaves room for encryption", &self.mtu_valid);
        gauge(
            "enforcement_blockers",
            "Reasons why this node can't guarantee encryption, see the log",
            &self.enforcement_blockers,
        );
        gauge(
            "bypassing_routes",
            "Routes to pods of other nodes that bypass the tunnel, unencrypted",
            &self.bypassing_routes,
        );
        gauge(
            "uninstalling",
            "1 while or after everything of ours is removed from this node",
            &self.uninstalling,
        );
        gauge(
            "exhausted_generations",
            "Generations to be replaced because an SA has reached a limit",
            &self.exhausted_generations,
        );
        registry.register(
            "probes_ignored",
            "Packets at the probe ports that were malformed, from no peer, or an answer to nothing",
            self.probes_ignored.clone(),
        );
        registry.register(
            "lost_sas",
            "SAs that other programs removed from the kernel",
            self.lost_sas.clone(),
        );
        registry.register(
            "policy_flushes",
            "Flushes of all policies by other programs, after which they were put back from memory",
            self.policy_flushes.clone(),
        );
        registry.register("instances_drawn", "New instances of this process", self.instances_drawn.clone());
        registry.register("journal_info", "How long used keys are remembered", self.journal.clone());
        registry.register("build_info", "Version of this program", self.build.clone());
        registry.register(
            "status_writes",
            "Attempts to write this node's NodeEncryption",
            self.status_writes.clone(),
        );
        registry.register("pairs", "Pairs with peers by state", self.pairs.clone());
        registry.register("key_info", "Generations of the key ring", self.keys.clone());
        registry.register(
            "key_role_since_timestamp_seconds",
            "Time since when the generation has this role",
            self.role_since.clone(),
        );
        registry.register("changes", "Changes made to the kernel", self.changes.clone());
        registry.register("failed_changes", "Changes that the kernel refused", self.failed_changes.clone());
        registry.register("reconciles", "Comparisons of the kernel with the plan", self.reconciles.clone());
        if let Some(duration) = &self.reconcile_duration {
            registry.register_with_unit(
                "reconcile_duration",
                "Duration of comparisons",
                Unit::Seconds,
                duration.clone(),
            );
        }
        registry.register_with_unit(
            "tunnel_mtu",
            "MTU of the tunnel device",
            Unit::Bytes,
            self.tunnel_mtu.clone(),
        );
        registry.register_with_unit(
            "tunnel_mtu_limit",
            "Largest MTU of the tunnel that fits",
            Unit::Bytes,
            self.tunnel_mtu_limit.clone(),
        );
        registry.register("watch_errors", "Failures to watch the API", self.watch_errors.clone());
    }

    /// Shows the ring in use, and whether the source still shows it, at `now`.
    pub fn ring(&self, ring: Option<&KeyRing>, valid: bool, now: Timestamp) {
        self.ages.ring(ring, now);
        self.ring_valid.set(valid.into());
        self.keys.clear();
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
            let labels = KeyLabels { role, generation: generation.id, suite: generation.suite.name() };
            self.keys.get_or_create(&labels).set(1);
            self.role_since.get_or_create(&RoleLabel { role }).set(generation.role_since.as_second());
        }
    }

    /// Shows how many objects of peers can't be used.
    pub fn peer_problems(&self, count: usize) {
        self.peer_problems.set(gauge(count));
    }

    /// Shows how many pairs there are, and how many of them are pinned and held.
    pub fn pairs(&self, all: usize, with_policy: usize, held: usize) {
        let states = [
            ("pinned", with_policy.saturating_sub(held)),
            ("held", held),
            ("open", all.saturating_sub(with_policy)),
        ];
        for (state, count) in states {
            self.pairs.get_or_create(&StateLabel { state }).set(gauge(count));
        }
    }

    /// Shows how many peers have not answered with the active generation.
    pub fn unproven_pairs(&self, count: u32) {
        self.unproven_pairs.set(count.into());
    }

    /// Shows how many pinned pairs give no answers.
    pub fn unanswered_pairs(&self, count: usize) {
        self.unanswered_pairs.set(gauge(count));
    }

    /// Counts an attempt, which ended at `now` (seconds since 1970).
    pub fn attempt(&self, attempt: &ReconcileAttempt, now: i64) {
        if let Some(duration) = &self.reconcile_duration {
            duration.observe(attempt.took.as_secs_f64());
        }
        let result = match &attempt.run {
            Ok(report) => {
                self.sas_desired.set(gauge(report.planned.0));
                self.policies_desired.set(gauge(report.planned.1));
                self.findings.set(gauge(report.findings.len() + report.refused.len()));
                self.changes.inc_by(report.changed as u64);
                self.failed_changes.inc_by(report.failed.len() as u64);
                self.lost_sas.inc_by(report.lost as u64);
                self.exhausted_generations.set(gauge(report.exhausted.len()));
                if report.is_complete() { "complete" } else { "partial" }
            }
            Err(_) => "failed",
        };
        if result == "complete" {
            self.last_success.set(now);
        }
        self.reconciles.get_or_create(&ResultLabel { result }).inc();
    }

    /// Shows how long used keys are remembered.
    pub fn durability(&self, durability: Durability) {
        let durability = match durability {
            Durability::Unknown => "unknown",
            Durability::Boot => "boot",
            Durability::Volatile => "volatile",
        };
        self.journal.clear();
        self.journal.get_or_create(&DurabilityLabel { durability }).set(1);
    }

    /// Shows the tunnel's MTU.
    pub fn mtu(&self, finding: Option<&Finding>) {
        self.tunnel_mtu.clear();
        self.tunnel_mtu_limit.clear();
        self.mtu_valid.set(finding.is_none_or(Finding::valid).into());
        if let Some(finding) = finding {
            let interface = finding.tunnel.interface.clone();
            self.tunnel_mtu.get_or_create(&InterfaceLabel { interface }).set(finding.tunnel.mtu.into());
            for (rule, limit) in [("mke", finding.bound.mke), ("kernel", finding.bound.kernel)] {
                self.tunnel_mtu_limit.get_or_create(&RuleLabel { rule }).set(limit.into());
            }
        }
    }

    /// Counts a packet at a probe port that is no probe of a peer's.
    pub fn probe_ignored(&self) {
        self.probes_ignored.inc();
    }

    /// Counts a flush of policies by another program.
    pub fn policies_flushed(&self) {
        self.policy_flushes.inc();
    }

    /// Counts a new instance.
    pub fn instance_drawn(&self) {
        self.instances_drawn.inc();
    }

    /// Shows how many things keep this node from enforcing.
    pub fn enforcement_blockers(&self, count: usize) {
        self.enforcement_blockers.set(gauge(count));
    }

    /// Shows how many routes bypass the tunnel.
    pub fn bypassing_routes(&self, count: usize) {
        self.bypassing_routes.set(gauge(count));
    }

    /// Counts a failure to watch `watch`.
    pub fn watch_error(&self, watch: &'static str) {
        self.watch_errors.get_or_create(&WatchLabel { watch }).inc();
    }

    /// Counts an attempt to write this node's NodeEncryption.
    pub fn status_write(&self, result: &'static str) {
        self.status_writes.get_or_create(&ResultLabel { result }).inc();
    }

    /// How many such attempts had this result.
    #[cfg(test)]
    pub fn status_writes(&self, result: &'static str) -> u64 {
        self.status_writes.get_or_create(&ResultLabel { result }).get()
    }

    /// Shows that encryption is taken off this node.
    pub fn uninstalling(&self) {
        self.uninstalling.set(1);
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
    use secureoverlay_agent_core::reconcile::ReconcileReport;

    use super::*;

    #[test]
    fn every_metric_has_the_prefix_and_is_well_formed() {
        let (metrics, registry) = Metrics::new();
        metrics.status_write("written");
        let report = ReconcileReport { changed: 3, lost: 5, planned: (8, 2), ..ReconcileReport::default() };
        metrics.attempt(&ReconcileAttempt { run: Ok(report), took: Duration::from_millis(3) }, 1234);
        metrics.watch_error("nodes");
        metrics.enforcement_blockers(4);
        metrics.bypassing_routes(3);
        metrics.durability(Durability::Boot);
        metrics.pairs(5, 3, 1);
        metrics.policies_flushed();
        metrics.unanswered_pairs(2);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.starts_with("secureoverlay_agent_"), "{line}");
        }
        for line in [
            "secureoverlay_agent_ring_valid 0",
            "secureoverlay_agent_reconciles_total{result=\"complete\"} 1",
            "secureoverlay_agent_reconcile_duration_seconds_count 1",
            "secureoverlay_agent_changes_total 3",
            "secureoverlay_agent_lost_sas_total 5",
            "secureoverlay_agent_policy_flushes_total 1",
            "secureoverlay_agent_unanswered_pairs 2",
            "secureoverlay_agent_sas_desired 8",
            "secureoverlay_agent_enforcement_blockers 4",
            "secureoverlay_agent_bypassing_routes 3",
            "secureoverlay_agent_pairs{state=\"pinned\"} 2",
            "secureoverlay_agent_pairs{state=\"open\"} 2",
            "secureoverlay_agent_journal_info{durability=\"boot\"} 1",
            "secureoverlay_agent_status_writes_total{result=\"written\"} 1",
            "secureoverlay_agent_last_success_timestamp_seconds 1234",
            "secureoverlay_agent_watch_errors_total{watch=\"nodes\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }
}
