//! One evaluation after the other: read, observe, decide, and at most one write.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use secureoverlay_common::{
    ring::{Ring, RingError},
    rotation::{Action, EnforcementGoal, Evidence, Installation, Readiness, Settings, apply},
    suite::Suite,
    uid::Uid,
};

use crate::{
    evaluation::{Context, Evaluation, Evaluator, answered},
    last_good_ring::LastGoodRing,
    notification::{AppliedDecision, Notification},
    rollout_mode::{ModeSelector, RolloutMode, Selected},
    schedule::Schedule,
    snapshot::{ClusterState, OperatorRequests, SecretSnapshot},
    taint::TaintRemover,
    wait_report::WaitReporter,
};

/// Changes come in bursts, and an evaluation asks the API server for the ring.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// What time it is. To be read after what is handed in with it: the controller must not believe that it saw something
/// before it was there.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For the ring.
    pub wall: Timestamp,
    /// For waiting.
    pub monotonic: Instant,
}

/// What the operator wants of this process.
#[derive(Clone, Debug)]
pub struct ControllerOptions {
    /// When rotations are due.
    pub schedule: Schedule,
    /// Suite of new generations.
    pub suite: Suite,
    /// How far encryption is enforced, where no request says otherwise.
    pub goal: EnforcementGoal,
    /// What a rotation waits for.
    pub mode: RolloutMode,
    /// Time within which every node has read a new ring and programmed it, where time decides.
    pub delay: Duration,
    /// How long a rotation waits for nodes that are not Ready, where nodes acknowledge.
    pub limit: Duration,
    /// How often the Secret is read though nothing is known to have changed.
    pub poll_interval: Duration,
    /// Whether nodes have a start-up taint to be removed.
    pub startup_taint: bool,
}

/// What the shell must do next.
#[derive(Debug)]
pub enum Request {
    /// Read the Secret: [`Controller::handle_secret`].
    ReadSecret,
    /// Look at the agents' DaemonSet: [`Controller::handle_daemon_set`].
    ReadDaemonSet,
    /// Find out whether Nodes and NodeEncryptions may be listed: [`Controller::handle_access`].
    CheckAccess,
    /// Take what the watches have brought: [`Controller::handle_cluster`].
    ReadCache,
    /// List Nodes and NodeEncryptions anew, past every cache: [`Controller::handle_cluster`].
    ListCluster,
    /// Write: [`Controller::handle_written`].
    Write(Write),
}

/// One write of the ring into the Secret. Everything else in the Secret stays as it was read.
#[derive(Debug)]
pub struct Write {
    /// Only over this version of the Secret.
    pub resource_version: Option<String>,
    /// The new ring.
    pub ring: Ring,
    /// The requests to take off.
    pub answered: OperatorRequests,
    /// What the write does; `None` where it puts the last good ring back.
    pub action: Option<Action>,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteResult {
    /// The ring is in the Secret.
    Written,
    /// Another writer was faster; nothing was changed.
    Conflict,
}

/// How an evaluation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is to be done before the deadline.
    Waiting {
        /// How long the decision itself has time, whatever the poll interval.
        wake_in: Duration,
        /// What for.
        reason: String,
    },
    /// The ring was written.
    Written,
    /// Another writer was faster.
    Conflict,
}

/// Where an evaluation is.
#[derive(Debug)]
enum Step {
    Idle,
    ReadSecret,
    ReadDaemonSet(Context),
    CheckAccess(Context, Evaluation),
    ReadCache(Context),
    ListCluster(Context),
    /// A decision that is not written yet.
    Act(Context, Evaluation),
    Restore(Context, LastGoodRing, Now),
    Written(Written),
}

/// A write under way, and what to tell once it is done.
#[derive(Debug)]
enum Written {
    Applied(Box<AppliedDecision>),
    Restored { revision: u64 },
}

/// The manager's decisions. See the [crate's documentation](crate) for the loop that drives it.
#[derive(Debug)]
pub struct Controller {
    poll_interval: Duration,
    delay: Duration,
    mode: ModeSelector,
    evaluator: Evaluator,
    last_good: Option<LastGoodRing>,
    waits: WaitReporter,
    taints: Option<TaintRemover>,
    step: Step,
    /// The request of this step was handed out.
    asked: bool,
    deadline: Option<Instant>,
    outcome: Option<Outcome>,
    notifications: VecDeque<Notification>,
    taint_removals: VecDeque<String>,
}

