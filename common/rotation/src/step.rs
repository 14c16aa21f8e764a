//! A step that nodes have to do, and how far it is.

use std::time::Duration;

use secureoverlay_keyring::keyring::Generation;

use crate::{Decision, Evidence, Names, Readiness, Step, Unmet, Wait};

/// A step before the next write, and what is known of it.
#[derive(Clone, Copy)]
pub(crate) struct Gate<'e> {
    step: Step,
    generation: &'e Generation,
    readiness: &'e Readiness,
    evidence: &'e Evidence,
}

impl<'e> Gate<'e> {
    pub(crate) const fn new(step: Step, generation: &'e Generation, evidence: &'e Evidence) -> Self {
        let readiness = match step {
            Step::Receive => &evidence.staged_acked,
            Step::Switch | Step::StopSending => &evidence.drained,
            Step::Enforce => &evidence.can_enforce,
            Step::AcceptPlaintext => &evidence.none_enforcing,
        };
        Self { step, generation, readiness, evidence }
    }

    /// The write that comes once the nodes have done it, where they have.
    pub(crate) fn ready(self) -> Option<Decision> {
        let id = self.generation.id;
        let why = match self.step {
            Step::Receive => format!("every node receives generation {id}, and has proven it"),
            Step::Switch => format!("every node sends with generation {id}"),
            Step::Enforce => "every pair is proven, and nothing speaks against enforcing".to_owned(),
            Step::AcceptPlaintext => "encryption is to be off, and every node accepts plaintext".to_owned(),
            Step::StopSending => "encryption is to be off, and no node sends anything encrypted".to_owned(),
        };
        (*self.readiness == Readiness::Ready).then(|| Decision::act(self.step.action(), why))
    }

    /// The step as data; `None` where it is done.
    pub(crate) fn missing(self) -> Option<Wait> {
        let wait = Wait::new(self.step, self.generation);
        match self.readiness {
            Readiness::Ready => None,
            Readiness::After(time) => Some(Wait { look_in: Some(*time), ..wait }),
            Readiness::Waiting(unmet) => {
                let blockers =
                    if self.step == Step::Enforce { self.evidence.blockers.clone() } else { Vec::new() };
                let Unmet { nodes, total, any_ready, waited, look_in } = unmet.clone();
                Some(Wait { nodes, total, any_ready, waited, look_in: Some(look_in), blockers, ..wait })
            }
            Readiness::Unknown => Some(wait),
        }
    }

    /// Waits for it.
    pub(crate) fn wait(self) -> Decision {
        let id = self.generation.id;
        let awaited = match self.step {
            Step::Receive => format!("generation {id} is on its way to every node"),
            Step::Switch => format!("nodes move to generation {id}"),
            Step::Enforce => format!("generation {id} is active, not enforced yet"),
            Step::AcceptPlaintext => "encryption is to be off: nodes accept plaintext again".to_owned(),
            Step::StopSending => "encryption is to be off: nodes stop to encrypt".to_owned(),
        };
        let wait = self.missing();
        let reason = match self.readiness {
            Readiness::Waiting(unmet) => format!("{awaited}, waiting for {}", Names(&unmet.nodes)),
            Readiness::Unknown if self.step == Step::Enforce => {
                format!(
                    "generation {id} is active, nothing is due; nodes can't say whether enforcing is safe"
                )
            }
            Readiness::Ready | Readiness::After(_) | Readiness::Unknown => awaited,
        };
        let wake_in = wait.as_ref().and_then(|wait| wait.look_in).unwrap_or(Duration::MAX);
        Decision { wait, ..Decision::wait(wake_in, reason) }
    }
}
