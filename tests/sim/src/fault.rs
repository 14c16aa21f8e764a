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
    /// An agent is killed.
    AgentKilled { machine: usize, down: u64 },
    /// SIGSTOP.
    AgentStopped { machine: usize, time: u64 },
    /// Everything that an agent does takes long.
    AgentSlow { machine: usize, time: u64 },
    /// An agent is killed within its next change of the kernel, after so many operations.
    AgentDiesMidway { machine: usize, after: usize },
    /// A node is cut off from the API, but not from the network.
    Partitioned { machine: usize, time: u64 },
    /// A machine joins, maybe with the address of one that left.
    Joined { reuse: bool },
    /// A machine leaves for ever.
    Left { machine: usize },
    /// A machine reboots.
    Rebooted { machine: usize },
    /// The Node object is deleted and made again, with another UID, of the same running machine.
    Recreated { machine: usize },
    /// A node is labelled to take no part.
    Excluded { machine: usize, time: u64 },
    /// A Node object shows no boot ID for a while.
    BootIdHidden { machine: usize, time: u64 },
    /// `ip xfrm state flush`.
    StatesFlushed { machine: usize },
    /// `ip xfrm policy flush`.
    PoliciesFlushed { machine: usize },
    /// Both.
    Flushed { machine: usize },
    /// Some of the SAs and policies of one kernel are deleted.
    SomeDeleted { machine: usize, percent: u64 },
    /// A kernel refuses some operations.
    KernelRefuses { machine: usize, percent: u64, time: u64 },
    /// Every watch connection breaks.
    WatchesLost,
    /// Somebody writes what is no ring.
    SecretRubbish { time: u64 },
    /// A manifest is applied again that empties the Secret.
    SecretWiped,
    /// The Secret is restored as it was so many writes ago.
    SecretRestored { back: usize },
    /// The Secret is deleted, and made again without a ring.
    SecretDeleted { time: u64 },
    /// The DaemonSet is deleted, and made again.
    DaemonSetRecreated { time: u64 },
    /// The same, with `--cascade=orphan`.
    DaemonSetOrphaned { time: u64 },
    /// All NodeEncryptions are deleted.
    AcknowledgementsDeleted,
    /// The wall clock of the manager's host jumps.
    ClockJumped { seconds: i64 },
    /// An operator wants plaintext to be turned away, or accepted.
    GoalChanged { insist: bool },
    /// An operator wants nothing to be encrypted, for a while.
    OffRequested { time: u64 },
    /// An operator wants a rotation now.
    RotationRequested,
    /// An operator wants the rotation to go on without the nodes that it waits for.
    SkipRequested,
    /// The lists of a manager show a minority of the Nodes.
    NodesHidden { time: u64 },
}

impl Fault {
    /// Its name, for counting.
    #[must_use]
    pub fn kind(&self) -> String {
        let text = format!("{self:?}");
        text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
    }

