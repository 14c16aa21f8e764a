//! The world: events in the order of their time, and what happens at each.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use secureoverlay_keyring::{
    address::NodeAddress,
    probe::NONCE_LEN,
    settings::{RotationSchedule, RotationSettings, Settings},
    uid::Uid,
};

use crate::{
    Time,
    agents::AgentEvent,
    api::{Api, Node},
    disk::Directory,
    fault::Scenario,
    faults::Heal,
    kernel::{Shared, Tables},
    machine::Machine,
    manager::{Manager, ManagerEvent},
    network::Network,
    rng::Rng,
    run::{Tally, Violation},
    variant::Variant,
};

/// Something that happens.
#[derive(Clone, Debug)]
pub enum Event {
    /// To an agent's process.
    Agent(usize, u64, AgentEvent),
    /// To a manager's process.
    Manager(usize, u64, ManagerEvent),
    /// A fault, by its number.
    Fault(usize),
    /// The end of one.
    Heal(Heal),
    /// A probe arrives.
    Probe(Box<crate::agents::Packet>),
    /// Pods talk.
    Traffic,
    /// The garbage collector runs.
    Collect,
    /// A backup is made.
    BackUp,
    /// The kubelets' heartbeats are looked at.
    Kubelets,
    /// Faults are over.
    Calm,
    /// After the faults: what must have come to pass.
    Check,
}

/// What is to come to pass after the faults, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Faults happen.
    Faults,
    /// Everything is to converge, until then.
    Converging(Time),
    /// A rotation was asked for, and is to be done, until then.
    Rotating(Time),
    /// Nothing is to be written from the first time on, until the second.
    Idle(Time, Time),
    /// All of that came to pass.
    Done,
}

/// Everything.
pub struct World {
    /// What it came from.
    pub scenario: Scenario,
    /// The mistake that is made in it.
    pub variant: Option<Variant>,
    /// Virtual time.
    pub now: Time,
    queue: BTreeMap<(Time, u64), Event>,
    sequence: u64,
    pids: u64,
    /// The API server.
    pub api: Api,
    /// The network.
    pub network: Network,
    /// The machines.
    pub machines: Vec<Machine>,
    /// The managers.
    pub managers: Vec<Option<Manager>>,
    /// What kernels tell.
    pub shared: Rc<RefCell<Shared>>,
    /// The generation of outbound keys, by fingerprint.
    pub generations: Rc<RefCell<BTreeMap<u64, Uid>>>,
    /// With which key a ping with this nonce arrived, and whether it was a large one.
    pub arrived: BTreeMap<[u8; NONCE_LEN], (u64, bool)>,
    /// Randomness of the world's own.
    pub rng: Rng,
    /// Machines of which something changed that invariants speak of.
    pub dirty: BTreeSet<usize>,
    /// The first invariant that was violated.
    pub violation: Option<Violation>,
    /// What happened, where that is wanted.
    pub story: Option<Vec<String>>,
    /// Sums.
    pub tally: Tally,
    /// What is to come to pass.
    pub phase: Phase,
    /// Writes when the idle phase began.
    pub writes: u64,
    /// Seconds by which the manager's wall clock is off.
    pub clock: i64,
    /// An operator skipped nodes: generations are dropped regardless.
    pub skipped: bool,
    /// The active generation before the last rotation.
    pub active: Option<Uid>,
    /// Writes by kind when the idle phase began.
    pub kinds: BTreeMap<&'static str, u64>,
    /// What the operator wants.
    pub settings: Settings,
    /// When the world began, by the real clock: only differences count.
    pub begun: Instant,
    /// Randomness of managers.
    pub keys: Rng,
}

impl World {
    /// A world before it begins.
    #[must_use]
    pub fn new(scenario: &Scenario, variant: Option<Variant>, story: bool) -> Self {
        let mut world = Self {
            scenario: scenario.clone(),
            variant,
            now: Time::ZERO,
            queue: BTreeMap::new(),
            sequence: 0,
            pids: 0,
            api: Api::default(),
            network: Network::default(),
            machines: Vec::new(),
            managers: Vec::new(),
            shared: Rc::default(),
            generations: Rc::default(),
            arrived: BTreeMap::new(),
            rng: Rng::new(scenario.seed, 2),
            dirty: BTreeSet::new(),
            violation: None,
            story: story.then(Vec::new),
            tally: Tally::default(),
            phase: Phase::Faults,
            writes: 0,
            clock: 0,
            skipped: false,
            active: None,
            kinds: BTreeMap::new(),
            settings: settings(scenario),
            begun: Instant::now(),
            keys: Rng::new(scenario.seed, 4),
        };
        world.api.store.daemon_set = Some(world.rng.uid());
        for _ in 0..scenario.machines {
            let pause = world.rng.millis(0, 3000);
            let at = world.add_machine(None);
            world.after(pause, Event::Heal(Heal::Agent(at)));
        }
        world.start_manager(0);
        for (number, planned) in scenario.faults.iter().enumerate() {
            world.at(planned.at, Event::Fault(number));
        }
        world.after(Time::from_secs(1), Event::Traffic);
        world.after(Time::from_secs(5), Event::Kubelets);
        world.after(Time::from_secs(7), Event::Collect);
        world.after(Time::from_secs(11), Event::BackUp);
        world.at(scenario.end, Event::Calm);
        world
    }

