//! Says what changed: log, health and metrics. Each thing once, when it begins and when it ends.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use secureoverlay_common::ring::{Enforcement, Ring};
use secureoverlay_daemon::health::{Guard, Health};

use crate::{
    agent::{Agent, Target},
    ages,
    held::Problem,
    metrics::Metrics,
    mtu::Finding,
    plan::Stage,
    reach::Reach,
    status::{Seen, Wanted, wanted},
    surroundings::Surroundings,
    worker::Attempted,
};

/// Of a long list of problems, this many are logged.
const LIST: usize = 20;
const EXCLUDED: &str = "this node is excluded from encryption";

/// What was said last.
pub struct Reporter {
    metrics: Metrics,
    ring: Guard,
    nodes: Guard,
    kernel: Guard,
    known: Option<Arc<Ring>>,
    ring_problem: Option<String>,
    node_problems: BTreeSet<String>,
    findings: BTreeSet<String>,
    peers: Option<(usize, usize)>,
    stage: Stage,
    removed: bool,
    mtu: Option<Finding>,
    mtu_failure: Option<String>,
    reach: Reach,
    out_of_reach: bool,
    surroundings: Option<Surroundings>,
    obstacles: BTreeSet<String>,
    late: bool,
}

impl Reporter {
    /// Registers what the agent's readiness depends on.
    #[must_use]
    pub fn new(health: &Health, metrics: Metrics) -> Self {
        let (ring, nodes, kernel) = (health.task("ring"), health.task("nodes"), health.task("kernel"));
        ring.not_ready("no word from the key ring's source yet");
        nodes.not_ready("no list of the Nodes yet");
        kernel.not_ready("nothing programmed yet");
        metrics.mtu(None);
        Self {
            metrics,
            ring,
            nodes,
            kernel,
            known: None,
            ring_problem: None,
            node_problems: BTreeSet::new(),
            findings: BTreeSet::new(),
            peers: None,
            stage: Stage::Normal,
            removed: false,
            mtu: None,
            mtu_failure: None,
            reach: Reach::default(),
            out_of_reach: false,
            surroundings: None,
            obstacles: BTreeSet::new(),
            late: false,
        }
    }

    /// Says what is new about the inputs.
    pub fn inputs(&mut self, agent: &Agent) {
        let (ring, problem) = (agent.held().ring(), agent.held().problem().map(ToString::to_string));
        // In a removal the Secret goes too: no news.
        if !agent.removing() && (self.known.as_ref() != ring || self.ring_problem != problem) {
            self.say_ring(agent, problem);
        }
        if let Some(view) = agent.view() {
            let problems: BTreeSet<String> = view.problems.iter().map(ToString::to_string).collect();
            self.metrics.node_problems(problems.len());
            match (view.local, problems.len()) {
                (None, _) => self.nodes.not_ready("this node's own Node object is missing or incomplete"),
                _ if view.excluded => self.nodes.ready_but(EXCLUDED),
                (_, 0) => self.nodes.ready(),
                (_, count) => self.nodes.ready_but(format!("{count} problems, see the log")),
            }
            changes(&mut self.node_problems, problems, "node problem", "node problem is over");
        }
    }

    fn say_ring(&mut self, agent: &Agent, problem: Option<String>) {
        let ring = agent.held().ring();
        if let Some(ring) = ring.filter(|&ring| self.known.as_ref() != Some(ring)) {
            let generations = ring
                .generations
                .iter()
                .map(|generation| format!("{} {:?}", generation.id, generation.role).to_lowercase())
                .collect::<Vec<_>>()
                .join(", ");
            tracing::info!(revision = ring.revision, enforcement = ?ring.enforcement, generations, "new key ring");
        }
        let absent = matches!(agent.held().problem(), Some(Problem::Absent(_)));
        match (&problem, &self.ring_problem) {
            (Some(problem), before) if before.as_ref() != Some(problem) => match ring {
                // As it is until the manager has made the first one.
                None if absent => tracing::info!(problem, "no key ring yet"),
                None => tracing::warn!(problem, "the key ring does not count, and there is none from before"),
                Some(kept) => {
                    let kept = kept.revision;
                    tracing::warn!(
                        problem,
                        kept,
                        "the key ring does not count; going on with the last good one"
                    );
                }
            },
            (None, Some(_)) => tracing::info!("the key ring is good now"),
            _ => {}
        }
        match (&problem, ring) {
            (Some(problem), _) => self.ring.not_ready(problem.clone()),
            (None, None) => self.ring.not_ready("no key ring yet"),
            (None, Some(ring)) if ring.enforcement == Enforcement::Off => {
                self.ring.ready_but("encryption is off");
            }
            (None, Some(_)) => self.ring.ready(),
        }
        self.metrics.ring(ring.map(Arc::as_ref), problem.is_none() && ring.is_some(), Timestamp::now());
        self.known = ring.cloned();
        self.ring_problem = problem;
        self.say_mtu(agent);
    }

    /// Says that an attempt begins, where it is a step on the way down.
    pub fn attempt_begins(&mut self, target: &Target) {
        if target.stage != self.stage {
            match target.stage {
                Stage::Normal => tracing::info!("encryption is on"),
                Stage::Optional => tracing::info!("switching off: unencrypted packets are accepted again"),
                Stage::Silent => tracing::info!("switching off: sending unencrypted, still decrypting"),
                Stage::Gone => tracing::info!("switching off: taking everything of ours out of the kernel"),
            }
        }
        self.stage = target.stage;
    }