impl Controller {
    /// Knows nothing yet; the first evaluation is due at once.
    #[must_use]
    pub fn new(options: &ControllerOptions) -> Self {
        Self {
            evaluator: Evaluator::new(options),
            poll_interval: options.poll_interval,
            delay: options.delay,
            mode: ModeSelector::new(options.mode),
            last_good: None,
            waits: WaitReporter::new(options.limit),
            taints: options.startup_taint.then(TaintRemover::default),
            step: Step::Idle,
            asked: false,
            deadline: None,
            outcome: None,
            notifications: VecDeque::new(),
            taint_removals: VecDeque::new(),
        }
    }

    /// When to call [`Self::handle_timeout`]; `None`: now, or as soon as the shell wants after a conflict or a failure.
    #[must_use]
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    /// Begins an evaluation. One under way is abandoned: what the shell still gets for it must not be handed in.
    pub fn handle_timeout(&mut self) {
        self.enter(Step::ReadSecret);
        (self.deadline, self.outcome) = (None, None);
    }

    /// A watch has brought something new: the deadline may come sooner.
    pub fn handle_change(&mut self, now: Instant) {
        self.deadline = self.deadline.map(|deadline| deadline.min(now + DEBOUNCE));
    }

    /// The Secret was read.
    ///
    /// # Errors
    /// It holds something that is no ring. The evaluation is over, and nothing is written.
    pub fn handle_secret(&mut self, mut secret: SecretSnapshot, now: Now) -> Result<(), RingError> {
        if !matches!(self.step, Step::ReadSecret) {
            return Ok(());
        }
        let ring = match std::mem::replace(&mut secret.ring, Err(RingError::Empty)) {
            Ok(ring) => Some(ring),
            Err(RingError::Empty) => None,
            Err(error) => {
                self.evaluator.forget(now);
                self.enter(Step::Idle);
                return Err(error);
            }
        };
        self.enter(Step::ReadDaemonSet(Context::new(secret, ring)));
        Ok(())
    }

