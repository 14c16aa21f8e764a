//! Says what changed: log, health and metrics. Each thing once, when it begins and when it ends.

mod attempts;
mod inputs;
mod tunnel_mtu;

use std::{collections::BTreeSet, fs, sync::Arc};

use jiff::Timestamp;
use secureoverlay_agent_core::{
    agent::{Agent, IdentityStore},
    ring_cache::RingProblem,
    teardown::TeardownPhase,
    xfrm::SaId,
};
use secureoverlay_daemon::health::{Guard, Health};
use secureoverlay_k8s::node_encryption::Durability;
use secureoverlay_keyring::{acknowledgement::EnforcementBlocker, keyring::KeyRing};

use crate::{
    clock::now,
    network::{mtu, mtu_setting::MtuSetting, surroundings::Surroundings},
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
