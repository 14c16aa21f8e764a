//! A model of the kernel's XFRM tables, for tests only (feature `fake-kernel`): it behaves as Linux does and checks what
//! must never happen.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
};

use crate::{
    kernel::{Counts, Kernel, OpError, OpErrorKind},
    xfrm::{Actual, ActualPolicy, ActualSa, Direction, Net, Op, Owner, Policy, PolicyAction, PolicyId, SaId},
};

/// SAs and policies, ours and foreign, and a count of operations after which the process dies.
#[derive(Clone, Debug, Default)]
pub struct FakeKernel {
    /// SAs.
    pub sas: BTreeMap<SaId, ActualSa>,
    /// Policies.
    pub policies: BTreeMap<PolicyId, ActualPolicy>,
    /// Operations (counted over all runs) that the kernel refuses.
    pub refuse: BTreeSet<usize>,
    /// Operations after which nothing is carried out any more.
    pub dies_after: Option<usize>,
    /// Operations that were asked for so far.
    pub done: usize,
    /// Keys of outbound SAs that were ever added, to notice a second time.
    pub outbound_keys: BTreeSet<Vec<u8>>,
    /// SAs that were deleted to be added again with another key.
    pub replacing: BTreeSet<SaId>,
    /// SAs that [`Self::take_away`] took.
    pub lost: BTreeSet<SaId>,
    /// Source address of outbound SAs.
    pub local: Option<std::net::IpAddr>,
}

impl FakeKernel {
    /// How many SAs and policies are ours.
    #[must_use]
    pub fn ours(&self) -> usize {
        let states = self.sas.values().filter(|sa| sa.owner == Owner::Ours).count();
        states + self.policies.values().filter(|policy| policy.owner == Owner::Ours).count()
    }

    /// What is not ours.
    #[must_use]
    pub fn foreign(&self) -> (Vec<ActualSa>, Vec<ActualPolicy>) {
        let states = self.sas.values().filter(|sa| sa.owner == Owner::Foreign).cloned().collect();
        (states, self.policies.values().filter(|policy| policy.owner == Owner::Foreign).copied().collect())
    }

    /// Another program adds an SA.
    pub fn add_foreign_sa(&mut self, id: SaId) {
        let sa = ActualSa {
            src: [198, 51, 100, 1].into(),
            id,
            owner: Owner::Foreign,
            cipher: None,
            well_formed: false,
            packets: 0,
            bytes: 0,
        };
        self.sas.insert(id, sa);
    }

    /// Another program adds a policy.
    pub fn add_foreign_policy(&mut self, id: PolicyId) {
        let policy = ActualPolicy {
            id,
            index: 8,
            priority: 1,
            protocol: id.traffic.protocol(),
            conditional: false,
            marked: false,
            owner: Owner::Foreign,
            action: None,
        };
        self.policies.insert(id, policy);
    }

    /// Another program deletes an SA.
    ///
    /// # Panics
    /// It is not there.
    pub fn take_away(&mut self, id: SaId) {
        assert!(self.sas.remove(&id).is_some(), "{id} is not there");
        self.lost.insert(id);
    }

    /// Another program deletes all SAs (`ip xfrm state flush`).
    pub fn flush_sas(&mut self) {
        self.lost.extend(std::mem::take(&mut self.sas).into_keys());
    }

    /// Invariants that hold whatever happens, at every moment.
    fn check(&self) {
        for policy in self.policies.values().filter(|policy| policy.id.direction == Direction::Out) {
            if let (Owner::Ours, Some(PolicyAction::Esp(Some(spi)))) = (policy.owner, policy.action) {
                let id = SaId { dst: policy.id.dst.addr, spi };
                assert!(
                    self.sas.contains_key(&id) || self.replacing.contains(&id) || self.lost.contains(&id),
                    "a policy pins {id}, which is missing: all of its traffic is lost"
                );
            }
        }
    }

