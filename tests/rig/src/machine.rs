//! A machine whose kernel only counts.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc::Sender},
};

use anyhow::Result;
use secureoverlay_agent::{
    kernel::{
        Job,
        machine::{Counters, Machine},
    },
    network::{measure::measure, mtu, reader::NetworkReader, surroundings::Surroundings},
};
use secureoverlay_agent_core::{
    coverage::PodNetworks,
    kernel::{Counts, Kernel, OpError, OpErrorKind},
    network::LocalNetwork,
    plan::DesiredInput,
    xfrm::{Actual, ActualPolicy, ActualSa, Op, Owner, Policy, PolicyAction, PolicyId, Sa, SaId},
};
use secureoverlay_agent_kernel::KernelError;
use tokio::sync::Notify;

use crate::number;

/// What the kernel of one node holds.
#[derive(Default)]
struct Tables {
    sas: BTreeMap<SaId, Sa>,
    policies: BTreeMap<PolicyId, PolicyAction>,
    /// Every SA has carried one more packet whenever it is asked.
    packets: u64,
}

/// SAs and policies in maps; shared between the agent's threads as a kernel is.
#[derive(Clone, Default)]
pub struct CountingKernel(Arc<Mutex<Tables>>);

impl CountingKernel {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many packets an SA has carried: one more whenever that is asked.
    pub fn packets(&self, sa: SaId) -> Option<u64> {
        let mut tables = self.tables();
        tables.packets += 1;
        tables.sas.contains_key(&sa).then_some(tables.packets)
    }
}

impl Tables {
    fn carry_out(&mut self, op: &Op) -> Result<(), OpErrorKind> {
        match op {
            Op::AddSa(sa) if self.sas.contains_key(&sa.id) => return Err(OpErrorKind::Exists),
            Op::AddPolicy(policy) if self.policies.contains_key(&policy.id) => {
                return Err(OpErrorKind::Exists);
            }
            Op::AddSa(sa) => drop(self.sas.insert(sa.id, sa.clone())),
            Op::DeleteSa(id) => drop(self.sas.remove(id)),
            Op::AddPolicy(Policy { id, action }) | Op::UpdatePolicy(Policy { id, action }) => {
                self.policies.insert(*id, *action);
            }
            Op::DeletePolicy(id) => drop(self.policies.remove(id)),
        }
        Ok(())
    }
}

impl Kernel for CountingKernel {
    type Error = KernelError;

    fn dump(&mut self) -> Result<Actual, KernelError> {
        let tables = self.tables();
        let sas = tables.sas.values().map(|sa| ActualSa {
            src: sa.src,
            id: sa.id,
            owner: Owner::Ours,
            cipher: Some((sa.suite, sa.key.clone())),
            well_formed: true,
            packets: 0,
            bytes: 0,
        });
        let policies = tables.policies.iter().map(|(id, action)| ActualPolicy {
            id: *id,
            index: 0,
            priority: action.priority(),
            protocol: id.traffic.protocol(),
            marked: false,
            conditional: false,
            owner: Owner::Ours,
            action: Some(*action),
        });
        Ok(Actual { sas: sas.collect(), policies: policies.collect() })
    }

    fn counts(&mut self) -> Result<Option<Counts>, KernelError> {
        let tables = self.tables();
        let count = |entries: usize| u32::try_from(entries).unwrap_or(u32::MAX);
        Ok(Some(Counts { sas: count(tables.sas.len()), policies: count(tables.policies.len()) }))
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>> {
        let mut tables = self.tables();
        let error = |kind| OpError { what: "a change".to_owned(), kind, detail: String::new() };
        ops.iter().map(|op| tables.carry_out(op).map_err(error)).collect()
    }
}

/// The machine under one agent.
pub struct CountingMachine {
    kernel: CountingKernel,
    network: LocalNetwork,
    told: bool,
    /// Of a measured agent: looks at this machine's links and routes as the product does, for what that costs. What is
    /// seen there says nothing of the node.
    looks: Option<NetworkReader>,
}

impl CountingMachine {
    /// That of the node with this number.
    pub fn new(node: u32, measured: bool) -> Result<Self> {
        let address = number::address(node)?;
        let network = LocalNetwork {
            tunnel_addresses: vec![address],
            all_addresses: [address].into(),
            pod_networks: [number::pods(node)?].into(),
            ..LocalNetwork::default()
        };
        let looks = measured.then(NetworkReader::default);
        Ok(Self { kernel: CountingKernel::default(), network, told: false, looks })
    }
}

impl Machine for CountingMachine {
    type Kernel = CountingKernel;

    fn open(&mut self) -> Result<CountingKernel, KernelError> {
        Ok(self.kernel.clone())
    }

    fn network(&mut self) -> Result<(LocalNetwork, bool), KernelError> {
        if let Some(reader) = &mut self.looks {
            reader.read()?;
        }
        let first = !std::mem::replace(&mut self.told, true);
        Ok((self.network.clone(), first))
    }

    fn measure(
        &mut self,
        input: &DesiredInput,
        pods: Option<&PodNetworks>,
    ) -> Result<(mtu::Facts, Surroundings), KernelError> {
        if self.looks.is_some() {
            measure(input, pods)?;
        }
        Ok((mtu::Facts::default(), Surroundings::default()))
    }

    fn counters(&self) -> Counters {
        let kernel = self.kernel.clone();
        Box::new(move |sa| Some((kernel.packets(sa)?, 0)))
    }

    fn listen(&self, _jobs: &Sender<Job>) -> Result<Arc<Notify>> {
        Ok(Arc::default())
    }

    fn listen_to_vm(&self, _copied: Box<dyn FnMut() -> bool + Send>) -> Result<()> {
        Ok(())
    }
}
