//! What goes wrong, and when: drawn from the seed before the world begins, so that faults can be left out one by one.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{rng::Rng, variant::Variant};

/// One thing that goes wrong. Machines are meant by a number that is taken modulo those that there are; times are in
/// seconds.
#[expect(missing_docs, reason = "each variant tells what its fields are")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// The manager is killed, between whichever two of its steps, and starts anew.
    ManagerKilled { down: u64 },
    /// SIGSTOP: it goes on later with what it read before.
    ManagerStopped { time: u64 },
    /// Another manager runs as well.
    SecondManager { time: u64 },
    /// The lists of a manager show a minority of the Nodes.
    NodesHidden { time: u64 },
    /// The wall clock of the manager's host jumps.
    ClockJumped { seconds: i64 },
    /// An agent is killed.
    AgentKilled { machine: usize, down: u64 },
    /// SIGSTOP.
    AgentStopped { machine: usize, time: u64 },
    /// Everything that an agent does takes long.
    AgentSlow { machine: usize, time: u64 },
    /// An agent is killed after so many of its next steps: writes of files, changes of the kernel.
    AgentDiesMidway { machine: usize, after: usize },
    /// A node is cut off from the API, but not from the network.
    Partitioned { machine: usize, time: u64 },
    /// A machine joins, maybe with the address of one that left.
    Joined { reuse: bool },
    /// A machine leaves for ever.
    Left { machine: usize },
    /// A machine reboots.
    Rebooted { machine: usize, time: u64 },
    /// All machines reboot at about the same time.
    AllRebooted,
    /// A machine gets another address; the former one belongs to no machine for a while.
    AddressChanged { machine: usize },
    /// Two machines swap addresses.
    AddressesSwapped { machine: usize, other: usize },
    /// The Node object is deleted and made again, with another UID, of the same running machine.
    Recreated { machine: usize, time: u64 },
    /// A node is labelled to take no part.
    Excluded { machine: usize, time: u64 },
    /// The state directory is emptied.
    DirectoryEmptied { machine: usize },
    /// The state directory is full.
    DirectoryFull { machine: usize, time: u64 },
    /// The journal is lost; the identity stays.
    JournalLost { machine: usize },
    /// The identity is put back as it was at some time of this boot.
    IdentityRestored { machine: usize },
    /// `ip xfrm state flush`.
    SasFlushed { machine: usize },
    /// `ip xfrm policy flush`.
    PoliciesFlushed { machine: usize },
    /// Both.
    Flushed { machine: usize },
    /// Some of the SAs and policies of one kernel are deleted.
    SomeDeleted { machine: usize, percent: u64 },
    /// A kernel refuses some operations.
    KernelRefuses { machine: usize, percent: u64, time: u64 },
    /// ESP does not pass from one machine to another.
    EspBlocked { from: usize, to: usize, time: u64 },
    /// Large packets do not pass from one machine to another.
    Narrow { from: usize, to: usize, time: u64 },
    /// Every watch connection breaks.
    WatchesLost,
    /// The watches of an agent bring nothing, and do not break.
    WatchesSilent { machine: usize },
    /// The Secret holds what is no ring.
    SecretRubbish { time: u64 },
    /// A manifest is applied again that empties the Secret.
    SecretWiped,
    /// The Secret is restored as it was so many backups ago.
    SecretRestored { back: usize },
    /// The Secret is deleted.
    SecretDeleted,
    /// etcd goes back by so many backups; API servers are restarted so much later.
    StoreWentBack { back: usize, restart: u64 },
    /// The DaemonSet is made anew.
    DaemonSetRecreated,
    /// All EncryptionPeers are deleted.
    PeersDeleted,
    /// One EncryptionPeer is replaced by an old copy.
    PeerRestored { machine: usize, back: usize },
    /// An EncryptionPeer lists entries of another node as well.
    PeerCopied { machine: usize, from: usize },
    /// All NodeEncryptions are deleted.
    AcksDeleted,
    /// All NodeEncryptions are put back as they were so many backups ago.
    AcksRestored { back: usize },
    /// An operator wants plaintext to be turned away, or accepted.
    GoalChanged { auto: bool },
    /// An operator wants nothing to be encrypted, for a while.
    OffRequested { time: u64 },
    /// An operator wants a rotation now.
    RotationRequested,
    /// An operator wants the rotation to go on without the nodes that it waits for.
    SkipRequested,
    /// An operator wants another suite.
    SuiteChanged,
    /// An operator wants another interval.
    IntervalChanged { seconds: u64 },
}

