//! The rotation protocol: when a key is made, used and dropped.
//!
//! ```text
//! off ──begin──▶ staged ──all receive──▶ active
//!
//! active ──due──▶ active + staged ──all receive──▶ retiring + active ──nobody sends──▶ active
//! ```
//!
//! Every arrow is one write of the ring, so that a manager can be killed between any two of them. Whether "all
//! receive" or "nobody sends" holds is a fact that comes from outside ([`Facts`]): [`crate::acknowledged`] takes it
//! from what the nodes say, [`crate::timed`] from the time that has passed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use crate::{
    ring::{Enforcement, Generation, Ring, Role, SPI_SEED_LEN},
    secret::SecretBytes,
    suite::Suite,
    uid::Uid,
    wire,
};

/// Generation ids above this are not believed; there is room for a rotation every millisecond for 8,000 years.
pub const LAST_ID: u64 = 1 << 48;
/// A seed with which no two nodes share an SPI is drawn this often at most: with 5,000 nodes 1 in 40 fails.
const SEED_DRAWS: usize = 20;
/// Names of nodes in a text for people.
const NAMES: usize = 5;
/// When to look again for a DaemonSet that is not there.
const ABSENT: Duration = Duration::from_secs(60);
/// Clocks of two hosts that a manager ran on may differ by this much.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// What the operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// When a generation has been active for long enough.
    pub pace: Pace,
    /// Suite of new generations.
    pub suite: Suite,
}

/// When rotations are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// So long after the last one.
    Every(Duration),
    /// By a timetable that this crate does not know.
    At {
        /// The first time in it after the active generation became that.
        due: Timestamp,
        /// The first time in it after now.
        next: Timestamp,
    },
}

impl Pace {
    /// When the generation that is active since `since` is to be replaced.
    fn due(self, since: Timestamp) -> Timestamp {
        match self {
            Self::Every(interval) => after(since, interval),
            Self::At { due, .. } => due,
        }
    }

    /// When the generation that becomes active at `now` is to be replaced.
    fn next(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Every(interval) => after(now, interval),
            Self::At { next, .. } => next,
        }
    }
}

/// Whether something that a rotation waits for has come true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It holds.
    Yes,
    /// It can't be said to hold before this time has passed.
    In(Duration),
    /// It does not hold for these nodes, by name.
    Awaits {
        /// The nodes.
        nodes: BTreeSet<String>,
        /// When one of them may be left behind at the earliest.
        look_in: Duration,
    },
}

impl Answer {
    /// Waits for `what`; `None` if there is nothing to wait for.
    fn wait(&self, what: impl fmt::Display) -> Option<Decision> {
        match self {
            Self::Yes => None,
            Self::In(time) => Some(Decision::wait(*time, what.to_string())),
            Self::Awaits { nodes, look_in } => {
                Some(Decision::wait(*look_in, format!("{what}, waiting for {}", Names(nodes))))
            }
        }
    }
}

/// The first few names, and how many more there are.
pub struct Names<'n>(pub &'n BTreeSet<String>);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first: Vec<&str> = self.0.iter().take(NAMES).map(String::as_str).collect();
        f.write_str(&first.join(", "))?;
        match self.0.len().saturating_sub(NAMES) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// What is known about the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Every node receives with the staged generation.
    pub all_receive: Answer,
    /// Nobody sends with the retiring generation any more, and none of its packets is under way.
    pub nobody_sends: Answer,
    /// Somebody wants a rotation now, and why.
    pub requested: Option<String>,
    /// The incarnation that each node needs, for nodes that can't go on with the one that they have.
    pub rekey: BTreeMap<Uid, Incarnations>,
    /// The highest id of a generation that any node knows of.
    pub newest: u64,
    /// Nodes and their addresses, as far as they are known.
    pub senders: BTreeMap<Uid, IpAddr>,
}

/// Incarnations of one node, by the generation's uid.
pub type Incarnations = BTreeMap<Uid, u32>;

impl Facts {
    /// Facts that come from the time that has passed alone.
    #[must_use]
    pub const fn of(all_receive: Answer, nobody_sends: Answer) -> Self {
        Self {
            all_receive,
            nobody_sends,
            requested: None,
            rekey: BTreeMap::new(),
            newest: 0,
            senders: BTreeMap::new(),
        }
    }
}

/// The DaemonSet of the agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installation {
    /// The manager may not read it.
    Unknown,
    /// There is none: encryption is being removed, or the agents were orphaned.
    Absent,
    /// It is there.
    Present(Uid),
}

