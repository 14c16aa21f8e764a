//! One turn: read, observe, decide, and at most one write.
//!
//! All state that matters is in the Secret, so a turn can end anywhere. What the process remembers besides is since
//! when it has seen what it waits for, and the last good ring.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::Client;
use rand::rngs::SysError;
use secureoverlay_common::{
    phase::Phase,
    ring::{Ring, RingError},
    rotation::{
        AckTracker, Action, Decision, DelayTracker, EnforcementGoal, Evidence, Installation, Readiness,
        Settings, apply, decide,
    },
    suite::Suite,
    uid::Uid,
};
use secureoverlay_daemon::duration::Human;

use crate::{
    cluster::Cluster,
    installation::{InstallationError, Observer},
    metrics::{Metrics, WriteResult},
    notices::{Notice, Outbox},
    schedule::Schedule,
    source::{AccessError, Acknowledgements, Chooser},
    store::{Held, Requests, Store, StoreError, Written},
    taint::Lifter,
    telling::{Act, Teller},
    view::{self, Trust, View, ViewError},
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
    /// The nodes.
    #[error(transparent)]
    View(#[from] ViewError),
    /// What we may know of them.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The ring is not one.
    #[error(
        "{0}. Nodes go on with the keys they hold; the Secret is left as it is until this is mended: write a good ring, or empty `data.keys`: the last good one is put back then, or a new one made"
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

/// What the operator wants.
#[derive(Clone, Debug)]
pub struct Options {
    /// When rotations are due.
    pub schedule: Schedule,
    /// Suite of new generations.
    pub suite: Suite,
    /// How far encryption is insisted on, where nobody asks for something else.
    pub goal: EnforcementGoal,
    /// What a rotation waits for.
    pub acknowledgements: Acknowledgements,
    /// Time within which every node has read a new ring and programmed it, where nodes don't say so.
    pub delay: Duration,
    /// How long a rotation waits for nodes that are not ready, where they do.
    pub limit: Duration,
    /// Key of the taint that nodes have until they encrypt.
    pub startup_taint: Option<String>,
    /// Where keys come from.
    pub random: Random,
}

/// The manager.
pub struct Manager {
    client: Client,
    store: Store,
    observer: Observer,
    chooser: Chooser,
    cluster: Cluster,
    options: Options,
    timed: DelayTracker,
    acknowledged: AckTracker,
    trust: Trust,
    remembered: Option<Remembered>,
    metrics: Metrics,
    teller: Teller,
    outbox: Outbox,
    lifter: Option<Lifter>,
}

/// What a decision is made of.
struct Look {
    now: Now,
    goal: EnforcementGoal,
    evidence: Evidence,
    /// What the nodes say, where they do.
    view: Option<View>,
    /// For so long the number of Nodes is not believed.
    doubt: Option<Duration>,
}

impl Manager {
    /// `cluster` is kept up to date by somebody else. Sends nothing yet.
    #[must_use]
    pub fn new(client: Client, options: Options, metrics: Metrics, cluster: Cluster, outbox: Outbox) -> Self {
        Self {
            store: Store::new(client.clone()),
            observer: Observer::new(client.clone()),
            chooser: Chooser::new(client.clone(), options.acknowledgements),
            client,
            cluster,
            timed: DelayTracker::new(options.delay),
            acknowledged: AckTracker::new(options.limit),
            trust: Trust::default(),
            remembered: None,
            teller: Teller::new(metrics.clone(), outbox.clone(), options.limit),
            lifter: options.startup_taint.clone().map(Lifter::new),
            outbox,
            metrics,
            options,
        }
    }

    /// Does what is to be done now. The clock is read after the cluster was, which may have taken its time: a manager
    /// must not believe that it saw something before it was there.
    ///
    /// # Errors
    /// Where the cluster can't be read or written, or holds what can't be understood.
    pub async fn turn(&mut self, clock: impl Fn() -> Now) -> Result<Outcome, TurnError> {
        let (ring, held) = self.store.read().await?;
        let now = clock();
        self.teller.secret(held.uid.as_deref());
        let ring = match ring {
            Ok(ring) => Some(ring),
            Err(RingError::Empty) => None,
            Err(error) => {
                self.forget(now);
                self.teller.unreadable(&error);
                return Err(TurnError::Unreadable(error));
            }
        };
        self.teller.readable(ring.as_ref());
        let installation = self.observer.observe(now.monotonic).await?;
        match &ring {
            Some(ring) => self.remembered = Some(Remembered { secret: held.uid.clone(), ring: ring.clone() }),
            None => {
                self.forget(now);
                if let Some(lost) = self.remembered.take().filter(|lost| lost.belongs_to(&held, installation))
                {
                    return self.put_back(held, lost, installation, now).await;
                }
            }
        }
        let requests = held.requests;
        self.teller.asked(held.nonsense());
        let mut look = self.look(ring.as_ref(), None, requests, now);
        let mut decision = self.decide(ring.as_ref(), installation, &look);
        if decision.action == Action::RELAX {
            // Whatever nodes say, and though nobody may be able to read it.
            self.forget(now);
            return self.act(held, ring.as_ref(), installation, &look, &decision).await;
        }
        if self.chooser.acknowledged(now.monotonic).await? {
            self.cluster.want();
            look = self.look(ring.as_ref(), Some(self.cluster.view()?), requests, now);
            decision = self.decide(ring.as_ref(), installation, &look);
            if decision.action.requires_fresh_list() {
                // What the watches have brought may be old: nodes may have come, and taken back what they said.
                let fresh = view::list(&self.client).await?;
                look = self.look(ring.as_ref(), Some(fresh), requests, clock());
                decision = self.decide(ring.as_ref(), installation, &look);
            }
        }
        self.lift_taints(ring.as_ref(), &look);
        let awaited = || self.cluster.awaited();
        self.teller.waits(decision.wait.as_ref(), awaited, look.now.monotonic);
        if decision.action == Action::Wait {
            return Ok(Outcome::Waiting { wake_in: decision.wake_in, reason: decision.reason });
        }
        self.act(held, ring.as_ref(), installation, &look, &decision).await
    }

    /// Nodes have nothing to read, nothing that they can, or something else from now on: whatever they were given time
    /// for starts again.
    fn forget(&mut self, now: Now) {
        self.timed.observe(None, now.monotonic);
        self.acknowledged.observe(View::default().snapshot(None, false), now.monotonic);
    }

    fn look(&mut self, ring: Option<&Ring>, view: Option<View>, requests: Requests, now: Now) -> Look {
        let mut doubt = None;
        let mut evidence = match &view {
            None => self.timed.observe(ring, now.monotonic),
            Some(view) => {
                let snapshot = view.snapshot(ring, requests.press_on);
                self.metrics.count(snapshot.counts());
                doubt = self.trust.doubt(view.nodes.len(), now.monotonic);
                self.acknowledged.observe(snapshot, now.monotonic)
            }
        };
        if requests.rotate {
            evidence.requested = Some("somebody asked for it by an annotation of the Secret".to_owned());
        }
        let goal = requests.enforce.map_or(self.options.goal, EnforcementGoal::from);
        Look { now, goal, evidence, view, doubt }
    }

    fn decide(&self, ring: Option<&Ring>, installation: Installation, look: &Look) -> Decision {
        let settings = self.settings(ring, look.now, look.goal);
        let decision = decide(ring, installation, &look.evidence, look.now.wall, &settings);
        match look.doubt {
            Some(left) if decision.action.requires_all_nodes() => {
                let nodes = look.view.as_ref().map_or(0, |view| view.nodes.len());
                let (before, left_text) = (self.trust.believed(), Human(Duration::from_secs(left.as_secs())));
                Decision {
                    action: Action::Wait,
                    wake_in: left,
                    reason: format!(
                        "suddenly there are {nodes} Nodes instead of {before}, which is not believed for another {left_text}"
                    ),
                    cause: None,
                    wait: decision.wait,
                }
            }
            _ => decision,
        }
    }

    /// Pods may come to nodes that encrypt, and to all where nothing is to be encrypted.
    fn lift_taints(&mut self, ring: Option<&Ring>, look: &Look) {
        let (Some(lifter), Some(view)) = (&mut self.lifter, &look.view) else { return };
        let free = match look.goal {
            EnforcementGoal::Off => view.nodes.iter().map(|node| node.name.clone()).collect(),
            EnforcementGoal::Auto | EnforcementGoal::Permissive => view.snapshot(ring, false).encrypting(),
        };
        let tainted = self.cluster.tainted(lifter.key());
        for node in lifter.stuck(&tainted, &free, look.now.monotonic) {
            tracing::warn!(
                node,
                taint = lifter.key(),
                "still has the start-up taint: it does not say that it encrypts to all others; look at its NodeEncryption and at \
                 the log of its agent"
            );
        }
        for node in lifter.due(&tainted, &free, look.now.monotonic) {
            self.outbox.put(Notice::Lift { node, key: lifter.key().to_owned() });
        }
    }

    fn settings(&self, ring: Option<&Ring>, now: Now, goal: EnforcementGoal) -> Settings {
        Settings { schedule: self.options.schedule.for_ring(ring, now.wall), suite: self.options.suite, goal }
    }

    async fn act(
        &mut self,
        held: Held,
        ring: Option<&Ring>,
        installation: Installation,
        look: &Look,
        decision: &Decision,
    ) -> Result<Outcome, TurnError> {
        let action = decision.action;
        let settings = self.settings(ring, look.now, look.goal);
        let next = self.apply(ring, action, installation, &look.evidence, (look.now, &settings))?;
        let requests = held.requests;
        // Nobody meant a later one that comes by itself.
        let unasked = action == Action::Stage && !requests.rotate;
        let ends = matches!(action, Action::RemoveRetired | Action::Disable | Action::ENFORCE)
            || unasked
            || (action == Action::Activate && matches!(next.phase(), Phase::Steady { .. }));
        let rotate = matches!(action, Action::Bootstrap | Action::Stage);
        let answered = Requests { rotate, press_on: ends, enforce: None };
        let outcome = self.write(held, &next, answered).await?;
        if outcome == Outcome::Written {
            if action == Action::Rekey {
                self.acknowledged.rekeyed(look.now.monotonic);
            }
            self.teller.acted(&Act {
                decision,
                before: ring,
                after: &next,
                requests,
                rekeyed: look.names(|uid| look.evidence.rekey.contains_key(uid)),
                pending: look.names(|uid| {
                    let was = ring.is_some_and(|ring| ring.pending.contains(uid));
                    next.pending.contains(uid) && !was
                }),
                delay: look.view.is_none().then_some(self.options.delay),
            });
        }
        Ok(outcome)
    }

    /// Re-applying a manifest that ships the Secret with an empty entry wipes the ring under way.
    async fn put_back(
        &mut self,
        held: Held,
        lost: Remembered,
        installation: Installation,
        now: Now,
    ) -> Result<Outcome, TurnError> {
        let evidence = Evidence::of(Readiness::Ready, Readiness::Ready);
        let settings = self.settings(Some(&lost.ring), now, self.options.goal);
        let next = self.apply(Some(&lost.ring), Action::Wait, installation, &evidence, (now, &settings))?;
        // Kept until it is back for certain: the next turn reads it from there.
        self.remembered = Some(lost);
        let outcome = self.write(held, &next, Requests::default()).await?;
        if outcome == Outcome::Written {
            self.teller.restored(&next);
        }
        Ok(outcome)
    }

    fn apply(
        &self,
        ring: Option<&Ring>,
        action: Action,
        installation: Installation,
        evidence: &Evidence,
        (now, settings): (Now, &Settings),
    ) -> Result<Ring, SysError> {
        apply(ring, action, installation, evidence, now.wall, settings, self.options.random)
    }

    async fn write(&mut self, held: Held, next: &Ring, answered: Requests) -> Result<Outcome, TurnError> {
        match self.store.replace(held, next, answered).await {
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
}

impl Look {
    /// The names of some nodes.
    fn names(&self, which: impl Fn(&Uid) -> bool) -> BTreeSet<String> {
        let nodes = self.view.iter().flat_map(|view| &view.nodes);
        nodes.filter(|node| node.uid.as_ref().is_some_and(&which)).map(|node| node.name.clone()).collect()
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
