//! A model of one kernel's XFRM tables: it behaves as Linux does, fails on demand, and notes what must never happen.
//!
//! Unlike the agent's own model, which panics, this one survives flushes and goes on after a violation.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    rc::Rc,
};

use secureoverlay_agent::{
    kernel::{Kernel, KernelError, OpError, OpErrorKind},
    xfrm::{Action, Actual, ActualPolicy, ActualSa, Direction, Net, Op, Owner, Policy, PolicyId, SaId},
};

use crate::{Time, rng::Rng};

/// Every outbound key that any kernel was ever given.
#[derive(Debug, Default)]
pub struct Keys(BTreeSet<Vec<u8>>);

/// The tables, and how the kernel behaves.
#[derive(Debug)]
pub struct Tables {
    /// SAs.
    pub states: BTreeMap<SaId, ActualSa>,
    /// Policies.
    pub policies: BTreeMap<PolicyId, ActualPolicy>,
    /// What was changed that must not be, since somebody looked.
    pub wrongs: Vec<(u8, String)>,
    /// Inbound SAs that were deleted, since somebody looked.
    pub deleted: Vec<ActualSa>,
    /// What outbound policies pinned before they were changed, and until when.
    pub switched: Vec<(SaId, Time)>,
    /// Operations refused, of a hundred.
    pub refuses: u64,
    /// Operations until whoever makes them is killed.
    pub dies_after: Option<usize>,
    /// The time, for `switched`.
    pub now: Time,
    local: IpAddr,
    keys: Rc<RefCell<Keys>>,
    foreign: (Vec<ActualSa>, Vec<ActualPolicy>),
    rng: Rng,
}

impl Tables {
    /// A kernel that has just booted, with something foreign in it.
    #[must_use]
    pub fn new(local: IpAddr, keys: Rc<RefCell<Keys>>, rng: Rng) -> Self {
        let other: IpAddr = [198, 51, 100, 1].into();
        let sa = |dst: IpAddr, spi| ActualSa {
            src: other,
            id: SaId { dst, spi },
            owner: Owner::Foreign,
            cipher: None,
            well_formed: false,
            packets: 7,
            bytes: 700,
        };
        let policy = |direction, src: IpAddr, dst: IpAddr, protocol| ActualPolicy {
            id: PolicyId::tunnel(direction, Net::host(src), Net::host(dst)),
            index: 8,
            priority: 1,
            protocol,
            conditional: false,
            owner: Owner::Foreign,
            action: None,
        };
        let states = [sa(local, 0x300), sa(other, 0x301)];
        let policies = [policy(Direction::In, other, local, 50), policy(Direction::Out, local, other, 4)];
        let foreign = (states.to_vec(), policies.to_vec());
        Self {
            states: states.into_iter().map(|sa| (sa.id, sa)).collect(),
            policies: policies.into_iter().map(|policy| (policy.id, policy)).collect(),
            wrongs: Vec::new(),
            deleted: Vec::new(),
            switched: Vec::new(),
            refuses: 0,
            dies_after: None,
            now: Time::ZERO,
            local,
            keys,
            foreign,
            rng,
        }
    }

    /// The SA that the policy toward `peer` sends with.
    #[must_use]
    pub fn pinned(&self, peer: IpAddr) -> Option<SaId> {
        let id = PolicyId::tunnel(Direction::Out, Net::host(self.local), Net::host(peer));
        self.policies.get(&id).and_then(pin)
    }

    /// Whether a packet of the tunnels to or from `peer` passes in the clear.
    #[must_use]
    pub fn clear(&self, direction: Direction, peer: IpAddr) -> bool {
        let anywhere = Net { addr: Ipv4Addr::UNSPECIFIED.into(), prefix: 0 };
        let (local, peer) = (Net::host(self.local), Net::host(peer));
        let (pair, block) = match direction {
            Direction::In => ((peer, local), (anywhere, anywhere)),
            Direction::Out => ((local, peer), (local, anywhere)),
        };
        let found = |(src, dst)| {
            let policy = self.policies.get(&PolicyId::tunnel(direction, src, dst));
            policy.filter(|policy| policy.protocol == 4)
        };
        match found(pair).or_else(|| found(block)) {
            None => true,
            Some(policy) => !matches!(policy.action, Some(Action::Esp(_) | Action::Block)),
        }
    }

    /// Deletes what is ours and `gone` says so of, as somebody with `ip xfrm` would.
    pub fn delete(
        &mut self,
        mut state: impl FnMut(&mut Rng) -> bool,
        mut policy: impl FnMut(&mut Rng) -> bool,
    ) {
        let rng = &mut self.rng;
        self.states.retain(|_, sa| sa.owner == Owner::Foreign || !state(rng));
        self.policies.retain(|_, found| found.owner == Owner::Foreign || !policy(rng));
    }

    /// SAs and policies of ours.
    #[must_use]
    pub fn ours(&self) -> usize {
        let states = self.states.values().filter(|sa| sa.owner == Owner::Ours).count();
        states + self.policies.values().filter(|policy| policy.owner == Owner::Ours).count()
    }

    fn wrong(&mut self, invariant: u8, text: String) {
        self.wrongs.push((invariant, text));
    }

