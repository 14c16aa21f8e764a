//! The way from what the kernel holds to what it should hold.

mod finding;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use secureoverlay_keyring::{keyring::Role, peer::Instance, uid::Uid};

use crate::{
    journal::{Line, Record},
    plan::{Plan, PlannedSa, Unplanned},
    xfrm::{Actual, ActualPolicy, ActualSa, Direction, Op, Owner, Policy, PolicyAction, PolicyId, SaId},
};

pub use self::finding::Finding;

/// Generations that vanished from the ring in another way than by retiring, whose SAs are kept at most.
const MAX_VANISHED: usize = 8;

/// What is remembered from one run to the next.
#[derive(Debug, Default)]
pub struct DiffState {
    /// What every SA that was planned is of.
    origins: BTreeMap<SaId, Origin>,
    /// The ring's generations at the last run.
    roles: BTreeMap<Uid, Role>,
    /// SAs of ours that nothing explains, and the generations that have to leave the ring before they go.
    orphans: BTreeMap<SaId, BTreeSet<Uid>>,
    /// Generations that vanished, oldest first.
    vanished: Vec<Uid>,
    /// Inbound SAs that the kernel held after the last run.
    inbound: BTreeSet<SaId>,
    /// Outbound SAs that are known to be lost, so that each is reported once.
    lost: BTreeSet<SaId>,
    /// What turned plaintext away after the last run: beside a ring that was begun anew, nothing else remembers it.
    enforcing: BTreeMap<PolicyId, PolicyAction>,
}

/// What an SA is of.
#[derive(Clone, Copy, Debug)]
struct Origin {
    generation: Uid,
    /// This node's instance, where it is an outbound one.
    instance: Option<Instance>,
}

/// Operations in the order in which they are safe, in classes with a barrier after each.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// The classes.
    pub classes: [Vec<Op>; Self::CLASSES],
    /// SAs that can't be had.
    pub unavailable: BTreeSet<SaId>,
    /// What stands in the way, or was lost.
    pub findings: BTreeSet<Finding>,
    /// What to write down before anything is done.
    pub lines: Vec<Line>,
    /// Peers whose inbound SAs are made again.
    pub lost_inbound: BTreeSet<IpAddr>,
    /// Outbound SAs whose keys were used and that are missing: they can't be made again.
    pub lost_outbound: BTreeSet<SaId>,
    /// SAs that other programs removed since the last run.
    pub lost: usize,
}

impl Diff {
    const CLASSES: usize = 9;
    pub(crate) const IN_POLICIES: usize = 0;
    /// Blocks come before SAs, which take long where there are many peers: what no policy covers yet must not pass
    /// meanwhile. What excluded nodes are let through by comes before the blocks, and goes after them.
    pub(crate) const BLOCKS: usize = 1;
    pub(crate) const IN_SAS: usize = 2;
    pub(crate) const OUT_SAS: usize = 3;
    pub(crate) const OUT_POLICIES: usize = 4;
    pub(crate) const NO_BLOCKS: usize = 5;
    pub(crate) const NO_OUT_POLICIES: usize = 6;
    pub(crate) const NO_IN_POLICIES: usize = 7;
    pub(crate) const NO_SAS: usize = 8;

    /// Whether the kernel holds what it should.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.classes.iter().all(Vec::is_empty)
    }
}

