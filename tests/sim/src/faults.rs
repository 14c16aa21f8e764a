//! How things go wrong, and how they end.

use std::{rc::Rc, time::Duration};

use secureoverlay_agent_core::xfrm::SaId;
use secureoverlay_keyring::{
    settings::{EnforcementGoal, RotationSchedule},
    suite::Suite,
};

use crate::{
    Time,
    agents::AgentEvent,
    api::{NodeEncryption, Peer, Secret},
    disk::Directory,
    fault::Fault,
    kernel::Tables,
    rng::Rng,
    watch::What,
    world::{Event, Phase, World, address_of},
};

/// The end of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heal {
    /// An agent's process may start.
    Agent(usize),
    /// A manager starts.
    Manager(usize),
    /// A manager is one too many.
    EndManager(usize),
    /// A node reaches the API again.
    Partition(usize),
    /// A node takes part again.
    Included(usize),
    /// A Node object is made again.
    Node(usize),
    /// There is room again.
    Directory(usize),
    /// A kernel refuses nothing any more.
    Kernel(usize),
    /// ESP passes again.
    Esp(usize, usize),
    /// Large packets pass again.
    Narrow(usize, usize),
    /// The Secret holds no rubbish any more.
    Rubbish,
    /// API servers restart.
    ApiRestart,
    /// Encryption is wanted again.
    On,
}

impl World {
    /// A machine by a fault's number, if it lives.
    fn machine(&self, number: usize) -> Option<usize> {
        let living: Vec<usize> = (0..self.machines.len()).filter(|at| self.machines[*at].live).collect();
        (!living.is_empty()).then(|| living[number % living.len()])
    }

    /// A fault happens.
    pub fn fault(&mut self, number: usize) {
        let Some(planned) = self.scenario.faults.get(number).copied() else { return };
        let fault = planned.fault;
        self.tell(|| format!("FAULT {fault:?}"));
        *self.tally.faults.entry(fault.kind()).or_default() += 1;
        self.carry_out(fault);
        self.wake_watches();
        self.wake_managers();
    }

