//! What one look at the cluster comes to.

use std::time::Duration;

use secureoverlay_keyring::duration::HumanDuration;
use secureoverlay_keyring::{
    keyring::{Excluded, Identities, KeyRing},
    settings::Settings,
};
use secureoverlay_rotation::{
    AckTracker, Action, Decision, DelayTracker, Evidence, Exclusions, History, Inputs, Installation,
    NodeCounts, NodeReport, Pace, Requests, RotationMemory, RotationTimes, decide,
};

use crate::{
    controller::{ControllerOptions, Now},
    node_count_guard::NodeCountGuard,
    rollout_mode::RolloutMode,
    schedule,
    snapshot::{ClusterState, SecretSnapshot},
};

/// The Secret and the DaemonSet that an evaluation is about.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    pub(crate) ring: Option<KeyRing>,
    /// The last ring, where it may be put back.
    pub(crate) last: Option<KeyRing>,
    pub(crate) requests: Requests,
    pub(crate) installation: Installation,
}

impl Context {
    pub(crate) fn new(secret: SecretSnapshot, ring: Option<KeyRing>, requests: Requests) -> Self {
        let SecretSnapshot { uid, resource_version, .. } = secret;
        Self { uid, resource_version, ring, last: None, requests, installation: Installation::Unknown }
    }
}

/// A decision, and what it was made of.
#[derive(Clone, Debug)]
pub(crate) struct Evaluation {
    pub(crate) now: Now,
    pub(crate) settings: Settings,
    pub(crate) evidence: Evidence,
    /// What the nodes say, where they do.
    pub(crate) cluster: Option<ClusterState>,
    pub(crate) decision: Decision,
    /// What the nodes do, for operators.
    pub(crate) report: Option<NodeReport>,
    exclusions: Exclusions,
    identities: Identities,
    times: RotationTimes,
    pace: Pace,
    history: History,
}

impl Evaluation {
    pub(crate) fn inputs<'e>(&'e self, context: &'e Context) -> Inputs<'e> {
        Inputs {
            ring: context.ring.as_ref(),
            last: context.last.as_ref(),
            installation: context.installation,
            evidence: &self.evidence,
            settings: &self.settings,
            excluded: &self.exclusions.excluded,
            requests: &context.requests,
            identities: self.identities,
            times: self.times,
            pace: self.pace,
            history: self.history,
            now: self.now.wall,
        }
    }

    /// Exclusions, where they can't be carried out as they were asked for.
    pub(crate) fn refused_exclusions(&self) -> Option<&Exclusions> {
        Some(&self.exclusions).filter(|found| !found.conflicts.is_empty() || found.left_out > 0)
    }
}

/// Evaluates, and remembers since when what is so.
#[derive(Debug)]
pub(crate) struct Evaluator {
    pub(crate) settings: Option<Settings>,
    objects: bool,
    limit: Duration,
    timed_by_choice: bool,
    timed: DelayTracker,
    acknowledged: AckTracker,
    nodes: NodeCountGuard,
    announcing: NodeCountGuard,
    pub(crate) memory: RotationMemory,
    pub(crate) history: History,
}

impl Evaluator {
    pub(crate) fn new(options: &ControllerOptions) -> Self {
        Self {
            settings: options.settings.clone(),
            objects: options.objects,
            limit: options.limit,
            timed_by_choice: options.mode == RolloutMode::Timed,
            timed: DelayTracker::new(options.delay),
            acknowledged: AckTracker::new(options.limit),
            nodes: NodeCountGuard::default(),
            announcing: NodeCountGuard::default(),
            memory: RotationMemory::default(),
            history: History::default(),
        }
    }

    pub(crate) fn set_settings(&mut self, settings: Option<Settings>) {
        self.settings = settings;
    }

    /// Nodes have nothing to read, nothing that they can, or something else from now on: whatever they were given time
    /// for starts again.
    pub(crate) fn forget_ring(&mut self, now: Now) {
        self.timed.observe(None, now.monotonic);
        self.acknowledged.forget_ring();
    }

    /// The write that `evaluation` decided on was done.
    pub(crate) fn handle_written(
        &mut self,
        context: &Context,
        evaluation: &Evaluation,
        after: &KeyRing,
        now: Now,
    ) {
        let Evaluation { decision, evidence, .. } = evaluation;
        let (wait, before) = (decision.wait.as_ref(), context.ring.as_ref());
        self.memory.handle_written(decision.action, wait, before, after, now.monotonic);
        match decision.action {
            Action::Bootstrap => self.acknowledged.handle_claim_answered(evidence, now.monotonic),
            Action::RenewAckId => self.acknowledged.handle_renewed(evidence, now.monotonic),
            _ => {}
        }
    }