/// One write of the ring, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Leave the ring as it is.
    Wait,
    /// Make the first generation, staged.
    Begin,
    /// Make the next generation, staged.
    Stage,
    /// Make the staged generation the active one, and the active one retiring.
    Activate,
    /// Take the retiring generation out.
    Drop,
    /// Give nodes that lost SAs a new incarnation.
    Rekey,
    /// Empty the ring: it was made for an installation that is gone.
    Reset,
}

/// What to do now, and when to look again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The write.
    pub action: Action,
    /// When to decide anew if nothing happens before; zero after a write.
    pub wake_in: Duration,
    /// Why, for people.
    pub reason: String,
    /// Why, for statistics, where a new generation is made.
    pub cause: Option<Cause>,
}

/// What makes a rotation due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// There is no key, or none that can be sent with.
    First,
    /// [`Facts::requested`].
    Request,
    /// An older ring was put into the place of the last one.
    Restored,
    /// Another suite is wanted.
    Suite,
    /// The clock went back.
    Clock,
    /// The time has come.
    Schedule,
}

impl Decision {
    fn act(action: Action, reason: impl Into<String>) -> Self {
        Self { action, wake_in: Duration::ZERO, reason: reason.into(), cause: None }
    }

    fn rotate(action: Action, cause: Cause, reason: impl Into<String>) -> Self {
        Self { cause: Some(cause), ..Self::act(action, reason) }
    }

    fn wait(wake_in: Duration, reason: impl Into<String>) -> Self {
        Self { action: Action::Wait, wake_in, reason: reason.into(), cause: None }
    }
}

/// Decides the next step. `ring` is `None` where the Secret holds none yet.
#[must_use]
pub fn decide(
    ring: Option<&Ring>,
    installation: Installation,
    facts: &Facts,
    now: Timestamp,
    settings: &Settings,
) -> Decision {
    match installation {
        // Being removed, or orphaned: then its pods go on, and must find their keys.
        Installation::Absent => {
            return Decision::wait(ABSENT, "the agents' DaemonSet is not there: nothing is rotated");
        }
        Installation::Present(uid) => {
            let made_for = ring.and_then(|ring| ring.installation);
            if made_for.is_some_and(|other| other != uid) {
                return Decision::act(Action::Reset, "the ring was made for another DaemonSet of the agents");
            }
        }
        Installation::Unknown => {}
    }
    let Some(ring) = ring.filter(|ring| ring.enforcement != Enforcement::Off) else {
        return Decision::rotate(Action::Begin, Cause::First, "there is no key yet");
    };
    if !facts.rekey.is_empty() {
        let count = facts.rekey.len();
        return Decision::act(
            Action::Rekey,
            format!("{count} nodes lost SAs whose keys can't be used again"),
        );
    }
    let with_role = |role| ring.with_role(role);
    match (with_role(Role::Retiring), with_role(Role::Active), with_role(Role::Staged)) {
        (Some(old), Some(_), _) => {
            facts.nobody_sends.wait(format_args!("generation {} is draining", old.id)).unwrap_or_else(|| {
                Decision::act(Action::Drop, format!("nobody sends with generation {} any more", old.id))
            })
        }
        (_, _, Some(next)) => facts
            .all_receive
            .wait(format_args!("generation {} is on its way to every node", next.id))
            .unwrap_or_else(|| {
                Decision::act(Action::Activate, format!("every node receives generation {}", next.id))
            }),
        (_, Some(active), None) => match due(ring, active, facts, now, settings) {
            Ok((cause, reason)) => Decision::rotate(Action::Stage, cause, reason),
            Err(time) => Decision::wait(time, format!("generation {} is active, nothing is due", active.id)),
        },
        (_, None, None) => Decision::rotate(Action::Stage, Cause::First, "no generation can be sent with"),
    }
}

/// Why a rotation is due, or in how long it will be.
fn due(
    ring: &Ring,
    active: &Generation,
    facts: &Facts,
    now: Timestamp,
    settings: &Settings,
) -> Result<(Cause, String), Duration> {
    if let Some(why) = &facts.requested {
        return Ok((Cause::Request, why.clone()));
    }
    if facts.newest > ring.newest() {
        let why = format!(
            "a node knows of generation {}, the ring only of {}: an old ring was restored",
            facts.newest,
            ring.newest()
        );
        return Ok((Cause::Restored, why));
    }
    if active.suite != settings.suite {
        return Ok((Cause::Suite, format!("the suite changes from {} to {}", active.suite, settings.suite)));
    }
    if active.role_since.duration_since(now) > CLOCK_TOLERANCE {
        let why =
            format!("generation {} is active since a time in the future: the clock went back", active.id);
        return Ok((Cause::Clock, why));
    }
    let by_pace = settings.pace.due(active.role_since);
    let due = ring.next_rotation.map_or(by_pace, |scheduled| scheduled.min(by_pace));
    match Duration::try_from(due.duration_since(now)) {
        Ok(left) if !left.is_zero() => Err(left),
        _ => Ok((Cause::Schedule, format!("generation {} is active since {}", active.id, active.role_since))),
    }
}

