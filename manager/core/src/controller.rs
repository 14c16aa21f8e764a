//! One evaluation after the other: read, observe, decide, and at most one write.

mod conclusion;
mod interface;

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use secureoverlay_keyring::{keyring::KeyRingError, settings::Settings};
use secureoverlay_rotation::{Action, ApplyError, Cause, Exclusions, History, Installation, Requests};

use crate::{
    evaluation::{Context, Evaluation, Evaluator},
    last_good_ring::LastGoodRing,
    notification::{AppliedDecision, Notification},
    operator::{Facts, ObjectReference, ObjectWrite, Operator, OperatorObjects, RotationObject},
    orphans::{Deletion, OrphanTracker},
    rollout_mode::{ModeSelector, Selected},
    snapshot::{ClusterState, SecretSnapshot},
    taint::TaintRemover,
    wait_report::WaitReporter,
};

pub use self::interface::{ControllerOptions, Now, Outcome, Request, Write, WriteResult};

/// Changes come in bursts, and an evaluation asks the API server for the ring.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Where an evaluation is.
#[derive(Debug)]
enum Step {
    Idle,
    ReadObjects,
    ReadSecret,
    ReadDaemonSet(Context),
    CheckAccess(Context, Evaluation),
    ReadCache(Context),
    ListCluster(Context),
    CreateEncryption,
    CreateRotation(Context, Evaluation),
    /// A decision that is not written yet.
    Act(Context, Evaluation),
    /// A write under way, and what to tell once it is done.
    Written(Context, Evaluation, Box<AppliedDecision>),
}

/// The manager's decisions. See the [crate's documentation](crate) for the loop that drives it.
#[derive(Debug)]
pub struct Controller {
    poll_interval: Duration,
    delay: Duration,
    limit: Duration,
    mode: ModeSelector,
    evaluator: Evaluator,
    last_good: Option<LastGoodRing>,
    waits: WaitReporter,
    taints: Option<TaintRemover>,
    orphans: OrphanTracker,
    /// Where operators ask by objects.
    operator: Option<Operator>,
    /// The KeyRotation that was told of as the one under way.
    told: Option<ObjectReference>,
    /// What was told of exclusions that can't be carried out.
    refused: Option<Exclusions>,
    step: Step,
    /// The request of this step was handed out.
    asked: bool,
    deadline: Option<Instant>,
    outcome: Option<Outcome>,
    notifications: VecDeque<Notification>,
    taint_removals: VecDeque<String>,
    deletions: VecDeque<Deletion>,
    object_writes: VecDeque<ObjectWrite>,
}

impl Controller {
    /// Knows nothing yet; the first evaluation is due at once.
    #[must_use]
    pub fn new(options: &ControllerOptions) -> Self {
        Self {
            evaluator: Evaluator::new(options),
            poll_interval: options.poll_interval,
            delay: options.delay,
            limit: options.limit,
            mode: ModeSelector::new(options.mode),
            last_good: None,
            waits: WaitReporter::new(options.limit),
            taints: options.startup_taint.then(TaintRemover::default),
            orphans: OrphanTracker::default(),
            operator: options.objects.then(Operator::default),
            told: None,
            refused: None,
            step: Step::Idle,
            asked: false,
            deadline: None,
            outcome: None,
            notifications: VecDeque::new(),
            taint_removals: VecDeque::new(),
            deletions: VecDeque::new(),
            object_writes: VecDeque::new(),
        }
    }

    /// When to call [`Self::handle_timeout`]; `None`: now, or as soon as the shell wants after a conflict or a failure.
    #[must_use]
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    /// Begins an evaluation. One under way is abandoned: what the shell still gets for it must not be handed in.
    pub fn handle_timeout(&mut self) {
        self.enter(if self.operator.is_some() { Step::ReadObjects } else { Step::ReadSecret });
        (self.deadline, self.outcome) = (None, None);
    }

    /// A watch has brought something new: the deadline may come sooner.
    pub fn handle_change(&mut self, now: Instant) {
        self.deadline = self.deadline.map(|deadline| deadline.min(now + DEBOUNCE));
    }

    /// Other settings are wanted from now on; `None`: those of the ring.
    pub fn handle_settings(&mut self, settings: Option<Settings>, now: Instant) {
        self.evaluator.set_settings(settings);
        self.handle_change(now);
    }

    /// Whether the store went back while the API server was not restarted: nothing is written while it did.
    pub fn handle_history(&mut self, history: History, now: Instant) {
        if std::mem::replace(&mut self.evaluator.history, history) != history {
            self.handle_change(now);
        }
    }

    /// A list showed that the history of the API server went back, and is believed: what was acknowledged may be older
    /// than it seems.
    pub const fn handle_history_went_back(&mut self) {
        self.evaluator.memory.handle_history_went_back();
    }

