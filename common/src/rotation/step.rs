//! The step that each phase waits for, and how far it is.

use std::time::Duration;

use super::{Decision, EnforcementGoal, Evidence, Names, Readiness, Step, Wait};
use crate::{
    phase::Phase,
    ring::{Enforcement, Generation},
};

/// A step before the next write, and what is known of it.
pub(super) struct Gate<'e> {
    pub(super) step: Step,
    generation: &'e Generation,
    readiness: &'e Readiness,
    evidence: &'e Evidence,
    /// For people: what is awaited, and what has come true once it is done.
    texts: (String, String),
}

impl<'e> Gate<'e> {
    /// The one that `phase` waits for, if it waits for nodes.
    pub(super) fn of(
        phase: Phase<'e>,
        enforcement: Enforcement,
        goal: EnforcementGoal,
        evidence: &'e Evidence,
    ) -> Option<Self> {
        let permissive = enforcement == Enforcement::Permissive;
        let off = permissive && goal == EnforcementGoal::Off;
        let gate = |step, generation, readiness, texts| Self { step, generation, readiness, evidence, texts };
        let receive = |staged: &'e Generation| {
            let texts = (
                format!("generation {} is on its way to every node", staged.id),
                format!("every node receives generation {}", staged.id),
            );
            gate(Step::Receive, staged, &evidence.staged_acked, texts)
        };
        let accept = |generation| {
            let texts = (
                "encryption is to be off: every node accepts plaintext again".to_owned(),
                "encryption is to be off, and every node accepts plaintext".to_owned(),
            );
            gate(Step::AcceptPlaintext, generation, &evidence.none_enforcing, texts)
        };
        match phase {
            Phase::Empty | Phase::Off => None,
            // Beside a first generation, nodes go on enforcing as before it, until it is active.
            Phase::Bootstrapping { staged }
                if off && !matches!(evidence.none_enforcing, Readiness::Waiting { .. }) =>
            {
                Some(accept(staged))
            }
            Phase::Resuming { staged: generation, .. }
            | Phase::Steady { active: generation }
            | Phase::Staged { active: generation, .. }
                if off =>
            {
                Some(accept(generation))
            }
            Phase::Bootstrapping { staged }
            | Phase::Staged { staged, .. }
            | Phase::Resuming { staged, .. } => Some(receive(staged)),
            Phase::Draining { retiring, active } => {
                let texts = (
                    format!("generation {} is draining", retiring.id),
                    format!("nobody sends with generation {} any more", retiring.id),
                );
                Some(gate(Step::Switch, active, &evidence.drained, texts))
            }
            Phase::Stopping { retiring } => off.then(|| {
                let texts = (
                    "encryption is to be off: every node stops to encrypt".to_owned(),
                    "encryption is to be off, and nobody encrypts any more".to_owned(),
                );
                gate(Step::StopSending, retiring, &evidence.drained, texts)
            }),
            Phase::Steady { active } => (permissive && goal == EnforcementGoal::Auto).then(|| {
                let against =
                    evidence.blocker.as_ref().map_or_else(String::new, |blocker| format!(" ({blocker})"));
                let texts = (
                    format!("generation {} is active, not insisted on yet{against}", active.id),
                    "every node encrypts, and nothing speaks against insisting".to_owned(),
                );
                gate(Step::Enforce, active, &evidence.can_enforce, texts)
            }),
        }
    }

    /// The step as data; `None` where it is done.
    pub(super) fn wait(&self) -> Option<Wait> {
        let wait = Wait::new(self.step, self.generation);
        match self.readiness {
            Readiness::Ready => None,
            Readiness::After(time) => Some(Wait { look_in: Some(*time), ..wait }),
            Readiness::Waiting { nodes, look_in } => {
                let blocker = self.evidence.blocker.clone().filter(|_| self.step == Step::Enforce);
                Some(Wait { nodes: nodes.clone(), look_in: Some(*look_in), blocker, ..wait })
            }
            Readiness::Unknown => Some(wait),
        }
    }

    /// Makes the write that comes after the step, or waits for it.
    pub(super) fn decide(self) -> Decision {
        let wait = self.wait();
        let (awaited, done) = self.texts;
        let reason = match self.readiness {
            Readiness::Ready => return Decision::act(self.step.action(), done),
            Readiness::After(_) => awaited,
            Readiness::Waiting { nodes, .. } => format!("{awaited}, waiting for {}", Names(nodes)),
            Readiness::Unknown if self.step == Step::Enforce => format!(
                "generation {} is active, nothing is due; it is not insisted on: nodes don't say what they do",
                self.generation.id
            ),
            Readiness::Unknown => awaited,
        };
        let wake_in = wait.as_ref().and_then(|wait| wait.look_in).unwrap_or(Duration::MAX);
        Decision { wait, ..Decision::wait(wake_in, reason) }
    }
}