    /// The settings in force: those that are wanted, else those of the ring.
    fn effective_settings(&self, context: &Context) -> Settings {
        let kept = || context.ring.as_ref().or(context.last.as_ref()).map(|ring| ring.settings.clone());
        self.settings.clone().or_else(kept).unwrap_or_default()
    }

    /// By time alone.
    pub(crate) fn by_time(&mut self, context: &Context, now: Now) -> Evaluation {
        let evidence = self.timed.observe(context.ring.as_ref(), now.monotonic);
        let kept = context.ring.as_ref().or(context.last.as_ref());
        let excluded = kept.map_or_else(Excluded::default, |ring| ring.excluded.clone());
        let exclusions = Exclusions { excluded, ..Exclusions::default() };
        // Nodes that announce go on announcing where an operator asks for time instead of acknowledgements. Where the
        // manager has no rights, nodes can't announce either.
        let before = kept.and_then(|ring| ring.generations.last()).map(|generation| generation.identities);
        let identities = before.filter(|_| self.timed_by_choice).unwrap_or(Identities::BootId);
        self.conclude(context, (evidence, identities), exclusions, None, now)
    }

    /// By what the nodes say.
    pub(crate) fn by_acknowledgements(
        &mut self,
        context: &Context,
        cluster: ClusterState,
        now: Now,
    ) -> (Evaluation, NodeCounts) {
        let snapshot = cluster.snapshot(context.ring.as_ref());
        let minimum = self.effective_settings(context).rotation.minimum_interval;
        let times = (now.monotonic, now.wall);
        let evidence = self.acknowledged.observe(snapshot, &self.memory, minimum, times);
        let counts = self.acknowledged.counts(snapshot, now.monotonic);
        let exclusions = self.acknowledged.exclusions(snapshot);
        let nodes = self.nodes.observe(cluster.nodes.len(), now.monotonic);
        let announcing = self.announcing.observe(counts.announcing, now.monotonic);
        let doubt = match (nodes, announcing) {
            (Some(left), _) => Some((cluster.nodes.len(), self.nodes.believed(), left)),
            (None, Some(left)) => Some((counts.announcing, self.announcing.believed(), left)),
            (None, None) => None,
        };
        let mut evaluation =
            self.conclude(context, (evidence, Identities::Announced), exclusions, doubt, now);
        evaluation.report = self.objects.then(|| self.acknowledged.report(snapshot, now.monotonic));
        evaluation.cluster = Some(cluster);
        (evaluation, counts)
    }

    /// The names of the nodes that pods may come to.
    pub(crate) fn encrypting(
        &self,
        cluster: &ClusterState,
        ring: Option<&KeyRing>,
        now: Now,
    ) -> std::collections::BTreeSet<String> {
        self.acknowledged.encrypting(cluster.snapshot(ring), now.monotonic)
    }

    /// `doubt`: how many nodes there are, how many there were, and for how long that is not believed.
    fn conclude(
        &self,
        context: &Context,
        (evidence, identities): (Evidence, Identities),
        exclusions: Exclusions,
        doubt: Option<(usize, usize, Duration)>,
        now: Now,
    ) -> Evaluation {
        let settings = self.effective_settings(context);
        let (ring, clocks) = (context.ring.as_ref(), (now.monotonic, now.wall));
        let mut evaluation = Evaluation {
            times: schedule::times(&settings.rotation.schedule, ring, now.wall),
            pace: self.memory.pace(ring, settings.rotation.minimum_interval, self.limit, clocks),
            decision: Decision::wait(Duration::MAX, ""),
            cluster: None,
            report: None,
            history: self.history,
            now,
            settings,
            evidence,
            exclusions,
            identities,
        };
        let mut decision = decide(&evaluation.inputs(context));
        if let Some(doubt) = doubt.filter(|_| decision.action.requires_all_nodes()) {
            decision = Decision { wait: decision.wait, ..doubted(doubt) };
        }
        evaluation.decision = decision;
        evaluation
    }
}

fn doubted((nodes, before, left): (usize, usize, Duration)) -> Decision {
    let text = HumanDuration(Duration::from_secs(left.as_secs()));
    let reason = format!(
        "suddenly there are {nodes} nodes instead of {before}, which is not believed for another {text}"
    );
    Decision::wait(left, reason)
}
