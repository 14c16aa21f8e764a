//! Brings a kernel to what a plan says, class by class.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use crate::{
    diff::{Finding, Memory, diff},
    kernel::{Kernel, KernelError, OpError},
    plan::{Plan, PlannedSa},
    xfrm::{Action, Actual, Direction, Op, Owner, Policy, PolicyId, SaId},
};

/// A kernel, and what is remembered of it.
#[derive(Debug)]
pub struct Reconciler<K> {
    kernel: K,
    memory: Memory,
}

/// What a run did and found.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Operations carried out.
    pub changed: usize,
    /// Operations that the kernel refused.
    pub failed: Vec<OpError>,
    /// What stands in the way.
    pub findings: BTreeSet<Finding>,
    /// Peers of the plan.
    pub peers_desired: usize,
    /// Peers of the plan with all of their SAs and policies in place.
    pub peers_programmed: usize,
    /// When to run again although nothing changes.
    pub wake_at: Option<Instant>,
}

impl Outcome {
    /// Everything that the plan says is in place.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty() && self.peers_programmed == self.peers_desired
    }
}

impl<K: Kernel> Reconciler<K> {
    /// A reconciler that knows nothing yet: it adopts what the kernel holds.
    pub fn new(kernel: K) -> Self {
        Self { kernel, memory: Memory::default() }
    }

    /// One run. What fails is reported and left for the next one; what depends on it is left out.
    ///
    /// # Errors
    /// The kernel can't be read. Nothing was changed then.
    pub fn run(&mut self, plan: &Plan, now: Instant) -> Result<Outcome, KernelError> {
        let actual = self.kernel.dump()?;
        let diff = diff(&actual, plan, &mut self.memory, now);
        let mut outcome = Outcome { findings: diff.findings, wake_at: diff.wake_at, ..Outcome::default() };
        let mut unavailable = diff.unavailable;
        let mut troubled: BTreeSet<IpAddr> = BTreeSet::new();
        let mut pins = Pins::of(&actual);
        for class in diff.classes {
            let (ready, held_back): (Vec<Op>, Vec<Op>) = class.into_iter().partition(|op| match op {
                Op::AddPolicy(policy) | Op::UpdatePolicy(policy) => {
                    pinned(policy.id, policy.action).is_none_or(|id| !unavailable.contains(&id))
                }
                // A policy that could not be changed must not lose the SA that it sends with.
                Op::DeleteState(id) => plan.states.contains_key(id) || !pins.contains(*id),
                Op::AddState(_) | Op::DeletePolicy(_) => true,
            });
            troubled.extend(held_back.iter().filter_map(|op| remote(plan, op)));
            for (op, result) in ready.iter().zip(self.kernel.apply(&ready)) {
                match result {
                    Ok(()) => {
                        outcome.changed += 1;
                        pins.note(op);
                        self.memory.note(op, plan);
                    }
                    Err(error) => {
                        troubled.extend(remote(plan, op));
                        if let Op::AddState(sa) = op {
                            unavailable.insert(sa.id);
                        }
                        outcome.failed.push(error);
                    }
                }
            }
        }
        for finding in &outcome.findings {
            match finding {
                Finding::ForeignState(id) | Finding::LostOutbound(id) => troubled.extend(peer_of(plan, *id)),
                Finding::ForeignPolicy(id) => {
                    let peer = if id.direction == Direction::Out { id.dst } else { id.src };
                    troubled.insert(peer.addr);
                }
                Finding::Unexplained(_) => {}
            }
        }
        let peers: BTreeSet<IpAddr> = plan.states.values().map(peer).collect();
        outcome.peers_desired = peers.len();
        outcome.peers_programmed = peers.difference(&troubled).count();
        Ok(outcome)
    }
}

/// The outbound SAs that the policies in the kernel send with.
#[derive(Default)]
struct Pins {
    by_policy: BTreeMap<PolicyId, SaId>,
    /// How many policies pin each.
    counts: BTreeMap<SaId, usize>,
}

impl Pins {
    fn of(actual: &Actual) -> Self {
        let mut pins = Self::default();
        for policy in actual.policies.iter().filter(|policy| policy.owner == Owner::Ours) {
            pins.set(policy.id, policy.action.and_then(|action| pinned(policy.id, action)));
        }
        pins
    }

    fn note(&mut self, done: &Op) {
        match done {
            Op::AddPolicy(Policy { id, action }) | Op::UpdatePolicy(Policy { id, action }) => {
                self.set(*id, pinned(*id, *action));
            }
            Op::DeletePolicy(id) => self.set(*id, None),
            Op::AddState(_) | Op::DeleteState(_) => {}
        }
    }

    fn set(&mut self, policy: PolicyId, sa: Option<SaId>) {
        let before = match sa {
            Some(sa) => self.by_policy.insert(policy, sa),
            None => self.by_policy.remove(&policy),
        };
        if let Some(count) = before.and_then(|sa| self.counts.get_mut(&sa)) {
            *count -= 1;
        }
        if let Some(sa) = sa {
            *self.counts.entry(sa).or_default() += 1;
        }
    }

    fn contains(&self, id: SaId) -> bool {
        self.counts.get(&id).is_some_and(|count| *count > 0)
    }
}

fn pinned(policy: PolicyId, action: Action) -> Option<SaId> {
    match action {
        Action::Esp(Some(spi)) => Some(SaId { dst: policy.dst.addr, spi }),
        Action::Esp(None) | Action::Allow | Action::Block => None,
    }
}

/// The peer that an operation of the plan is for.
fn remote(plan: &Plan, op: &Op) -> Option<IpAddr> {
    match op {
        Op::AddState(sa) => peer_of(plan, sa.id),
        Op::DeleteState(id) => peer_of(plan, *id),
        Op::AddPolicy(policy) | Op::UpdatePolicy(policy) => Some(match policy.id.direction {
            Direction::In => policy.id.src.addr,
            Direction::Out => policy.id.dst.addr,
        }),
        Op::DeletePolicy(_) => None,
    }
}

fn peer_of(plan: &Plan, id: SaId) -> Option<IpAddr> {
    plan.states.get(&id).map(peer)
}

fn peer(planned: &PlannedSa) -> IpAddr {
    match planned.direction {
        Direction::In => planned.sa.src,
        Direction::Out => planned.sa.id.dst,
    }
}

#[cfg(test)]
mod tests;