    fn carry_out(&mut self, fault: Fault) {
        let seconds = Time::from_secs;
        let pick = |world: &Self, number| world.machine(number).unwrap_or(0);
        match fault {
            Fault::ManagerKilled { down } => {
                self.end_manager(0);
                self.after(seconds(down), Event::Heal(Heal::Manager(0)));
            }
            Fault::ManagerStopped { time } => {
                let until = self.now + seconds(time);
                self.managers.iter_mut().take(1).flatten().for_each(|manager| manager.stopped_until = until);
            }
            Fault::SecondManager { time } => {
                self.start_manager(1);
                self.after(seconds(time), Event::Heal(Heal::EndManager(1)));
            }
            Fault::NodesHidden { time } => {
                let until = self.now + seconds(time);
                self.managers.iter_mut().take(1).flatten().for_each(|manager| manager.hides_until = until);
            }
            Fault::ClockJumped { seconds } => self.clock += seconds,
            Fault::AgentKilled { machine, down } => {
                let at = pick(self, machine);
                self.replace_agent(at, seconds(down));
            }
            Fault::AgentStopped { machine, time } => {
                let at = pick(self, machine);
                self.machines[at].stopped_until = self.now + seconds(time);
            }
            Fault::AgentSlow { machine, time } => {
                let at = pick(self, machine);
                self.machines[at].slow_until = self.now + seconds(time);
            }
            Fault::AgentDiesMidway { machine, after } => {
                let at = pick(self, machine);
                if let Some(process) = &self.machines[at].process {
                    process.fuse().set(Some(after));
                }
            }
            Fault::Partitioned { machine, time } => {
                let at = pick(self, machine);
                self.machines[at].partitioned = true;
                self.cut(at, What::Secret);
                self.cut(at, What::Peers);
                self.after(seconds(time), Event::Heal(Heal::Partition(at)));
            }
            Fault::Joined { reuse } => {
                let free = self
                    .machines
                    .iter()
                    .find(|machine| !machine.live && !self.network.owners.contains_key(&machine.ip()));
                let address = free.map(|machine| machine.address).filter(|_| reuse);
                if self.machines.len() < self.scenario.machines + 6 {
                    let at = self.add_machine(address);
                    let pause = self.rng.millis(500, 20_000);
                    self.after(pause, Event::Heal(Heal::Agent(at)));
                }
            }
            Fault::Left { machine } => {
                let at = pick(self, machine);
                if self.machines.iter().filter(|machine| machine.live).count() > 2 {
                    self.leave(at);
                }
            }
            Fault::Rebooted { machine, time } => self.reboot(pick(self, machine), seconds(time)),
            Fault::AllRebooted => {
                for at in 0..self.machines.len() {
                    let time = self.rng.millis(5000, 60_000);
                    if self.machines[at].live {
                        self.reboot(at, time);
                    }
                }
            }
            Fault::AddressChanged { machine } => {
                let at = pick(self, machine);
                let number = 1000 + usize::try_from(self.rng.below(60_000)).unwrap_or(0);
                self.readdress(at, number);
            }
            Fault::AddressesSwapped { machine, other } => self.swap(pick(self, machine), pick(self, other)),
            Fault::Recreated { machine, time } => {
                let at = pick(self, machine);
                let name = self.machines[at].name.clone();
                self.api.next("Node");
                self.api.store.nodes.remove(&name);
                self.after(seconds(time), Event::Heal(Heal::Node(at)));
            }
            Fault::Excluded { machine, time } => {
                let at = pick(self, machine);
                self.exclude(at, true);
                self.after(seconds(time), Event::Heal(Heal::Included(at)));
            }
            Fault::DirectoryEmptied { machine } => {
                let at = pick(self, machine);
                let mut directory = self.machines[at].directory.borrow_mut();
                *directory = Directory {
                    emptied: directory.emptied + 1,
                    full: directory.full,
                    first: directory.first.take(),
                    ..Directory::default()
                };
            }
            Fault::DirectoryFull { machine, time } => {
                let at = pick(self, machine);
                self.machines[at].directory.borrow_mut().full = true;
                self.after(seconds(time), Event::Heal(Heal::Directory(at)));
            }
            Fault::JournalLost { machine } => {
                let at = pick(self, machine);
                let mut directory = self.machines[at].directory.borrow_mut();
                directory.journal = None;
                directory.emptied += 1;
            }
            Fault::IdentityRestored { machine } => {
                let at = pick(self, machine);
                let mut directory = self.machines[at].directory.borrow_mut();
                if let Some(first) = directory.first.clone() {
                    directory.identity = Some(first);
                    directory.emptied += 1;
                }
            }
            Fault::SasFlushed { machine } => self.flush(pick(self, machine), 100, 0),
            Fault::PoliciesFlushed { machine } => self.flush(pick(self, machine), 0, 100),
            Fault::Flushed { machine } => self.flush(pick(self, machine), 100, 100),
            Fault::SomeDeleted { machine, percent } => self.flush(pick(self, machine), percent, percent),
            Fault::KernelRefuses { machine, percent, time } => {
                let at = pick(self, machine);
                self.machines[at].tables.borrow_mut().refuses = percent;
                self.after(seconds(time), Event::Heal(Heal::Kernel(at)));
            }
            Fault::EspBlocked { from, to, time } => {
                let pair = (pick(self, from), pick(self, to));
                self.network.esp_blocked.insert(pair);
                self.after(seconds(time), Event::Heal(Heal::Esp(pair.0, pair.1)));
            }
            Fault::Narrow { from, to, time } => {
                let pair = (pick(self, from), pick(self, to));
                self.network.narrow.insert(pair);
                self.after(seconds(time), Event::Heal(Heal::Narrow(pair.0, pair.1)));
            }
            Fault::WatchesLost => self.cut_all(),
            Fault::WatchesSilent { machine } => {
                let at = pick(self, machine);
                let until = self.now + self.rng.millis(180_000, 240_000);
                if let Some(process) = &mut self.machines[at].process {
                    (process.secret.silent_until, process.peers.silent_until) = (until, until);
                }
            }
            Fault::SecretRubbish { time } => {
                self.edit_secret(|secret| secret.document = Some(Rc::from(&b"no ring: ["[..])));
                self.after(seconds(time), Event::Heal(Heal::Rubbish));
            }
            Fault::SecretWiped => self.edit_secret(|secret| secret.document = None),
            Fault::SecretRestored { back } => {
                let old = self.api.backups.iter().rev().nth(back - 1).and_then(|old| old.secret.clone());
                if let Some(document) = old.and_then(|secret| secret.document) {
                    self.edit_secret(|secret| secret.document = Some(document));
                }
            }
            Fault::SecretDeleted => self.api.put_secret(None),
            Fault::StoreWentBack { back, restart } => {
                if self.api.go_back(back) {
                    self.after(seconds(restart), Event::Heal(Heal::ApiRestart));
                }
            }
            Fault::DaemonSetRecreated => self.api.store.daemon_set = Some(self.rng.uid()),
            Fault::PeersDeleted => {
                let names: Vec<String> = self.api.store.peers.keys().cloned().collect();
                for name in names {
                    self.api.next("EncryptionPeer");
                    self.api.put_peer(&name, None);
                }
            }
            Fault::PeerRestored { machine, back } => self.restore_peer(pick(self, machine), back),
            Fault::PeerCopied { machine, from } => self.copy_peer(pick(self, machine), pick(self, from)),
            Fault::AcksDeleted => {
                self.api.next("NodeEncryption");
                self.api.store.acks.clear();
            }
            Fault::AcksRestored { back } => self.restore_acks(back),
            Fault::GoalChanged { auto } => {
                self.settings.enforcement =
                    if auto { EnforcementGoal::Auto } else { EnforcementGoal::Permissive };
                self.settings_changed();
            }
            Fault::OffRequested { time } => {
                self.settings.enforcement = EnforcementGoal::Off;
                self.settings_changed();
                self.after(seconds(time), Event::Heal(Heal::On));
            }
            Fault::RotationRequested => self.ask_for_rotation(),
            Fault::SkipRequested => self.skip_unresponsive(),
            Fault::SuiteChanged => {
                let others = Suite::ALL.into_iter().filter(|suite| *suite != self.settings.cipher_suite);
                let others: Vec<Suite> = others.collect();
                self.settings.cipher_suite = others[usize::from(self.rng.permille(500))];
                self.settings_changed();
            }
            Fault::IntervalChanged { seconds } => {
                self.settings.rotation.schedule = RotationSchedule::Interval(Duration::from_secs(seconds));
                self.settings_changed();
            }
        }
    }