/// Compares `actual` with `plan`, in the light of which keys this boot's kernel was given before. Foreign entries never
/// appear in the operations.
pub fn diff(actual: &Actual, plan: &Plan, record: &Record, state: &mut DiffState) -> Diff {
    let mut diff = Diff::default();
    let sas: BTreeMap<SaId, &ActualSa> = actual.sas.iter().map(|sa| (sa.id, sa)).collect();
    // Only a policy with exactly our selector is in our way; others have a selector of their own, or are beside ours.
    let policies: BTreeMap<PolicyId, &ActualPolicy> = actual
        .policies
        .iter()
        .filter(|policy| {
            policy.protocol == policy.id.traffic.protocol() && !policy.conditional && !policy.marked
        })
        .map(|policy| (policy.id, policy))
        .collect();
    for uid in plan.generations.keys().filter(|uid| !record.has_generation(uid)) {
        diff.lines.push(Line::Generation(*uid));
    }
    for planned in plan.sas.values() {
        plan_sa(&mut diff, planned, plan, sas.get(&planned.sa.id).copied(), record, state);
    }
    report_losses(&mut diff, state);
    plan_policies(&mut diff, &plan.policies, &policies);
    keep_enforcing(&mut diff, plan, &policies, state);
    remove_policies(&mut diff, plan, &policies);
    state.origins.retain(|id, _| sas.contains_key(id));
    state.origins.extend(plan.sas.iter().map(|(id, planned)| {
        let instance = plan.instance.filter(|_| planned.direction == Direction::Out);
        (*id, Origin { generation: planned.generation, instance })
    }));
    remove_sas(&mut diff, plan, &sas, &policies, state);
    diff.lines.extend(gone(plan, &sas, record, state));
    let inbound = plan.sas.iter().filter(|(_, planned)| planned.direction == Direction::In);
    state.inbound = inbound.map(|(id, _)| *id).collect();
    diff
}

/// Adopts, replaces or adds one SA.
fn plan_sa(
    diff: &mut Diff,
    planned: &PlannedSa,
    plan: &Plan,
    found: Option<&ActualSa>,
    record: &Record,
    state: &DiffState,
) {
    let (sa, id, generation) = (&planned.sa, planned.sa.id, planned.generation);
    let outbound = planned.direction == Direction::Out;
    if found.is_some_and(|found| found.owner == Owner::Foreign) {
        diff.findings.insert(Finding::ForeignSa(id));
        diff.unavailable.insert(id);
        return;
    }
    let used = record.used(&generation, planned.fingerprint);
    let adopted = found.is_some_and(|found| {
        let same_cipher = match &found.cipher {
            Some((suite, key)) => *suite == sa.suite && *key == sa.key,
            // Where the kernel hides keys, the journal has to do.
            None => !outbound || used,
        };
        found.src == sa.src && found.well_formed && same_cipher
    });
    let line = || Line::Out { generation, key: planned.fingerprint, peer: planned.peer.clone() };
    if adopted {
        if outbound && !used {
            diff.lines.push(line());
        }
        return;
    }
    if outbound {
        // One that differs is left alone, and counts as missing.
        if used || found.is_some() {
            diff.unavailable.insert(id);
            if plan.generations.get(&generation) != Some(&Role::Retiring) {
                diff.lost_outbound.insert(id);
            }
            return;
        }
        diff.classes[Diff::OUT_SAS].push(Op::AddSa(sa.clone()));
        return;
    }
    if found.is_none() && state.inbound.contains(&id) {
        diff.lost += 1;
        diff.lost_inbound.insert(sa.src);
    }
    if found.is_some() {
        diff.classes[Diff::IN_SAS].push(Op::DeleteSa(id));
    }
    diff.classes[Diff::IN_SAS].push(Op::AddSa(sa.clone()));
}

fn report_losses(diff: &mut Diff, state: &mut DiffState) {
    if diff.lost > 0 {
        diff.findings.insert(Finding::LostInbound(diff.lost));
    }
    if !diff.lost_outbound.is_empty() {
        diff.findings.insert(Finding::LostOutbound(diff.lost_outbound.len()));
    }
    diff.lost += diff.lost_outbound.difference(&state.lost).count();
    state.lost.clone_from(&diff.lost_outbound);
}

/// Whether a policy turns pod traffic in the clear away.
fn enforces(id: &PolicyId, action: PolicyAction) -> bool {
    !id.is_probe() && matches!(action, PolicyAction::Block | PolicyAction::Esp(None))
}

