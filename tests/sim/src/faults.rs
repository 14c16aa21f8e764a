//! How faults come over the world, and how they end.

use std::{net::IpAddr, time::Duration};

use secureoverlay_common::{ring::Enforcement, uid::Uid};
use secureoverlay_manager_core::snapshot::OperatorRequests;

use crate::{
    api::{Change, DaemonSet, Secret, What, Who},
    fault::Fault,
    machine::Machine,
    world::{Break, Event, Luck, World},
};

/// The node controller calls a node unready after so long without a word of its kubelet.
const UNREADY: Duration = Duration::from_secs(40);

/// The end of a fault.
#[derive(Clone, Copy, Debug)]
pub enum Heal {
    /// A manager starts, if none is there.
    Manager,
    /// The manager of this number is taken away.
    ExtraManager(usize),
    /// An agent starts.
    Agent(usize),
    /// The kubelet ends a pod whose DaemonSet is gone.
    Pod(usize),
    /// The DaemonSet is gone.
    DaemonSetGone(Uid),
    /// A machine reaches the API again.
    Partition(usize),
    /// The node controller says what it thinks of a machine's readiness.
    Readiness(usize),
    /// The label that excludes a node goes.
    Included(usize),
    /// A Node shows its machine's boot ID.
    BootId(usize),
    /// A kernel refuses nothing any more.
    Kernel(usize),
    /// The rubbish is replaced by the ring that was there before.
    Secret,
    /// The manifest is applied.
    Manifest,
    /// A kubelet makes its Node.
    Node(usize),
    /// The request for an enforcement is taken back.
    NoEnforcementRequest,
}

impl World {
    /// The fault of this number happens.
    pub fn fault(&mut self, number: usize) {
        let fault = self.scenario.faults[number].fault;
        if self.calm || self.machines.is_empty() {
            return;
        }
        *self.tally.faults.entry(fault.kind()).or_default() += 1;
        self.tell(|| format!("FAULT {fault:?}"));
        self.hinder(fault);
        self.inject(fault);
    }

    fn one_of(&self, machine: usize) -> usize {
        machine % self.machines.len()
    }

    /// Notes for how long a fault may keep agents from following the ring.
    fn hinder(&mut self, fault: Fault) {
        let (which, time) = match fault {
            Fault::AgentKilled { machine, down: time }
            | Fault::AgentStopped { machine, time }
            | Fault::AgentSlow { machine, time }
            | Fault::Partitioned { machine, time }
            | Fault::Excluded { machine, time }
            | Fault::BootIdHidden { machine, time }
            | Fault::KernelRefuses { machine, time, .. } => (Some(machine), time),
            Fault::AgentDiesMidway { machine, .. }
            | Fault::Rebooted { machine }
            | Fault::Recreated { machine }
            | Fault::Left { machine }
            | Fault::StatesFlushed { machine }
            | Fault::PoliciesFlushed { machine }
            | Fault::Flushed { machine }
            | Fault::SomeDeleted { machine, .. } => (Some(machine), 60),
            Fault::SecretRubbish { time }
            | Fault::SecretDeleted { time }
            | Fault::DaemonSetRecreated { time }
            | Fault::DaemonSetOrphaned { time } => (None, time + 60),
            Fault::WatchesLost | Fault::SecretWiped | Fault::SecretRestored { .. } => (None, 30),
            Fault::ManagerKilled { .. }
            | Fault::ManagerStopped { .. }
            | Fault::SecondManager { .. }
            | Fault::Joined { .. }
            | Fault::AcknowledgementsDeleted
            | Fault::ClockJumped { .. }
            | Fault::GoalChanged { .. }
            | Fault::OffRequested { .. }
            | Fault::RotationRequested
            | Fault::SkipRequested
            | Fault::NodesHidden { .. } => return,
        };
        let until = self.now + Duration::from_secs(time);
        let which = which.map(|machine| self.one_of(machine));
        for (at, machine) in self.machines.iter_mut().enumerate() {
            if which.is_none_or(|which| which == at) {
                machine.hindered_until = machine.hindered_until.max(until);
            }
        }
    }

