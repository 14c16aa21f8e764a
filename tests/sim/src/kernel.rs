//! A model of one kernel's XFRM tables: it behaves as Linux does, fails on demand, carries packets by keys that really
//! match, and notes what must never happen.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    rc::Rc,
};

use secureoverlay_agent_core::{
    kernel::{Counts, Kernel, OpError, OpErrorKind},
    xfrm::{
        Actual, ActualPolicy, ActualSa, Direction, Net, Op, Owner, Policy, PolicyAction, PolicyId, SaId,
        Traffic,
    },
};

use crate::{
    disk::{Fuse, burn},
    rng::Rng,
};

/// What no kernel can see alone.
#[derive(Debug, Default)]
pub struct Shared {
    /// Every outbound key that any kernel was ever given, by fingerprint.
    pub outbound: BTreeSet<u64>,
    /// SAs that agents removed from their kernels, or moved onto: to be judged by the world.
    pub events: Vec<KernelEvent>,
}

/// What the world judges.
#[derive(Clone, Debug)]
pub enum KernelEvent {
    /// An agent deleted an inbound SA.
    Deleted {
        /// The machine.
        at: usize,
        /// The SA.
        id: SaId,
        /// Its key.
        key: u64,
    },
    /// An agent deleted an outbound SA that a policy pins.
    Held {
        /// The machine.
        at: usize,
        /// The policy.
        policy: PolicyId,
        /// The SA.
        id: SaId,
    },
    /// A policy for pod traffic was removed.
    Opened {
        /// The machine.
        at: usize,
        /// The policy.
        policy: PolicyId,
    },
    /// A policy for pod traffic sends with another SA than before.
    Pinned {
        /// The machine.
        at: usize,
        /// The policy.
        policy: PolicyId,
        /// The SA.
        id: SaId,
    },
    /// What must never happen.
    Wrong(u8, String),
}

/// An SA in the kernel.
#[derive(Clone, Debug)]
pub struct KernelSa {
    /// As a dump shows it.
    pub actual: ActualSa,
    /// Fingerprint of its key.
    pub key: u64,
    /// The sequence number of the newest packet that came by it.
    pub newest: u64,
}

/// Where a packet leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// In the clear.
    Clear,
    /// Not at all.
    Dropped,
    /// By this SA, with this key and sequence number.
    Esp(SaId, u64, u64),
}

/// The tables, and how the kernel behaves.
#[derive(Debug)]
pub struct Tables {
    /// The machine's number.
    pub at: usize,
    /// SAs.
    pub sas: BTreeMap<SaId, KernelSa>,
    /// Policies.
    pub policies: BTreeMap<PolicyId, ActualPolicy>,
    /// Operations refused, of a hundred.
    pub refuses: u64,
    /// Addresses that this machine has had in this boot.
    pub own: BTreeSet<IpAddr>,
    /// The address that it has now.
    pub current: IpAddr,
    /// SAs with this key were answered, by a small and by a large ping.
    pub answered: BTreeMap<u64, [bool; 2]>,
    /// Large pings have to be answered.
    pub large: bool,
    /// What was pinned once in this boot: it may be put back.
    pub pinned: BTreeSet<(PolicyId, u32)>,
    /// Inbound SAs by which packets came, and which an agent deleted: they must not come again.
    pub closed: BTreeSet<u64>,
    /// SAs of ours that something else than the agent removed, by id.
    pub lost: BTreeSet<SaId>,
    /// Operations carried out.
    pub operations: u64,
    /// This memory is that of another machine, too: keys are used twice, and that can't be helped.
    pub copied: bool,
    shared: Rc<RefCell<Shared>>,
    foreign: (Vec<ActualSa>, Vec<ActualPolicy>),
    rng: Rng,
}

const ANYWHERE: Net = Net { addr: IpAddr::V4(Ipv4Addr::UNSPECIFIED), prefix: 0 };

