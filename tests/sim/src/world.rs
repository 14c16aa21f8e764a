//! The world: virtual time, a queue of events, the API with its watches, and everybody in it.

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    path::PathBuf,
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use secureoverlay_agent::xfrm::SaId;
use secureoverlay_common::{
    acknowledgement::Acknowledgement,
    node::NodeFacts,
    phase::Phase,
    ring::{Generation, Ring, Role},
    rotation::Incarnations,
    uid::Uid,
    wire::End,
};

use crate::{
    Time,
    api::{Change, DaemonSet, NodeEncryption, Objects, Secret, Stream, What, Who},
    fault::Scenario,
    faults::Heal,
    kernel::{Keys, Tables},
    machine::Machine,
    manager::Manager,
    rng::Rng,
    variant::Variant,
};

/// Lines of the story that are kept.
const STORY: usize = 400;

/// Something that is going to happen.
#[derive(Clone, Debug)]
pub enum Event {
    /// The fault of this number.
    Fault(usize),
    /// What a fault did ends.
    Heal(Heal),
    /// Something arrives on a watch connection.
    Deliver(Who, What, u64),
    /// A watch connection is made, and lists.
    Connect(Who, What),
    /// A process of an agent may have something to do.
    Wake(usize, u64),
    /// It changes the kernel.
    Attempt(usize, u64),
    /// It hears how that went.
    Attempted(usize, u64),
    /// The kernel tells of changes.
    KernelChanged(usize, u64),
    /// Its probes were answered: the network between machines drops no ESP.
    Probed(usize, u64),
    /// An acknowledgement is sent.
    Send(usize, u64),
    /// An acknowledgement arrives.
    Said(String, Uid, Box<Acknowledgement>),
    /// The writer of acknowledgements hears of it.
    Sent(usize, u64),
    /// It is time to say it again.
    Heartbeat(usize, u64),
    /// SIGTERM.
    Terminate(usize, u64),
    /// SIGKILL, after the grace.
    Kill(usize, u64),
    /// A manager takes its next step; it has not been killed since if the number is right.
    Manage(usize, u64),
    /// The garbage collector looks at what a Node owned.
    Collect(String),
}

/// What must never be, and was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Number of the invariant; 0 for a panic.
    pub invariant: u8,
    /// When.
    pub at: Time,
    /// What.
    pub text: String,
}

impl Violation {
    /// Whether it is of the same kind, whoever met it.
    #[must_use]
    pub fn alike(&self, other: &Self) -> bool {
        let words = |text: &str| -> Vec<String> {
            let words = text.split(' ').filter(|word| !word.contains(|c: char| c.is_ascii_digit()));
            words.map(str::to_owned).collect()
        };
        self.invariant == other.invariant && words(&self.text) == words(&other.text)
    }
}

/// What draws numbers, each from a stream of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Luck {
    /// UIDs.
    Identities,
    /// Keys that managers make.
    Keys,
    /// Faults that are of no single machine.
    Faults,
    /// The garbage collector.
    Collector,
    /// A manager's delays.
    Manager(usize),
    /// What happens to a machine.
    Machine(usize),
    /// A watch connection.
    Watch(Who, What),
}

impl Luck {
    const fn purpose(self) -> u64 {
        match self {
            Self::Identities => 2,
            Self::Keys => 3,
            Self::Faults => 6,
            Self::Collector => 7,
            Self::Manager(at) => 1 << 20 | at as u64,
            Self::Machine(at) => 2 << 20 | at as u64,
            Self::Watch(Who::Manager(at), what) => 3 << 20 | (at as u64) << 2 | what as u64,
            Self::Watch(Who::Agent(at), what) => 4 << 20 | (at as u64) << 2 | what as u64,
        }
    }
}

/// A point in the history of the Secret where what nodes know stops being in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// An old ring came back.
    Restored,
    /// The ring was lost, and begun anew.
    Lost,
    /// The ring of another installation was emptied.
    Reset,
}

/// A break.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Of which kind.
    pub kind: Break,
    /// The generation that was retiring in the ring before.
    pub retiring: Option<Generation>,
}

/// Who two machines are.
pub type Ends = (Option<End>, Option<End>);