    fn inject(&mut self, fault: Fault) {
        let seconds = Duration::from_secs;
        match fault {
            Fault::ManagerKilled { down } => {
                for at in 0..self.managers.len() {
                    self.end_manager(at);
                }
                self.after(seconds(down), Event::Heal(Heal::Manager));
            }
            Fault::ManagerStopped { time } => {
                let until = self.now + seconds(time);
                // One of several, if there are several.
                if let Some(manager) = self.managers.iter_mut().find(|manager| manager.alive) {
                    manager.stopped_until = until;
                }
            }
            Fault::SecondManager { time } => {
                let at = self.managers.len();
                self.start_manager();
                self.after(seconds(time), Event::Heal(Heal::ExtraManager(at)));
            }
            Fault::AgentKilled { machine, down } => {
                let at = self.one_of(machine);
                self.end_agent(at);
                self.after(seconds(down), Event::Heal(Heal::Agent(at)));
            }
            Fault::AgentStopped { machine, time } => {
                let at = self.one_of(machine);
                self.machines[at].stopped_until = self.now + seconds(time);
            }
            Fault::AgentSlow { machine, time } => {
                let at = self.one_of(machine);
                self.machines[at].slow_until = self.now + seconds(time);
            }
            Fault::AgentDiesMidway { machine, after } => {
                let at = self.one_of(machine);
                self.machines[at].tables.borrow_mut().dies_after = Some(after);
            }
            Fault::Partitioned { machine, time } => self.partition(machine, seconds(time)),
            Fault::Joined { reuse } => self.joined(reuse),
            Fault::Left { machine } => {
                let at = self.one_of(machine);
                if self.live().count() > 2 && self.machines[at].live {
                    self.end_agent(at);
                    self.machines[at].live = false;
                    self.delete_node(at);
                }
            }
            Fault::Rebooted { machine } => self.reboot(machine),
            Fault::Recreated { machine } => {
                let at = self.one_of(machine);
                if self.machines[at].live && self.machines[at].uid.is_some() {
                    self.delete_node(at);
                    let pause = self.luck(Luck::Machine(at)).millis(200, 10_000);
                    self.after(pause, Event::Heal(Heal::Node(at)));
                }
            }
            Fault::Excluded { machine, time } => {
                let at = self.one_of(machine);
                self.edit_node(at, |node| node.excluded = true);
                self.after(seconds(time), Event::Heal(Heal::Included(at)));
            }
            Fault::BootIdHidden { machine, time } => {
                let at = self.one_of(machine);
                self.edit_node(at, |node| node.boot = None);
                self.after(seconds(time), Event::Heal(Heal::BootId(at)));
            }
            Fault::StatesFlushed { machine } => self.flush(machine, 100, 0),
            Fault::PoliciesFlushed { machine } => self.flush(machine, 0, 100),
            Fault::Flushed { machine } => self.flush(machine, 100, 100),
            Fault::SomeDeleted { machine, percent } => self.flush(machine, percent, percent),
            Fault::KernelRefuses { machine, percent, time } => {
                let at = self.one_of(machine);
                self.machines[at].tables.borrow_mut().refuses = percent;
                self.after(seconds(time), Event::Heal(Heal::Kernel(at)));
            }
            Fault::WatchesLost => {
                let all: Vec<(Who, What)> =
                    self.streams.iter().filter(|(_, stream)| stream.up).map(|(key, _)| *key).collect();
                for (who, what) in all {
                    self.lose(who, what);
                }
            }
            Fault::SecretRubbish { time } => {
                let rubbish = self.luck(Luck::Faults).below(4);
                if let Some((secret, _)) = self.objects.secret.clone() {
                    let document: &[u8] =
                        [&b"{[ not yaml"[..], b"version: 9\n", &[0xff; 40], b"keys: none\n"]
                            [rubbish as usize];
                    self.write_secret(Some(Secret { document: Some(document.to_vec()), ..secret }));
                    self.after(seconds(time), Event::Heal(Heal::Secret));
                }
            }
            Fault::SecretWiped => {
                if let Some((secret, _)) = self.objects.secret.clone() {
                    self.write_secret(Some(Secret { document: Some(Vec::new()), ..secret }));
                }
            }
            Fault::SecretRestored { back } => self.restore(back),
            Fault::SecretDeleted { time } => {
                self.write_secret(None);
                self.after(seconds(time), Event::Heal(Heal::Manifest));
            }
            Fault::DaemonSetRecreated { time } => self.delete_daemon_set(false, seconds(time)),
            Fault::DaemonSetOrphaned { time } => self.delete_daemon_set(true, seconds(time)),
            Fault::AcknowledgementsDeleted => {
                for (name, _) in std::mem::take(&mut self.objects.said) {
                    self.changed(What::Said, &Change::Said(name, None));
                }
            }
            Fault::ClockJumped { seconds } => self.clock += seconds,
            Fault::GoalChanged { insist } => {
                let enforce = if insist { Enforcement::Enforcing } else { Enforcement::Permissive };
                self.ask_for(|requests| requests.enforce = Some(enforce));
            }
            Fault::OffRequested { time } => {
                self.ask_for(|requests| requests.enforce = Some(Enforcement::Off));
                self.after(seconds(time), Event::Heal(Heal::NoEnforcementRequest));
            }
            Fault::RotationRequested => self.ask_for(|requests| requests.rotate = true),
            Fault::SkipRequested => self.ask_for(|requests| requests.press_on = true),
            Fault::NodesHidden { time } => self.hide_nodes(seconds(time)),
        }
    }

