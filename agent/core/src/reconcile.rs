//! Brings a kernel to what a plan says, class by class, and writes down beforehand which keys it is given.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use secureoverlay_keyring::{peer::Instance, probe::PINNED_PORT, uid::Uid};

use crate::{
    diff::{Diff, DiffState, Finding, diff},
    journal::{Journal, JournalStore, Line, Record},
    kernel::{Counts, Kernel, OpError},
    pair::PairId,
    plan::{Plan, PlannedPair, Planner, ReconcileTarget, Refused},
    restore::restore,
    xfrm::{Actual, ActualPolicy, Direction, Op, Owner, Policy, PolicyAction, PolicyId, SaId},
};

/// What an SA may carry before its generation is to be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaLimits {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Default for SaLimits {
    fn default() -> Self {
        Self { packets: 1 << 32, bytes: 1 << 46 }
    }
}

/// A kernel, and what is remembered of it.
#[derive(Debug)]
pub struct Reconciler<K, S> {
    kernel: K,
    journal: Journal<S>,
    limits: SaLimits,
    planner: Planner,
    state: DiffState,
    planned: Option<(ReconcileTarget, Plan)>,
    /// Our policies in the kernel after the last run.
    policies: BTreeMap<PolicyId, PolicyAction>,
}

/// What a run did and found.
#[derive(Debug, Default)]
pub struct ReconcileReport {
    /// Operations carried out.
    pub changed: usize,
    /// Operations that the kernel refused.
    pub failed: Vec<OpError>,
    /// What stands in the way.
    pub findings: BTreeSet<Finding>,
    /// Entries that have no SA.
    pub refused: BTreeSet<Refused>,
    /// Pairs of the plan.
    pub pairs: BTreeMap<PairId, PlannedPair>,
    /// Pairs whose probe policies are in place.
    pub probed: BTreeSet<PairId>,
    /// What our outbound policies for pod traffic pin.
    pub pins: BTreeMap<PairId, u32>,
    /// How many SAs of ours the kernel held before.
    pub found: usize,
    /// Our SAs in the kernel.
    pub sas: BTreeSet<SaId>,
    /// Inbound ones, by source and SPI: pings that name one of these are answered.
    pub inbound: BTreeSet<(IpAddr, u32)>,
    /// Generations with which every entry is received from.
    pub receivable: BTreeSet<Uid>,
    /// Policies of ours turn plaintext away.
    pub enforcing: bool,
    /// Generations of which an SA has passed a limit.
    pub exhausted: BTreeSet<Uid>,
    /// Outbound keys were lost: a new instance is needed.
    pub needs_new_instance: bool,
    /// Peers whose inbound SAs were made again.
    pub lost_inbound: BTreeSet<IpAddr>,
    /// SAs that other programs removed since the run before.
    pub lost: usize,
    /// Generations that have left ring and kernel in this boot.
    pub gone: BTreeSet<Uid>,
    /// Policies of other programs.
    pub foreign: Vec<ActualPolicy>,
    /// How many SAs and policies there should be in the kernel now, ours and foreign.
    pub counts: Option<Counts>,
    /// SAs and policies of the plan.
    pub planned: (usize, usize),
}

impl ReconcileReport {
    /// Everything that the plan says is in place, but for what can't be had.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let hole = |finding: &Finding| {
            matches!(finding, Finding::ForeignPolicy(id) if id.is_block())
                || matches!(finding, Finding::Journal(_))
        };
        self.failed.is_empty() && !self.findings.iter().any(hole)
    }
}

impl<K: Kernel, S: JournalStore> Reconciler<K, S> {
    /// A reconciler that goes on with a journal, and adopts what the kernel holds.
    pub fn new(kernel: K, journal: Journal<S>, limits: SaLimits) -> Self {
        Self {
            kernel,
            journal,
            limits,
            planner: Planner::default(),
            state: DiffState::default(),
            planned: None,
            policies: BTreeMap::new(),
        }
    }

    /// The same with the key agreements of an earlier one of this node.
    #[must_use]
    pub fn with_planner(self, planner: Planner) -> Self {
        Self { planner, ..self }
    }

    /// What knows the key agreements.
    #[must_use]
    pub fn into_planner(self) -> Planner {
        self.planner
    }

    /// The kernel that it works at.
    pub const fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// What it knows of this boot.
    pub const fn record(&self) -> &Record {
        self.journal.record()
    }

    /// How many SAs and policies the kernel holds, as far as it says.
    pub fn counts(&mut self) -> Option<Counts> {
        self.kernel.counts().ok().flatten()
    }

    /// Another program flushed the policies: puts those back that the last run left, without a look at the kernel.
    /// Returns how many. The next run finds what else is missing.
    pub fn put_policies_back(&mut self) -> usize {
        let ops = restore(&self.policies);
        self.kernel.apply(&ops).iter().filter(|result| result.is_ok()).count()
    }

