//! One turn: read, observe, decide, and at most one write.
//!
//! All state that matters is in the Secret, so a turn can end anywhere. What the process remembers besides is since
//! when it has seen what it waits for, and the last good ring.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::Client;
use rand::rngs::SysError;
use secureoverlay_common::{
    ring::{Ring, RingError, Role},
    rotation::{Action, Facts, Installation, Settings, apply, decide},
    timed::Timed,
};
use secureoverlay_daemon::duration::Human;

use crate::{
    installation::{InstallationError, Observer},
    metrics::{Metrics, WriteResult},
    store::{Held, Store, StoreError, Written},
};

/// Fills a buffer with random bytes fit for keys.
pub type Random = fn(&mut [u8]) -> Result<(), SysError>;

/// What time it is.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For the ring.
    pub wall: Timestamp,
    /// For waiting.
    pub monotonic: Instant,
}

/// How a turn ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is to be done for so long.
    Waiting {
        /// When to look again at the latest.
        wake_in: Duration,
        /// What for.
        reason: String,
    },
    /// The ring was written.
    Written,
    /// Somebody else wrote first.
    Conflict,
}

/// Why a turn ended without a decision. Nothing was written, or it is not known whether it was.
#[derive(Debug, thiserror::Error)]
pub enum TurnError {
    /// The Secret.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The DaemonSet.
    #[error(transparent)]
    Installation(#[from] InstallationError),
    /// The ring is not one.
    #[error(
        "{0}. Nodes go on with the keys they hold; the Secret is left as it is until this is mended: write a good ring, or empty `data.keys` for a new one"
    )]
    Unreadable(RingError),
    /// No keys can be made.
    #[error("drawing random bytes for a key: {0}")]
    Random(#[from] SysError),
}

/// The last good ring, for when something empties the Secret.
struct Remembered {
    secret: Option<String>,
    ring: Ring,
}

/// The manager.
pub struct Manager {
    store: Store,
    observer: Observer,
    settings: Settings,
    delay: Duration,
    timed: Timed,
    remembered: Option<Remembered>,
    metrics: Metrics,
    random: Random,
}

impl Manager {
    /// `delay`: time within which every node has read a new ring and programmed it. Sends nothing yet.
    #[must_use]
    pub fn new(
        client: Client,
        settings: Settings,
        delay: Duration,
        metrics: Metrics,
        random: Random,
    ) -> Self {
        Self {
            store: Store::new(client.clone()),
            observer: Observer::new(client),
            settings,
            delay,
            timed: Timed::new(delay),
            remembered: None,
            metrics,
            random,
        }
    }

    /// Does what is to be done now. The clock is read after the ring was, which may have taken its time: a manager must
    /// not believe that it saw a ring before it was there.
    ///
    /// # Errors
    /// Where the cluster can't be read or written, or holds what can't be understood.
    pub async fn turn(&mut self, clock: impl Fn() -> Now) -> Result<Outcome, TurnError> {
        let (ring, held) = self.store.read().await?;
        let now = clock();
        let ring = match ring {
            Ok(ring) => Some(ring),
            Err(RingError::Empty) => None,
            Err(error) => {
                // Nodes can't read it either, so whatever they were given time for starts again.
                self.timed.observe(None, now.monotonic);
                self.metrics.unreadable();
                return Err(TurnError::Unreadable(error));
            }
        };
        self.metrics.show(ring.as_ref());
        let installation = self.observer.observe(now.monotonic).await?;
        let facts = self.timed.observe(ring.as_ref(), now.monotonic);
        match &ring {
            Some(ring) => self.remembered = Some(Remembered { secret: held.uid.clone(), ring: ring.clone() }),
            None => {
                if let Some(lost) = self.remembered.take().filter(|lost| lost.belongs_to(&held, installation))
                {
                    return self.put_back(held, lost, installation, &facts, now).await;
                }
            }
        }
        let decision = decide(ring.as_ref(), installation, &facts, now.wall, &self.settings);
        if decision.action == Action::Wait {
            return Ok(Outcome::Waiting { wake_in: decision.wake_in, reason: decision.reason });
        }
        let next = self.apply(ring.as_ref(), decision.action, installation, &facts, now)?;
        let outcome = self.write(held, &next).await?;
        if outcome == Outcome::Written {
            self.tell(decision.action, &decision.reason, ring.as_ref(), &next);
        }
        Ok(outcome)
    }

