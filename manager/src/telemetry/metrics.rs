//! What Prometheus sees of the manager.

use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::Registry,
};
use secureoverlay_keyring::keyring::{Enforcement, Generation, KeyRing, Role};
use secureoverlay_rotation::{Cause, NodeCounts, Phase};

/// All metrics. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    ring_valid: Gauge,
    ring_revision: Gauge,
    key_info: Family<KeyLabel, Gauge>,
    phase: Family<PhaseLabel, Gauge>,
    enforcement: Family<EnforcementLabel, Gauge>,
    next_rotation: Gauge,
    last_rotation: Gauge,
    /// Rotations completed: the old generation dropped.
    pub rotations: Counter,
    started: Family<CauseLabel, Counter>,
    /// Rotations failed: the staged generation dropped.
    pub failed: Counter,
    excluded: Gauge,
    missing: Gauge,
    waited: Gauge,
    expected: Gauge,
    acknowledged: Gauge,
    /// Rings put back after something had emptied the Secret.
    pub restored: Counter,
    writes: Family<ResultLabel, Counter>,
    /// Evaluations that ended without a decision.
    pub reconcile_errors: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeyLabel {
    role: &'static str,
    generation: u64,
    suite: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EnforcementLabel {
    enforcement: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteResult {
    /// The API server took it.
    Ok,
    /// Another writer was faster.
    Conflict,
    /// The API server refused, or did not answer.
    Error,
}

impl From<WriteResult> for ResultLabel {
    fn from(result: WriteResult) -> Self {
        let result = match result {
            WriteResult::Ok => "ok",
            WriteResult::Conflict => "conflict",
            WriteResult::Error => "error",
        };
        Self { result }
    }
}

const CAUSES: [(Cause, &str); 7] = [
    (Cause::First, "first"),
    (Cause::Request, "request"),
    (Cause::Restored, "restored"),
    (Cause::Suite, "suite"),
    (Cause::Exhausted, "exhausted"),
    (Cause::Clock, "clock"),
    (Cause::Schedule, "schedule"),
];
const PHASES: [&str; 6] = ["off", "starting", "steady", "staged", "draining", "stopping"];

impl Metrics {
    /// Registers everything under `secureoverlay_manager_`.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("secureoverlay_manager");
        registry.register(
            "ring_valid",
            "1 if the ring in the Secret can be read",
            metrics.ring_valid.clone(),
        );
        registry.register("ring_revision", "Revision of the ring", metrics.ring_revision.clone());
        registry.register("key_info", "1 for each generation in the ring", metrics.key_info.clone());
        registry.register("phase", "1 for the phase that the rotation is in", metrics.phase.clone());
        registry.register(
            "enforcement",
            "1 for how far the ring enforces encryption",
            metrics.enforcement.clone(),
        );
        registry.register("excluded_nodes", "Nodes that the ring excludes", metrics.excluded.clone());
        registry.register(
            "next_rotation_timestamp_seconds",
            "When the next rotation is due",
            metrics.next_rotation.clone(),
        );
        registry.register(
            "last_rotation_timestamp_seconds",
            "Since when the active generation is active",
            metrics.last_rotation.clone(),
        );
        registry.register("rotations", "Rotations completed", metrics.rotations.clone());
        registry.register(
            "rotations_started",
            "Generations made, by what made them due",
            metrics.started.clone(),
        );
        registry.register(
            "rotations_failed",
            "Rotations whose new generation was dropped",
            metrics.failed.clone(),
        );
        registry.register(
            "missing_nodes",
            "Nodes that a rotation or a change of enforcement waits for",
            metrics.missing.clone(),
        );
        registry.register(
            "step_wait_seconds",
            "Time that this step has waited for nodes",
            metrics.waited.clone(),
        );
        registry.register(
            "expected_nodes",
            "Nodes that are Ready, included, and announce",
            metrics.expected.clone(),
        );
        registry.register(
            "acknowledged_nodes",
            "Expected nodes whose acknowledgement counts",
            metrics.acknowledged.clone(),
        );
        registry.register(
            "rings_restored",
            "Rings put back after something had emptied the Secret",
            metrics.restored.clone(),
        );
        registry.register("writes", "Writes of the Secret", metrics.writes.clone());
        registry.register(
            "reconcile_errors",
            "Evaluations of the cluster that ended without a decision",
            metrics.reconcile_errors.clone(),
        );
        registry.register("build", "The program", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        for cause in CAUSES.map(|(_, cause)| cause) {
            drop(metrics.started.get_or_create(&CauseLabel { cause }));
        }
        for result in [WriteResult::Ok, WriteResult::Conflict, WriteResult::Error] {
            drop(metrics.writes.get_or_create(&result.into()));
        }
        metrics
    }

    /// Counts a write.
    pub fn wrote(&self, result: WriteResult) {
        self.writes.get_or_create(&result.into()).inc();
    }

    /// Counts a new generation.
    pub fn started(&self, cause: Cause) {
        let name = CAUSES.iter().find(|(other, _)| *other == cause).map(|(_, name)| *name);
        if let Some(cause) = name {
            self.started.get_or_create(&CauseLabel { cause }).inc();
        }
    }

    /// So many nodes are missing, and some have been for so long.
    pub fn waits(&self, nodes: usize, time: Duration) {
        self.missing.set(nodes.try_into().unwrap_or(i64::MAX));
        self.waited.set(time.as_secs().try_into().unwrap_or(i64::MAX));
    }

    /// So many nodes there are.
    pub fn count(&self, counts: NodeCounts) {
        self.expected.set(counts.expected.try_into().unwrap_or(i64::MAX));
        self.acknowledged.set(counts.acknowledged.try_into().unwrap_or(i64::MAX));
    }

    /// The Secret holds something that can't be read; the figures stay those of the last good ring.
    pub fn unreadable(&self) {
        self.ring_valid.set(0);
    }

    /// The Secret holds `ring`, or nothing yet.
    pub fn show(&self, ring: Option<&KeyRing>) {
        self.ring_valid.set(ring.is_some().into());
        self.ring_revision.set(ring.map_or(0, |ring| ring.revision.try_into().unwrap_or(i64::MAX)));
        self.key_info.clear();
        for generation in ring.iter().flat_map(|ring| &ring.generations) {
            self.key_info.get_or_create(&label(generation)).set(1);
        }
        let phase = phase(Phase::of(ring));
        for other in PHASES {
            self.phase.get_or_create(&PhaseLabel { phase: other }).set((other == phase).into());
        }
        let enforcement = ring.map_or(Enforcement::Off, |ring| ring.enforcement);
        for other in Enforcement::ALL {
            let label = EnforcementLabel { enforcement: other.name() };
            self.enforcement.get_or_create(&label).set((other == enforcement).into());
        }
        let excluded = ring.map_or(0, |ring| ring.excluded.nodes.len());
        self.excluded.set(excluded.try_into().unwrap_or(i64::MAX));
        let seconds = |time: Option<Timestamp>| time.map_or(0, Timestamp::as_second);
        self.next_rotation.set(seconds(ring.and_then(|ring| ring.next_rotation)));
        self.last_rotation.set(seconds(ring.and_then(KeyRing::active).map(|active| active.role_since)));
    }
}

const fn label(generation: &Generation) -> KeyLabel {
    let role = match generation.role {
        Role::Retiring => "retiring",
        Role::Active => "active",
        Role::Staged => "staged",
    };
    KeyLabel { role, generation: generation.id, suite: generation.suite.name() }
}

const fn phase(phase: Phase<'_>) -> &'static str {
    match phase {
        Phase::Empty | Phase::Off => "off",
        Phase::Bootstrapping { .. } | Phase::Resuming { .. } => "starting",
        Phase::Steady { .. } => "steady",
        Phase::Staged { .. } => "staged",
        Phase::Draining { .. } => "draining",
        Phase::Stopping { .. } => "stopping",
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::testing;

    #[test]
    fn names_are_those_in_the_documentation() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let mut ring = testing::ring(Enforcement::Permissive, &[(42, "active")]);
        ring.revision = 3;
        metrics.show(Some(&ring));
        metrics.wrote(WriteResult::Conflict);
        metrics.started(Cause::Schedule);
        metrics.waits(2, Duration::from_millis(61_700));
        metrics.count(NodeCounts { expected: 3, acknowledged: 1, announcing: 3 });
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "secureoverlay_manager_ring_valid 1",
            "secureoverlay_manager_ring_revision 3",
            "secureoverlay_manager_phase{phase=\"steady\"} 1",
            "secureoverlay_manager_key_info{role=\"active\",generation=\"42\",suite=\"aes128gcm8\"} 1",
            "secureoverlay_manager_phase{phase=\"stopping\"} 0",
            "secureoverlay_manager_enforcement{enforcement=\"permissive\"} 1",
            "secureoverlay_manager_enforcement{enforcement=\"enforcing\"} 0",
            "secureoverlay_manager_excluded_nodes 0",
            "secureoverlay_manager_writes_total{result=\"conflict\"} 1",
            "secureoverlay_manager_rotations_total 0",
            "secureoverlay_manager_rotations_failed_total 0",
            "secureoverlay_manager_rotations_started_total{cause=\"request\"} 0",
            "secureoverlay_manager_rotations_started_total{cause=\"schedule\"} 1",
            "secureoverlay_manager_missing_nodes 2",
            "secureoverlay_manager_step_wait_seconds 61",
            "secureoverlay_manager_expected_nodes 3",
            "secureoverlay_manager_acknowledged_nodes 1",
            "secureoverlay_manager_next_rotation_timestamp_seconds 0",
            "secureoverlay_manager_last_rotation_timestamp_seconds 1795143600",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} not in\n{text}");
        }
        metrics.unreadable();
        text.clear();
        encode(&mut text, &registry).unwrap();
        assert!(text.contains("ring_valid 0") && text.contains("ring_revision 3"), "{text}");
    }
}
