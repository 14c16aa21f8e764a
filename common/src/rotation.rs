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
//! from what the nodes say, [`crate::timed`] from the time that has passed. How far encryption is insisted on, and the
//! way back to "off", is in `enforcing`.

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

mod enforcing;

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
    /// How far to go.
    pub goal: Goal,
}

/// How far encryption is to be insisted on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Goal {
    /// Not at all: nothing is encrypted.
    Off,
    /// Encrypted where both ends are ready, plaintext accepted.
    Permissive,
    /// Up to enforcing, once nothing speaks against it.
    #[default]
    Auto,
}

impl From<Enforcement> for Goal {
    fn from(enforcement: Enforcement) -> Self {
        match enforcement {
            Enforcement::Off => Self::Off,
            Enforcement::Permissive => Self::Permissive,
            Enforcement::Enforcing => Self::Auto,
        }
    }
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
    /// Nobody sends with the retiring generation any more, and none of its packets is under way. Where no generation is
    /// active, nobody sends with any.
    pub nobody_sends: Answer,
    /// Every node encrypts to every other, and nothing speaks against turning plaintext away.
    pub may_insist: Answer,
    /// What speaks against it, for people, where a node says so.
    pub obstacle: Option<String>,
    /// Every node accepts plaintext.
    pub nobody_insists: Answer,
    /// Every node says that it turns plaintext away.
    pub all_insist: bool,
    /// The Nodes that peers must not encrypt to yet.
    pub pending: BTreeSet<Uid>,
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
    /// Facts that come from the time that has passed alone: whether anything speaks against insisting, it can't say.
    #[must_use]
    pub const fn of(all_receive: Answer, nobody_sends: Answer) -> Self {
        Self {
            all_receive,
            nobody_sends,
            may_insist: Answer::In(Duration::MAX),
            obstacle: None,
            nobody_insists: Answer::Yes,
            all_insist: false,
            pending: BTreeSet::new(),
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
    /// Say which nodes peers do not encrypt to yet.
    Pend,
    /// Turn plaintext away: from permissive to enforcing.
    Insist,
    /// Accept plaintext again: from enforcing to permissive.
    Relent,
    /// Let nobody send encrypted any more: the last generation retires without another one.
    Silence,
    /// Empty the ring: encryption is off.
    Quit,
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
                let why = "the ring was made for another DaemonSet of the agents";
                return match settings.goal {
                    Goal::Off => Decision::act(Action::Reset, why),
                    // In one write: a ring that is off in between would take orphaned agents down the ladder.
                    Goal::Auto | Goal::Permissive => Decision::rotate(Action::Begin, Cause::First, why),
                };
            }
        }
        Installation::Unknown => {}
    }
    let Some(ring) = ring.filter(|ring| ring.enforcement != Enforcement::Off) else {
        return enforcing::begin(ring, facts, settings.goal);
    };
    if !facts.rekey.is_empty() {
        let count = facts.rekey.len();
        return Decision::act(
            Action::Rekey,
            format!("{count} nodes lost SAs whose keys can't be used again"),
        );
    }
    if let Some(decision) = enforcing::first(ring, facts, settings.goal) {
        return decision;
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
            Err(time) => enforcing::steady(ring, active, facts, settings.goal, time),
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
    if action == Action::Begin {
        next = Ring::off(next.revision, next.installation);
    }
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
            next.pending = facts.pending.clone();
            // What they have insisted on beside a ring begun anew, they go on insisting on.
            let as_before = facts.all_insist && next.pending.is_empty() && settings.goal == Goal::Auto;
            if next.generations.len() == 1 && as_before {
                next.enforcement = Enforcement::Enforcing;
            }
        }
        Action::Rekey => rekey(&mut next, facts),
        Action::Pend | Action::Insist | Action::Relent | Action::Silence | Action::Quit => {
            enforcing::apply(&mut next, action, facts, now);
        }
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
            for incarnation in (needed..=u32::MAX).take(SEED_DRAWS) {
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
mod enforcing_tests;
#[cfg(test)]
mod tests;