    /// What operators ask for was read. An invalid ClusterEncryption, or one that is gone, changes nothing.
    pub fn handle_objects(&mut self, objects: OperatorObjects) {
        if !matches!(self.step, Step::ReadObjects) {
            return;
        }
        let Some(operator) = &mut self.operator else { return };
        let deleted = operator.handle_objects(objects);
        let told = |(rotation, generation)| Notification::RotationDeleted { rotation, generation };
        self.notifications.extend(deleted.into_iter().map(told));
        if let Some(Ok(settings)) = operator.encryption.as_ref().map(|encryption| &encryption.settings) {
            self.evaluator.set_settings(Some(settings.clone()));
        }
        self.enter(Step::ReadSecret);
    }

    /// The Secret was read.
    ///
    /// # Errors
    /// It holds something that is no ring. The evaluation is over, and nothing is written.
    pub fn handle_secret(&mut self, mut secret: SecretSnapshot, now: Now) -> Result<(), KeyRingError> {
        if !matches!(self.step, Step::ReadSecret) {
            return Ok(());
        }
        let ring = match std::mem::replace(&mut secret.ring, Err(KeyRingError::Empty)) {
            Ok(ring) => Some(ring),
            Err(KeyRingError::Empty) => None,
            Err(error) => {
                self.evaluator.forget_ring(now);
                self.enter(Step::Idle);
                let settings = self.evaluator.settings.clone().unwrap_or_default();
                let text = error.to_string();
                self.write_objects(&Facts {
                    ring: Err(&text),
                    settings: &settings,
                    decision: None,
                    report: None,
                    covered: &BTreeSet::new(),
                    history: self.evaluator.history,
                    limit: self.limit,
                    now,
                });
                return Err(error);
            }
        };
        let requests = match &self.operator {
            Some(Operator { rotations, .. }) => Requests {
                rotate: rotations.asks().map(|name| format!("asked for by the KeyRotation {name}")),
                skip_unresponsive: rotations.skips(),
            },
            None => Requests {
                rotate: secret.rotate.then(|| "asked for by an annotation of the Secret".to_owned()),
                skip_unresponsive: false,
            },
        };
        self.enter(Step::ReadDaemonSet(Context::new(secret, ring, requests)));
        Ok(())
    }

    /// The DaemonSet was looked at.
    pub fn handle_daemon_set(&mut self, installation: Installation, now: Now) {
        let Step::ReadDaemonSet(context) = &mut self.step else { return };
        let mut context = Context { installation, ..context.clone() };
        self.note_ring(&mut context, now);
        if let Some(step) = self.without_settings(&context) {
            return match step {
                Ok(step) => self.enter(step),
                Err(reason) => self.rest(reason, now),
            };
        }
        let evaluation = self.evaluator.by_time(&context, now);
        if matches!(evaluation.decision.action, Action::RELAX | Action::Restore) {
            // Whatever nodes say, and though their objects may be unreadable.
            return self.enter(Step::Act(context, evaluation));
        }
        match self.mode.selected(now.monotonic) {
            Selected::Acknowledged => self.enter(Step::ReadCache(context)),
            Selected::Timed => self.conclude(context, evaluation),
            Selected::Unknown => self.enter(Step::CheckAccess(context, evaluation)),
        }
    }

