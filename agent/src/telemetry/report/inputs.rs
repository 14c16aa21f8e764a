//! What is new about the key ring and the peers.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use secureoverlay_agent_core::{
    agent::{Agent, IdentityStore},
    announcer::DrawCause,
    ring_cache::RingProblem,
};
use secureoverlay_keyring::keyring::Enforcement;

use super::{Reporter, changes};

impl Reporter {
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
}