    /// Something that a fault did ends.
    pub fn heal(&mut self, heal: Heal) {
        match heal {
            Heal::Manager => {
                if !self.managers.iter().any(|manager| manager.alive) {
                    self.start_manager();
                }
            }
            Heal::ExtraManager(at) => {
                if self.managers.iter().filter(|manager| manager.alive).count() > 1 {
                    self.end_manager(at);
                }
            }
            Heal::Agent(at) => self.start_agent(at),
            Heal::Pod(at) => self.end_pod(at),
            Heal::DaemonSetGone(uid) => self.daemon_set_gone(uid),
            Heal::Partition(at) => self.unpartition(at),
            Heal::Readiness(at) => {
                let ready = !self.machines[at].partitioned;
                self.edit_node(at, |node| node.ready = ready);
            }
            Heal::Included(at) => {
                if self.objects.nodes.get(&self.machines[at].name).is_some_and(|node| node.excluded) {
                    self.edit_node(at, |node| node.excluded = false);
                    self.machines[at].included = Some(self.objects.version);
                }
            }
            Heal::BootId(at) => {
                let boot = self.machines[at].boot;
                self.edit_node(at, |node| node.boot = Some(boot));
            }
            Heal::Kernel(at) => self.machines[at].tables.borrow_mut().refuses = 0,
            Heal::Secret => self.mend(),
            Heal::Manifest => self.apply_manifest(),
            Heal::NoEnforcementRequest => self.ask_for(|requests| requests.enforce = None),
            Heal::Node(at) => {
                if self.machines[at].live && self.machines[at].uid.is_none() {
                    self.register(at);
                }
            }
        }
    }

    /// All faults end.
    pub fn end_faults(&mut self) {
        self.calm = true;
        self.tell(|| "all faults end".into());
        let managers = self.managers.iter().filter(|manager| manager.alive).count();
        for at in 0..self.managers.len() {
            self.managers[at].stopped_until = self.now;
        }
        for _ in 1..managers {
            if let Some(at) = self.managers.iter().position(|manager| manager.alive) {
                self.end_manager(at);
            }
        }
        self.heal(Heal::Manager);
        if let Some(set) = self.objects.daemon_set.filter(|set| set.orphaning) {
            self.daemon_set_gone(set.uid);
        }
        self.apply_manifest();
        self.mend();
        self.ask_for(|requests| *requests = OperatorRequests::default());
        for manager in &mut self.managers {
            manager.hides_until = self.now;
        }
        for at in 0..self.machines.len() {
            self.machines[at].stopped_until = self.now;
            self.machines[at].slow_until = self.now;
            self.machines[at].tables.borrow_mut().dies_after = None;
            for heal in [
                Heal::Kernel(at),
                Heal::Partition(at),
                Heal::Node(at),
                Heal::BootId(at),
                Heal::Included(at),
                Heal::Readiness(at),
                Heal::Agent(at),
            ] {
                self.heal(heal);
            }
        }
    }