fn plan_policies(
    diff: &mut Diff,
    wanted: &BTreeMap<PolicyId, PolicyAction>,
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
            (PolicyAction::Block, _) => Diff::BLOCKS,
            (PolicyAction::Allow, _) | (_, Direction::In) => Diff::IN_POLICIES,
            (_, Direction::Out) => Diff::OUT_POLICIES,
        };
        diff.classes[class].push(op);
    }
}

/// What turned plaintext away goes on where the plan says so, and is put back if another program removes it.
fn keep_enforcing(
    diff: &mut Diff,
    plan: &Plan,
    policies: &BTreeMap<PolicyId, &ActualPolicy>,
    state: &mut DiffState,
) {
    let mut enforcing: BTreeMap<PolicyId, PolicyAction> = plan
        .policies
        .iter()
        .map(|(id, action)| (*id, *action))
        .filter(|(id, action)| enforces(id, *action))
        .collect();
    if plan.other_inbound == Unplanned::Keep {
        let ours = policies.values().filter(|found| found.owner == Owner::Ours);
        let found = ours.filter_map(|found| Some((found.id, found.action?)));
        let found = found.filter(|(id, action)| enforces(id, *action));
        let mut kept = std::mem::take(&mut state.enforcing);
        kept.extend(found);
        kept.retain(|id, _| !plan.policies.contains_key(id));
        plan_policies(diff, &kept, policies);
        enforcing.extend(kept);
    }
    state.enforcing = enforcing;
}

fn remove_policies(diff: &mut Diff, plan: &Plan, policies: &BTreeMap<PolicyId, &ActualPolicy>) {
    let stays = |found: &ActualPolicy| match (found.action, found.id.direction) {
        _ if found.id.is_probe() => plan.other_probes == Unplanned::Keep,
        // For peers that are not excluded any more, or gone.
        (Some(PolicyAction::Allow), _) if plan.other_inbound == Unplanned::Keep => false,
        (Some(PolicyAction::Block | PolicyAction::Allow), _) | (_, Direction::In) => {
            plan.other_inbound == Unplanned::Keep
        }
        (_, Direction::Out) => plan.other_outbound == Unplanned::Keep,
    };
    let ours = policies.values().filter(|found| found.owner == Owner::Ours);
    for found in ours.filter(|found| !plan.policies.contains_key(&found.id) && !stays(found)) {
        let class = match (found.action, found.id.direction) {
            (Some(PolicyAction::Block), _) => Diff::NO_BLOCKS,
            (_, Direction::In) => Diff::NO_IN_POLICIES,
            (_, Direction::Out) => Diff::NO_OUT_POLICIES,
        };
        diff.classes[class].push(Op::DeletePolicy(found.id));
    }
}

/// SAs that are ours and not planned leave with their generation. One that no generation explains stays until every
/// generation that was in the ring when it was found has left it.
fn remove_sas(
    diff: &mut Diff,
    plan: &Plan,
    sas: &BTreeMap<SaId, &ActualSa>,
    policies: &BTreeMap<PolicyId, &ActualPolicy>,
    state: &mut DiffState,
) {
    let ours = sas.values().filter(|found| found.owner == Owner::Ours);
    let unplanned: Vec<SaId> = ours.map(|found| found.id).filter(|id| !plan.sas.contains_key(id)).collect();
    if plan.remove_all {
        diff.classes[Diff::NO_SAS].extend(unplanned.into_iter().map(Op::DeleteSa));
        state.roles.clear();
        return;
    }
    if plan.instance.is_none() {
        return;
    }
    let Left { removed, dropped } = state.leave(&plan.generations);
    // Those that are put back in this run are sent with as well.
    let mut pinned = pins(policies);
    pinned.extend(plan.policies.iter().filter_map(|(id, action)| pinned_by(*id, *action)));
    let former = std::mem::take(&mut state.orphans);
    for id in unplanned {
        let delete = match state.origins.get(&id) {
            Some(Origin { generation, .. }) if dropped.contains(generation) => true,
            // Nothing sends with a former instance again, once its last pair has moved.
            Some(Origin { generation, instance }) if plan.generations.contains_key(generation) => {
                instance.is_some() && *instance != plan.instance && !pinned.contains(&id)
            }
            _ => {
                let now = || plan.generations.keys().copied().collect();
                let mut waits = former.get(&id).cloned().unwrap_or_else(now);
                waits.retain(|uid| !removed.contains(uid));
                let over = waits.is_empty() && former.contains_key(&id);
                if !over {
                    state.orphans.insert(id, waits);
                }
                over
            }
        };
        if delete {
            diff.classes[Diff::NO_SAS].push(Op::DeleteSa(id));
        }
    }
    if !state.orphans.is_empty() {
        diff.findings.insert(Finding::Orphaned(state.orphans.len()));
    }
}