/// What is counted.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Events.
    pub steps: u64,
    /// Virtual time.
    pub time: Duration,
    /// Generations that were dropped in order.
    pub rotations: u64,
    /// Writes that gave nodes new incarnations.
    pub rekeys: u64,
    /// Writes that turned plaintext away.
    pub insisted: u64,
    /// Rings that were emptied because nothing was to be encrypted.
    pub quits: u64,
    /// Time decides.
    pub timed: bool,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
}

/// Everything.
pub struct World {
    /// Where it came from.
    pub scenario: Scenario,
    /// The mistake in it.
    pub variant: Option<Variant>,
    /// Virtual time.
    pub now: Time,
    /// The manager's wall clock is ahead of it by so many seconds.
    pub clock: i64,
    /// What is stored.
    pub objects: Objects,
    /// Watch connections.
    pub streams: BTreeMap<(Who, What), Stream>,
    /// Machines, those that left included.
    pub machines: Vec<Machine>,
    /// Managers, dead ones included.
    pub managers: Vec<Manager>,
    /// Rings that were written, with their documents.
    pub history: Vec<Vec<u8>>,
    /// Breaks, by resourceVersion.
    pub breaks: BTreeMap<u64, Broken>,
    /// Numbers of all generations that ever were.
    pub numbers: BTreeMap<Uid, u64>,
    /// Since when each generation has had its role.
    pub roles: BTreeMap<(Uid, Role), Time>,
    /// The highest incarnation that there ever was.
    pub incarnations: u32,
    /// The incarnations of each generation when it was activated, and the version of that write.
    pub activated: BTreeMap<Uid, (Incarnations, u64)>,
    /// Machines about which something changed in this step.
    pub dirty: BTreeSet<usize>,
    /// The SA with which each machine was last understood by each other, and who they were.
    pub understood: BTreeMap<(usize, usize), (SaId, Ends)>,
    /// When no manager was at work last, and whether one was after the last step.
    pub unmanaged: (Time, bool),
    /// The first thing that must never be.
    pub violation: Option<Violation>,
    /// Counts.
    pub tally: Tally,
    /// No more faults.
    pub calm: bool,
    lucks: BTreeMap<Luck, Rng>,
    /// What happened lately, if somebody wants to read it.
    pub story: Option<Vec<String>>,
    pub(crate) keys: Rc<RefCell<Keys>>,
    base: Instant,
    queue: BinaryHeap<Reverse<Entry>>,
    order: u64,
    pids: u64,
    directory: PathBuf,
}

#[derive(Debug)]
struct Entry {
    at: Time,
    order: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Journals only, in a directory of our own.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl World {
    /// The world of a scenario, before its first event.
    ///
    /// # Errors
    /// No place for the agents' journals.
    pub fn new(scenario: &Scenario, variant: Option<Variant>, story: bool) -> std::io::Result<Self> {
        static WORLDS: AtomicU64 = AtomicU64::new(0);
        let memory = PathBuf::from("/dev/shm");
        let place = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let directory = place.join(format!("secureoverlay-sim-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let mut world = Self {
            scenario: scenario.clone(),
            variant,
            now: Time::ZERO,
            clock: 0,
            objects: Objects::default(),
            streams: BTreeMap::new(),
            machines: Vec::new(),
            managers: Vec::new(),
            history: Vec::new(),
            breaks: BTreeMap::new(),
            numbers: BTreeMap::new(),
            roles: BTreeMap::new(),
            incarnations: 0,
            activated: BTreeMap::new(),
            dirty: BTreeSet::new(),
            understood: BTreeMap::new(),
            unmanaged: (Time::ZERO, false),
            violation: None,
            tally: Tally { timed: scenario.timed.is_some(), ..Tally::default() },
            calm: false,
            lucks: BTreeMap::new(),
            story: story.then(Vec::new),
            keys: Rc::default(),
            base: Instant::now(),
            queue: BinaryHeap::new(),
            order: 0,
            pids: 0,
            directory,
        };
        world.begin()?;
        Ok(world)
    }

    fn begin(&mut self) -> std::io::Result<()> {
        let uid = self.uid();
        self.objects.secret = Some((Secret::new(uid, None), 0));
        let uid = self.uid();
        self.objects.daemon_set = Some(DaemonSet { uid, orphaning: false });
        for _ in 0..self.scenario.machines {
            self.join(None)?;
        }
        self.start_manager();
        for at in 0..self.scenario.faults.len() {
            self.at(self.scenario.faults[at].at, Event::Fault(at));
        }
        Ok(())
    }

    /// Virtual time as the product sees it.
    #[must_use]
    pub fn instant(&self) -> Instant {
        self.base + self.now
    }

    /// The manager's wall clock.
    #[must_use]
    pub fn wall(&self) -> Timestamp {
        let start = Timestamp::from_second(1_795_000_000).unwrap_or(Timestamp::UNIX_EPOCH);
        let passed = SignedDuration::try_from(self.now).unwrap_or(SignedDuration::ZERO);
        start.checked_add(passed + SignedDuration::from_secs(self.clock)).unwrap_or(start)
    }

    /// The stream of luck of one decision point. What one process does differently disturbs the luck of no other.
    pub fn luck(&mut self, luck: Luck) -> &mut Rng {
        let seed = self.scenario.seed;
        self.lucks.entry(luck).or_insert_with(|| Rng::new(seed, luck.purpose()))
    }

    /// A new identity.
    pub fn uid(&mut self) -> Uid {
        let mut bytes = [0; 16];
        self.luck(Luck::Identities).fill(&mut bytes);
        Uid::from_random(bytes)
    }

    /// A number that no process had.
    pub fn pid(&mut self) -> u64 {
        self.pids += 1;
        self.pids
    }

    /// Plans an event at a time.
    pub fn at(&mut self, at: Time, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Entry { at: at.max(self.now), order: self.order, event }));
    }