    /// An operator edits the annotations of the Secret.
    fn ask_for(&mut self, edit: impl FnOnce(&mut OperatorRequests)) {
        if let Some((mut secret, _)) = self.objects.secret.clone() {
            let before = secret.requests;
            edit(&mut secret.requests);
            if secret.requests != before {
                self.write_secret(Some(secret));
            }
        }
    }

    /// The lists of a manager that knows how many Nodes there are show a minority of them for a while.
    fn hide_nodes(&mut self, time: Duration) {
        let until = self.now + time;
        if let Some(manager) = self.managers.iter_mut().find(|manager| manager.alive && manager.counted) {
            (manager.hides_until, manager.counted) = (until, false);
        }
    }

    fn live(&self) -> impl Iterator<Item = &Machine> {
        self.machines.iter().filter(|machine| machine.live)
    }

    fn partition(&mut self, machine: usize, time: Duration) {
        let at = self.one_of(machine);
        self.machines[at].partitioned = true;
        for what in [What::Ring, What::Nodes, What::DaemonSet] {
            if self.machines[at].process.is_some() {
                self.lose(Who::Agent(at), what);
            }
        }
        self.after(UNREADY, Event::Heal(Heal::Readiness(at)));
        self.after(time, Event::Heal(Heal::Partition(at)));
    }

    fn unpartition(&mut self, at: usize) {
        if !std::mem::take(&mut self.machines[at].partitioned) {
            return;
        }
        let pause = self.luck(Luck::Machine(at)).millis(500, 10_000);
        self.after(pause, Event::Heal(Heal::Readiness(at)));
        // What its kubelet did not hear of.
        self.after(pause, Event::Heal(Heal::Pod(at)));
    }

    fn joined(&mut self, reuse: bool) {
        if self.machines.len() >= 40.max(self.scenario.machines + 5) {
            return;
        }
        let taken: Vec<IpAddr> = self.live().map(|machine| machine.addr).collect();
        let free = self.machines.iter().map(|machine| machine.addr).find(|addr| !taken.contains(addr));
        if let Err(error) = self.join(free.filter(|_| reuse)) {
            self.violate(0, format!("no place for a journal: {error}"));
        }
    }

    fn delete_node(&mut self, at: usize) {
        self.machines[at].uid = None;
        self.dirty.insert(at);
        let name = self.machines[at].name.clone();
        if self.objects.nodes.remove(&name).is_some() {
            self.changed(What::Nodes, &Change::NodeGone(name.clone()));
            self.collect_later(name);
        }
    }

    fn reboot(&mut self, machine: usize) {
        let at = self.one_of(machine);
        if !self.machines[at].live {
            return;
        }
        self.end_agent(at);
        let boot = self.uid();
        let tables = self.boot_kernel(at, self.machines[at].addr);
        match self.place_for_journal(boot) {
            Ok(journal) => self.machines[at].journal = journal,
            Err(error) => return self.violate(0, format!("no place for a journal: {error}")),
        }
        let machine = &mut self.machines[at];
        (machine.boot, machine.tables) = (boot, tables);
        (machine.applied, machine.attempted, machine.left_behind) = (None, None, None);
        machine.first = None;
        (machine.flushed, machine.stopped_until, machine.slow_until) = (false, self.now, self.now);
        machine.sends_since.clear();
        machine.claims.clear();
        machine.receives.clear();
        machine.insists = false;
        machine.let_through.clear();
        machine.burnt.clear();
        self.dirty.insert(at);
        // The kubelet comes first, most of the time.
        let down = self.luck(Luck::Machine(at)).millis(2000, 60_000);
        self.after(down, Event::Heal(Heal::BootId(at)));
        let pause = self.luck(Luck::Machine(at)).millis(0, 10_000);
        self.after(down + pause - Duration::from_millis(1500), Event::Heal(Heal::Agent(at)));
    }