/// Generations that have left the ring since the last run.
struct Left {
    /// In the way that generations do.
    removed: BTreeSet<Uid>,
    /// Those, and ones that vanished so long ago that their SAs are not kept any more.
    dropped: BTreeSet<Uid>,
}

impl DiffState {
    fn leave(&mut self, generations: &BTreeMap<Uid, Role>) -> Left {
        // A staged generation beside another one has carried probes only.
        let beside = self.roles.len() > 1;
        let left = || self.roles.iter().filter(|(uid, _)| !generations.contains_key(uid));
        // Where nothing is left of the ring of before, it was begun anew, and nodes that do not know that yet go on
        // sending with what it had.
        let goes_on = self.roles.keys().any(|uid| generations.contains_key(uid));
        let in_order = |role: Role| match role {
            Role::Retiring => goes_on,
            Role::Active => false,
            Role::Staged => beside && goes_on,
        };
        let removed: BTreeSet<Uid> =
            left().filter(|(_, role)| in_order(**role)).map(|(uid, _)| *uid).collect();
        let vanished: Vec<Uid> = left().filter(|(_, role)| !in_order(**role)).map(|(uid, _)| *uid).collect();
        self.vanished.retain(|uid| !generations.contains_key(uid));
        self.vanished.extend(vanished);
        let over = self.vanished.len().saturating_sub(MAX_VANISHED);
        let dropped = self.vanished.drain(..over).chain(removed.iter().copied()).collect();
        self.roles.clone_from(generations);
        Left { removed, dropped }
    }
}

/// The SAs that policies of ours send with.
fn pins(policies: &BTreeMap<PolicyId, &ActualPolicy>) -> BTreeSet<SaId> {
    let ours = policies.values().filter(|policy| policy.owner == Owner::Ours);
    ours.filter_map(|policy| pinned_by(policy.id, policy.action?)).collect()
}

fn pinned_by(id: PolicyId, action: PolicyAction) -> Option<SaId> {
    match (id.direction, action) {
        (Direction::Out, PolicyAction::Esp(Some(spi))) if !id.is_probe() => {
            Some(SaId { dst: id.dst.addr, spi })
        }
        _ => None,
    }
}

/// Generations that have left the ring and the kernel.
fn gone(plan: &Plan, sas: &BTreeMap<SaId, &ActualSa>, record: &Record, state: &DiffState) -> Vec<Line> {
    if plan.instance.is_none() {
        return Vec::new();
    }
    let ours = || sas.values().filter(|sa| sa.owner == Owner::Ours).map(|sa| &sa.id);
    let unexplained = ours().any(|id| !state.origins.contains_key(id));
    let there: BTreeSet<&Uid> = ours().filter_map(|id| Some(&state.origins.get(id)?.generation)).collect();
    let left = record.generations().iter().filter(|uid| !plan.generations.contains_key(uid));
    left.filter(|uid| !unexplained && !there.contains(uid)).map(|uid| Line::Gone(*uid)).collect()
}