/// Carries out `action`, which [`decide`] chose by the same `facts`, on a copy of `ring`. `fill` writes random bytes.
///
/// # Errors
/// What `fill` returns.
pub fn apply<E>(
    ring: Option<&Ring>,
    action: Action,
    installation: Installation,
    facts: &Facts,
    now: Timestamp,
    settings: &Settings,
    mut fill: impl FnMut(&mut [u8]) -> Result<(), E>,
) -> Result<Ring, E> {
    let mut next = ring.map_or_else(|| Ring::off(0, None), Ring::clone);
    next.revision += 1;
    if let Installation::Present(uid) = installation {
        next.installation = Some(uid);
    }
    match action {
        Action::Wait => {}
        Action::Begin | Action::Stage => {
            let generation = fresh(&next, facts, now, settings.suite, &mut fill)?;
            next.generations.push(generation);
            if next.enforcement == Enforcement::Off {
                next.enforcement = Enforcement::Permissive;
            }
        }
        Action::Activate => {
            for generation in &mut next.generations {
                generation.role = match generation.role {
                    Role::Staged => Role::Active,
                    Role::Active | Role::Retiring => Role::Retiring,
                };
                generation.role_since = now;
            }
            next.next_rotation = Some(settings.pace.next(now));
        }
        Action::Rekey => rekey(&mut next, facts),
        Action::Drop => next.generations.retain(|generation| generation.role != Role::Retiring),
        Action::Reset => next = Ring::off(next.revision, None),
    }
    Ok(next)
}

fn fresh<E>(
    ring: &Ring,
    facts: &Facts,
    now: Timestamp,
    suite: Suite,
    fill: &mut impl FnMut(&mut [u8]) -> Result<(), E>,
) -> Result<Generation, E> {
    let mut uid = [0; 16];
    fill(&mut uid)?;
    let mut generation = Generation {
        id: ring.newest().max(facts.newest.min(LAST_ID)) + 1,
        uid: Uid::from_random(uid),
        role: Role::Staged,
        suite,
        key: SecretBytes::try_fill(suite.key_len(), &mut *fill)?,
        spi_seed: SecretBytes::try_fill(SPI_SEED_LEN, &mut *fill)?,
        created_at: now,
        role_since: now,
        incarnations: BTreeMap::new(),
    };
    for _ in 1..SEED_DRAWS {
        if distinct(ring.generations.iter().chain([&generation]), &facts.senders) {
            break;
        }
        generation.spi_seed = SecretBytes::try_fill(SPI_SEED_LEN, &mut *fill)?;
    }
    Ok(generation)
}

/// Gives the nodes the incarnations that they need, or later ones where an SPI would be another's.
fn rekey(ring: &mut Ring, facts: &Facts) {
    for (node, needed) in &facts.rekey {
        for at in 0..ring.generations.len() {
            let Some(&needed) = needed.get(&ring.generations[at].uid) else { continue };
            for incarnation in (needed..).take(SEED_DRAWS) {
                ring.generations[at].incarnations.insert(*node, incarnation);
                if distinct(ring.generations.iter(), &facts.senders) {
                    break;
                }
            }
        }
    }
}

/// Whether every SPI has one sender and one generation.
fn distinct<'g>(
    mut generations: impl Iterator<Item = &'g Generation>,
    senders: &BTreeMap<Uid, IpAddr>,
) -> bool {
    let mut taken = BTreeSet::new();
    generations.all(|generation| {
        let derivation = wire::Derivation::new(generation);
        senders.iter().all(|(node, addr)| taken.insert(derivation.spi_of(*addr, node)))
    })
}

