//! Brings a kernel to what a plan says, class by class, and writes down beforehand what is given to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use secureoverlay_common::{ring::Role, uid::Uid};

use crate::{
    diff::{Finding, Memory, diff, planned_entry},
    journal::{Entry, Journal, Keeping},
    kernel::{Counts, Kernel, KernelError, OpError, OpErrorKind},
    plan::{Plan, PlannedSa, Sender},
    surroundings::overruling,
    xfrm::{Action, Actual, Direction, Net, Op, Owner, Policy, PolicyId, SaId},
};

/// A kernel, and what is remembered of it.
#[derive(Debug)]
pub struct Reconciler<K> {
    kernel: K,
    journal: Journal,
    limits: Limits,
    memory: Memory,
}

/// What an SA may carry before the generation is to be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { packets: 1 << 32, bytes: 1 << 46 }
    }
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
    /// Generations whose inbound SAs from every peer of the plan are in the kernel.
    pub receives: BTreeSet<Uid>,
    /// The generation that every outbound ESP policy in the kernel sends with, with all that are planned in place, those
    /// aside that a foreign policy keeps out.
    pub sends: Option<Uid>,
    /// No policy of ours in the kernel sends with any generation.
    pub silent: bool,
    /// It sends ESP to every peer of the plan.
    pub encrypts: bool,
    /// Something of ours in the kernel turns plaintext away.
    pub insists: bool,
    /// Generations of which SAs were lost that can't be had again, and this node's incarnation then.
    pub burnt: BTreeMap<Uid, u32>,
    /// Generations to be replaced: an SA has passed a limit, or two senders have one SPI.
    pub spent: BTreeSet<Uid>,
    /// Peers that the plan has probe policies for, and whether those are in the kernel; those aside where somebody else's
    /// policy is in the place.
    pub probes: BTreeMap<IpAddr, bool>,
    /// SAs that somebody else took away since the run before.
    pub lost: usize,
    /// How the journal is kept.
    pub journal: Option<Keeping>,
    /// Policies of others that come before ours, in sentences for people.
    pub overruled: BTreeSet<String>,
    /// How many SAs and policies there should be in the kernel now, ours and foreign.
    pub counts: Option<Counts>,
}

impl Outcome {
    /// Everything that the plan says is in place.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        // A block concerns no peer, and everybody.
        let hole = |finding: &Finding| matches!(finding, Finding::ForeignPolicy(id) if id.is_block());
        self.failed.is_empty()
            && self.peers_programmed == self.peers_desired
            && !self.findings.iter().any(hole)
    }
}

impl<K: Kernel> Reconciler<K> {
    /// A reconciler that knows nothing yet: it adopts what the kernel holds. Its journal is in memory.
    pub fn new(kernel: K) -> Self {
        Self::with(kernel, Journal::default(), Limits::default())
    }

    /// A reconciler that goes on with a journal.
    pub fn with(kernel: K, journal: Journal, limits: Limits) -> Self {
        Self { kernel, journal, limits, memory: Memory::default() }
    }

    /// The kernel that it works at.
    pub const fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// How many SAs and policies the kernel holds, as far as it says.
    pub fn counts(&mut self) -> Option<Counts> {
        self.kernel.counts().ok().flatten()
    }

    /// What it knows of this boot.
    pub const fn journal(&self) -> &Journal {
        &self.journal
    }

