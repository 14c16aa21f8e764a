//! How attempts at a target went.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use secureoverlay_agent_core::{
    agent::{Agent, IdentityStore},
    plan::ReconcileTarget,
    teardown::TeardownPhase,
    xfrm::PolicyId,
};
use secureoverlay_keyring::acknowledgement::EnforcementBlocker;

use super::{Reporter, changes};
use crate::{kernel::ReconcileAttempt, network::surroundings::overruling};

impl Reporter {
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
}