/// `time + span`, or the end of time.
fn after(time: Timestamp, span: Duration) -> Timestamp {
    SignedDuration::try_from(span).ok().and_then(|span| time.checked_add(span).ok()).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use std::{borrow::Borrow, convert::Infallible};

    use super::*;

    const YES: Facts = Facts::of(Answer::Yes, Answer::Yes);
    const LATER: Facts = Facts::of(Answer::In(Duration::from_secs(60)), Answer::In(Duration::from_secs(60)));
    const INTERVAL: Duration = Duration::from_secs(12 * 3600);
    const SETTINGS: Settings = Settings { pace: Pace::Every(INTERVAL), suite: Suite::Aes128Gcm8 };

    /// A manager with a clock that only moves by hand and random numbers that count.
    struct Run {
        ring: Option<Ring>,
        installation: Installation,
        now: Timestamp,
        settings: Settings,
        drawn: u8,
    }

    impl Run {
        fn new() -> Self {
            let now = "2026-11-20T03:00:00Z".parse().unwrap();
            Self { ring: None, installation: Installation::Unknown, now, settings: SETTINGS, drawn: 0 }
        }

        fn decide(&self, facts: impl Borrow<Facts>) -> Decision {
            decide(self.ring.as_ref(), self.installation, facts.borrow(), self.now, &self.settings)
        }

        /// Decides, writes, and shows what the ring holds then, as the Secret would.
        fn step(&mut self, facts: impl Borrow<Facts>) -> (Action, Vec<(u64, Role)>) {
            let facts = facts.borrow();
            let action = self.decide(facts).action;
            if action != Action::Wait {
                let drawn = &mut self.drawn;
                let ring = apply(
                    self.ring.as_ref(),
                    action,
                    self.installation,
                    facts,
                    self.now,
                    &self.settings,
                    |bytes| {
                        *drawn += 1;
                        bytes.fill(*drawn);
                        Ok::<_, Infallible>(())
                    },
                )
                .unwrap();
                assert_eq!(
                    Ring::parse(ring.to_yaml().as_bytes()).as_ref(),
                    Ok(&ring),
                    "every ring written can be read"
                );
                assert_eq!(ring.revision, self.ring.as_ref().map_or(0, |ring| ring.revision) + 1);
                self.ring = Some(ring);
            }
            let generations = self.ring.iter().flat_map(|ring| &ring.generations);
            (action, generations.map(|generation| (generation.id, generation.role)).collect())
        }

        fn advance(&mut self, hours: i64) {
            self.now = self.now.checked_add(SignedDuration::from_hours(hours)).unwrap();
        }

        fn steady() -> Self {
            let mut run = Self::new();
            run.step(YES);
            run.step(YES);
            assert_eq!(run.decide(YES).action, Action::Wait);
            run
        }
    }

    #[test]
    fn from_nothing_through_one_rotation() {
        use Role::{Active, Retiring, Staged};
        let mut run = Run::new();
        assert_eq!(run.step(LATER), (Action::Begin, vec![(1, Staged)]));
        assert_eq!(run.step(LATER), (Action::Wait, vec![(1, Staged)]));
        assert_eq!(run.step(YES), (Action::Activate, vec![(1, Active)]));
        assert_eq!(run.step(YES), (Action::Wait, vec![(1, Active)]));
        assert_eq!(run.decide(YES).wake_in, INTERVAL);
        run.advance(12);
        assert_eq!(run.step(LATER), (Action::Stage, vec![(1, Active), (2, Staged)]));
        assert_eq!(run.step(LATER), (Action::Wait, vec![(1, Active), (2, Staged)]));
        assert_eq!(run.step(YES), (Action::Activate, vec![(1, Retiring), (2, Active)]));
        assert_eq!(run.step(LATER), (Action::Wait, vec![(1, Retiring), (2, Active)]));
        assert_eq!(run.step(YES), (Action::Drop, vec![(2, Active)]));
        assert_eq!(run.step(YES), (Action::Wait, vec![(2, Active)]));
    }

    #[test]
    fn generations_share_no_secret() {
        let mut run = Run::steady();
        run.advance(12);
        run.step(YES);
        let [old, new] = &run.ring.as_ref().unwrap().generations[..] else { panic!("two generations") };
        assert!(old.key != new.key && old.spi_seed != new.spi_seed && old.uid != new.uid);
    }

    #[test]
    fn a_clock_that_jumps_neither_stops_nor_storms_rotation() {
        let mut run = Run::steady();
        run.advance(-24 * 365);
        assert_eq!(
            run.step(YES).0,
            Action::Stage,
            "a clock that went back must not stop rotation for a year"
        );
        for action in [Action::Activate, Action::Drop, Action::Wait, Action::Wait] {
            assert_eq!(run.step(YES).0, action);
        }
        run.advance(24 * 365);
        assert_eq!(run.step(YES).0, Action::Stage);
        for action in [Action::Activate, Action::Drop, Action::Wait, Action::Wait] {
            assert_eq!(run.step(YES).0, action);
        }
    }

    #[test]
    fn a_shorter_interval_counts_at_once() {
        let mut run = Run::steady();
        run.advance(1);
        run.settings.pace = Pace::Every(Duration::from_secs(1800));
        assert_eq!(run.step(YES).0, Action::Stage);
    }

    /// With a timetable that says noon and midnight (UTC).
    fn by_timetable(run: &mut Run) {
        let after = |time: Timestamp| {
            let half_day = 12 * 3600;
            Timestamp::from_second((time.as_second().div_euclid(half_day) + 1) * half_day).unwrap()
        };
        let since = run.ring.as_ref().and_then(Ring::active).map_or(run.now, |active| active.role_since);
        run.settings.pace = Pace::At { due: after(since), next: after(run.now) };
    }

    #[test]
    fn a_timetable_is_kept() {
        let mut run = Run::new();
        let mut activated = Vec::new();
        // From 3 in the morning, an hour at a time; each rotation takes two hours.
        for _ in 0..48 {
            by_timetable(&mut run);
            if run.step(YES).0 == Action::Activate {
                activated.push(run.now.to_string());
            }
            run.advance(1);
        }
        let times = ["20T04", "20T13", "21T01", "21T13", "22T01"];
        assert_eq!(activated, times.map(|time| format!("2026-11-{time}:00:00Z")));
    }

    #[test]
    fn a_timetable_survives_a_clock_that_jumps() {
        for years in [-1, 1] {
            let mut run = Run::steady();
            run.advance(24 * 365 * years);
            for action in [Action::Stage, Action::Activate, Action::Drop, Action::Wait, Action::Wait] {
                by_timetable(&mut run);
                assert_eq!(run.step(YES).0, action, "{years}");
            }
            let next = run.ring.as_ref().unwrap().next_rotation.unwrap();
            assert!(next > run.now && next.duration_since(run.now) <= SignedDuration::from_hours(12));
        }
    }

    #[test]
    fn another_suite_is_a_rotation() {
        let mut run = Run::steady();
        run.settings.suite = Suite::Aes256Gcm16;
        assert_eq!(run.step(YES).0, Action::Stage);
        run.step(YES);
        run.step(YES);
        assert_eq!(run.ring.as_ref().unwrap().active().unwrap().suite, Suite::Aes256Gcm16);
        assert_eq!(run.decide(YES).action, Action::Wait);
    }

    #[test]
    fn a_request_is_a_rotation() {
        let mut run = Run::steady();
        let wanted = Facts { requested: Some("somebody asked".into()), ..YES };
        assert_eq!(run.decide(&wanted).reason, "somebody asked");
        assert_eq!(run.decide(&wanted).cause, Some(Cause::Request));
        assert_eq!(run.step(&wanted).0, Action::Stage);
        // Once it is under way, the request changes nothing.
        assert_eq!(run.step(&wanted).0, Action::Activate);
    }

    #[test]
    fn awaited_nodes_are_named() {
        let mut run = Run::steady();
        run.advance(12);
        run.step(YES);
        let nodes = (1..=7).map(|n| format!("node-{n}")).collect();
        let look_in = Duration::from_secs(9);
        let decision = run.decide(Facts { all_receive: Answer::Awaits { nodes, look_in }, ..YES });
        assert_eq!((decision.action, decision.wake_in), (Action::Wait, look_in));
        assert_eq!(
            decision.reason,
            "generation 2 is on its way to every node, waiting for node-1, node-2, node-3, node-4, node-5 and 2 more"
        );
    }

    #[test]
    fn an_old_ring_that_came_back_is_replaced_by_a_newer_one() {
        let mut run = Run::steady();
        let facts = Facts { newest: 7, ..YES };
        assert_eq!(run.step(&facts), (Action::Stage, vec![(1, Role::Active), (8, Role::Staged)]));
        for _ in 0..2 {
            run.step(&facts);
        }
        assert_eq!(run.step(&facts), (Action::Wait, vec![(8, Role::Active)]));
        // As does one that was wiped.
        run.ring = None;
        assert_eq!(run.step(Facts { newest: 8, ..YES }), (Action::Begin, vec![(9, Role::Staged)]));
        run.ring = None;
        let absurd = Facts { newest: u64::MAX, ..YES };
        assert_eq!(run.step(&absurd), (Action::Begin, vec![(LAST_ID + 1, Role::Staged)]));
    }

    #[test]
    fn a_node_that_lost_its_sas_gets_a_new_incarnation_in_any_phase() {
        let mut run = Run::steady();
        run.advance(12);
        run.step(YES);
        let node = Uid::from_random([9; 16]);
        let [active, staged] = &run.ring.as_ref().unwrap().generations[..] else { panic!("two generations") };
        let needed = BTreeMap::from([(active.uid, 1), (staged.uid, 4)]);
        let facts = Facts { rekey: BTreeMap::from([(node, needed)]), ..LATER };
        assert_eq!(run.step(&facts).0, Action::Rekey);
        let incarnations: Vec<u32> =
            run.ring.as_ref().unwrap().generations.iter().map(|g| g.incarnation(&node)).collect();
        assert_eq!(incarnations, [1, 4]);
    }

    #[test]
    fn no_two_nodes_share_an_spi() {
        // With a seed that can't be told apart from another draw's, every draw collides with the generation before.
        let mut run = Run::new();
        let senders: BTreeMap<Uid, IpAddr> =
            (1..=3).map(|n| (Uid::from_random([n; 16]), IpAddr::from([192, 0, 2, n]))).collect();
        let facts = Facts { senders, ..YES };
        run.step(&facts);
        run.step(&facts);
        run.advance(12);
        let mut seeds = 0;
        let old_seed = run.ring.as_ref().unwrap().generations[0].spi_seed.clone();
        let ring = apply(
            run.ring.as_ref(),
            Action::Stage,
            run.installation,
            &facts,
            run.now,
            &run.settings,
            |bytes| {
                seeds += 1;
                // uid, key, and then seeds; the first is the active generation's.
                bytes.fill(seeds + 100);
                if seeds == 3 {
                    bytes.copy_from_slice(old_seed.expose());
                }
                Ok::<_, Infallible>(())
            },
        )
        .unwrap();
        assert_eq!(seeds, 4, "one seed more was drawn");
        assert!(ring.generations[0].spi_seed != ring.generations[1].spi_seed);
        assert!(distinct(ring.generations.iter(), &facts.senders));
    }

    #[test]
    fn a_ring_ends_with_its_installation() {
        let (one, two) = (Uid::from_random([1; 16]), Uid::from_random([2; 16]));
        let mut run = Run::new();
        run.installation = Installation::Absent;
        assert_eq!(run.step(YES).0, Action::Wait);
        run.installation = Installation::Present(one);
        run.step(YES);
        assert_eq!(run.ring.as_ref().unwrap().installation, Some(one));
        run.step(YES);
        run.installation = Installation::Present(two);
        assert_eq!(run.step(YES), (Action::Reset, vec![]));
        assert_eq!(run.step(YES).0, Action::Begin);
        assert_eq!(run.ring.as_ref().unwrap().installation, Some(two));
        run.installation = Installation::Absent;
        run.advance(24 * 365);
        assert_eq!(run.step(YES), (Action::Wait, vec![(1, Role::Staged)]), "orphaned agents keep their keys");
    }

    #[test]
    fn a_manager_that_learns_of_the_installation_keeps_the_ring() {
        let mut run = Run::steady();
        run.installation = Installation::Present(Uid::from_random([1; 16]));
        assert_eq!(run.decide(YES).action, Action::Wait);
    }

    #[test]
    fn the_clock_of_timed_facts_starts_with_the_process() {
        let mut run = Run::new();
        run.step(YES);
        let (delay, start) = (Duration::from_secs(180), std::time::Instant::now());
        let mut timed = crate::timed::Timed::new(delay);
        run.advance(24 * 365);
        assert_eq!(timed.observe(run.ring.as_ref(), start).all_receive, Answer::In(delay));
        let later = start + Duration::from_secs(100);
        assert_eq!(timed.observe(run.ring.as_ref(), later).all_receive, Answer::In(Duration::from_secs(80)));
        assert_eq!(timed.observe(run.ring.as_ref(), start + delay).all_receive, Answer::Yes);
        // The next role starts anew, and a manager that was restarted knows nothing.
        run.step(YES);
        run.advance(12);
        run.step(YES);
        assert_eq!(timed.observe(run.ring.as_ref(), start + delay).all_receive, Answer::In(delay));
        let mut restarted = crate::timed::Timed::new(delay);
        assert_eq!(restarted.observe(run.ring.as_ref(), start + delay).all_receive, Answer::In(delay));
    }
}