    /// A fault ends.
    pub fn heal(&mut self, heal: Heal) {
        match heal {
            Heal::Agent(at) => self.start_agent(at),
            Heal::Manager(at) => self.start_manager(at),
            Heal::EndManager(at) => self.end_manager(at),
            Heal::Partition(at) => self.machines[at].partitioned = false,
            Heal::Included(at) => self.exclude(at, false),
            Heal::Node(at) => self.make_node(at),
            Heal::Directory(at) => self.machines[at].directory.borrow_mut().full = false,
            Heal::Kernel(at) => self.machines[at].tables.borrow_mut().refuses = 0,
            Heal::Esp(from, to) => drop(self.network.esp_blocked.remove(&(from, to))),
            Heal::Narrow(from, to) => drop(self.network.narrow.remove(&(from, to))),
            Heal::Rubbish => {
                let rubbish = self.api.store.secret.as_ref().and_then(|secret| secret.document.clone());
                if rubbish.is_some_and(|document| document.starts_with(b"no ring")) {
                    self.edit_secret(|secret| secret.document = None);
                }
            }
            Heal::ApiRestart => {
                if self.api.frozen.is_some() {
                    self.tell(|| "API servers restart".to_owned());
                    self.api.restart();
                    self.cut_all();
                    self.history_went_back();
                }
            }
            Heal::On => {
                if self.settings.enforcement == EnforcementGoal::Off {
                    self.settings.enforcement = EnforcementGoal::Auto;
                    self.settings_changed();
                }
            }
        }
        self.wake_watches();
        self.wake_managers();
    }