    /// One run. What fails is reported and left for the next one; what depends on it is left out.
    ///
    /// # Errors
    /// The kernel can't be read. Nothing was changed then.
    pub fn run(&mut self, target: &ReconcileTarget) -> Result<ReconcileReport, K::Error> {
        // Counted first: what another program changes from here on is noticed afterwards.
        let counts = self.counts();
        let actual = self.kernel.dump()?;
        if self.planned.as_ref().is_none_or(|(planned, _)| planned != target) {
            self.planned = Some((target.clone(), self.planner.plan(target)));
        }
        let Some((_, plan)) = self.planned.take() else { unreachable!("planned above") };
        let mut report = ReconcileReport { counts, ..ReconcileReport::default() };
        let vouched = self.vouch(plan.instance, &mut report);
        let diff = diff(&actual, &plan, self.journal.record(), &mut self.state);
        report.needs_new_instance = !diff.lost_outbound.is_empty();
        report.foreign =
            actual.policies.iter().filter(|policy| policy.owner == Owner::Foreign).copied().collect();
        let tables = Tables::of(&actual);
        report.found = tables.sas.len();
        let mut run = Run { actual: tables, unavailable: diff.unavailable.clone(), report };
        self.carry_out(&plan, diff, vouched, &mut run);
        let mut report = run.report;
        self.policies = run.actual.describe(&plan, &run.unavailable, &mut report);
        let over = actual.sas.iter().filter(|sa| {
            sa.owner == Owner::Ours && (sa.packets >= self.limits.packets || sa.bytes >= self.limits.bytes)
        });
        report.exhausted = over.filter_map(|sa| Some(plan.sas.get(&sa.id)?.generation)).collect();
        report.gone.clone_from(self.journal.record().gone());
        report.pairs.clone_from(&plan.pairs);
        report.refused.clone_from(&plan.refused);
        report.planned = (plan.sas.len(), plan.policies.len());
        self.planned = Some((target.clone(), plan));
        Ok(report)
    }

    /// Says in the journal which instance its keys are of. Without that no outbound SA may be made.
    fn vouch(&mut self, instance: Option<Instance>, report: &mut ReconcileReport) -> bool {
        let Some(instance) = instance else { return true };
        let known = self.journal.record().instance() == Some(instance);
        known || self.write(&[Line::Instance(instance)], report)
    }

    fn write(&mut self, lines: &[Line], report: &mut ReconcileReport) -> bool {
        let written = self.journal.write(lines);
        if let Err(error) = &written {
            report.findings.insert(Finding::Journal(error.clone()));
        }
        written.is_ok()
    }

    fn carry_out(&mut self, plan: &Plan, diff: Diff, vouched: bool, run: &mut Run) {
        let Diff { classes, findings, lines, lost_inbound, lost, .. } = diff;
        run.report.findings.extend(findings);
        (run.report.lost_inbound, run.report.lost) = (lost_inbound, lost);
        let mut writable = vouched && self.write(&lines, &mut run.report);
        for class in classes {
            let used: Vec<Line> = class.iter().filter_map(|op| used_key(op, plan)).collect();
            writable &= self.write(&used, &mut run.report);
            let deletes = class.iter().any(|op| matches!(op, Op::DeleteSa(_)));
            let moving = if deletes { run.actual.not_moved(plan) } else { BTreeSet::new() };
            let (ready, left_out): (Vec<Op>, Vec<Op>) = class.into_iter().partition(|op| match op {
                Op::AddSa(_) => writable,
                Op::AddPolicy(policy) | Op::UpdatePolicy(policy) => !run.pins_new(policy),
                // Where the policy could not be moved away from it, it goes on being sent with.
                Op::DeleteSa(id) => !moving.contains(id),
                Op::DeletePolicy(_) => true,
            });
            run.unavailable.extend(left_out.iter().filter_map(added));
            let mut done = Vec::with_capacity(ready.len());
            for (op, result) in ready.iter().zip(self.kernel.apply(&ready)) {
                match result {
                    Ok(()) => done.push(op),
                    Err(error) => {
                        run.unavailable.extend(added(op));
                        run.report.failed.push(error);
                    }
                }
            }
            run.note(&done);
        }
    }
}

/// A run under way.
struct Run {
    actual: Tables,
    unavailable: BTreeSet<SaId>,
    report: ReconcileReport,
}

impl Run {
    fn note(&mut self, done: &[&Op]) {
        self.report.changed += done.len();
        for op in done {
            self.report.counts.iter_mut().for_each(|counts| counts.note(op));
        }
        self.actual.note(done);
    }

    /// Whether a policy would begin to pin an SA that could not be had. One that it pins already goes on holding
    /// traffic back.
    fn pins_new(&self, policy: &Policy) -> bool {
        let Some(id) = pinned(policy.id, policy.action) else { return false };
        self.unavailable.contains(&id)
            && self.actual.policies.get(&policy.id).is_some_and(|action| *action != policy.action)
    }
}

fn used_key(op: &Op, plan: &Plan) -> Option<Line> {
    let Op::AddSa(sa) = op else { return None };
    let planned = plan.sas.get(&sa.id).filter(|planned| planned.direction == Direction::Out)?;
    Some(Line::Out { generation: planned.generation, key: planned.fingerprint, peer: planned.peer.clone() })
}