impl Fault {
    /// Its name, for counting.
    #[must_use]
    pub fn kind(&self) -> String {
        let text = format!("{self:?}");
        text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
    }

    /// One of each kind, drawn.
    #[must_use]
    pub fn draw(kind: u64, rng: &mut Rng) -> Self {
        let machine = rng.below(1 << 16) as usize;
        let other = rng.below(1 << 16) as usize;
        // Mostly moments, sometimes longer than any patience.
        let time = match rng.below(10) {
            0..=5 => rng.between(1, 30),
            6..=8 => rng.between(30, 300),
            _ => rng.between(300, 3000),
        };
        let short = rng.between(1, 60);
        let percent = rng.between(1, 60);
        let back = rng.between(1, 8) as usize;
        match kind {
            0 => Self::ManagerKilled { down: short },
            1 => Self::ManagerStopped { time },
            2 => Self::SecondManager { time },
            3 => Self::NodesHidden { time: time.min(500) },
            4 => Self::ClockJumped { seconds: rng.between(0, 200_000) as i64 - 100_000 },
            5 => Self::AgentKilled { machine, down: short },
            6 => Self::AgentStopped { machine, time },
            7 => Self::AgentSlow { machine, time },
            8 => Self::AgentDiesMidway { machine, after: rng.below(24) as usize },
            9 => Self::Partitioned { machine, time },
            10 => Self::Joined { reuse: rng.permille(500) },
            11 => Self::Left { machine },
            12 => Self::Rebooted { machine, time: short },
            13 => Self::AllRebooted,
            14 => Self::AddressChanged { machine },
            15 => Self::AddressesSwapped { machine, other },
            16 => Self::Recreated { machine, time: short },
            17 => Self::Excluded { machine, time },
            18 => Self::DirectoryEmptied { machine },
            19 => Self::DirectoryFull { machine, time },
            20 => Self::JournalLost { machine },
            21 => Self::IdentityRestored { machine },
            22 => Self::SasFlushed { machine },
            23 => Self::PoliciesFlushed { machine },
            24 => Self::Flushed { machine },
            25 => Self::SomeDeleted { machine, percent },
            26 => Self::KernelRefuses { machine, percent, time },
            27 => Self::EspBlocked { from: machine, to: other, time },
            28 => Self::Narrow { from: machine, to: other, time },
            29 => Self::WatchesLost,
            30 => Self::WatchesSilent { machine },
            31 => Self::SecretRubbish { time },
            32 => Self::SecretWiped,
            33 => Self::SecretRestored { back },
            34 => Self::SecretDeleted,
            35 => Self::StoreWentBack { back, restart: if rng.permille(500) { 1 } else { time } },
            36 => Self::DaemonSetRecreated,
            37 => Self::PeersDeleted,
            38 => Self::PeerRestored { machine, back },
            39 => Self::PeerCopied { machine, from: other },
            40 => Self::AcksDeleted,
            41 => Self::GoalChanged { auto: rng.permille(500) },
            42 => Self::OffRequested { time: 4 * time },
            43 => Self::RotationRequested,
            44 => Self::SkipRequested,
            45 => Self::SuiteChanged,
            46 => Self::AcksRestored { back },
            _ => Self::IntervalChanged { seconds: rng.between(60, 600) },
        }
    }

    /// How many kinds there are.
    pub const KINDS: u64 = 48;
}

/// A fault and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// When, since the world began.
    #[serde(with = "millis")]
    pub at: Duration,
    /// What.
    pub fault: Fault,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:9.3}s {:?}", self.at.as_secs_f64(), self.fault)
    }
}