    /// One run. What fails is reported and left for the next one; what depends on it is left out.
    ///
    /// # Errors
    /// The kernel can't be read. Nothing was changed then.
    pub fn run(&mut self, plan: &Plan, now: Instant) -> Result<Outcome, KernelError> {
        // Counted first: what somebody else changes from here on is noticed afterwards.
        let counts = self.counts();
        let actual = self.kernel.dump()?;
        self.journal.suspect(plan.generations.iter().map(|(uid, standing)| (*uid, standing.incarnation)));
        let known = (self.journal.record(), self.journal.whole());
        let diff = diff(&actual, plan, known, &mut self.memory, now);
        let overruled = overruling(&actual.policies, &plan.states.values().map(pair));
        let (findings, wake_at, lost) = (diff.findings, diff.wake_at, diff.lost);
        let mut outcome = Outcome { findings, wake_at, lost, overruled, counts, ..Outcome::default() };
        // Losses must be known to the next agent before they are mended.
        let mut writable = self.write(&diff.entries, &mut outcome);
        let mut unavailable = diff.unavailable;
        let mut troubled: BTreeSet<IpAddr> = BTreeSet::new();
        let mut pins = Pins::of(&actual);
        for class in diff.classes {
            let noted: Vec<Option<Entry>> = class.iter().map(|op| noted(op, plan)).collect();
            writable &= self.write(&announced(&noted), &mut outcome);
            let may = |op: &Op| match op {
                Op::AddPolicy(policy) | Op::UpdatePolicy(policy) => {
                    pinned(policy.id, policy.action).is_none_or(|id| !unavailable.contains(&id))
                }
                Op::AddState(_) => writable,
                // To make room for another with its id.
                Op::DeleteState(id) if plan.states.contains_key(id) => writable,
                // A policy that could not be changed must not lose the SA that it sends with.
                Op::DeleteState(id) => !pins.contains(*id),
                Op::DeletePolicy(_) => true,
            };
            let (mut ready, mut held_back, mut noted_of) = (Vec::new(), Vec::new(), Vec::new());
            for (op, noted) in class.into_iter().zip(noted) {
                if may(&op) {
                    noted_of.push(noted);
                    ready.push(op);
                } else {
                    held_back.push(op);
                }
            }
            troubled.extend(held_back.iter().filter_map(|op| remote(plan, op)));
            unavailable.extend(held_back.iter().filter_map(added));
            let mut entries = Vec::new();
            for ((op, noted), result) in ready.iter().zip(noted_of).zip(self.kernel.apply(&ready)) {
                entries.extend(noted.and_then(|noted| learned(noted, &result)));
                match result {
                    Ok(()) => {
                        outcome.changed += 1;
                        pins.note(op);
                        outcome.counts.iter_mut().for_each(|counts| counts.note(op));
                    }
                    Err(error) => {
                        troubled.extend(remote(plan, op));
                        unavailable.extend(added(op));
                        outcome.failed.push(error);
                    }
                }
            }
            self.write(&entries, &mut outcome);
        }
        for finding in &outcome.findings {
            match finding {
                Finding::ForeignState(id) | Finding::LostOutbound(id) => troubled.extend(peer_of(plan, *id)),
                Finding::ForeignPolicy(id) => {
                    troubled.insert(far_end(*id));
                }
                Finding::Unexplained(_) | Finding::LostInbound(_) | Finding::Journal(_) => {}
            }
        }
        let peers: BTreeSet<IpAddr> = plan.states.values().map(peer).collect();
        outcome.peers_desired = peers.len();
        outcome.peers_programmed = peers.difference(&troubled).count();
        outcome.receives = receives(plan, &unavailable);
        // Where somebody else's policy is in the place of ours, this node sends with no generation at all.
        let mut planned = planned_pins(plan);
        planned.retain(|id, _| !outcome.findings.contains(&Finding::ForeignPolicy(*id)));
        outcome.sends = plan.active.filter(|_| sending(&pins.by_policy).eq(sending(&planned)));
        outcome.probes = probes(plan, &pins, &outcome.findings);
        let sent_to: BTreeSet<IpAddr> = sending(&pins.by_policy).map(|(id, _)| id.dst.addr).collect();
        outcome.encrypts = outcome.sends.is_some() && peers.is_subset(&sent_to);
        outcome.silent = sent_to.is_empty();
        outcome.insists = !pins.insisting.is_empty();
        outcome.burnt = self.burnt(plan);
        outcome.spent = self.spent(plan, &actual);
        outcome.journal = Some(self.journal.keeping());
        Ok(outcome)
    }

    /// Whether the journal could be written.
    fn write(&mut self, entries: &[Entry], outcome: &mut Outcome) -> bool {
        let written = self.journal.write(entries);
        if let Err(error) = &written {
            outcome.findings.insert(Finding::Journal(error.to_string()));
        }
        written.is_ok()
    }

    fn burnt(&self, plan: &Plan) -> BTreeMap<Uid, u32> {
        let used = plan.generations.iter().filter(|(_, standing)| standing.role != Role::Retiring);
        used.filter_map(|(uid, standing)| {
            let burnt = self.journal.record().burnt(uid)?;
            // An old ring may name one that was left behind: one write has to do.
            let last = self.journal.record().last(uid).unwrap_or(0);
            (burnt >= standing.incarnation).then_some((*uid, burnt.max(last)))
        })
        .collect()
    }

    fn spent(&self, plan: &Plan, actual: &Actual) -> BTreeSet<Uid> {
        let over = actual.states.iter().filter(|sa| {
            sa.owner == Owner::Ours && (sa.packets >= self.limits.packets || sa.bytes >= self.limits.bytes)
        });
        let over = over.filter_map(|sa| Some(plan.states.get(&sa.id)?.generation));
        over.chain(plan.collisions.iter().map(|collision| collision.generation)).collect()
    }
}

/// What there is to write down of an operation, before or afterwards.
fn noted(op: &Op, plan: &Plan) -> Option<Entry> {
    match op {
        Op::AddState(sa) => entry(plan, sa.id),
        Op::DeleteState(id) => Some(Entry::Gone(*id)),
        Op::AddPolicy(_) | Op::UpdatePolicy(_) | Op::DeletePolicy(_) => None,
    }
}

/// What to write down before a class is carried out: outbound keys that will be used, inbound SAs that we take out.
fn announced(noted: &[Option<Entry>]) -> Vec<Entry> {
    let before = |entry: &&Entry| matches!(entry, Entry::Out { .. } | Entry::Gone(_));
    noted.iter().flatten().filter(before).copied().collect()
}