    fn carry_out(&mut self, op: &Op) -> Result<(), OpErrorKind> {
        match op {
            Op::AddSa(sa) => {
                if self.sas.contains_key(&sa.id) {
                    return Err(OpErrorKind::Exists);
                }
                if Some(sa.src) == self.local {
                    let first = self.outbound_keys.insert(sa.key.expose().to_vec());
                    assert!(first, "the outbound key of {} was installed twice", sa.id);
                }
                let cipher = Some((sa.suite, sa.key.clone()));
                let (owner, well_formed) = (Owner::Ours, true);
                let actual =
                    ActualSa { src: sa.src, id: sa.id, owner, cipher, well_formed, packets: 0, bytes: 0 };
                self.sas.insert(sa.id, actual);
                self.replacing.remove(&sa.id);
                self.lost.remove(&sa.id);
            }
            Op::DeleteSa(id) => {
                let found = self.sas.remove(id);
                assert!(found.is_none_or(|sa| sa.owner == Owner::Ours), "{id} is foreign and was deleted");
            }
            Op::AddPolicy(policy) => {
                if self.policies.contains_key(&policy.id) {
                    return Err(OpErrorKind::Exists);
                }
                self.put(policy);
            }
            Op::UpdatePolicy(policy) => {
                let found = self.policies.get(&policy.id);
                assert!(
                    found.is_none_or(|found| found.owner == Owner::Ours),
                    "{} is foreign and was updated",
                    policy.id
                );
                self.put(policy);
            }
            Op::DeletePolicy(id) => {
                let found = self.policies.remove(id);
                assert!(
                    found.is_none_or(|policy| policy.owner == Owner::Ours),
                    "{id} is foreign and was deleted"
                );
            }
        }
        Ok(())
    }

    fn put(&mut self, policy: &Policy) {
        if let (Direction::Out, PolicyAction::Esp(Some(spi))) = (policy.id.direction, policy.action) {
            let id = SaId { dst: policy.id.dst.addr, spi };
            let there = self.sas.contains_key(&id) || self.lost.contains(&id);
            assert!(there, "a policy was made to pin {id}, which was never there");
        }
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
        self.policies.insert(policy.id, actual);
    }

    /// Whether the policies let what `id` selects between two hosts through without ESP.
    #[must_use]
    pub fn clear(&self, id: &PolicyId) -> bool {
        let covers = |net: Net, addr: Net| net.prefix == 0 || net == addr;
        let best = self
            .policies
            .values()
            .filter(|policy| (policy.id.direction, policy.id.traffic) == (id.direction, id.traffic))
            .filter(|policy| covers(policy.id.src, id.src) && covers(policy.id.dst, id.dst))
            .min_by_key(|policy| policy.priority);
        best.is_none_or(|policy| policy.action == Some(PolicyAction::Allow))
    }
}

impl Kernel for &mut FakeKernel {
    type Error = Infallible;

    fn dump(&mut self) -> Result<Actual, Infallible> {
        let sas = self.sas.values().cloned().collect();
        Ok(Actual { sas, policies: self.policies.values().copied().collect() })
    }

    fn counts(&mut self) -> Result<Option<Counts>, Infallible> {
        let count = |entries: usize| u32::try_from(entries).unwrap_or(u32::MAX);
        Ok(Some(Counts { sas: count(self.sas.len()), policies: count(self.policies.len()) }))
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>> {
        let mut results = Vec::new();
        for op in ops {
            let at = self.done;
            self.done += 1;
            let dead = self.dies_after.is_some_and(|last| at >= last);
            let result = match (dead, self.refuse.contains(&at)) {
                (true, _) => Err(OpErrorKind::Unknown),
                (_, true) => Err(OpErrorKind::Refused),
                _ => self.carry_out(op),
            };
            let replaced =
                |other: &Op| matches!((op, other), (Op::DeleteSa(id), Op::AddSa(sa)) if sa.id == *id);
            if result.is_ok() && ops.get(results.len() + 1).is_some_and(replaced) {
                self.replacing.extend(match op {
                    Op::DeleteSa(id) => Some(*id),
                    _ => None,
                });
            }
            self.check();
            results.push(result.map_err(|kind| OpError {
                what: format!("{op:?}"),
                kind,
                detail: String::new(),
            }));
        }
        results
    }
}
