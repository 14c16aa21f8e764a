//! Says what changed: log, health and metrics. Each thing once, when it begins and when it ends.

use std::{collections::BTreeSet, fs, sync::Arc, time::Duration};

use jiff::Timestamp;
use secureoverlay_agent_core::{
    agent::{Agent, IdentityStore},
    announcer::DrawCause,
    plan::ReconcileTarget,
    ring_cache::RingProblem,
    teardown::TeardownPhase,
    xfrm::{PolicyId, SaId},
};
use secureoverlay_daemon::health::{Guard, Health};
use secureoverlay_k8s::node_encryption::Durability;
use secureoverlay_keyring::{
    acknowledgement::EnforcementBlocker,
    keyring::{Enforcement, KeyRing},
};

use crate::{
    clock::now,
    kernel::ReconcileAttempt,
    network::{
        mtu,
        mtu_setting::MtuSetting,
        surroundings::{Surroundings, overruling},
    },
    telemetry::{
        ages,
        heard::Heard,
        metrics::Metrics,
        status::{DesiredStatus, Seen, desired},
        swap::{SwapDevice, swap_devices},
    },
};

/// Of a long list of problems, this many are logged.
const LIST: usize = 20;
/// The kernel's release.
const RELEASE: &str = "/proc/sys/kernel/osrelease";

/// What was said last.
pub struct Reporter {
    metrics: Metrics,
    ring: Guard,
    peers: Guard,
    kernel: Guard,
    state: Guard,
    api: Guard,
    heard: Heard,
    durability: Durability,
    release: String,
    known: Option<Arc<KeyRing>>,
    ring_problem: Option<RingProblem>,
    ring_problem_text: String,
    findings: BTreeSet<String>,
    blockers: BTreeSet<EnforcementBlocker>,
    peer_problems: BTreeSet<String>,
    unproven: BTreeSet<String>,
    kernel_problem: Option<String>,
    phase: TeardownPhase,
    removed: bool,
    mtu_facts: mtu::Facts,
    mtu_setting: MtuSetting,
    mtu: Option<mtu::Finding>,
    mtu_failure: Option<String>,
    surroundings: Option<Surroundings>,
    late: bool,
    instance: String,
    swap: Vec<SwapDevice>,
    /// How often the API server's history went back.
    renewal: u64,
}

impl Reporter {
    /// Registers what the agent's readiness depends on.
    #[must_use]
    pub fn new(health: &Health, metrics: Metrics, heard: Heard) -> Self {
        let task = |name, why: &str| {
            let guard = health.task(name);
            guard.not_ready(why);
            guard
        };
        metrics.mtu(None);
        Self {
            ring: task("ring", "the key ring's source has not answered yet"),
            peers: task("peers", "no list of the peers yet"),
            kernel: task("kernel", "nothing programmed yet"),
            state: task("state", "the state directory is not open yet"),
            api: task("api", "the API server has not answered yet"),
            heard,
            metrics,
            durability: Durability::Unknown,
            release: fs::read_to_string(RELEASE).unwrap_or_default().trim().to_owned(),
            known: None,
            ring_problem: None,
            ring_problem_text: String::new(),
            findings: BTreeSet::new(),
            blockers: BTreeSet::new(),
            peer_problems: BTreeSet::new(),
            unproven: BTreeSet::new(),
            kernel_problem: None,
            phase: TeardownPhase::Inactive,
            removed: false,
            mtu_facts: mtu::Facts::default(),
            mtu_setting: MtuSetting::default(),
            mtu: None,
            mtu_failure: None,
            surroundings: None,
            late: false,
            instance: String::new(),
            swap: Vec::new(),
            renewal: 0,
        }
    }

