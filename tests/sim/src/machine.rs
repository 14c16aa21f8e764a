//! A machine: its kernel, its journal, and the agent on it.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    rc::Rc,
    sync::Arc,
};

use secureoverlay_agent::{
    agent::{Agent, Program, Target},
    plan::{Plan, Stage},
    reconcile::{Outcome, Reconciler},
};
use secureoverlay_common::{
    acknowledgement::Acknowledgement, ring::Ring, rotation::Incarnations, uid::Uid, wire::End,
};

use crate::{
    Time,
    kernel::{Socket, Tables},
    rng::Rng,
};

/// What a machine's kernel was brought to, or was to be.
#[derive(Clone, Debug)]
pub struct Known {
    /// The target's content, where it had one.
    pub program: Option<Program>,
    /// How far a removal had gone.
    pub stage: Stage,
    /// The resourceVersion under which the ring came.
    pub version: u64,
}

/// A machine, which may have a Node object.
pub struct Machine {
    /// Name of its Node.
    pub name: String,
    /// Address of its tunnels.
    pub addr: IpAddr,
    /// UID of its Node, while there is one.
    pub uid: Option<Uid>,
    /// Boot ID of its kernel.
    pub boot: Uid,
    /// It has not left.
    pub live: bool,
    /// Its kernel.
    pub tables: Rc<RefCell<Tables>>,
    /// Where the journal of this boot is.
    pub journal: PathBuf,
    /// The agent's process.
    pub process: Option<Process>,
    /// There is to be an agent.
    pub pod: bool,
    /// The DaemonSet that the pod was made for; `None` where whichever is there has adopted it.
    pub set: Option<Uid>,
    /// Cut off from the API.
    pub partitioned: bool,
    /// Its agent is stopped until then.
    pub stopped_until: Time,
    /// Its agent is slow until then.
    pub slow_until: Time,
    /// The last target that was reached completely in this boot.
    pub applied: Option<Known>,
    /// The last target that was tried in this boot.
    pub attempted: Option<Known>,
    /// The resourceVersion of the first ring of this boot that it had under its present identity.
    pub first: Option<u64>,
    /// What it said last of each generation: under which incarnations it receives with it.
    pub claims: BTreeMap<Uid, Incarnations>,
    /// Generations that it receives with, by its last attempt.
    pub receives: BTreeSet<Uid>,
    /// It has brought its kernel to enforcing in this boot, and was not told to relent since.
    pub insists: bool,
    /// Whom it was to let through in the clear since the last target that it reached completely, and in that one.
    pub let_through: BTreeSet<IpAddr>,
    /// Generations of which it can't go on without a new incarnation.
    pub burnt: BTreeSet<Uid>,
    /// Somebody else took SAs or policies away, which were not all repaired yet.
    pub flushed: bool,
    /// The resourceVersion of the last write that went on without it: of an activation, or from before it had a Node.
    pub left_behind: Option<u64>,
    /// The resourceVersion from which on it took part again.
    pub included: Option<u64>,
    /// When it first knew a generation to send with after each break in the ring's history.
    pub sends_since: BTreeMap<u64, Time>,
    /// Its Node has the start-up taint.
    pub tainted: bool,
    /// Something may have kept its agent from following the ring until then.
    pub hindered_until: Time,
    /// Its own luck.
    pub rng: Rng,
}

impl Machine {
    /// Its end of every pair.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        Some(End { addr: self.addr, node: self.uid?, boot: self.boot })
    }

    /// How long something takes that takes so many milliseconds at least and at most.
    pub fn delay(&mut self, now: Time, from: u64, to: u64) -> Time {
        if now < self.slow_until {
            self.rng.millis(from + 500, to + 30_000)
        } else {
            self.rng.millis(from, to)
        }
    }
}

/// An agent's process.
pub struct Process {
    /// Tells it from the ones before it.
    pub pid: u64,
    /// The decisions.
    pub agent: Agent,
    /// What changes the kernel.
    pub reconciler: Reconciler<Socket>,
    /// The last target and its plan.
    pub plan: Option<(Target, Plan)>,
    /// The target being worked at.
    pub under_way: Option<Target>,
    /// How that went.
    pub outcome: Option<Outcome>,
    /// When it looks again, as far as that is planned.
    pub wake: Option<Time>,
    /// Rings that were held, with their resourceVersions.
    pub rings: Vec<(Arc<Ring>, u64)>,
    /// The newest resourceVersion that came.
    pub delivered: u64,
    /// What it wants to say.
    pub wants: Option<Acknowledgement>,
    /// What it said last, as far as it knows.
    pub said: Option<Acknowledgement>,
    /// A write is on its way.
    pub sending: bool,
}

impl Process {
    /// The version under which a ring came.
    #[must_use]
    pub fn version(&self, ring: &Arc<Ring>) -> u64 {
        self.rings.iter().find(|(held, _)| Arc::ptr_eq(held, ring)).map_or(0, |(_, version)| *version)
    }

    /// Notes which ring is held now.
    pub fn note_ring(&mut self) {
        let Some(ring) = self.agent.held().ring() else { return };
        if !self.rings.last().is_some_and(|(held, _)| Arc::ptr_eq(held, ring)) {
            self.rings.push((ring.clone(), self.delivered));
            // Targets refer to the last few only.
            let old = self.rings.len().saturating_sub(8);
            self.rings.drain(..old);
        }
    }
}