    /// Plans an event.
    pub fn after(&mut self, pause: Duration, event: Event) {
        self.at(self.now + pause, event);
    }

    /// Adds to the story.
    pub fn tell(&mut self, line: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(story) = &mut self.story {
            if story.len() >= 2 * STORY {
                story.drain(..STORY);
            }
            story.push(format!("{:9.3}s {}", now.as_secs_f64(), line()));
        }
    }

    /// Notes what must never be.
    pub fn violate(&mut self, invariant: u8, text: String) {
        let at = self.now;
        self.tell(|| format!("INVARIANT {invariant}: {text}"));
        self.violation.get_or_insert(Violation { invariant, at, text });
    }

    /// One event. False when there is none before `until`.
    pub fn step(&mut self, until: Time) -> bool {
        if self.queue.peek().is_none_or(|Reverse(entry)| entry.at > until) {
            self.now = until;
            return false;
        }
        let Some(Reverse(Entry { at, event, .. })) = self.queue.pop() else { return false };
        self.now = at;
        self.tally.steps += 1;
        self.tally.time = self.now;
        self.happen(event);
        self.check();
        true
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Fault(at) => self.fault(at),
            Event::Heal(heal) => self.heal(heal),
            Event::Deliver(who, what, connection) => self.deliver(who, what, connection),
            Event::Connect(who, what) => self.connect(who, what),
            Event::Manage(number, pid) => self.manage(number, pid),
            Event::Said(name, owner, said) => self.said(name, owner, *said),
            Event::Collect(name) => self.collect(&name),
            Event::Wake(machine, pid)
            | Event::Attempt(machine, pid)
            | Event::Attempted(machine, pid)
            | Event::KernelChanged(machine, pid)
            | Event::Probed(machine, pid)
            | Event::Send(machine, pid)
            | Event::Sent(machine, pid)
            | Event::Heartbeat(machine, pid)
            | Event::Terminate(machine, pid)
            | Event::Kill(machine, pid) => self.agent(machine, pid, &event),
        }
    }

    /// Something stored has changed: everybody who watches hears of it, some time.
    pub fn changed(&mut self, what: What, change: &Change) {
        let watchers: Vec<Who> = self
            .streams
            .iter()
            .filter(|((_, of), stream)| *of == what && stream.up)
            .map(|((who, _), _)| *who)
            .collect();
        for who in watchers {
            let (broken, duplicated) = (self.scenario.broken, self.scenario.duplicated);
            if !self.calm && self.luck(Luck::Watch(who, what)).permille(broken) {
                self.lose(who, what);
                continue;
            }
            self.push(who, what, change.clone());
            if self.luck(Luck::Watch(who, what)).permille(duplicated) {
                self.push(who, what, change.clone());
            }
        }
    }

    fn push(&mut self, who: Who, what: What, change: Change) {
        let luck = self.luck(Luck::Watch(who, what));
        let delay = if luck.permille(30) { luck.millis(500, 20_000) } else { luck.millis(1, 300) };
        let Some(stream) = self.streams.get_mut(&(who, what)) else { return };
        stream.last = stream.last.max(self.now + delay);
        stream.queue.push_back(change);
        let (at, connection) = (stream.last, stream.connection);
        self.at(at, Event::Deliver(who, what, connection));
    }

    /// A watch connection breaks; it is made again after a while.
    pub fn lose(&mut self, who: Who, what: What) {
        self.streams.entry((who, what)).or_default().cut();
        let pause = self.luck(Luck::Watch(who, what)).millis(200, 8000);
        self.after(pause, Event::Connect(who, what));
    }

    fn connect(&mut self, who: Who, what: What) {
        let wanted = match who {
            Who::Agent(at) => self.machines[at].process.is_some(),
            Who::Manager(at) => self.managers[at].alive,
        };
        if !wanted || self.streams.get(&(who, what)).is_some_and(|stream| stream.up) {
            return;
        }
        if let Who::Agent(at) = who
            && self.machines[at].partitioned
        {
            let pause = self.luck(Luck::Watch(who, what)).millis(1000, 5000);
            return self.after(pause, Event::Connect(who, what));
        }
        self.streams.entry((who, what)).or_default().up = true;
        let change = self.objects.list(what);
        self.push(who, what, change);
    }

    fn deliver(&mut self, who: Who, what: What, connection: u64) {
        let stopped = match who {
            Who::Agent(at) => self.machines[at].stopped_until,
            Who::Manager(at) => self.managers[at].stopped_until,
        };
        if stopped > self.now {
            return self.at(stopped, Event::Deliver(who, what, connection));
        }
        let Some(stream) = self.streams.get_mut(&(who, what)) else { return };
        if stream.connection != connection {
            return;
        }
        let Some(change) = stream.queue.pop_front() else { return };
        match who {
            Who::Agent(at) => self.agent_hears(at, change),
            Who::Manager(at) => self.manager_hears(at, change),
        }
    }

    /// Notes a break that the write of this version made; `before` is the last ring before it.
    pub fn note_break(&mut self, version: u64, kind: Break, before: Option<&[u8]>) {
        let ring = before.and_then(|document| Ring::parse(document).ok());
        let retiring = Phase::of(ring.as_ref()).retiring().cloned();
        self.breaks.insert(version, Broken { kind, retiring });
    }

    /// Stores a Secret, or its absence.
    pub fn write_secret(&mut self, secret: Option<Secret>) -> u64 {
        self.objects.version += 1;
        let version = self.objects.version;
        if let Some(document) = secret.as_ref().and_then(|secret| secret.document.as_ref())
            && let Ok(ring) = Ring::parse(document)
        {
            if self.history.last() != Some(document) {
                self.history.push(document.clone());
            }
            for generation in &ring.generations {
                self.numbers.insert(generation.uid, generation.id);
                let last = generation.incarnations.values().copied().max().unwrap_or(0);
                self.incarnations = self.incarnations.max(last);
            }
            let roles: BTreeMap<_, _> = ring
                .generations
                .iter()
                .map(|generation| ((generation.uid, generation.role), self.now))
                .collect();
            let before = std::mem::replace(&mut self.roles, roles);
            for (role, since) in &mut self.roles {
                *since = before.get(role).copied().unwrap_or(*since);
            }
        }
        self.objects.secret = secret.map(|secret| (secret, version));
        let change = self.objects.ring();
        self.changed(What::Ring, &change);
        version
    }

    /// The ring that is stored, if it is one.
    #[must_use]
    pub fn ring(&self) -> Option<(Ring, u64)> {
        let (secret, version) = self.objects.secret.as_ref()?;
        Some((Ring::parse(secret.document.as_ref()?).ok()?, *version))
    }

    /// Changes a Node object.
    pub fn edit_node(&mut self, machine: usize, edit: impl FnOnce(&mut NodeFacts)) {
        let name = self.machines[machine].name.clone();
        let Some(node) = self.objects.nodes.get_mut(&name) else { return };
        let before = node.clone();
        edit(node);
        if *node != before {
            let change = Change::Node(node.clone());
            self.changed(What::Nodes, &change);
        }
    }

    fn said(&mut self, name: String, owner: Uid, said: Acknowledgement) {
        self.objects.said.insert(name.clone(), NodeEncryption { owner, said: said.clone() });
        self.changed(What::Said, &Change::Said(name.clone(), Some(said)));
        self.collect_later(name);
    }

    /// The garbage collector will look.
    pub fn collect_later(&mut self, name: String) {
        let pause = self.luck(Luck::Collector).millis(500, 20_000);
        self.after(pause, Event::Collect(name));
    }

    fn collect(&mut self, name: &str) {
        let owner = self.objects.nodes.get(name).and_then(|node| node.uid);
        let orphan = |object: &NodeEncryption| Some(object.owner) != owner;
        if self.objects.said.get(name).is_some_and(orphan) {
            self.objects.said.remove(name);
            self.changed(What::Said, &Change::Said(name.to_owned(), None));
        }
    }

    /// A machine comes, with an address of its own or one that is free again.
    ///
    /// # Errors
    /// No place for its journal.
    pub fn join(&mut self, addr: Option<std::net::IpAddr>) -> std::io::Result<()> {
        let at = self.machines.len();
        let addr = addr.unwrap_or_else(|| [192, 0, 2 + (at / 200) as u8, 1 + (at % 200) as u8].into());
        let name = format!("node-{}", at + 1);
        let boot = self.uid();
        let rng = Rng::new(self.scenario.seed, 100 + at as u64);
        let tables = self.boot_kernel(at, addr);
        let journal = self.place_for_journal(boot)?;
        self.machines.push(Machine {
            name,
            addr,
            uid: None,
            boot,
            live: true,
            tables,
            journal,
            process: None,
            pod: self.objects.daemon_set.is_some(),
            set: self.objects.daemon_set.map(|set| set.uid),
            partitioned: false,
            stopped_until: Time::ZERO,
            slow_until: Time::ZERO,
            applied: None,
            attempted: None,
            first: None,
            claims: BTreeMap::new(),
            receives: BTreeSet::new(),
            insists: false,
            let_through: BTreeSet::new(),
            included: None,
            burnt: BTreeSet::new(),
            flushed: false,
            left_behind: None,
            sends_since: BTreeMap::new(),
            tainted: true,
            hindered_until: self.now,
            rng,
        });
        self.register(at);
        let pause = self.luck(Luck::Machine(at)).millis(500, 15_000);
        self.after(pause, Event::Heal(Heal::Agent(at)));
        Ok(())
    }

    /// The kubelet makes the Node object.
    pub fn register(&mut self, at: usize) {
        let uid = self.uid();
        // Nobody has waited for it so far: it may have to catch up with the ring.
        let version = self.objects.secret.as_ref().map(|(_, version)| *version);
        let machine = &mut self.machines[at];
        machine.uid = Some(uid);
        machine.left_behind = version;
        let node = NodeFacts {
            name: machine.name.clone(),
            uid: Some(uid),
            created: Timestamp::from_second(1_795_000_000 + self.now.as_secs() as i64).ok(),
            addr: Some(machine.addr),
            boot: Some(machine.boot),
            ready: !machine.partitioned,
            excluded: false,
        };
        self.objects.nodes.insert(machine.name.clone(), node.clone());
        self.dirty.insert(at);
        self.changed(What::Nodes, &Change::Node(node));
    }

    /// A kernel that has just booted.
    pub fn boot_kernel(&mut self, at: usize, addr: std::net::IpAddr) -> Rc<RefCell<Tables>> {
        let rng = Rng::new(self.luck(Luck::Machine(at)).draw(), 4);
        Rc::new(RefCell::new(Tables::new(addr, self.keys.clone(), rng)))
    }

    /// A directory that is gone with the boot.
    ///
    /// # Errors
    /// It can't be made.
    pub fn place_for_journal(&self, boot: Uid) -> std::io::Result<PathBuf> {
        let place = self.directory.join(boot.as_str());
        std::fs::create_dir_all(&place)?;
        Ok(place)
    }
}
