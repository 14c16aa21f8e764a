//! What follows from an evaluation: what is told, the operator's objects, taints, and the one write.

use std::time::Instant;

use secureoverlay_keyring::{keyring::KeyRing, settings::EnforcementGoal};
use secureoverlay_rotation::{Action, ApplyError, apply};

use super::{Controller, Now, Outcome, Step, Write};
use crate::{
    evaluation::{Context, Evaluation},
    notification::{AppliedDecision, Notification},
    operator::{Due, Facts},
};

impl Controller {
    pub(super) fn conclude(&mut self, context: Context, evaluation: Evaluation) {
        let now = evaluation.now.monotonic;
        self.remove_taints(context.ring.as_ref(), &evaluation);
        if let Some(cluster) = &evaluation.cluster {
            self.deletions.extend(self.orphans.due(cluster, now));
        }
        let refused = evaluation.refused_exclusions().cloned();
        if refused != self.refused {
            self.notifications.extend(refused.clone().map(Notification::ExclusionsRefused));
            self.refused = refused;
        }
        self.tell_under_way();
        let report = self.waits.report(evaluation.decision.wait.as_ref(), now);
        self.notifications.push_back(Notification::Waits(report));
        let covered = evaluation.cluster.as_ref().map(|cluster| cluster.covered.clone()).unwrap_or_default();
        let next = self.write_objects(&Facts {
            ring: Ok(context.ring.as_ref()),
            settings: &evaluation.settings,
            decision: Some(&evaluation.decision),
            report: evaluation.report.as_ref(),
            covered: &covered,
            history: self.evaluator.history,
            limit: self.limit,
            now: evaluation.now,
        });
        if evaluation.decision.action != Action::Wait {
            let creates = evaluation.decision.rotation.is_some()
                && self.operator.as_ref().is_some_and(|operator| !operator.rotations.waits());
            let step = if creates { Step::CreateRotation } else { Step::Act };
            return self.enter(step(context, evaluation));
        }
        let decision = evaluation.decision;
        self.enter(Step::Idle);
        let deadline = now + decision.wake_in.min(self.poll_interval);
        self.deadline = Some(next.map_or(deadline, |next| next.min(deadline)));
        let (wake_in, reason, wait) = (decision.wake_in, decision.reason, decision.wait);
        self.outcome = Some(Outcome::Waiting { wake_in, reason, wait });
    }

    /// Waits for a change.
    pub(super) fn rest(&mut self, reason: &str, now: Now) {
        self.enter(Step::Idle);
        self.deadline = Some(now.monotonic + self.poll_interval);
        let (wake_in, reason) = (self.poll_interval, reason.to_owned());
        self.outcome = Some(Outcome::Waiting { wake_in, reason, wait: None });
    }

    /// Writes the status of the operator's objects; when more is to be written.
    pub(super) fn write_objects(&mut self, facts: &Facts<'_>) -> Option<Instant> {
        let Due { writes, next } = self.operator.as_mut().map(|operator| operator.due(facts))?;
        self.object_writes.extend(writes);
        next
    }

    /// Tells which KeyRotation it is about what is told next.
    fn tell_under_way(&mut self) {
        let current = self.operator.as_ref().and_then(|operator| operator.rotations.current());
        if self.told.as_ref() != current {
            self.told = current.cloned();
            self.notifications.push_back(Notification::UnderWay(self.told.clone()));
        }
    }

    /// Pods may come to nodes that encrypt, and to all where nothing is to be encrypted.
    fn remove_taints(&mut self, ring: Option<&KeyRing>, evaluation: &Evaluation) {
        let (Some(taints), Some(cluster)) = (&mut self.taints, &evaluation.cluster) else { return };
        let free = match evaluation.settings.enforcement {
            EnforcementGoal::Off => cluster.nodes.iter().map(|node| node.name.clone()).collect(),
            EnforcementGoal::Auto | EnforcementGoal::Permissive => {
                self.evaluator.encrypting(cluster, ring, evaluation.now)
            }
        };
        let now = evaluation.now.monotonic;
        let stuck = taints.stuck(&cluster.tainted, &free, now);
        self.notifications.extend(stuck.into_iter().map(|node| Notification::TaintStuck { node }));
        self.taint_removals.extend(taints.due(&cluster.tainted, &free, now));
    }

    pub(super) fn write<E>(
        &mut self,
        random: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<Option<Write>, ApplyError<E>> {
        let Step::Act(context, evaluation) = std::mem::replace(&mut self.step, Step::Idle) else {
            return Ok(None);
        };
        let applied = apply(&evaluation.inputs(&context), &evaluation.decision, random)?;
        let action = evaluation.decision.action;
        let write = Write {
            resource_version: context.resource_version.clone(),
            answers: matches!(action, Action::Bootstrap | Action::Stage),
            action,
            ring: applied.ring.clone(),
        };
        self.tell_under_way();
        if let Some(operator) = &mut self.operator {
            operator.rotations.handle_writing(&evaluation.decision, &applied.ring);
        }
        let (before, now) = (context.ring.as_ref(), evaluation.now.monotonic);
        self.evaluator.memory.handle_writing(before, &applied.ring, now);
        let told = AppliedDecision {
            decision: evaluation.decision.clone(),
            before: context.ring.clone(),
            after: applied.ring,
            collisions: applied.collisions,
            delay: evaluation.cluster.is_none().then_some(self.delay),
        };
        self.step = Step::Written(context, evaluation, Box::new(told));
        Ok(Some(write))
    }
}