impl Tables {
    /// A kernel that has just booted, with something foreign in it.
    #[must_use]
    pub fn new(at: usize, local: IpAddr, shared: Rc<RefCell<Shared>>, rng: Rng) -> Self {
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
            marked: false,
            owner: Owner::Foreign,
            action: None,
        };
        let sas = [sa(local, 0x300), sa(other, 0x301)];
        let policies = [policy(Direction::In, other, local, 50), policy(Direction::Out, local, other, 4)];
        let foreign = (sas.to_vec(), policies.to_vec());
        let kernel_sa = |sa: ActualSa| (sa.id, KernelSa { actual: sa, key: 0, newest: 0 });
        Self {
            at,
            sas: sas.into_iter().map(kernel_sa).collect(),
            policies: policies.into_iter().map(|policy| (policy.id, policy)).collect(),
            refuses: 0,
            own: [local].into(),
            current: local,
            answered: BTreeMap::new(),
            large: false,
            pinned: BTreeSet::new(),
            closed: BTreeSet::new(),
            lost: BTreeSet::new(),
            operations: 0,
            copied: false,
            shared,
            foreign,
            rng,
        }
    }

    /// The SA that the policy for pod traffic sends with; `None` where there is no such policy.
    #[must_use]
    pub fn pin(&self, src: IpAddr, dst: IpAddr) -> Option<SaId> {
        let id = PolicyId::tunnel(Direction::Out, Net::host(src), Net::host(dst));
        self.policies.get(&id).and_then(pin)
    }

    /// All pins for pod traffic.
    pub fn pins(&self) -> impl Iterator<Item = (PolicyId, SaId)> {
        let tunnels = self.policies.values().filter(|policy| !policy.id.is_probe());
        tunnels.filter_map(|policy| Some((policy.id, pin(policy)?)))
    }

    fn found(
        &self,
        direction: Direction,
        src: IpAddr,
        dst: IpAddr,
        traffic: Traffic,
    ) -> Option<&ActualPolicy> {
        let (src_net, dst_net) = (Net::host(src), Net::host(dst));
        let pair = PolicyId { direction, src: src_net, dst: dst_net, traffic };
        let block = PolicyId { src: ANYWHERE, dst: ANYWHERE, ..pair };
        let protocol = traffic.protocol();
        let ours = |id| self.policies.get(id).filter(|policy| policy.protocol == protocol);
        ours(&pair).or_else(|| ours(&block))
    }

    /// Whether a packet of the tunnels between `own` and `peer` would pass in the clear.
    #[must_use]
    pub fn clear(&self, direction: Direction, own: IpAddr, peer: IpAddr) -> bool {
        let (src, dst) = match direction {
            Direction::In => (peer, own),
            Direction::Out => (own, peer),
        };
        self.found(direction, src, dst, Traffic::Tunnel)
            .is_none_or(|policy| !matches!(policy.action, Some(PolicyAction::Esp(_) | PolicyAction::Block)))
    }

    /// A packet leaves.
    pub fn egress(&mut self, src: IpAddr, dst: IpAddr, traffic: Traffic) -> Egress {
        match self.found(Direction::Out, src, dst, traffic).map(|policy| policy.action) {
            None | Some(Some(PolicyAction::Allow)) => Egress::Clear,
            Some(Some(PolicyAction::Esp(Some(spi)))) => {
                let id = SaId { dst, spi };
                let Some(sa) = self.sas.get_mut(&id).filter(|sa| sa.actual.src == src) else {
                    return Egress::Dropped;
                };
                sa.actual.packets += 1;
                sa.actual.bytes += 100;
                Egress::Esp(id, sa.key, sa.actual.packets)
            }
            Some(_) => Egress::Dropped,
        }
    }

    /// A packet arrives; whether it is let in.
    pub fn ingress(&mut self, src: IpAddr, dst: IpAddr, traffic: Traffic, egress: Egress) -> bool {
        let secure = match egress {
            Egress::Dropped => return false,
            Egress::Clear => false,
            Egress::Esp(id, key, number) => {
                let Some(sa) = self.sas.get_mut(&id).filter(|sa| sa.key == key && sa.actual.src == src)
                else {
                    return false;
                };
                if number + 4096 <= sa.newest {
                    return false;
                }
                sa.newest = sa.newest.max(number);
                sa.actual.packets += 1;
                true
            }
        };
        match self.found(Direction::In, src, dst, traffic).map(|policy| policy.action) {
            None | Some(Some(PolicyAction::Allow)) => true,
            Some(Some(PolicyAction::Esp(_))) => secure,
            Some(_) => false,
        }
    }

    /// Deletes what is ours and `gone` says so of, as `ip xfrm` would.
    pub fn delete(&mut self, mut sa: impl FnMut(&mut Rng) -> bool, mut policy: impl FnMut(&mut Rng) -> bool) {
        let (rng, lost) = (&mut self.rng, &mut self.lost);
        self.sas.retain(|id, found| {
            let keep = found.actual.owner == Owner::Foreign || !sa(rng);
            if !keep {
                lost.insert(*id);
            }
            keep
        });
        self.policies.retain(|_, found| found.owner == Owner::Foreign || !policy(rng));
    }

    /// SAs and policies of ours.
    #[must_use]
    pub fn ours(&self) -> usize {
        let sas = self.sas.values().filter(|sa| sa.actual.owner == Owner::Ours).count();
        sas + self.policies.values().filter(|policy| policy.owner == Owner::Ours).count()
    }

    /// Whether an SA leads away from this machine, which may have had its peer's address before.
    fn is_outbound(&self, src: IpAddr, dst: IpAddr) -> bool {
        src == self.current || (self.own.contains(&src) && !self.own.contains(&dst))
    }

    fn tell(&self, event: KernelEvent) {
        self.shared.borrow_mut().events.push(event);
    }

    fn wrong(&self, invariant: u8, text: String) {
        self.tell(KernelEvent::Wrong(invariant, text));
    }

    fn carry_out(&mut self, op: &Op, next: Option<&Op>) -> Result<(), OpErrorKind> {
        self.operations += 1;
        match op {
            Op::AddSa(sa) => {
                if self.sas.contains_key(&sa.id) {
                    return Err(OpErrorKind::Exists);
                }
                let key = sa.key.fingerprint();
                let outbound = self.is_outbound(sa.src, sa.id.dst);
                if outbound && !self.shared.borrow_mut().outbound.insert(key) && !self.copied {
                    self.wrong(4, format!("the outbound key of {} was installed a second time", sa.id));
                }
                if !outbound && self.closed.contains(&key) {
                    self.wrong(10, format!("the replay window of {} was opened again", sa.id));
                }
                let cipher = Some((sa.suite, sa.key.clone()));
                let (owner, well_formed) = (Owner::Ours, true);
                let actual =
                    ActualSa { src: sa.src, id: sa.id, owner, cipher, well_formed, packets: 0, bytes: 0 };
                self.sas.insert(sa.id, KernelSa { actual, key, newest: 0 });
                self.lost.remove(&sa.id);
            }
            Op::DeleteSa(id) => {
                let Some(found) = self.sas.remove(id) else { return Ok(()) };
                let replaced = matches!(next, Some(Op::AddSa(sa)) if sa.id == *id);
                let outbound = self.is_outbound(found.actual.src, id.dst);
                if let Some((policy, _)) =
                    self.pins().find(|(_, pinned)| outbound && !replaced && *pinned == *id)
                {
                    self.tell(KernelEvent::Held { at: self.at, policy, id: *id });
                }
                if !outbound {
                    if found.newest > 0 {
                        self.closed.insert(found.key);
                    }
                    self.tell(KernelEvent::Deleted { at: self.at, id: *id, key: found.key });
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
                let pinned = self.policies.remove(id).as_ref().and_then(pin).is_some();
                if pinned && !id.is_probe() {
                    self.tell(KernelEvent::Opened { at: self.at, policy: *id });
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
            marked: false,
            owner: Owner::Ours,
            action: Some(policy.action),
        };
        let now = pin(&actual);
        let before = self.policies.insert(policy.id, actual).as_ref().and_then(pin);
        let Some(id) = now.filter(|_| before != now && !policy.id.is_probe()) else { return };
        if !self.pinned.insert((policy.id, id.spi)) {
            return;
        }
        let answered = self.sas.get(&id).and_then(|sa| self.answered.get(&sa.key));
        let proven = answered.is_some_and(|[small, large]| *small && (*large || !self.large));
        if !proven {
            self.wrong(9, format!("a policy was made to send with {id}, which was not answered"));
        }
        self.tell(KernelEvent::Pinned { at: self.at, policy: policy.id, id });
    }

    fn check_foreign(&self) {
        let (sas, policies) = &self.foreign;
        let kept = sas.iter().all(|sa| self.sas.get(&sa.id).is_some_and(|found| found.actual == *sa))
            && policies.iter().all(|policy| self.policies.get(&policy.id) == Some(policy));
        if !kept {
            self.wrong(5, "what is not ours was changed".into());
        }
    }
}

fn pin(policy: &ActualPolicy) -> Option<SaId> {
    match policy.action {
        Some(PolicyAction::Esp(Some(spi))) if policy.owner == Owner::Ours => {
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
    /// When the agent is killed.
    pub fuse: Fuse,
}

impl Socket {
    fn one(&self, op: &Op, next: Option<&Op>) -> Result<(), OpError> {
        let mut tables = self.tables.borrow_mut();
        let refused = |kind| OpError { what: format!("{op:?}"), kind, detail: String::new() };
        if burn(&self.fuse) {
            return Err(refused(OpErrorKind::Unknown));
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
        told.map_or(result, Err).map_err(refused)
    }
}

impl Kernel for Socket {
    type Error = String;

    fn dump(&mut self) -> Result<Actual, String> {
        let tables = self.tables.borrow();
        let sas = tables.sas.values().map(|sa| sa.actual.clone()).collect();
        Ok(Actual { sas, policies: tables.policies.values().copied().collect() })
    }

    fn counts(&mut self) -> Result<Option<Counts>, String> {
        let tables = self.tables.borrow();
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        Ok(Some(Counts { sas: count(tables.sas.len()), policies: count(tables.policies.len()) }))
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>> {
        let results = (0..ops.len()).map(|at| self.one(&ops[at], ops.get(at + 1))).collect();
        self.tables.borrow().check_foreign();
        results
    }
}