/// A world before it begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scenario {
    /// Where everything comes from.
    pub seed: u64,
    /// Machines at the beginning.
    pub machines: usize,
    /// Between rotations.
    #[serde(with = "millis")]
    pub interval: Duration,
    /// How long a rotation waits for a node that is not ready.
    #[serde(with = "millis")]
    pub limit: Duration,
    /// How often agents look at their kernels.
    #[serde(with = "millis")]
    pub resync: Duration,
    /// Packets that an SA may carry.
    pub sa_packets: u64,
    /// Bytes of a large ping, headers included.
    pub tunnel_mtu: Option<u16>,
    /// Events of watches that come twice, of a thousand.
    pub duplicated: u64,
    /// Watch connections that break at an event, of a thousand.
    pub broken: u64,
    /// When faults end.
    #[serde(with = "millis")]
    pub end: Duration,
    /// What goes wrong, in order.
    pub faults: Vec<Planned>,
}

impl Scenario {
    /// The scenario of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::with(seed, |rng| rng.below(Fault::KINDS))
    }

    /// A small world in which nothing goes wrong.
    #[must_use]
    pub fn calm(seed: u64) -> Self {
        Self { faults: Vec::new(), ..Self::new(seed) }
    }

    /// A world with faults of these kinds only.
    #[must_use]
    pub fn of_kinds(seed: u64, kinds: &[u64]) -> Self {
        Self::with(seed, |rng| kinds[rng.below(kinds.len() as u64) as usize])
    }

    fn with(seed: u64, kind: impl Fn(&mut Rng) -> u64) -> Self {
        let mut rng = Rng::new(seed, 1);
        let machines = match rng.below(300) {
            0 => rng.between(60, 200),
            1..=9 => rng.between(8, 24),
            _ => rng.between(2, 5),
        } as usize;
        let seconds = |rng: &mut Rng, from, to| Duration::from_secs(rng.between(from, to));
        let interval = seconds(&mut rng, 120, 900);
        let limit = seconds(&mut rng, 120, 1800);
        let resync = seconds(&mut rng, 60, 300);
        let (duplicated, broken) = (rng.below(50), rng.below(20));
        let sa_packets = if rng.permille(200) { rng.between(200, 2000) } else { 1 << 32 };
        let tunnel_mtu = rng.permille(700).then_some(1400);
        // The big ones are for the size, not for the length.
        let end = if machines > 24 { Duration::from_secs(300) } else { seconds(&mut rng, 900, 3600) };
        let mean = rng.between(15, 240);
        let mut faults = Vec::new();
        // The first generation is on its way meanwhile, in most worlds.
        let mut at = rng.millis(0, 120_000);
        while at < end {
            let kind = kind(&mut rng);
            faults.push(Planned { at, fault: Fault::draw(kind, &mut rng) });
            // Bursts are where faults meet.
            at += if rng.permille(300) { rng.millis(0, 3000) } else { rng.millis(0, mean * 2000) };
        }
        Self {
            seed,
            machines,
            interval,
            limit,
            resync,
            sa_packets,
            tunnel_mtu,
            duplicated,
            broken,
            end,
            faults,
        }
    }

    /// A small and busy world with the faults that a wrong variant must stumble over, time and again.
    #[must_use]
    pub fn provoking(seed: u64, variant: Variant) -> Self {
        let kinds = variant.kinds();
        let mut world = if kinds.is_empty() { Self::new(seed) } else { Self::of_kinds(seed, kinds) };
        world.machines = world.machines.min(4);
        world
    }

    /// The same world with these of its faults only.
    #[must_use]
    pub fn only(&self, keep: &[usize]) -> Self {
        let faults = keep.iter().filter_map(|&at| self.faults.get(at).copied()).collect();
        Self { faults, ..self.clone() }
    }
}

/// Durations as milliseconds, which is what all of them are drawn in.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(time.as_millis().try_into().unwrap_or(u64::MAX))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}