    /// The first key needs settings: those of a ClusterEncryption, which is made where there is none.
    fn without_settings(&self, context: &Context) -> Option<Result<Step, &'static str>> {
        let operator = self.operator.as_ref()?;
        let ring = context.ring.is_some() || context.last.is_some();
        // Where the Secret or the DaemonSet is gone, all of it may be being removed.
        let removed = context.resource_version.is_none() || context.installation == Installation::Absent;
        if ring || removed || self.evaluator.settings.is_some() {
            return None;
        }
        Some(match operator.encryption {
            None => Ok(Step::CreateEncryption),
            Some(_) => Err("the ClusterEncryption is invalid, and there are no settings from before"),
        })
    }

    /// Keeps the last good ring for when the Secret loses it.
    fn note_ring(&mut self, context: &mut Context, now: Now) {
        let secret = context.uid.as_deref();
        self.last_good = self.last_good.take().filter(|last| last.belongs_to(secret, context.installation));
        context.last = self.last_good.as_ref().map(|last| last.ring.clone());
        self.evaluator.memory.observe(context.ring.as_ref(), now.monotonic);
        let Some(ring) = &context.ring else { return self.evaluator.forget_ring(now) };
        if let Some(operator) = &mut self.operator {
            operator.rotations.observe(ring);
        }
        let older = |last: &LastGoodRing| {
            ring.revision < last.ring.revision && ring.highest_id() <= last.ring.highest_id()
        };
        if !self.last_good.as_ref().is_some_and(older) {
            self.last_good = Some(LastGoodRing { secret: context.uid.clone(), ring: ring.clone() });
        }
    }

    /// Nodes and NodeEncryptions may be listed, or may not.
    pub fn handle_access(&mut self, granted: bool, now: Now) {
        if !matches!(self.step, Step::CheckAccess(..)) {
            return;
        }
        let Step::CheckAccess(context, evaluation) = std::mem::replace(&mut self.step, Step::Idle) else {
            return;
        };
        self.mode.handle_access(granted, now.monotonic);
        match self.mode.selected(now.monotonic) {
            Selected::Acknowledged => self.enter(Step::ReadCache(context)),
            Selected::Timed | Selected::Unknown => self.conclude(context, evaluation),
        }
    }

    /// What the watches have brought, or fresh lists, as asked for.
    pub fn handle_cluster(&mut self, cluster: ClusterState, now: Now) {
        let (context, fresh) = match &self.step {
            Step::ReadCache(context) => (context.clone(), false),
            Step::ListCluster(context) => (context.clone(), true),
            _ => return,
        };
        let (evaluation, counts) = self.evaluator.by_acknowledgements(&context, cluster, now);
        self.notifications.push_back(Notification::Counted(counts));
        // What the watches have brought may be old: nodes may have come, and taken back what they said.
        if !fresh && evaluation.decision.action.requires_fresh_list() {
            return self.enter(Step::ListCluster(context));
        }
        self.conclude(context, evaluation);
    }

    /// The ClusterEncryption was made, or was there already: the watch brings it.
    pub fn handle_encryption_created(&mut self, now: Now) {
        if matches!(self.step, Step::CreateEncryption) {
            self.rest("the ClusterEncryption was made just now", now);
        }
    }

    /// The KeyRotation was made; `None`: it could not be, and the rotation goes on without one.
    pub fn handle_rotation_created(&mut self, object: Option<RotationObject>) {
        if !matches!(self.step, Step::CreateRotation(..)) {
            return;
        }
        let Step::CreateRotation(context, evaluation) = std::mem::replace(&mut self.step, Step::Idle) else {
            return;
        };
        if let (Some(operator), Some(object)) = (&mut self.operator, object) {
            operator.rotations.handle_created(object);
        }
        self.enter(Step::Act(context, evaluation));
    }

    /// The write was done, or was not. What failed without an answer is [`Self::handle_failure`].
    pub fn handle_written(&mut self, result: WriteResult, now: Now) {
        if !matches!(self.step, Step::Written(..)) {
            return;
        }
        let Step::Written(context, evaluation, applied) = std::mem::replace(&mut self.step, Step::Idle)
        else {
            return;
        };
        self.enter(Step::Idle);
        if result == WriteResult::Conflict {
            self.outcome = Some(Outcome::Conflict);
            return;
        }
        self.outcome = Some(Outcome::Written);
        self.evaluator.handle_written(&context, &evaluation, &applied.after, now);
        if let Some(operator) = &mut self.operator {
            operator.rotations.observe(&applied.after);
            operator.rotations.handle_written(&applied.decision, context.ring.as_ref());
        }
        self.notifications.push_back(Notification::Applied(applied));
    }

    /// A request failed, or got no answer; a write may have been done. The evaluation is over.
    pub fn handle_failure(&mut self) {
        self.enter(Step::Idle);
    }

    /// What the shell must do next; `None` while it does that, and when the evaluation is over. `random` fills a buffer
    /// with bytes fit for keys.
    ///
    /// # Errors
    /// What `random` returns, or what makes the next ring invalid. The evaluation is over then.
    pub fn poll_request<E>(
        &mut self,
        random: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<Option<Request>, ApplyError<E>> {
        if std::mem::replace(&mut self.asked, true) {
            return Ok(None);
        }
        Ok(Some(match &self.step {
            Step::ReadObjects => Request::ReadObjects,
            Step::CreateEncryption => Request::CreateEncryption,
            Step::CreateRotation(_, evaluation) => Request::CreateRotation { name: name(evaluation) },
            Step::ReadSecret => Request::ReadSecret,
            Step::ReadDaemonSet(_) => Request::ReadDaemonSet,
            Step::CheckAccess(..) => Request::CheckAccess,
            Step::ReadCache(_) => Request::ReadCache,
            Step::ListCluster(_) => Request::ListCluster,
            Step::Act(..) => {
                return self.write(random).map(|write| write.map(|write| Request::Write(Box::new(write))));
            }
            Step::Idle | Step::Written(..) => return Ok(None),
        }))
    }

    /// Something to tell.
    pub fn poll_notification(&mut self) -> Option<Notification> {
        self.notifications.pop_front()
    }

    /// The name of a node whose start-up taint is to be removed.
    pub fn poll_taint_removal(&mut self) -> Option<String> {
        self.taint_removals.pop_front()
    }

    /// An object to be deleted, if a GET says that there is no Node of its name.
    pub fn poll_deletion(&mut self) -> Option<Deletion> {
        self.deletions.pop_front()
    }

    /// A write of the operator's objects.
    pub fn poll_object_write(&mut self) -> Option<ObjectWrite> {
        self.object_writes.pop_front()
    }

    /// How the last evaluation ended; `None` while one is under way, and after one that failed.
    #[must_use]
    pub const fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    fn enter(&mut self, step: Step) {
        (self.step, self.asked) = (step, false);
    }
}

/// What a KeyRotation is called that is made for a rotation that is due.
fn name(evaluation: &Evaluation) -> String {
    let cause = evaluation.decision.rotation.map_or(Cause::First, |rotation| rotation.cause);
    format!("{}-{}", format!("{cause:?}").to_lowercase(), evaluation.now.wall.as_second())
}
