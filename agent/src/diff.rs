//! The way from what the kernel holds to what it should hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

use secureoverlay_common::{ring::Role, uid::Uid};

use crate::{
    journal::{Entry, Record},
    plan::{Plan, PlannedSa, Sender, Standing},
    xfrm::{Action, Actual, ActualPolicy, ActualSa, Direction, Op, Owner, Policy, PolicyId, SaId},
};

/// How long SAs that no ring explains stay, once there is a generation to send with. Nodes that have not read the new
/// ring yet may still send with them.
pub const GRACE: Duration = Duration::from_secs(600);

/// What an agent remembers from one run to the next.
#[derive(Debug, Default)]
pub struct Memory {
    /// What the plan before this one said of each SA.
    planned: BTreeMap<SaId, (Uid, Role)>,
    /// Whether this process has looked at the kernel before.
    looked: bool,
    /// SAs of ours that no plan explains, and until when they stay.
    unexplained: BTreeMap<SaId, Instant>,
    /// Outbound SAs that are known to be lost, so that each is counted once.
    lost: BTreeSet<SaId>,
    /// What turned plaintext away after the last run: beside a ring that was begun anew, nobody else remembers it.
    insisting: BTreeMap<PolicyId, Action>,
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
    /// What the comparison showed, to be written down before anything is done.
    pub entries: Vec<Entry>,
    /// SAs that somebody else took away since the last look.
    pub lost: usize,
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
    /// Inbound SAs were lost. They are made again, but packets that were recorded before pass once more.
    LostInbound(usize),
    /// SAs of ours that no ring explains are kept.
    Unexplained(usize),
    /// The journal can't be written, so that no SA may be added.
    Journal(String),
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
                write!(f, "a policy that is not ours has the selector {id}: it is left alone; remove it")
            }
            Self::LostOutbound(id) => write!(
                f,
                "the outbound SA to {id} was lost; its key can't be used twice: traffic to that node is held back \
                 until this node gets new keys from the manager, at the latest with the next rotation"
            ),
            Self::LostInbound(count) => write!(
                f,
                "{count} inbound SAs were removed by somebody else and are made again: what was recorded of their \
                 traffic could be replayed, so this node asks for new keys where they are still to be used"
            ),
            Self::Journal(error) => {
                write!(f, "{error}: no SA is added before that works, lest a key be used twice")
            }
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

/// Compares `actual` with `plan`, in the light of what this boot's kernel was given before. `whole` says whether that
/// goes back to its first SA of ours. Foreign entries never appear in the operations.
pub fn diff(
    actual: &Actual,
    plan: &Plan,
    (record, whole): (&Record, bool),
    memory: &mut Memory,
    now: Instant,
) -> Diff {
    // A generation that the ring lost may come back while its SAs are kept.
    let held: BTreeSet<Uid> = actual.states.iter().filter_map(|sa| record.generation_of(&sa.id)).collect();
    let mut entries: Vec<Entry> = plan.node.map(Entry::Node).into_iter().collect();
    entries.extend(
        record.finish(|generation| plan.generations.contains_key(generation) || held.contains(generation)),
    );
    let mut diff = Diff { entries, ..Diff::default() };
    let states: BTreeMap<SaId, &ActualSa> = actual.states.iter().map(|sa| (sa.id, sa)).collect();
    // Only a policy with exactly our selector is in our way; others have a selector of their own, or are beside ours.
    let policies: BTreeMap<PolicyId, &ActualPolicy> = actual
        .policies
        .iter()
        .filter(|policy| policy.protocol == policy.id.traffic.protocol() && !policy.conditional)
        .map(|policy| (policy.id, policy))
        .collect();
    let pinned = policies.values().filter(|policy| policy.owner == Owner::Ours).filter_map(|policy| {
        let Some(Action::Esp(Some(spi))) = policy.action else { return None };
        Some(SaId { dst: policy.id.dst.addr, spi })
    });
    let known = Known { states: &states, pinned: pinned.collect(), record, whole: whole || memory.looked };
    let mut burnt = BTreeMap::new();
    for planned in plan.states.values() {
        plan_state(&mut diff, planned, plan, &known, &mut burnt);
    }
    diff.entries
        .extend(burnt.into_iter().map(|(generation, incarnation)| Entry::Burnt { generation, incarnation }));
    count_losses(&mut diff, memory);
    plan_policies(&mut diff, &plan.policies, &policies);
    let mut insisted: BTreeMap<PolicyId, Action> =
        plan.policies.iter().map(|(id, action)| (*id, *action)).filter(insisting).collect();
    if plan.insists_as_before {
        let held = policies.values().filter(|found| found.owner == Owner::Ours);
        let held = held.filter_map(|found| Some((found.id, found.action?))).filter(insisting);
        insisted.extend(std::mem::take(&mut memory.insisting).into_iter().chain(held));
        insisted.retain(|id, _| !plan.policies.contains_key(id));
        plan_policies(&mut diff, &insisted, &policies);
    }
    memory.insisting = insisted;
    remove_policies(&mut diff, plan, &policies);
    // Of a ring that follows the one before, what was retiring was dropped on purpose. One that shares no generation
    // with it was wiped, or is an old one that was restored: it says nothing about why something is gone.
    let follows = memory
        .planned
        .values()
        .any(|(generation, role)| *role != Role::Retiring && plan.generations.contains_key(generation));
    if !follows {
        memory.planned.clear();
    }
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

/// What there is to know of the kernel.
struct Known<'k> {
    states: &'k BTreeMap<SaId, &'k ActualSa>,
    /// What policies of ours send with.
    pinned: BTreeSet<SaId>,
    record: &'k Record,
    /// What is not in the record was never in the kernel.
    whole: bool,
}