    /// A machine joins, with an address that another one had, or a new one.
    pub fn add_machine(&mut self, address: Option<NodeAddress>) -> usize {
        let at = self.machines.len();
        let address = address.unwrap_or_else(|| address_of(at + 1));
        let mut rng = Rng::new(self.scenario.seed, 100 + at as u64);
        let tables = Tables::new(at, address.ip(), self.shared.clone(), Rng::new(rng.draw(), 3));
        let name = format!("node-{}", at + 1);
        let node = Node { uid: rng.uid(), ready: true, excluded: false, address, pod_ready: false };
        self.api.next("Node");
        self.api.store.nodes.insert(name.clone(), node);
        self.network.owners.insert(address.ip(), at);
        self.machines.push(Machine {
            name,
            address,
            live: true,
            booted: self.now,
            tables: Rc::new(RefCell::new(tables)),
            directory: Rc::new(RefCell::new(Directory::default())),
            process: None,
            pod: true,
            partitioned: false,
            stopped_until: Time::ZERO,
            slow_until: Time::ZERO,
            not_ready: None,
            excluded: None,
            enforces: false,
            exclusion: Arc::default(),
            sends: false,
            flushed: false,
            rng,
        });
        self.routes_changed();
        at
    }

    /// An event at a time.
    pub fn at(&mut self, time: Time, event: Event) {
        self.sequence += 1;
        self.queue.insert((time.max(self.now), self.sequence), event);
    }

    /// An event after a while.
    pub fn after(&mut self, pause: Time, event: Event) {
        self.at(self.now + pause, event);
    }

    /// A number that no process has had.
    pub const fn pid(&mut self) -> u64 {
        self.pids += 1;
        self.pids
    }

    /// Goes on until all came to pass, or something is violated.
    pub fn run(&mut self) {
        while self.violation.is_none() && self.phase != Phase::Done {
            let Some(((time, _), event)) = self.queue.pop_first() else { return };
            self.now = time;
            self.tally.steps += 1;
            self.happen(event);
            self.check();
        }
        self.tally.time = self.now;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Agent(at, pid, event) => self.agent(at, pid, event),
            Event::Manager(at, pid, event) => self.manager(at, pid, event),
            Event::Fault(number) => self.fault(number),
            Event::Heal(heal) => self.heal(heal),
            Event::Probe(packet) => self.probe_arrives(*packet),
            Event::Traffic => self.traffic(),
            Event::Collect => {
                let gone = self.api.collect();
                if !gone.is_empty() {
                    self.tell(|| format!("collected EncryptionPeers {gone:?}"));
                    self.wake_watches();
                }
                self.after(Time::from_secs(7), Event::Collect);
            }
            Event::BackUp => {
                self.api.back_up();
                let pause = self.rng.millis(20_000, 120_000);
                self.after(pause, Event::BackUp);
            }
            Event::Kubelets => {
                self.kubelets();
                self.after(Time::from_secs(5), Event::Kubelets);
            }
            Event::Calm => self.calm(),
            Event::Check => self.check_progress(),
        }
    }

    /// Nodes are Ready while their machines live and reach the API.
    fn kubelets(&mut self) {
        for at in 0..self.machines.len() {
            let machine = &self.machines[at];
            let ready = machine.live && !machine.partitioned && self.now >= machine.booted;
            let pod_ready = ready && machine.process.is_some();
            let name = machine.name.clone();
            let Some(node) = self.api.store.nodes.get(&name) else { continue };
            if (node.ready, node.pod_ready) != (ready, pod_ready) {
                // Pods are objects of others.
                if node.ready != ready {
                    self.api.next("Node");
                }
                if let Some(node) = self.api.store.nodes.get_mut(&name) {
                    (node.ready, node.pod_ready) = (ready, pod_ready);
                }
                self.wake_managers();
            }
            let machine = &mut self.machines[at];
            machine.not_ready = (!ready).then(|| machine.not_ready.unwrap_or(self.now));
        }
    }

    /// A line of the story.
    pub fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(format!("{:10.3}s {}", self.now.as_secs_f64(), line()));
        }
    }

    /// An invariant is violated.
    pub fn violate(&mut self, invariant: u8, text: String) {
        if self.violation.is_none() {
            self.tell(|| format!("VIOLATION of invariant {invariant}: {text}"));
            self.violation = Some(Violation { invariant, text, at: self.now });
        }
    }
}

/// What the operator wants at the beginning.
fn settings(scenario: &Scenario) -> Settings {
    let rotation = RotationSettings {
        schedule: RotationSchedule::Interval(scenario.interval),
        minimum_interval: Duration::from_secs(60),
        ..RotationSettings::default()
    };
    Settings { rotation, ..Settings::default() }
}

/// The address of a number.
#[must_use]
pub fn address_of(number: usize) -> NodeAddress {
    let [_, .., high, low] = u32::try_from(number).unwrap_or(1).to_be_bytes();
    let ip = std::net::IpAddr::from([10, 0, high, low]);
    NodeAddress::try_from(ip).unwrap_or_else(|_| unreachable!("an address of a host"))
}