    /// The DaemonSet was looked at.
    pub fn handle_daemon_set(&mut self, installation: Installation, now: Now) {
        let Step::ReadDaemonSet(context) = &mut self.step else { return };
        let context = Context { installation, ..context.clone() };
        match &context.ring {
            Some(ring) => {
                self.last_good = Some(LastGoodRing { secret: context.uid.clone(), ring: ring.clone() });
            }
            None => {
                self.evaluator.forget(now);
                let lost = self.last_good.take();
                if let Some(lost) = lost.filter(|lost| lost.belongs_to(context.uid.as_deref(), installation))
                {
                    // Kept until it is back for certain: the next evaluation reads it from the Secret.
                    self.last_good = Some(lost.clone());
                    return self.enter(Step::Restore(context, lost, now));
                }
            }
        }
        let evaluation = self.evaluator.by_time(&context, now);
        if evaluation.decision.action == Action::RELAX {
            // Whatever nodes say, and though their objects may be unreadable.
            self.evaluator.forget(now);
            return self.enter(Step::Act(context, evaluation));
        }
        match self.mode.selected(now.monotonic) {
            Selected::Acknowledged => self.enter(Step::ReadCache(context)),
            Selected::Timed => self.conclude(context, evaluation),
            Selected::Unknown => self.enter(Step::CheckAccess(context, evaluation)),
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

    /// The write was done, or was not. What failed without an answer is [`Self::handle_failure`].
    pub fn handle_written(&mut self, result: WriteResult, now: Now) {
        if !matches!(self.step, Step::Written(_)) {
            return;
        }
        let Step::Written(written) = std::mem::replace(&mut self.step, Step::Idle) else { return };
        self.enter(Step::Idle);
        if result == WriteResult::Conflict {
            self.outcome = Some(Outcome::Conflict);
            return;
        }
        self.outcome = Some(Outcome::Written);
        self.notifications.push_back(match written {
            Written::Applied(applied) => {
                if applied.decision.action == Action::Rekey {
                    self.evaluator.rekeyed(now);
                }
                Notification::Applied(applied)
            }
            Written::Restored { revision } => Notification::Restored { revision },
        });
    }

    /// A request failed, or got no answer; a write may have been done. The evaluation is over.
    pub fn handle_failure(&mut self) {
        self.enter(Step::Idle);
    }

    /// What the shell must do next; `None` while it does that, and when the evaluation is over. `random` fills a buffer
    /// with bytes fit for keys.
    ///
    /// # Errors
    /// What `random` returns. The evaluation is over then.
    pub fn poll_request<E>(
        &mut self,
        random: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<Option<Request>, E> {
        if std::mem::replace(&mut self.asked, true) {
            return Ok(None);
        }
        Ok(Some(match &self.step {
            Step::ReadSecret => Request::ReadSecret,
            Step::ReadDaemonSet(_) => Request::ReadDaemonSet,
            Step::CheckAccess(..) => Request::CheckAccess,
            Step::ReadCache(_) => Request::ReadCache,
            Step::ListCluster(_) => Request::ListCluster,
            Step::Act(..) | Step::Restore(..) => {
                return self.write(random).map(|write| write.map(Request::Write));
            }
            Step::Idle | Step::Written(_) => return Ok(None),
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

    /// How the last evaluation ended; `None` while one is under way, and after one that failed.
    #[must_use]
    pub const fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    fn enter(&mut self, step: Step) {
        (self.step, self.asked) = (step, false);
    }

    fn conclude(&mut self, context: Context, evaluation: Evaluation) {
        let now = evaluation.now.monotonic;
        self.remove_taints(context.ring.as_ref(), &evaluation);
        let shown = || evaluation.cluster.as_ref().map(|cluster| cluster.awaited.clone()).unwrap_or_default();
        let report = self.waits.report(evaluation.decision.wait.as_ref(), shown, now);
        self.notifications.push_back(Notification::Waits(report));
        if evaluation.decision.action != Action::Wait {
            return self.enter(Step::Act(context, evaluation));
        }
        let (wake_in, reason) = (evaluation.decision.wake_in, evaluation.decision.reason);
        self.enter(Step::Idle);
        self.deadline = Some(now + wake_in.min(self.poll_interval));
        self.outcome = Some(Outcome::Waiting { wake_in, reason });
    }

    /// Pods may come to nodes that encrypt, and to all where nothing is to be encrypted.
    fn remove_taints(&mut self, ring: Option<&Ring>, evaluation: &Evaluation) {
        let (Some(taints), Some(cluster)) = (&mut self.taints, &evaluation.cluster) else { return };
        let free = match evaluation.settings.goal {
            EnforcementGoal::Off => cluster.nodes.iter().map(|node| node.name.clone()).collect(),
            EnforcementGoal::Auto | EnforcementGoal::Permissive => cluster.snapshot(ring, false).encrypting(),
        };
        let now = evaluation.now.monotonic;
        let stuck = taints.stuck(&cluster.tainted, &free, now);
        self.notifications.extend(stuck.into_iter().map(|node| Notification::TaintStuck { node }));
        self.taint_removals.extend(taints.due(&cluster.tainted, &free, now));
    }

    fn write<E>(&mut self, random: impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<Option<Write>, E> {
        match std::mem::replace(&mut self.step, Step::Idle) {
            Step::Act(context, evaluation) => self.act(context, &evaluation, random).map(Some),
            Step::Restore(context, lost, now) => self.restore(context, &lost, now, random).map(Some),
            _ => Ok(None),
        }
    }

    fn act<E>(
        &mut self,
        context: Context,
        evaluation: &Evaluation,
        random: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<Write, E> {
        let Context { ring: before, requests, installation, resource_version, .. } = context;
        let Evaluation { now, settings, evidence, decision, cluster } = evaluation;
        let action = decision.action;
        let after = apply(before.as_ref(), action, installation, evidence, now.wall, settings, random)?;
        let was_pending = |uid: &Uid| before.as_ref().is_some_and(|ring| ring.pending.contains(uid));
        let write = Write {
            resource_version,
            answered: answered(action, requests, &after),
            action: Some(action),
            ring: after.clone(),
        };
        let applied = AppliedDecision {
            decision: decision.clone(),
            requests,
            rekeyed: evaluation.names(|uid| evidence.rekey.contains_key(uid)),
            pending: evaluation.names(|uid| after.pending.contains(uid) && !was_pending(uid)),
            delay: cluster.is_none().then_some(self.delay),
            before,
            after,
        };
        self.step = Step::Written(Written::Applied(Box::new(applied)));
        Ok(write)
    }

    /// Re-applying a manifest that ships the Secret with an empty entry wipes the ring under way.
    fn restore<E>(
        &mut self,
        context: Context,
        lost: &LastGoodRing,
        now: Now,
        random: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<Write, E> {
        let evidence = Evidence::of(Readiness::Ready, Readiness::Ready);
        let settings: Settings = self.evaluator.settings(Some(&lost.ring), now, OperatorRequests::default());
        let ring = apply(
            Some(&lost.ring),
            Action::Wait,
            context.installation,
            &evidence,
            now.wall,
            &settings,
            random,
        )?;
        self.step = Step::Written(Written::Restored { revision: ring.revision });
        let resource_version = context.resource_version;
        Ok(Write { resource_version, ring, answered: OperatorRequests::default(), action: None })
    }
}