const fn added(op: &Op) -> Option<SaId> {
    if let Op::AddSa(sa) = op { Some(sa.id) } else { None }
}

/// The SA that an outbound policy sends with.
fn pinned(policy: PolicyId, action: PolicyAction) -> Option<SaId> {
    match (policy.direction, action) {
        (Direction::Out, PolicyAction::Esp(Some(spi))) => Some(SaId { dst: policy.dst.addr, spi }),
        _ => None,
    }
}

/// What of ours is in the kernel.
#[derive(Default)]
struct Tables {
    sas: BTreeMap<SaId, IpAddr>,
    policies: BTreeMap<PolicyId, PolicyAction>,
}

impl Tables {
    fn of(actual: &Actual) -> Self {
        let sas = actual.sas.iter().filter(|sa| sa.owner == Owner::Ours);
        let policies = actual.policies.iter().filter(|policy| policy.owner == Owner::Ours);
        Self {
            sas: sas.map(|sa| (sa.id, sa.src)).collect(),
            policies: policies.filter_map(|policy| Some((policy.id, policy.action?))).collect(),
        }
    }

    /// What was added is merged as a whole: a class is sorted.
    fn note(&mut self, done: &[&Op]) {
        for op in done {
            match op {
                Op::DeleteSa(id) => drop(self.sas.remove(id)),
                Op::DeletePolicy(id) => drop(self.policies.remove(id)),
                Op::AddSa(_) | Op::AddPolicy(_) | Op::UpdatePolicy(_) => {}
            }
        }
        let sas =
            done.iter().filter_map(|op| if let Op::AddSa(sa) = op { Some((sa.id, sa.src)) } else { None });
        self.sas.append(&mut sas.collect());
        let policies = done.iter().filter_map(|op| match op {
            Op::AddPolicy(policy) | Op::UpdatePolicy(policy) => Some((policy.id, policy.action)),
            Op::AddSa(_) | Op::DeleteSa(_) | Op::DeletePolicy(_) => None,
        });
        self.policies.append(&mut policies.collect());
    }

    /// SAs that policies pin which were to be moved away from them.
    fn not_moved(&self, plan: &Plan) -> BTreeSet<SaId> {
        let planned = plan.policies.iter();
        let moved = planned.filter_map(|(id, action)| Some((id, *action, *self.policies.get(id)?)));
        moved.filter(|(_, planned, now)| planned != now).filter_map(|(id, _, now)| pinned(*id, now)).collect()
    }

    /// Says in `report` what there is. Returns the policies.
    fn describe(
        self,
        plan: &Plan,
        unavailable: &BTreeSet<SaId>,
        report: &mut ReconcileReport,
    ) -> BTreeMap<PolicyId, PolicyAction> {
        let Self { sas, policies } = self;
        for (id, action) in &policies {
            if !id.is_probe() {
                report.enforcing |= matches!(action, PolicyAction::Block | PolicyAction::Esp(None))
                    && (id.is_block() || id.direction == Direction::In);
                if let (Some(sa), Ok(src), Ok(dst)) =
                    (pinned(*id, *action), id.src.addr.try_into(), id.dst.addr.try_into())
                {
                    report.pins.insert(PairId { src, dst }, sa.spi);
                }
            }
        }
        let incomplete = lacking_probes(plan, &policies);
        let probed = plan.pairs.keys().filter(|pair| {
            let out = PolicyId::probe(Direction::Out, pair.src.ip(), pair.dst.ip(), PINNED_PORT);
            !incomplete.contains(&(pair.src.ip(), pair.dst.ip())) && plan.policies.contains_key(&out)
        });
        report.probed = probed.copied().collect();
        let inbound = plan.sas.values().filter(|planned| planned.direction == Direction::In);
        let lacking: BTreeSet<Uid> = inbound
            .filter(|planned| unavailable.contains(&planned.sa.id) || !sas.contains_key(&planned.sa.id))
            .map(|planned| planned.generation)
            .collect();
        report.receivable = plan.receivable.difference(&lacking).copied().collect();
        let outbound =
            |id: &SaId| plan.sas.get(id).is_some_and(|planned| planned.direction == Direction::Out);
        report.inbound = sas.iter().filter(|(id, _)| !outbound(id)).map(|(id, src)| (*src, id.spi)).collect();
        report.sas = sas.into_keys().collect();
        policies
    }
}

/// Pairs of which a probe policy of the plan is not in place: this node's address, then the peer's.
fn lacking_probes(plan: &Plan, policies: &BTreeMap<PolicyId, PolicyAction>) -> BTreeSet<(IpAddr, IpAddr)> {
    let mut there = policies.iter().peekable();
    let mut lacking = BTreeSet::new();
    for planned in plan.policies.iter().filter(|(id, _)| id.is_probe()) {
        while there.next_if(|(id, _)| *id < planned.0).is_some() {}
        if there.peek() != Some(&planned) {
            lacking.insert(match planned.0.direction {
                Direction::Out => (planned.0.src.addr, planned.0.dst.addr),
                Direction::In => (planned.0.dst.addr, planned.0.src.addr),
            });
        }
    }
    lacking
}

#[cfg(test)]
mod tests;