    /// Everything that is still wrong ends.
    pub fn calm(&mut self) {
        self.tell(|| "faults are over".to_owned());
        self.end_manager(1);
        self.start_manager(0);
        for manager in self.managers.iter_mut().flatten() {
            (manager.stopped_until, manager.hides_until) = (self.now, self.now);
        }
        self.network.heal();
        self.heal(Heal::Rubbish);
        self.heal(Heal::ApiRestart);
        for at in 0..self.machines.len() {
            self.machines[at].partitioned = false;
            (self.machines[at].stopped_until, self.machines[at].slow_until) = (self.now, self.now);
            self.machines[at].directory.borrow_mut().full = false;
            self.machines[at].tables.borrow_mut().refuses = 0;
            if self.machines[at].live {
                if self.machines[at].excluded.is_some() {
                    self.exclude(at, false);
                }
                self.make_node(at);
                let start = self.machines[at].booted.saturating_sub(self.now);
                self.after(start, Event::Heal(Heal::Agent(at)));
            }
        }
        self.settings.enforcement = EnforcementGoal::Auto;
        self.settings.rotation.schedule = RotationSchedule::Interval(Duration::from_secs(7 * 86_400));
        self.settings_changed();
        self.phase = Phase::Converging(self.now + 2 * self.scenario.limit + Duration::from_secs(5400));
        self.after(Duration::from_secs(10), Event::Check);
    }

    fn cut_all(&mut self) {
        for at in 0..self.machines.len() {
            self.cut(at, What::Secret);
            self.cut(at, What::Peers);
        }
    }

    /// Changes the Secret, which is made if it is not there.
    pub fn edit_secret(&mut self, edit: impl FnOnce(&mut Secret)) {
        let uid = self.rng.uid();
        let there = self.api.store.secret.clone();
        let mut secret = there.unwrap_or(Secret { uid, version: 0, document: None });
        edit(&mut secret);
        self.api.put_secret(Some(secret));
        self.wake_watches();
    }

    fn leave(&mut self, at: usize) {
        self.end_agent(at);
        let ip = self.machines[at].ip();
        self.network.owners.remove(&ip);
        (self.machines[at].live, self.machines[at].pod) = (false, false);
        let name = self.machines[at].name.clone();
        self.api.next("Node");
        self.api.store.nodes.remove(&name);
        self.routes_changed();
    }

    fn reboot(&mut self, at: usize, time: Time) {
        self.end_agent(at);
        let shared = self.shared.clone();
        let seed = self.rng.draw();
        let machine = &mut self.machines[at];
        let mut tables = Tables::new(at, machine.ip(), shared, Rng::new(seed, 3));
        let lost: Vec<SaId> = machine.tables.borrow().sas.keys().copied().collect();
        tables.lost.extend(lost);
        *machine.tables.borrow_mut() = tables;
        *machine.directory.borrow_mut() = Directory { emptied: 1, ..Directory::default() };
        (machine.booted, machine.enforces, machine.flushed) = (self.now + time, false, false);
        let pause = time + self.rng.millis(100, 20_000);
        self.after(pause, Event::Heal(Heal::Agent(at)));
        self.dirty.insert(at);
    }

    fn readdress(&mut self, at: usize, number: usize) {
        let address = address_of(number);
        if self.network.owners.contains_key(&address.ip()) {
            return;
        }
        let former = std::mem::replace(&mut self.machines[at].address, address);
        self.network.owners.remove(&former.ip());
        self.moved(at);
    }

    fn swap(&mut self, a: usize, b: usize) {
        if a != b {
            let (of_a, of_b) = (self.machines[a].address, self.machines[b].address);
            (self.machines[a].address, self.machines[b].address) = (of_b, of_a);
            self.moved(a);
            self.moved(b);
        }
    }