    /// Takes how long identity and journal last.
    #[must_use]
    pub fn with_durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self.metrics.durability(durability);
        match durability {
            Durability::Boot => self.state.ready(),
            _ => self.state.ready_but("identity and journal last only as long as this process"),
        }
        self
    }

    /// Says what is new about the inputs.
    pub fn inputs<S: IdentityStore>(&mut self, agent: &Agent<S>) {
        let cache = agent.ring_cache();
        // In a removal the Secret goes too: no news.
        if !agent.is_uninstalling()
            && (self.known.as_ref() != cache.ring() || self.ring_problem.as_ref() != cache.problem())
        {
            self.say_ring(agent);
        }
        let (unreadable, left_out) = agent.table().problems();
        let mut problems: BTreeSet<String> =
            unreadable.iter().map(|(name, problem)| format!("node {name}: {problem}")).collect();
        if left_out > 0 {
            problems.insert(format!("{left_out} nodes beyond the limit are left out"));
        }
        self.metrics.peer_problems(problems.len());
        match (agent.table().is_listed(), problems.len()) {
            (false, _) => {}
            (true, 0) => self.peers.ready(),
            (true, count) => self.peers.ready_but(format!("{count} objects can't be used, see the log")),
        }
        changes(
            &mut self.peer_problems,
            problems,
            "object of a peer can't be used",
            "object of a peer is good again",
        );
        let instance = agent.identity().instance().to_string();
        if instance != self.instance {
            if !self.instance.is_empty() {
                let cause = agent.last_draw().map(DrawCause::reason);
                tracing::warn!(instance, cause, "drew a new instance");
                self.metrics.instance_drawn();
            }
            self.instance = instance;
        }
    }

    fn say_ring<S: IdentityStore>(&mut self, agent: &Agent<S>) {
        let (ring, problem) = (agent.ring_cache().ring(), agent.ring_cache().problem());
        if let Some(ring) = ring.filter(|&ring| self.known.as_ref() != Some(ring)) {
            let generations = ring
                .generations
                .iter()
                .map(|generation| format!("{} {:?}", generation.id, generation.role).to_lowercase())
                .collect::<Vec<_>>()
                .join(", ");
            tracing::info!(
                revision = ring.revision,
                enforcement = ring.enforcement.name(),
                generations,
                "new key ring"
            );
        }
        let text = problem.map(ToString::to_string).unwrap_or_default();
        match (problem, &self.ring_problem) {
            (Some(now), before) if before.as_ref() != Some(now) => match ring {
                // As it is until the manager has made the first one.
                None if matches!(now, RingProblem::Absent(_)) => {
                    tracing::info!(problem = text, "no key ring yet");
                }
                None => tracing::warn!(problem = text, "key ring rejected, and there is none from before"),
                Some(kept) => {
                    tracing::warn!(
                        problem = text,
                        kept = kept.revision,
                        "key ring rejected; keeping the last valid revision"
                    );
                }
            },
            (None, Some(_)) => tracing::info!("the key ring is valid"),
            _ => {}
        }
        match (problem, ring) {
            (Some(_), _) => self.ring.not_ready(text.clone()),
            (None, None) => self.ring.not_ready("no key ring yet"),
            (None, Some(ring)) if ring.enforcement == Enforcement::Off => {
                self.ring.ready_but("encryption is off");
            }
            (None, Some(_)) => self.ring.ready(),
        }
        self.metrics.ring(ring.map(Arc::as_ref), problem.is_none() && ring.is_some(), Timestamp::now());
        self.known = ring.cloned();
        self.ring_problem = problem.cloned();
        self.ring_problem_text = text;
        self.say_mtu();
    }

    /// Says that an attempt begins, where it is a step of a teardown.
    pub fn attempt_begins(&mut self, target: &ReconcileTarget) {
        if target.teardown != self.phase {
            match target.teardown {
                TeardownPhase::Inactive => tracing::info!("encryption is on"),
                TeardownPhase::AllowPlaintext => {
                    tracing::info!("switching off: unencrypted packets are accepted again");
                }
                TeardownPhase::StopSending => {
                    tracing::info!("switching off: sending unencrypted, still decrypting");
                }
                TeardownPhase::Removed => {
                    tracing::info!("switching off: removing all SAs and policies of ours");
                }
            }
        }
        self.phase = target.teardown;
    }

    /// Says how an attempt went. Returns policies of other programs that keep this node from enforcing.
    pub fn attempt_ended(&mut self, attempt: &ReconcileAttempt) -> BTreeSet<EnforcementBlocker> {
        self.metrics.attempt(attempt, Timestamp::now().as_second());
        let mut findings: BTreeSet<String> = BTreeSet::new();
        let mut blockers = BTreeSet::new();
        let complete = match &attempt.run {
            Err(error) => {
                findings.insert(error.clone());
                false
            }
            Ok(report) => {
                findings.extend(report.findings.iter().map(ToString::to_string));
                findings.extend(report.refused.iter().map(ToString::to_string));
                findings.extend(report.failed.iter().map(ToString::to_string));
                if report.changed > 0 {
                    tracing::info!(
                        changes = report.changed,
                        failed = report.failed.len(),
                        sas = report.planned.0,
                        policies = report.planned.1,
                        pairs = report.pairs.len(),
                        pinned = report.pins.len(),
                        milliseconds = u64::try_from(attempt.took.as_millis()).unwrap_or(u64::MAX),
                        "programmed the kernel"
                    );
                }
                if report.lost > 0 {
                    tracing::warn!(count = report.lost, "SAs were removed by another program");
                }
                let pairs = report.pairs.keys().flat_map(|pair| {
                    use secureoverlay_agent_core::{plan::policy, xfrm::Direction};
                    [policy(Direction::In, *pair), policy(Direction::Out, *pair)]
                });
                let pairs: Vec<PolicyId> = pairs.collect();
                blockers = overruling(&report.foreign, &pairs.iter().copied())
                    .into_iter()
                    .map(|detail| EnforcementBlocker { reason: "ForeignPolicy".to_owned(), detail })
                    .collect();
                report.is_complete()
            }
        };
        self.kernel_problem = (!complete).then(|| findings.first().cloned().unwrap_or_default());
        changes(&mut self.findings, findings, "the kernel is not as it should be", "finding is over");
        blockers
    }

    /// Says that another program flushed the policies.
    pub fn policies_flushed(&self, put_back: usize, took: Duration) {
        self.metrics.policies_flushed();
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        tracing::warn!(put_back, microseconds, "another program flushed the policies: put back from memory");
    }

    /// Says what follows from an attempt, once the decisions have taken it.
    pub fn attempt_taken<S: IdentityStore>(&mut self, agent: &Agent<S>) {
        if agent.is_removed() && !self.removed {
            tracing::info!("removed: nothing of ours is left in this node's kernel; waiting for the end");
            self.removed = true;
        }
        match (self.findings.len(), &self.kernel_problem) {
            _ if agent.is_removed() => self.kernel.not_ready("removed: encryption was taken off this node"),
            _ if agent.is_uninstalling() => self.kernel.not_ready("encryption is being taken off this node"),
            (_, Some(problem)) => self.kernel.not_ready(problem.clone()),
            (0, None) => self.kernel.ready(),
            (count, None) => self.kernel.ready_but(format!("{count} findings, see the log")),
        }
        if agent.applied().is_some_and(|target| target.input.is_none()) {
            // Nothing is encrypted, and nothing looked at any more.
            self.metrics.bypassing_routes(0);
            self.surroundings = None;
        }
    }

    /// Takes what lets traffic past the policies.
    pub fn surroundings(&mut self, surroundings: Surroundings) {
        let unread = surroundings.unread.as_ref();
        if let Some(error) =
            unread.filter(|_| self.surroundings.as_ref().and_then(|s| s.unread.as_ref()) != unread)
        {
            tracing::debug!(error, "cannot see whether a sysctl takes all interfaces out of IPsec");
        }
        let uncovered = surroundings.coverage.uncovered.iter().map(|uncovered| uncovered.networks.len());
        self.metrics.bypassing_routes(uncovered.sum());
        self.surroundings = Some(surroundings);
    }

    /// Takes the MTUs of this node, or why they could not be read.
    pub fn mtu<S: IdentityStore>(&mut self, agent: &Agent<S>, facts: Result<mtu::Facts, String>) {
        let failure = facts.map(|facts| self.mtu_facts = facts).err();
        if let Some(error) = failure.as_ref().filter(|error| self.mtu_failure.as_ref() != Some(*error)) {
            tracing::warn!(error, "cannot read the MTUs of this node");
        }
        self.mtu_failure = failure;
        self.known = agent.ring_cache().ring().cloned().or(self.known.take());
        self.say_mtu();
    }

    /// Looks whether memory, and with it the private key, may reach a disk.
    pub fn look_at_swap(&mut self) {
        match swap_devices() {
            Ok(devices) => {
                if self.swap.is_empty() && !devices.is_empty() {
                    tracing::warn!("this node swaps: its private key may reach a disk");
                }
                self.swap = devices;
            }
            Err(error) => tracing::debug!(%error, "cannot see whether this node swaps"),
        }
    }

    /// Takes what sets the MTU of the tunnels.
    pub fn mtu_setting<S: IdentityStore>(&mut self, _: &Agent<S>, setting: MtuSetting) {
        self.mtu_setting = setting;
        self.say_mtu();
    }

    fn say_mtu(&mut self) {
        let finding = self.known.as_ref().and_then(|ring| mtu::Finding::new(&self.mtu_facts, ring));
        let finding = finding.map(|finding| finding.advised(&self.mtu_setting));
        if finding == self.mtu {
            return;
        }
        match &finding {
            Some(finding) if finding.valid() => tracing::info!(mtu = finding.tunnel.mtu, "{finding}"),
            Some(finding) => tracing::warn!(mtu = finding.tunnel.mtu, "{finding}"),
            None => {}
        }
        self.metrics.mtu(finding.as_ref());
        self.mtu = finding;
    }

    /// What sets the tunnels' MTU is worth finding out.
    #[must_use]
    pub fn needs_mtu_advice(&self) -> bool {
        self.mtu.as_ref().is_some_and(mtu::Finding::needs_advice)
    }

    /// The tunnel's MTU leaves no room for ESP.
    #[must_use]
    pub fn tunnel_mtu_too_large(&self) -> bool {
        self.mtu.as_ref().is_some_and(|finding| !finding.valid())
    }

    /// Bytes of the largest packet that the tunnel takes.
    #[must_use]
    pub fn tunnel_mtu(&self) -> Option<u16> {
        self.mtu_facts.tunnels.first().and_then(|tunnel| tunnel.mtu.try_into().ok())
    }

    /// Counts a packet at a probe port that is no probe of a peer's.
    pub fn probe_ignored(&self) {
        self.metrics.probe_ignored();
    }

    /// Says which pairs are proven.
    pub fn proofs<S: IdentityStore>(&mut self, agent: &Agent<S>) {
        let Some(ack) = agent.acknowledgement() else { return };
        let (came, went) = ("this node can't guarantee encryption", "blocker is over");
        self.metrics.enforcement_blockers(ack.enforcement_blockers.len());
        let before: BTreeSet<String> = self.blockers.iter().map(ToString::to_string).collect();
        if self.blockers != ack.enforcement_blockers {
            let mut before = before;
            changes(
                &mut before,
                ack.enforcement_blockers.iter().map(ToString::to_string).collect(),
                came,
                went,
            );
            self.blockers.clone_from(&ack.enforcement_blockers);
        }
        let active = agent.applied_ring().and_then(|ring| ring.active());
        let pairs = active.and_then(|active| ack.unproven(&active.uid));
        let count = pairs.map_or(0, |pairs| pairs.count);
        self.metrics.unproven_pairs(count);
        let report = agent.report();
        let held = report.map_or(0, |report| {
            let there = |(pair, spi): &(&_, &u32)| {
                let pair: &secureoverlay_agent_core::pair::PairId = pair;
                report.sas.contains(&SaId { dst: pair.dst.ip(), spi: **spi })
            };
            report.pins.iter().filter(|pin| !there(pin)).count()
        });
        self.metrics.pairs(
            report.map_or(0, |report| report.pairs.len()),
            report.map_or(0, |report| report.pins.len()),
            held,
        );
        self.metrics.unanswered_pairs(agent.proofs().all_unanswered().count());
        let unproven: BTreeSet<String> = pairs.map(|pairs| pairs.nodes.clone()).unwrap_or_default();
        if unproven != self.unproven {
            if unproven.is_empty() {
                tracing::info!("every peer has answered by ESP: traffic to all of them is encrypted");
            } else if self.unproven.is_empty() {
                let names: Vec<&str> = unproven.iter().map(String::as_str).collect();
                tracing::info!(count, nodes = names.join(", "), "peers that have not answered by ESP yet");
            }
            self.unproven = unproven;
        }
    }

    /// The API server's history went back: what is written may be older than what was said.
    pub fn history_went_back(&mut self) {
        tracing::warn!("the API server's history went back: writing this node's objects anew");
        self.renewal += 1;
    }

    /// Says whether the API server was heard lately.
    pub fn look_at_api(&self) {
        match self.heard.lately() {
            None => {}
            Some(true) => self.api.ready(),
            Some(false) => self.api.not_ready("the API server has not been heard for three minutes"),
        }
    }

    /// Says when a rotation is overdue.
    pub fn look_at_clock(&mut self, now: Timestamp) {
        let Some(ring) = &self.known else { return };
        match (ages::late(ring, now), self.late) {
            (Some(overdue), false) => tracing::warn!(
                minutes = overdue.as_secs() / 60,
                "a rotation is overdue: see whether the manager runs, and which node it waits for (kubectl get \
                 nodeencryptions)"
            ),
            (None, true) => tracing::info!("the rotation that was overdue has come"),
            _ => return,
        }
        self.late = !self.late;
    }

    /// What this node's NodeEncryption is to say; `None` while there is nothing to say, and in a removal.
    #[must_use]
    pub fn status<S: IdentityStore>(&self, agent: &Agent<S>) -> Option<DesiredStatus> {
        if agent.is_uninstalling() {
            return None;
        }
        let problem =
            self.ring_problem.as_ref().map(|problem| (problem.reason(), self.ring_problem_text.as_str()));
        desired(
            agent,
            &Seen {
                ring_problem: problem,
                mtu: self.mtu.as_ref(),
                surroundings: self.surroundings.as_ref(),
                kernel: self.kernel_problem.as_deref(),
                durability: self.durability,
                swap: &self.swap,
                renewal: self.renewal,
                kernel_release: &self.release,
                now: now(),
            },
        )
    }

    /// Says that a removal begins.
    pub fn removal_begins(&self) {
        self.metrics.uninstalling();
        self.kernel.not_ready("encryption is being taken off this node");
        tracing::info!("the DaemonSet is being removed: switching encryption off on this node");
    }
}

/// Logs what came and what went.
fn changes(before: &mut BTreeSet<String>, now: BTreeSet<String>, came: &str, went: &str) {
    for what in now.difference(before).take(LIST) {
        tracing::warn!("{came}: {what}");
    }
    let more = now.difference(before).count().saturating_sub(LIST);
    if more > 0 {
        tracing::warn!("{came}: {more} more like these");
    }
    for what in before.difference(&now).take(LIST) {
        tracing::info!("{went}: {what}");
    }
    *before = now;
}
