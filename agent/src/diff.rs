//! The way from what the kernel holds to what it should hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

use secureoverlay_common::{ring::Role, uid::Uid, wire};

use crate::{
    plan::{Plan, PlannedSa, Sender},
    xfrm::{
        Action, Actual, ActualPolicy, ActualSa, Direction, IPPROTO_IPIP, Net, Op, Owner, Policy, PolicyId,
        SaId,
    },
};

/// How long SAs that no ring explains stay, once there is a generation to send with. Nodes that have not read the new
/// ring yet may still send with them.
pub const GRACE: Duration = Duration::from_secs(600);

/// What an agent remembers from one run to the next.
#[derive(Debug, Default)]
pub struct Memory {
    /// Fingerprints of the outbound keys that were in the kernel since the agent started.
    used: BTreeSet<u64>,
    /// What the plan before this one said of each SA.
    planned: BTreeMap<SaId, (Uid, Role)>,
    /// Whether this process has looked at the kernel before.
    looked: bool,
    /// SAs of ours that no plan explains, and until when they stay.
    unexplained: BTreeMap<SaId, Instant>,
}

impl Memory {
    /// An operation of a plan was carried out: the key of an outbound SA is used from now on.
    pub fn note(&mut self, done: &Op, plan: &Plan) {
        if let Op::AddState(sa) = done
            && let Some(planned) = plan.states.get(&sa.id)
        {
            self.installed(planned);
        }
    }

    fn installed(&mut self, planned: &PlannedSa) {
        if planned.direction == Direction::Out {
            self.used.insert(wire::fingerprint(&planned.sa.key));
        }
    }
}

/// Operations in the order in which they are safe, in classes with a barrier after each: what depends on an earlier
/// class is only done where that succeeded.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// The classes.
    pub classes: [Vec<Op>; Self::CLASSES],
    /// SAs that can't be had: policies must not be made to pin them.
    pub unavailable: BTreeSet<SaId>,
    /// What could not be done, for people.
    pub findings: BTreeSet<Finding>,
    /// When to look again although nothing changes.
    pub wake_at: Option<Instant>,
}

/// Something in the kernel that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// An SA that is not ours has the id of one that we need.
    ForeignState(SaId),
    /// A policy that is not ours has the selector of one that we need.
    ForeignPolicy(PolicyId),
    /// An outbound SA was lost. Its key can't be used again: sequence numbers and nonces would repeat.
    LostOutbound(SaId),
    /// SAs of ours that no ring explains are kept.
    Unexplained(usize),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForeignState(id) => write!(
                f,
                "an SA that is not ours has {id}, which we need: that pair can't use this generation; remove the SA or \
                 rotate the keys"
            ),
            Self::ForeignPolicy(id) => {
                write!(
                    f,
                    "a policy that is not ours has the selector {id} protocol 4: it is left alone; remove it"
                )
            }
            Self::LostOutbound(id) => write!(
                f,
                "the outbound SA to {id} was removed by somebody else; its key can't be used twice: traffic to that \
                 node is held back until the next rotation"
            ),
            Self::Unexplained(count) => {
                write!(f, "{count} SAs of ours belong to no generation of the ring: kept for now")
            }
        }
    }
}

impl Diff {
    const CLASSES: usize = 9;
    const IN_STATES: usize = 0;
    const IN_POLICIES: usize = 1;
    const OUT_STATES: usize = 2;
    const OUT_POLICIES: usize = 3;
    /// Blocks come last and go first: what they would block must be covered by then.
    const BLOCKS: usize = 4;
    const NO_BLOCKS: usize = 5;
    const NO_OUT_POLICIES: usize = 6;
    const NO_IN_POLICIES: usize = 7;
    const NO_STATES: usize = 8;

    /// Whether the kernel holds what it should.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.classes.iter().all(Vec::is_empty)
    }
}

/// Compares `actual` with `plan`. Foreign entries never appear in the operations.
pub fn diff(actual: &Actual, plan: &Plan, memory: &mut Memory, now: Instant) -> Diff {
    let mut diff = Diff::default();
    let states: BTreeMap<SaId, &ActualSa> = actual.states.iter().map(|sa| (sa.id, sa)).collect();
    // Only a policy with exactly our selector is in our way; others have a selector of their own.
    let policies: BTreeMap<PolicyId, &ActualPolicy> = actual
        .policies
        .iter()
        .filter(|policy| policy.protocol == IPPROTO_IPIP)
        .map(|policy| (policy.id, policy))
        .collect();
    for planned in plan.states.values() {
        plan_state(&mut diff, planned, &states, &policies, memory);
    }
    plan_policies(&mut diff, plan, &policies);
    remove_policies(&mut diff, plan, &policies);
    remove_states(&mut diff, plan, &states, memory, now);
    memory.looked = true;
    let before = std::mem::take(&mut memory.planned);
    memory.planned =
        plan.states.iter().map(|(id, planned)| (*id, (planned.generation, planned.role))).collect();
    for (id, planned) in before.into_iter().filter(|(id, _)| states.contains_key(id)) {
        memory.planned.entry(id).or_insert(planned);
    }
    diff
}