/// Adopts, replaces or creates one SA. A loss is put into `burnt` with this node's incarnation.
fn plan_state(
    diff: &mut Diff,
    planned: &PlannedSa,
    plan: &Plan,
    known: &Known<'_>,
    burnt: &mut BTreeMap<Uid, u32>,
) {
    let (sa, id, generation) = (&planned.sa, planned.sa.id, planned.generation);
    let Some(&Standing { role, incarnation }) = plan.generations.get(&generation) else { return };
    let outbound = planned.direction == Direction::Out;
    let found = known.states.get(&id);
    if found.is_some_and(|found| found.owner == Owner::Foreign) {
        diff.findings.insert(Finding::ForeignState(id));
        diff.unavailable.insert(id);
        return;
    }
    let key = planned.fingerprint;
    let entry = planned_entry(planned, incarnation);
    let adopted = found.is_some_and(|found| {
        let same_cipher = match &found.cipher {
            Some((suite, key)) => *suite == sa.suite && *key == sa.key,
            // Where the kernel hides keys, the record has to do, or else the same pair and SPI.
            None => !known.whole || known.record.knows(&entry),
        };
        found.src == sa.src && same_cipher
    });
    if adopted {
        if !known.record.knows(&entry) {
            diff.entries.push(entry);
        }
        return;
    }
    // A receiver needs nothing of a generation that nobody sends with but to be there.
    let burns = role != Role::Retiring;
    if outbound {
        // A policy of ours that pins a missing SA shows that it was there, perhaps before this agent was.
        let evident = found.is_none() && known.pinned.contains(&id) && !known.whole;
        if evident {
            diff.entries.push(entry);
        }
        if evident || known.record.used(generation, incarnation, key) {
            diff.unavailable.insert(id);
            if burns {
                diff.findings.insert(Finding::LostOutbound(id));
                burnt.insert(generation, incarnation);
            }
            return;
        }
    } else if found.is_none() && known.record.knows(&entry) {
        diff.lost += 1;
        if burns {
            burnt.insert(generation, incarnation);
        }
    }
    let class = &mut diff.classes[if outbound { Diff::OUT_STATES } else { Diff::IN_STATES }];
    if found.is_some() {
        class.push(Op::DeleteState(id));
    }
    class.push(Op::AddState(sa.clone()));
}

/// What to remember of an SA of the plan.
#[must_use]
pub fn planned_entry(planned: &PlannedSa, incarnation: u32) -> Entry {
    let (generation, key) = (planned.generation, planned.fingerprint);
    match planned.direction {
        Direction::Out => Entry::Out { generation, incarnation, key },
        Direction::In => Entry::In { generation, id: planned.sa.id, key },
    }
}

fn count_losses(diff: &mut Diff, memory: &mut Memory) {
    if diff.lost > 0 {
        diff.findings.insert(Finding::LostInbound(diff.lost));
    }
    let lost: BTreeSet<SaId> = diff
        .findings
        .iter()
        .filter_map(|finding| if let Finding::LostOutbound(id) = finding { Some(*id) } else { None })
        .collect();
    diff.lost += lost.difference(&memory.lost).count();
    memory.lost = lost;
}

/// Whether a policy turns plaintext away that is not a probe.
fn insisting((id, action): &(PolicyId, Action)) -> bool {
    !id.is_probe() && matches!(action, Action::Block | Action::Esp(None))
}

fn plan_policies(
    diff: &mut Diff,
    wanted: &BTreeMap<PolicyId, Action>,
    policies: &BTreeMap<PolicyId, &ActualPolicy>,
) {
    for (id, action) in wanted {
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
    let as_before = |found: &ActualPolicy| match (found.action, found.id.direction) {
        _ if found.id.is_probe() => false,
        // For peers that are not excluded any more, or gone.
        (Some(Action::Allow), _) if plan.insists_as_before => false,
        (Some(Action::Block), _) | (_, Direction::In) => plan.insists_as_before,
        (_, Direction::Out) => plan.sender == Sender::AsBefore,
    };
    for found in ours.filter(|found| !plan.policies.contains_key(&found.id) && !as_before(found)) {
        let class = match (found.action, found.id.direction) {
            (Some(Action::Block), _) => Diff::NO_BLOCKS,
            (_, Direction::In) => Diff::NO_IN_POLICIES,
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
            *role == Role::Retiring || plan.generations.contains_key(generation)
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