    /// Re-applying a manifest that ships the Secret with an empty entry wipes the ring under way.
    async fn put_back(
        &mut self,
        held: Held,
        lost: Remembered,
        installation: Installation,
        facts: &Facts,
        now: Now,
    ) -> Result<Outcome, TurnError> {
        let next = self.apply(Some(&lost.ring), Action::Wait, installation, facts, now)?;
        // Kept until it is back for certain: the next turn reads it from there.
        self.remembered = Some(lost);
        let outcome = self.write(held, &next).await?;
        if outcome == Outcome::Written {
            self.metrics.restored.inc();
            tracing::warn!(
                revision = next.revision,
                "the Secret was emptied, as re-applying MKE's manifest does: the ring is back as it was, nothing was rotated"
            );
        }
        Ok(outcome)
    }

    fn apply(
        &self,
        ring: Option<&Ring>,
        action: Action,
        installation: Installation,
        facts: &Facts,
        now: Now,
    ) -> Result<Ring, SysError> {
        apply(ring, action, installation, facts, now.wall, &self.settings, self.random)
    }

    async fn write(&mut self, held: Held, next: &Ring) -> Result<Outcome, TurnError> {
        match self.store.replace(held, next).await {
            Ok(Written::Done) => {
                self.metrics.wrote(WriteResult::Ok);
                self.metrics.show(Some(next));
                Ok(Outcome::Written)
            }
            Ok(Written::Conflict) => {
                self.metrics.wrote(WriteResult::Conflict);
                tracing::info!("somebody else wrote the Secret first, looking again");
                Ok(Outcome::Conflict)
            }
            Err(error) => {
                self.metrics.wrote(WriteResult::Error);
                Err(error.into())
            }
        }
    }

    fn tell(&self, action: Action, reason: &str, before: Option<&Ring>, after: &Ring) {
        let id = |ring: Option<&Ring>, role| ring.and_then(|ring| ring.with_role(role)).map_or(0, |g| g.id);
        let (revision, delay) = (after.revision, Human(self.delay));
        let staged = id(Some(after), Role::Staged);
        let active = id(Some(after), Role::Active);
        match action {
            Action::Wait => {}
            Action::Begin => {
                tracing::info!(
                    revision,
                    generation = staged,
                    reason,
                    "made the first key, activating in {delay}"
                );
            }
            Action::Stage => {
                tracing::info!(
                    revision,
                    generation = staged,
                    reason,
                    "staged generation {staged}, activating in {delay}"
                );
            }
            Action::Activate => match id(Some(after), Role::Retiring) {
                0 => tracing::info!(revision, generation = active, reason, "activated generation {active}"),
                old => tracing::info!(
                    revision,
                    generation = active,
                    reason,
                    "activated generation {active}, dropping generation {old} in {delay}"
                ),
            },
            Action::Drop => {
                self.metrics.rotations.inc();
                let old = id(before, Role::Retiring);
                let next =
                    after.next_rotation.map_or_else(String::new, |at| format!(", next rotation at {at:.0}"));
                tracing::info!(revision, generation = old, reason, "dropped generation {old}{next}");
            }
            Action::Rekey => tracing::info!(revision, reason, "gave nodes new incarnations"),
            Action::Reset => tracing::info!(revision, reason, "emptied the ring, encryption is off"),
        }
    }
}

impl Remembered {
    /// A Secret that was made anew, or a DaemonSet that was, is a new beginning: nodes that have switched encryption
    /// off must never see the old keys again.
    fn belongs_to(&self, held: &Held, installation: Installation) -> bool {
        let same_installation = match installation {
            Installation::Unknown => true,
            Installation::Absent => false,
            Installation::Present(uid) => self.ring.installation.is_none_or(|other| other == uid),
        };
        same_installation && self.secret == held.uid
    }
}