    fn carry_out(&mut self, op: &Op, next: Option<&Op>) -> Result<(), OpErrorKind> {
        match op {
            Op::AddState(sa) => {
                if self.states.contains_key(&sa.id) {
                    return Err(OpErrorKind::Exists);
                }
                if sa.src == self.local && !self.keys.borrow_mut().0.insert(sa.key.expose().to_vec()) {
                    self.wrong(4, format!("the outbound key of {} was installed a second time", sa.id));
                }
                let cipher = Some((sa.suite, sa.key.clone()));
                let (owner, well_formed) = (Owner::Ours, true);
                let actual =
                    ActualSa { src: sa.src, id: sa.id, owner, cipher, well_formed, packets: 0, bytes: 0 };
                self.states.insert(sa.id, actual);
            }
            Op::DeleteState(id) => {
                let Some(found) = self.states.remove(id) else { return Ok(()) };
                let replaced = matches!(next, Some(Op::AddState(sa)) if sa.id == *id);
                let pinned = || self.policies.values().any(|policy| pin(policy) == Some(*id));
                if found.src == self.local && !replaced && pinned() {
                    self.wrong(1, format!("{id} was deleted while a policy sends with it"));
                }
                if found.src != self.local {
                    self.deleted.push(found);
                }
            }
            Op::AddPolicy(policy) => {
                if self.policies.contains_key(&policy.id) {
                    return Err(OpErrorKind::Exists);
                }
                self.put(policy);
            }
            Op::UpdatePolicy(policy) => self.put(policy),
            Op::DeletePolicy(id) => {
                if let Some(sa) = self.policies.remove(id).as_ref().and_then(pin).filter(|_| !id.is_probe()) {
                    self.switched.push((sa, self.now));
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, policy: &Policy) {
        let actual = ActualPolicy {
            id: policy.id,
            index: 0,
            priority: policy.action.priority(),
            protocol: policy.id.traffic.protocol(),
            conditional: false,
            owner: Owner::Ours,
            action: Some(policy.action),
        };
        let now = pin(&actual);
        let before = self.policies.insert(policy.id, actual).as_ref().and_then(pin);
        // A probe that is lost is only a probe.
        if before != now && !policy.id.is_probe() {
            self.switched.extend(before.map(|sa| (sa, self.now)));
        }
        if let Some(sa) = now.filter(|sa| !self.states.contains_key(sa)) {
            self.wrong(1, format!("a policy was made to send with {sa}, which is not there"));
        }
    }

    fn check_foreign(&mut self) {
        let (states, policies) = &self.foreign;
        let kept = states.iter().all(|sa| self.states.get(&sa.id) == Some(sa))
            && policies.iter().all(|policy| self.policies.get(&policy.id) == Some(policy));
        if !kept {
            self.wrong(5, "what is not ours was changed".into());
        }
    }
}

fn pin(policy: &ActualPolicy) -> Option<SaId> {
    match policy.action {
        Some(Action::Esp(Some(spi))) if policy.owner == Owner::Ours => {
            Some(SaId { dst: policy.id.dst.addr, spi })
        }
        _ => None,
    }
}

/// An agent's access to the kernel of its machine.
#[derive(Clone, Debug)]
pub struct Socket {
    /// The kernel.
    pub tables: Rc<RefCell<Tables>>,
    /// The wrong variant that makes SAs after the policies that need them.
    pub policies_first: bool,
    /// Its SAs that are to be made yet.
    pub late: Vec<Op>,
}

impl Socket {
    fn catch_up(&mut self) {
        let late = std::mem::take(&mut self.late);
        for at in 0..late.len() {
            // Nobody is told how this went.
            let _ = self.one(&late[at], late.get(at + 1));
        }
    }

    fn one(&self, op: &Op, next: Option<&Op>) -> Result<(), OpError> {
        let mut tables = self.tables.borrow_mut();
        let refused = |kind| OpError { what: format!("{op:?}"), kind, detail: String::new() };
        match &mut tables.dies_after {
            Some(0) => return Err(refused(OpErrorKind::Unknown)),
            Some(left) => *left -= 1,
            None => {}
        }
        let fails = tables.refuses > 0 && tables.rng.below(100) < tables.refuses;
        // A refusal, or an answer that was lost, whatever became of the request.
        let (done, told) = match (fails, tables.rng.below(4)) {
            (false, _) => (true, None),
            (true, 0) => (false, Some(OpErrorKind::Unknown)),
            (true, 1) => (true, Some(OpErrorKind::Unknown)),
            (true, _) => (false, Some(OpErrorKind::Refused)),
        };
        let result = if done { tables.carry_out(op, next) } else { Ok(()) };
        tables.check_foreign();
        told.map_or(result, Err).map_err(refused)
    }
}

impl Kernel for Socket {
    fn dump(&mut self) -> Result<Actual, KernelError> {
        self.catch_up();
        let tables = self.tables.borrow();
        let states = tables.states.values().cloned().collect();
        Ok(Actual { states, policies: tables.policies.values().copied().collect() })
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>> {
        let states = ops.iter().all(|op| matches!(op, Op::AddState(_) | Op::DeleteState(_)));
        if self.policies_first && states && ops.iter().any(|op| matches!(op, Op::AddState(_))) {
            self.late.extend(ops.iter().cloned());
            return ops.iter().map(|_| Ok(())).collect();
        }
        let results = (0..ops.len()).map(|at| self.one(&ops[at], ops.get(at + 1))).collect();
        self.catch_up();
        results
    }
}