    fn random(rng: &mut Rng) -> Self {
        let machine = rng.below(1 << 16) as usize;
        // Mostly moments, sometimes longer than any patience.
        let time = match rng.below(10) {
            0..=5 => rng.between(1, 30),
            6..=8 => rng.between(30, 300),
            _ => rng.between(300, 3000),
        };
        let short = rng.between(1, 60);
        let percent = rng.between(1, 60);
        match rng.below(110) {
            0..=7 => Self::ManagerKilled { down: short },
            8..=10 => Self::ManagerStopped { time },
            11..=13 => Self::SecondManager { time },
            14..=21 => Self::AgentKilled { machine, down: short },
            22..=28 => Self::AgentStopped { machine, time },
            29..=34 => Self::AgentSlow { machine, time },
            35..=39 => Self::AgentDiesMidway { machine, after: rng.below(12) as usize },
            40..=46 => Self::Partitioned { machine, time },
            47..=50 => Self::Joined { reuse: rng.permille(500) },
            51..=52 => Self::Left { machine },
            53..=58 => Self::Rebooted { machine },
            59..=61 => Self::Recreated { machine },
            62..=63 => Self::Excluded { machine, time },
            64..=65 => Self::BootIdHidden { machine, time },
            66..=68 => Self::StatesFlushed { machine },
            69..=70 => Self::PoliciesFlushed { machine },
            71..=73 => Self::Flushed { machine },
            74..=77 => Self::SomeDeleted { machine, percent },
            78..=81 => Self::KernelRefuses { machine, percent, time },
            82..=83 => Self::WatchesLost,
            84..=85 => Self::SecretRubbish { time },
            86..=88 => Self::SecretWiped,
            89..=91 => Self::SecretRestored { back: rng.between(1, 8) as usize },
            92..=93 => Self::SecretDeleted { time: short },
            94..=95 => Self::DaemonSetRecreated { time: short },
            96 => Self::DaemonSetOrphaned { time: short },
            97 => Self::AcknowledgementsDeleted,
            98 => Self::GoalChanged { insist: rng.between(0, 200_000).is_multiple_of(2) },
            100..=101 => Self::OffRequested { time: 10 * time },
            102..=104 => Self::RotationRequested,
            105..=107 => Self::SkipRequested,
            108..=109 => Self::NodesHidden { time: time.min(500) },
            _ => Self::ClockJumped { seconds: rng.between(0, 200_000) as i64 - 100_000 },
        }
    }
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
    /// Time decides instead of acknowledgements: for so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timed: Option<Duration>,
    /// Between rotations.
    #[serde(with = "millis")]
    pub interval: Duration,
    /// How long a rotation waits for a node that is not ready.
    #[serde(with = "millis")]
    pub limit: Duration,
    /// How often agents look at their kernels.
    #[serde(with = "millis")]
    pub resync: Duration,
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
        let mut rng = Rng::new(seed, 1);
        let machines = match rng.below(200) {
            0 => rng.between(60, 200),
            1..=9 => rng.between(8, 24),
            _ => rng.between(2, 5),
        } as usize;
        let seconds = |rng: &mut Rng, from, to| Duration::from_secs(rng.between(from, to));
        let interval = seconds(&mut rng, 60, 600);
        let limit = seconds(&mut rng, 120, 1800);
        let resync = seconds(&mut rng, 60, 300);
        let (duplicated, broken) = (rng.below(50), rng.below(20));
        // The big ones are for the size, not for the length.
        let end = if machines > 24 { Duration::from_secs(900) } else { seconds(&mut rng, 1200, 5400) };
        let mean = rng.between(15, 240);
        let mut faults = Vec::new();
        // The first generation is on its way meanwhile, in most worlds.
        let mut at = rng.millis(0, 60_000);
        while at < end {
            faults.push(Planned { at, fault: Fault::random(&mut rng) });
            // Bursts are where faults meet.
            at += if rng.permille(300) { rng.millis(0, 3000) } else { rng.millis(0, mean * 2000) };
        }
        let mut rng = Rng::new(seed, 8);
        // Where nodes can't say what they have done, few faults leave the time that they need.
        let timed = (machines <= 24 && rng.permille(100)).then(|| seconds(&mut rng, 120, 240));
        Self { seed, machines, timed, interval, limit, resync, duplicated, broken, end, faults }
    }

    /// A small and busy world with the faults that a wrong variant must stumble over, time and again.
    #[must_use]
    pub fn provoking(seed: u64, variant: Variant) -> Self {
        let timed = (variant == Variant::HurryTimed).then_some(Duration::from_secs(180));
        let mut world = Self { timed, ..Self::new(seed) };
        let mut rng = Rng::new(seed, 5);
        world.machines = rng.between(2, 4) as usize + usize::from(variant == Variant::BelieveMissingNodes);
        world.interval = Duration::from_secs(rng.between(60, 90));
        world.end = Duration::from_secs(3600);
        world.faults.clear();
        let mut at = Duration::from_secs(30);
        while at < world.end {
            let (machine, time) = (rng.below(1 << 16) as usize, rng.between(1, 40));
            let fault = match (variant, rng.below(3)) {
                (Variant::CountFormerBoots, 0) => Fault::Rebooted { machine },
                (Variant::CountFormerBoots, 1) => {
                    Fault::KernelRefuses { machine, percent: 50, time: 4 * time }
                }
                (Variant::CountFormerBoots, _) => Fault::Partitioned { machine, time },
                (Variant::BelieveMissingNodes, 0) => Fault::NodesHidden { time: 10 * time },
                (Variant::QuitUnsilenced, 0) => Fault::OffRequested { time: 10 * time },
                (Variant::PressUnasked, 0) => Fault::AgentSlow { machine, time: 3 * time },
                (Variant::PressUnasked, 1) => Fault::AgentStopped { machine, time: 3 * time },
                (Variant::HurryTimed, _) if time > 4 => Fault::RotationRequested,
                (Variant::WriteUnconditionally, 0) => Fault::SecondManager { time: 20 * time },
                (Variant::WriteUnconditionally, 1) => Fault::ManagerStopped { time: 4 * time },
                _ => Fault::random(&mut rng),
            };
            world.faults.push(Planned { at, fault });
            at += rng.millis(0, 20_000);
        }
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