    fn moved(&mut self, at: usize) {
        let machine = &self.machines[at];
        let (address, name) = (machine.address, machine.name.clone());
        self.network.owners.insert(address.ip(), at);
        machine.tables.borrow_mut().own.insert(address.ip());
        machine.tables.borrow_mut().current = address.ip();
        self.machines[at].flushed = true;
        self.api.next("Node");
        if let Some(node) = self.api.store.nodes.get_mut(&name) {
            node.address = address;
        }
        self.agent_after(at, Duration::from_millis(20), AgentEvent::Network);
        self.routes_changed();
        self.dirty.insert(at);
    }

    fn exclude(&mut self, at: usize, excluded: bool) {
        let name = self.machines[at].name.clone();
        self.machines[at].excluded = excluded.then_some(self.now);
        self.api.next("Node");
        if let Some(node) = self.api.store.nodes.get_mut(&name) {
            node.excluded = excluded;
        }
        self.wake_managers();
    }

    fn make_node(&mut self, at: usize) {
        let machine = &self.machines[at];
        let (name, address) = (machine.name.clone(), machine.address);
        if machine.live && !self.api.store.nodes.contains_key(&name) {
            let (excluded, uid) = (machine.excluded.is_some(), self.rng.uid());
            let node = crate::api::Node { uid, ready: true, excluded, address, pod_ready: false };
            self.api.next("Node");
            self.api.store.nodes.insert(name, node);
        }
    }

    fn flush(&mut self, at: usize, sas: u64, policies: u64) {
        self.machines[at]
            .tables
            .borrow_mut()
            .delete(|rng| rng.below(100) < sas, |rng| rng.below(100) < policies);
        self.machines[at].flushed = true;
        let pause = self.rng.millis(1, 1000);
        self.agent_after(at, pause, AgentEvent::Kernel);
        self.dirty.insert(at);
    }

    /// Objects that are there keep their UID; others are made anew.
    fn restore_acks(&mut self, back: usize) {
        let Some(old) = self.api.backups.iter().rev().nth(back - 1).map(|old| old.acks.clone()) else {
            return;
        };
        for (name, old) in old {
            self.api.next("NodeEncryption");
            let uid = self.api.store.acks.get(&name).map_or_else(|| self.rng.uid(), |there| there.uid);
            self.api.store.acks.insert(name, Rc::new(NodeEncryption { uid, ..(*old).clone() }));
        }
    }

    fn restore_peer(&mut self, at: usize, back: usize) {
        let name = self.machines[at].name.clone();
        let old = self.api.backups.iter().rev().nth(back - 1).and_then(|old| old.peers.get(&name).cloned());
        let Some(old) = old else { return };
        let version = self.api.next("EncryptionPeer");
        let there = self.api.store.peers.get(&name).cloned();
        // `kubectl replace` keeps the UID and counts a generation; `delete` and `create` make another object.
        let peer = match there {
            Some(there) if self.rng.permille(500) => {
                let generation = there.generation + i64::from(there.spec != old.spec);
                Peer { version, generation, spec: old.spec.clone(), ..(*there).clone() }
            }
            _ => Peer { version, generation: 1, uid: self.rng.uid(), ..(*old).clone() },
        };
        self.api.put_peer(&name, Some(Rc::new(peer)));
    }

    fn copy_peer(&mut self, at: usize, from: usize) {
        let (name, other) = (self.machines[at].name.clone(), self.machines[from].name.clone());
        let (Some(there), Some(copied)) =
            (self.api.store.peers.get(&name).cloned(), self.api.store.peers.get(&other).cloned())
        else {
            return;
        };
        if at == from {
            return;
        }
        let version = self.api.next("EncryptionPeer");
        let mut peer = Peer { version, generation: there.generation + 1, ..(*there).clone() };
        peer.spec.senders.clone_from(&copied.spec.senders);
        self.api.put_peer(&name, Some(Rc::new(peer)));
    }
}