    fn flush(&mut self, machine: usize, states: u64, policies: u64) {
        let at = self.one_of(machine);
        let machine = &mut self.machines[at];
        machine.tables.borrow_mut().delete(|rng| rng.below(100) < states, |rng| rng.below(100) < policies);
        machine.flushed = true;
        // As in `start_agent`, where it has not looked yet.
        machine.insists &= machine.process.as_ref().is_none_or(|process| process.outcome.is_some());
        // What is of a generation that no ring has any more can't be made again.
        self.understood.retain(|(_, to), _| *to != at);
        self.dirty.insert(at);
        // Counts are looked at every second; sometimes they are as before.
        if let Some(process) = self.machines[at].process.as_ref().map(|process| process.pid)
            && !self.luck(Luck::Machine(at)).permille(100)
        {
            let pause = self.luck(Luck::Machine(at)).millis(1, 1500);
            self.after(pause, Event::KernelChanged(at, process));
        }
    }

    fn mend(&mut self) {
        let good = self.ring().is_some();
        let empty = |document: &Vec<u8>| document.trim_ascii().is_empty();
        let rubbish = self.objects.secret.as_ref().and_then(|(secret, _)| secret.document.as_ref());
        if good || rubbish.is_none_or(empty) {
            return;
        }
        let document = self.history.last().cloned();
        if let Some((secret, _)) = self.objects.secret.clone() {
            self.tell(|| "the Secret is mended".into());
            self.write_secret(Some(Secret { document, ..secret }));
        }
    }

    fn restore(&mut self, back: usize) {
        let Some(document) = self.history.len().checked_sub(1 + back).map(|at| self.history[at].clone())
        else {
            return;
        };
        if let Some((secret, _)) = self.objects.secret.clone() {
            let before = self.history.last().cloned();
            let version = self.write_secret(Some(Secret { document: Some(document), ..secret }));
            self.note_break(version, Break::Restored, before.as_deref());
        }
    }

    fn apply_manifest(&mut self) {
        if self.objects.secret.is_none() {
            let uid = self.uid();
            self.write_secret(Some(Secret::new(uid, None)));
        }
        if self.objects.daemon_set.is_none() {
            let uid = self.uid();
            self.set_daemon_set(Some(DaemonSet { uid, orphaning: false }));
            for at in 0..self.machines.len() {
                if self.machines[at].live && self.machines[at].process.is_none() && !self.machines[at].pod {
                    self.replace_pod(at);
                }
            }
        }
    }

    fn set_daemon_set(&mut self, set: Option<DaemonSet>) {
        self.objects.version += 1;
        self.objects.daemon_set = set;
        let change = Change::DaemonSet(self.objects.sighting());
        self.changed(What::DaemonSet, &change);
    }

    fn delete_daemon_set(&mut self, orphaning: bool, time: Duration) {
        let Some(set) = self.objects.daemon_set else { return };
        let mut pause = Duration::ZERO;
        if orphaning {
            // Until the garbage collector has let go of the pods. A new DaemonSet adopts them.
            pause = self.luck(Luck::Faults).millis(500, 5000);
            self.set_daemon_set(Some(DaemonSet { orphaning, ..set }));
            for machine in &mut self.machines {
                machine.set = None;
            }
        }
        self.after(pause, Event::Heal(Heal::DaemonSetGone(set.uid)));
        self.after(pause + time, Event::Heal(Heal::Manifest));
    }

    fn daemon_set_gone(&mut self, uid: Uid) {
        if self.objects.daemon_set.is_none_or(|set| set.uid != uid) {
            return;
        }
        self.set_daemon_set(None);
        for at in 0..self.machines.len() {
            let pause = self.luck(Luck::Machine(at)).millis(300, 20_000);
            self.after(pause, Event::Heal(Heal::Pod(at)));
        }
    }
}
