//! The seam to the machine under the agent: this node, or a model of one in measurements of many agents.

use std::sync::{Arc, mpsc::Sender};

use anyhow::Result;
use secureoverlay_agent_core::{
    coverage::PodNetworks, kernel::Kernel, network::LocalNetwork, plan::DesiredInput, xfrm::SaId,
};
use secureoverlay_agent_kernel::{KernelError, XfrmSocket};
use tokio::sync::Notify;

use super::{
    Job,
    listeners::{listen_to_kernel, listen_to_network, listen_to_vm},
};
use crate::network::{measure, mtu, reader::NetworkReader, surroundings::Surroundings};

/// Reads how many packets and bytes an SA has carried.
pub type Counters = Box<dyn FnMut(SaId) -> Option<(u64, u64)> + Send>;

/// What the agent reads and changes beside the API.
pub trait Machine: Send + 'static {
    /// What holds SAs and policies.
    type Kernel: Kernel<Error = KernelError>;

    /// Opens what holds SAs and policies; called until it succeeds.
    ///
    /// # Errors
    /// It can't be asked.
    fn open(&mut self) -> Result<Self::Kernel, KernelError>;

    /// Addresses and pod networks, and whether they are others than before.
    ///
    /// # Errors
    /// They can't be read.
    fn network(&mut self) -> Result<(LocalNetwork, bool), KernelError>;

    /// What MTUs matter, and what lets traffic past the policies.
    ///
    /// # Errors
    /// They can't be read.
    fn measure(
        &mut self,
        input: &DesiredInput,
        pods: Option<&PodNetworks>,
    ) -> Result<(mtu::Facts, Surroundings), KernelError>;

    /// What reads the counters of SAs, on another thread than the rest.
    fn counters(&self) -> Counters;

    /// Starts what tells of changes made by other programs.
    ///
    /// # Errors
    /// Threads can't be started.
    fn listen(&self, jobs: &Sender<Job>) -> Result<Arc<Notify>>;

    /// Starts what calls `copied` when this virtual machine was copied or put back, until that says false.
    ///
    /// # Errors
    /// A thread can't be started.
    fn listen_to_vm(&self, copied: Box<dyn FnMut() -> bool + Send>) -> Result<()>;
}

/// The machine that this process runs on.
#[derive(Default)]
pub struct ThisMachine {
    network: NetworkReader,
}

impl Machine for ThisMachine {
    type Kernel = XfrmSocket;

    fn open(&mut self) -> Result<XfrmSocket, KernelError> {
        XfrmSocket::open()
    }

    fn network(&mut self) -> Result<(LocalNetwork, bool), KernelError> {
        self.network.read()
    }

    fn measure(
        &mut self,
        input: &DesiredInput,
        pods: Option<&PodNetworks>,
    ) -> Result<(mtu::Facts, Surroundings), KernelError> {
        measure::measure(input, pods)
    }

    fn counters(&self) -> Counters {
        let mut socket: Option<XfrmSocket> = None;
        Box::new(move |sa| {
            if socket.is_none() {
                socket = XfrmSocket::open().ok();
            }
            let read = socket.as_mut()?.carried(sa);
            if read.is_err() {
                socket = None;
            }
            read.ok().flatten()
        })
    }

    fn listen(&self, jobs: &Sender<Job>) -> Result<Arc<Notify>> {
        listen_to_network(jobs.clone())?;
        listen_to_kernel(jobs.clone())
    }

    fn listen_to_vm(&self, copied: Box<dyn FnMut() -> bool + Send>) -> Result<()> {
        listen_to_vm(copied)
    }
}