/// Adopts, replaces or creates one SA.
fn plan_state(
    diff: &mut Diff,
    planned: &PlannedSa,
    states: &BTreeMap<SaId, &ActualSa>,
    policies: &BTreeMap<PolicyId, &ActualPolicy>,
    memory: &mut Memory,
) {
    let (sa, id) = (&planned.sa, planned.sa.id);
    let outbound = planned.direction == Direction::Out;
    let found = states.get(&id);
    if found.is_some_and(|found| found.owner == Owner::Foreign) {
        diff.findings.insert(Finding::ForeignState(id));
        diff.unavailable.insert(id);
        return;
    }
    let adopted = found.is_some_and(|found| {
        // Where the kernel hides keys, the same pair and SPI have to do.
        let same_cipher =
            found.cipher.as_ref().is_none_or(|(suite, key)| *suite == sa.suite && *key == sa.key);
        found.src == sa.src && same_cipher
    });
    if adopted {
        memory.installed(planned);
        return;
    }
    if outbound {
        // A policy of ours that pins a missing SA shows that it was there, perhaps before this agent was.
        let out = PolicyId { direction: Direction::Out, src: Net::host(sa.src), dst: Net::host(id.dst) };
        let pinned = policies.get(&out).is_some_and(|policy| {
            policy.owner == Owner::Ours && policy.action == Some(Action::Esp(Some(id.spi)))
        });
        if memory.used.contains(&wire::fingerprint(&sa.key)) || (found.is_none() && pinned && !memory.looked)
        {
            diff.findings.insert(Finding::LostOutbound(id));
            return;
        }
    }
    let class = &mut diff.classes[if outbound { Diff::OUT_STATES } else { Diff::IN_STATES }];
    if found.is_some() {
        class.push(Op::DeleteState(id));
    }
    class.push(Op::AddState(sa.clone()));
}

fn plan_policies(diff: &mut Diff, plan: &Plan, policies: &BTreeMap<PolicyId, &ActualPolicy>) {
    for (id, action) in &plan.policies {
        let policy = Policy { id: *id, action: *action };
        let op = match policies.get(id) {
            None => Op::AddPolicy(policy),
            Some(found) if found.owner == Owner::Foreign => {
                diff.findings.insert(Finding::ForeignPolicy(*id));
                continue;
            }
            Some(found) if found.action == Some(*action) && found.priority == action.priority() => continue,
            Some(_) => Op::UpdatePolicy(policy),
        };
        let class = match (action, id.direction) {
            (Action::Block, _) => Diff::BLOCKS,
            (_, Direction::In) => Diff::IN_POLICIES,
            (_, Direction::Out) => Diff::OUT_POLICIES,
        };
        diff.classes[class].push(op);
    }
}

fn remove_policies(diff: &mut Diff, plan: &Plan, policies: &BTreeMap<PolicyId, &ActualPolicy>) {
    let ours = policies.values().filter(|found| found.owner == Owner::Ours);
    for found in ours.filter(|found| !plan.policies.contains_key(&found.id)) {
        let class = match (found.action, found.id.direction) {
            (Some(Action::Block), _) => Diff::NO_BLOCKS,
            (_, Direction::In) => Diff::NO_IN_POLICIES,
            (_, Direction::Out) if plan.sender == Sender::AsBefore => continue,
            (_, Direction::Out) => Diff::NO_OUT_POLICIES,
        };
        diff.classes[class].push(Op::DeletePolicy(found.id));
    }
}

/// SAs that are ours but not planned: gone at once where the ring or the roster dropped them on purpose, after a grace
/// where nobody knows why they are there.
fn remove_states(
    diff: &mut Diff,
    plan: &Plan,
    states: &BTreeMap<SaId, &ActualSa>,
    memory: &mut Memory,
    now: Instant,
) {
    let former = std::mem::take(&mut memory.unexplained);
    let mut kept = 0;
    for found in states.values().filter(|found| found.owner == Owner::Ours) {
        let id = found.id;
        let living = plan.own_spis.contains(&(found.src, id.spi));
        if plan.states.contains_key(&id) || living {
            continue;
        }
        let dropped = memory.planned.get(&id).is_some_and(|(generation, role)| {
            *role == Role::Retiring || plan.generations.contains(generation)
        });
        // The grace starts when there is something else to send with.
        let end = (plan.sender == Sender::Planned).then(|| former.get(&id).copied().unwrap_or(now + GRACE));
        if dropped || plan.sender == Sender::Nothing || end.is_some_and(|end| end <= now) {
            diff.classes[Diff::NO_STATES].push(Op::DeleteState(id));
        } else {
            kept += 1;
            memory.unexplained.extend(end.map(|end| (id, end)));
        }
    }
    if kept > 0 {
        diff.findings.insert(Finding::Unexplained(kept));
        diff.wake_at = memory.unexplained.values().min().copied();
    }
}