    /// Says how an attempt went.
    pub fn attempt_ended(&mut self, agent: &Agent, attempted: &Attempted) {
        self.metrics.attempt(attempted, Timestamp::now().as_second());
        let mut findings: BTreeSet<String> = attempted.collisions.iter().map(ToString::to_string).collect();
        let complete = match &attempted.run {
            Err(error) => {
                findings.insert(error.clone());
                false
            }
            Ok(outcome) => {
                findings.extend(outcome.findings.iter().map(ToString::to_string));
                findings.extend(outcome.failed.iter().map(ToString::to_string));
                let peers = (outcome.peers_programmed, outcome.peers_desired);
                if outcome.changed > 0 || self.peers != Some(peers) {
                    tracing::info!(
                        changes = outcome.changed,
                        states = attempted.states,
                        policies = attempted.policies,
                        peers_programmed = outcome.peers_programmed,
                        peers_desired = outcome.peers_desired,
                        milliseconds = attempted.took.as_millis() as u64,
                        "programmed the kernel"
                    );
                }
                self.peers = Some(peers);
                if outcome.lost > 0 {
                    tracing::warn!(count = outcome.lost, "SAs are missing that this boot's kernel was given");
                }
                outcome.is_complete()
            }
        };
        if agent.removed() && !self.removed {
            tracing::info!("removed: nothing of ours is left in this node's kernel; waiting for the end");
            self.removed = true;
        }
        match (findings.len(), findings.first()) {
            _ if agent.removed() => self.kernel.not_ready("removed: encryption was taken off this node"),
            _ if agent.removing() => self.kernel.not_ready("encryption is being taken off this node"),
            (_, Some(first)) if !complete => self.kernel.not_ready(first.clone()),
            (0, _) => self.kernel.ready(),
            (count, _) => self.kernel.ready_but(format!("{count} findings, see the log")),
        }
        if agent.applied().is_some_and(|target| target.content.is_none()) {
            // Nothing is encrypted, and nothing looked at any more.
            self.metrics.astray(0);
            self.surroundings = None;
        }
        changes(&mut self.findings, findings, "the kernel is not as it should be", "finding is over");
        self.say_obstacles(agent);
    }

    /// Takes what lets traffic past the policies.
    pub fn surroundings(&mut self, agent: &Agent, surroundings: Surroundings) {
        let unread = surroundings.unread.as_ref();
        if let Some(error) =
            unread.filter(|_| self.surroundings.as_ref().and_then(|s| s.unread.as_ref()) != unread)
        {
            tracing::debug!(error, "cannot see whether a sysctl takes all interfaces out of IPsec");
        }
        self.metrics.astray(surroundings.astray);
        self.surroundings = Some(surroundings);
        self.say_obstacles(agent);
    }

    fn say_obstacles(&mut self, agent: &Agent) {
        let Some(said) = agent.acknowledgement() else { return };
        self.metrics.obstacles(said.obstacles.len());
        let (came, went) =
            ("something lets traffic past encryption", "this no longer lets traffic past encryption");
        changes(&mut self.obstacles, said.obstacles.clone(), came, went);
    }

    /// Tells of the MTUs of this node, or why they could not be read.
    pub fn mtu(&mut self, agent: &Agent, failure: Option<String>) {
        match &failure {
            None => self.say_mtu(agent),
            Some(error) if self.mtu_failure.as_ref() != Some(error) => {
                tracing::warn!(error, "cannot read the MTUs of this node");
            }
            Some(_) => {}
        }
        self.mtu_failure = failure;
    }

    fn say_mtu(&mut self, agent: &Agent) {
        let finding = self.known.as_ref().and_then(|ring| agent.mtu(ring));
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
        self.mtu.as_ref().is_some_and(Finding::needs_advice)
    }

    /// Says whom ESP does not reach, and when it does again.
    pub fn reach(&mut self, agent: &Agent) {
        let reach = agent.reach();
        if reach == self.reach {
            return;
        }
        self.reach = reach;
        self.metrics.esp_unreachable(self.reach.unreachable().map_or(0, BTreeSet::len));
        let content = agent.applied().and_then(|target| target.content.as_ref());
        match (content.and_then(|program| self.reach.problem(&program.peers)), &self.reach) {
            (Some(problem), _) if self.out_of_reach => tracing::info!("{problem}"),
            (Some(problem), _) => tracing::warn!("{problem}"),
            (None, Reach::Known(_)) => tracing::info!("ESP passes to every probed peer and back"),
            (None, Reach::NotProbed | Reach::Unable(_)) => {}
            (None, Reach::Trying) => return,
        }
        // While agents start one after the other the list changes often: one warning is enough.
        self.out_of_reach = self.reach.unreachable().is_some_and(|unreachable| !unreachable.is_empty());
    }

    /// Says when the manager lets a rotation wait for too long.
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
    pub fn wanted(&self, agent: &Agent) -> Option<Wanted> {
        let said = agent.acknowledgement().filter(|_| !agent.removing())?;
        Some(wanted(&Seen {
            said,
            applied: agent.applied(),
            ring_problem: self.ring_problem.as_deref(),
            peers: self.peers.unwrap_or_default(),
            others: agent.view().map_or(0, |view| view.peers.len()),
            mtu: self.mtu.as_ref(),
            reach: &self.reach,
            surroundings: self.surroundings.as_ref(),
            kernel: self.findings.first().map(String::as_str),
            nodes: match agent.view() {
                Some(view) if view.excluded => Some(EXCLUDED),
                _ => self.node_problems.first().map(String::as_str),
            },
        }))
    }

    /// Says that a removal begins.
    pub fn removal_begins(&self) {
        self.metrics.removing();
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
