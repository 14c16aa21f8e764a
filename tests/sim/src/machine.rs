//! A machine: its kernel, its state directory, and the agent on it.

use std::{cell::RefCell, net::IpAddr, rc::Rc, sync::Arc};

use secureoverlay_agent_core::{
    agent::Agent,
    exclusion::Exclusion,
    plan::ReconcileTarget,
    reconcile::{ReconcileReport, Reconciler},
};
use secureoverlay_keyring::{acknowledgement::Acknowledgement, address::NodeAddress};

use crate::{
    Time,
    disk::{Directory, Fuse, Store},
    kernel::{Socket, Tables},
    rng::Rng,
    watch::Stream,
};

/// A machine, which may have a Node object.
pub struct Machine {
    /// Name of its Node.
    pub name: String,
    /// Address of its tunnels.
    pub address: NodeAddress,
    /// It has not left.
    pub live: bool,
    /// When it booted last.
    pub booted: Time,
    /// Its kernel.
    pub tables: Rc<RefCell<Tables>>,
    /// The state directory of this boot.
    pub directory: Rc<RefCell<Directory>>,
    /// The agent's process.
    pub process: Option<Process>,
    /// There is to be an agent.
    pub pod: bool,
    /// Cut off from the API.
    pub partitioned: bool,
    /// Its agent is stopped until then.
    pub stopped_until: Time,
    /// Its agent is slow until then.
    pub slow_until: Time,
    /// Its Node is not Ready since then.
    pub not_ready: Option<Time>,
    /// It is excluded since then.
    pub excluded: Option<Time>,
    /// Its kernel was brought to enforcing, and nothing has said otherwise since.
    pub enforces: bool,
    /// What its last run was told to let pass in the clear.
    pub exclusion: Arc<Exclusion>,
    /// What its last run was to bring it to says that pairs stay pinned.
    pub sends: bool,
    /// Something else took SAs or policies away, and no complete run was since.
    pub flushed: bool,
    /// Randomness of its agent and of its delays.
    pub rng: Rng,
}

impl Machine {
    /// Its address.
    #[must_use]
    pub const fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    /// How long something takes, in milliseconds from one to the other.
    pub fn delay(&mut self, now: Time, from: u64, to: u64) -> Time {
        if now < self.slow_until {
            self.rng.millis(from + 500, to + 15_000)
        } else {
            self.rng.millis(from, to)
        }
    }
}

/// An agent's process.
pub struct Process {
    /// Tells it from the ones before it.
    pub pid: u64,
    /// When it began.
    pub started: Time,
    /// The decisions.
    pub agent: Agent<Store>,
    /// What changes the kernel.
    pub reconciler: Reconciler<Socket, Store>,
    /// The files, and when the process is killed.
    pub store: Store,
    /// The target being worked at.
    pub under_way: Option<ReconcileTarget>,
    /// What became of it.
    pub outcome: Option<ReconcileReport>,
    /// When it looks again, as far as that is planned.
    pub wake: Option<Time>,
    /// The watch of the Secret.
    pub secret: Stream,
    /// The watch of EncryptionPeers.
    pub peers: Stream,
    /// What it said last, as far as it knows.
    pub said: Option<Acknowledgement>,
    /// A write of that is on its way.
    pub saying: bool,
    /// Since when, and how often, it wanted to be woken at once.
    pub spinning: (Time, u32),
}

impl Process {
    /// When it is killed.
    #[must_use]
    pub const fn fuse(&self) -> &Fuse {
        &self.store.fuse
    }
}