/// What to write down afterwards: inbound SAs that are there now, outbound keys that were refused.
fn learned(noted: Entry, result: &Result<(), OpError>) -> Option<Entry> {
    match (noted, result) {
        (Entry::In { .. }, Ok(())) => Some(noted),
        // Without an answer nobody knows; nor does anybody what it is that is there already.
        (Entry::Out { generation, key, .. }, Err(error))
            if !matches!(error.kind, OpErrorKind::Unknown | OpErrorKind::Exists) =>
        {
            Some(Entry::Unused { generation, key })
        }
        _ => None,
    }
}

fn entry(plan: &Plan, id: SaId) -> Option<Entry> {
    let planned = plan.states.get(&id)?;
    Some(planned_entry(planned, plan.generations.get(&planned.generation)?.incarnation))
}

const fn added(op: &Op) -> Option<SaId> {
    if let Op::AddState(sa) = op { Some(sa.id) } else { None }
}

/// The generations that can be received with from every peer, given what can't be had.
fn receives(plan: &Plan, unavailable: &BTreeSet<SaId>) -> BTreeSet<Uid> {
    if plan.sender == Sender::Nothing {
        return BTreeSet::new();
    }
    let lacking: BTreeSet<Uid> = unavailable
        .iter()
        .filter_map(|id| plan.states.get(id))
        .filter(|planned| planned.direction == Direction::In)
        .map(|planned| planned.generation)
        .collect();
    plan.generations.keys().filter(|uid| !lacking.contains(uid)).copied().collect()
}

/// The outbound SAs that the policies of a plan send with.
fn planned_pins(plan: &Plan) -> BTreeMap<PolicyId, SaId> {
    plan.policies.iter().filter_map(|(id, action)| Some((*id, pinned(*id, *action)?))).collect()
}

/// Those that send with something else than probes.
fn sending(pins: &BTreeMap<PolicyId, SaId>) -> impl Iterator<Item = (&PolicyId, &SaId)> {
    pins.iter().filter(|(id, _)| !id.is_probe())
}

fn probes(plan: &Plan, pins: &Pins, findings: &BTreeSet<Finding>) -> BTreeMap<IpAddr, bool> {
    let mut probes = BTreeMap::new();
    for (id, action) in plan.policies.iter().filter(|(id, _)| id.is_probe()) {
        let there = match pinned(*id, *action) {
            Some(sa) => pins.by_policy.get(id) == Some(&sa),
            None => pins.receiving.contains(id),
        };
        *probes.entry(far_end(*id)).or_insert(true) &= there;
    }
    for finding in findings {
        if let Finding::ForeignPolicy(id) = finding
            && id.is_probe()
        {
            probes.remove(&far_end(*id));
        }
    }
    probes
}

/// The outbound SAs that the policies in the kernel send with.
#[derive(Default)]
struct Pins {
    by_policy: BTreeMap<PolicyId, SaId>,
    /// How many policies pin each.
    counts: BTreeMap<SaId, usize>,
    /// Those that turn plaintext away.
    insisting: BTreeSet<PolicyId>,
    /// Those that turn probes in the clear away.
    receiving: BTreeSet<PolicyId>,
}

impl Pins {
    fn of(actual: &Actual) -> Self {
        let mut pins = Self::default();
        for policy in actual.policies.iter().filter(|policy| policy.owner == Owner::Ours) {
            pins.set(policy.id, policy.action);
        }
        pins
    }

    fn note(&mut self, done: &Op) {
        match done {
            Op::AddPolicy(Policy { id, action }) | Op::UpdatePolicy(Policy { id, action }) => {
                self.set(*id, Some(*action));
            }
            Op::DeletePolicy(id) => self.set(*id, None),
            Op::AddState(_) | Op::DeleteState(_) => {}
        }
    }

    fn set(&mut self, policy: PolicyId, action: Option<Action>) {
        let insisting = if policy.is_probe() { &mut self.receiving } else { &mut self.insisting };
        match action {
            Some(Action::Block | Action::Esp(None)) => insisting.insert(policy),
            Some(Action::Allow | Action::Esp(Some(_))) | None => insisting.remove(&policy),
        };
        let sa = action.and_then(|action| pinned(policy, action));
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
        Op::AddPolicy(policy) | Op::UpdatePolicy(policy) => Some(far_end(policy.id)),
        Op::DeletePolicy(_) => None,
    }
}

/// The peer's side of a policy for one.
const fn far_end(id: PolicyId) -> IpAddr {
    match id.direction {
        Direction::In => id.src.addr,
        Direction::Out => id.dst.addr,
    }
}

fn peer_of(plan: &Plan, id: SaId) -> Option<IpAddr> {
    plan.states.get(&id).map(peer)
}

/// The two ends that an SA of the plan is between.
fn pair(planned: &PlannedSa) -> PolicyId {
    let (src, dst) = (Net::host(planned.sa.src), Net::host(planned.sa.id.dst));
    PolicyId::tunnel(planned.direction, src, dst)
}

fn peer(planned: &PlannedSa) -> IpAddr {
    match planned.direction {
        Direction::In => planned.sa.src,
        Direction::Out => planned.sa.id.dst,
    }
}

#[cfg(test)]
mod tests;
