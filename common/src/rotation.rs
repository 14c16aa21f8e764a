//! The rotation protocol: when a key is made, used and dropped.
//!
//! ```text
//! off ──begin──▶ staged ──all receive──▶ active
//!
//! active ──due──▶ active + staged ──all receive──▶ retiring + active ──nobody sends──▶ active
//! ```
//!
//! Every arrow is one write of the ring, so that a manager can be killed between any two of them. Whether "all
//! receive" or "nobody sends" holds is a fact that comes from outside ([`Facts`]); [`crate::timed`] takes it from
//! the time that has passed.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::{
    ring::{Enforcement, Generation, Ring, Role, SPI_SEED_LEN},
    secret::SecretBytes,
    suite::Suite,
    uid::Uid,
};

/// Clocks of two hosts that a manager ran on may differ by this much.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// What the operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Time for which a generation is active.
    pub interval: Duration,
    /// Suite of new generations.
    pub suite: Suite,
}

/// Whether something that a rotation waits for has come true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It holds.
    Yes,
    /// It can't be said to hold before this time has passed.
    In(Duration),
}

/// What is known about the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Every node receives with the staged generation.
    pub all_receive: Answer,
    /// Nobody sends with the retiring generation any more, and none of its packets is under way.
    pub nobody_sends: Answer,
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
}

impl Decision {
    fn act(action: Action, reason: impl Into<String>) -> Self {
        Self { action, wake_in: Duration::ZERO, reason: reason.into() }
    }

    fn wait(wake_in: Duration, reason: impl Into<String>) -> Self {
        Self { action: Action::Wait, wake_in, reason: reason.into() }
    }
}

/// Decides the next step. `ring` is `None` where the Secret holds none yet.
#[must_use]
pub fn decide(
    ring: Option<&Ring>,
    installation: Installation,
    facts: Facts,
    now: Timestamp,
    settings: &Settings,
) -> Decision {
    match installation {
        // Being removed, or orphaned: then its pods go on, and must find their keys.
        Installation::Absent => {
            return Decision::wait(
                settings.interval,
                "the agents' DaemonSet is not there: nothing is rotated",
            );
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
        return Decision::act(Action::Begin, "there is no key yet");
    };
    let with_role = |role| ring.with_role(role);
    match (with_role(Role::Retiring), with_role(Role::Active), with_role(Role::Staged)) {
        (Some(old), Some(_), _) => match facts.nobody_sends {
            Answer::Yes => {
                Decision::act(Action::Drop, format!("nobody sends with generation {} any more", old.id))
            }
            Answer::In(time) => Decision::wait(time, format!("generation {} is draining", old.id)),
        },
        (_, _, Some(next)) => match facts.all_receive {
            Answer::Yes => {
                Decision::act(Action::Activate, format!("every node receives generation {}", next.id))
            }
            Answer::In(time) => {
                Decision::wait(time, format!("generation {} is on its way to every node", next.id))
            }
        },
        (_, Some(active), None) => match due(ring, active, now, settings) {
            Ok(reason) => Decision::act(Action::Stage, reason),
            Err(time) => Decision::wait(time, format!("generation {} is active, nothing is due", active.id)),
        },
        (_, None, None) => Decision::act(Action::Stage, "no generation can be sent with"),
    }
}

/// Why a rotation is due, or in how long it will be.
fn due(ring: &Ring, active: &Generation, now: Timestamp, settings: &Settings) -> Result<String, Duration> {
    if active.suite != settings.suite {
        return Ok(format!("the suite changes from {} to {}", active.suite, settings.suite));
    }
    if active.role_since.duration_since(now) > CLOCK_TOLERANCE {
        return Ok(format!(
            "generation {} is active since a time in the future: the clock went back",
            active.id
        ));
    }
    let by_interval = after(active.role_since, settings.interval);
    let due = ring.next_rotation.map_or(by_interval, |scheduled| scheduled.min(by_interval));
    match Duration::try_from(due.duration_since(now)) {
        Ok(left) if !left.is_zero() => Err(left),
        _ => Ok(format!("generation {} is active since {}", active.id, active.role_since)),
    }
}

/// Carries out `action` on a copy of `ring`. `fill` writes random bytes.
///
/// # Errors
/// What `fill` returns.
pub fn apply<E>(
    ring: Option<&Ring>,
    action: Action,
    installation: Installation,
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
            let generation = fresh(&next, now, settings.suite, &mut fill)?;
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
            next.next_rotation = Some(after(now, settings.interval));
        }
        Action::Drop => next.generations.retain(|generation| generation.role != Role::Retiring),
        Action::Reset => next = Ring::off(next.revision, None),
    }
    Ok(next)
}

fn fresh<E>(
    ring: &Ring,
    now: Timestamp,
    suite: Suite,
    fill: &mut impl FnMut(&mut [u8]) -> Result<(), E>,
) -> Result<Generation, E> {
    let mut uid = [0; 16];
    fill(&mut uid)?;
    Ok(Generation {
        id: ring.generations.iter().map(|generation| generation.id).max().unwrap_or(0) + 1,
        uid: Uid::from_random(uid),
        role: Role::Staged,
        suite,
        key: SecretBytes::try_fill(suite.key_len(), &mut *fill)?,
        spi_seed: SecretBytes::try_fill(SPI_SEED_LEN, &mut *fill)?,
        created_at: now,
        role_since: now,
        incarnations: std::collections::BTreeMap::new(),
    })
}

/// `time + span`, or the end of time.
fn after(time: Timestamp, span: Duration) -> Timestamp {
    SignedDuration::try_from(span).ok().and_then(|span| time.checked_add(span).ok()).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    const YES: Facts = Facts { all_receive: Answer::Yes, nobody_sends: Answer::Yes };
    const LATER: Facts = Facts {
        all_receive: Answer::In(Duration::from_secs(60)),
        nobody_sends: Answer::In(Duration::from_secs(60)),
    };
    const SETTINGS: Settings =
        Settings { interval: Duration::from_secs(12 * 3600), suite: Suite::Aes128Gcm8 };

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

        fn decide(&self, facts: Facts) -> Decision {
            decide(self.ring.as_ref(), self.installation, facts, self.now, &self.settings)
        }

        /// Decides, writes, and shows what the ring holds then, as the Secret would.
        fn step(&mut self, facts: Facts) -> (Action, Vec<(u64, Role)>) {
            let action = self.decide(facts).action;
            if action != Action::Wait {
                let drawn = &mut self.drawn;
                let ring =
                    apply(self.ring.as_ref(), action, self.installation, self.now, &self.settings, |bytes| {
                        *drawn += 1;
                        bytes.fill(*drawn);
                        Ok::<_, Infallible>(())
                    })
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
        assert_eq!(run.decide(YES).wake_in, SETTINGS.interval);
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
        run.settings.interval = Duration::from_secs(1800);
        assert_eq!(run.step(YES).0, Action::Stage);
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
