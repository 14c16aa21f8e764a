//! What one look at the cluster comes to.

use std::{collections::BTreeSet, time::Duration};

use secureoverlay_common::{
    duration::Human,
    phase::Phase,
    ring::Ring,
    rotation::{
        AckTracker, Action, Decision, DelayTracker, EnforcementGoal, Evidence, Installation, NodeCounts,
        Settings, decide,
    },
    suite::Suite,
    uid::Uid,
};

use crate::{
    controller::{ControllerOptions, Now},
    node_count_guard::NodeCountGuard,
    schedule::Schedule,
    snapshot::{ClusterState, OperatorRequests, SecretSnapshot},
};

/// The Secret and the DaemonSet that an evaluation is about.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    pub(crate) ring: Option<Ring>,
    pub(crate) requests: OperatorRequests,
    pub(crate) installation: Installation,
}

impl Context {
    pub(crate) fn new(secret: SecretSnapshot, ring: Option<Ring>) -> Self {
        let SecretSnapshot { uid, resource_version, requests, .. } = secret;
        Self { uid, resource_version, ring, requests, installation: Installation::Unknown }
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
}

impl Evaluation {
    /// The names of some nodes.
    pub(crate) fn names(&self, which: impl Fn(&Uid) -> bool) -> BTreeSet<String> {
        self.cluster.as_ref().map_or_else(BTreeSet::new, |cluster| cluster.names(which))
    }
}

/// Evaluates, and remembers since when what is so.
#[derive(Debug)]
pub(crate) struct Evaluator {
    schedule: Schedule,
    suite: Suite,
    goal: EnforcementGoal,
    timed: DelayTracker,
    acknowledged: AckTracker,
    guard: NodeCountGuard,
}

impl Evaluator {
    pub(crate) fn new(options: &ControllerOptions) -> Self {
        Self {
            schedule: options.schedule.clone(),
            suite: options.suite,
            goal: options.goal,
            timed: DelayTracker::new(options.delay),
            acknowledged: AckTracker::new(options.limit),
            guard: NodeCountGuard::default(),
        }
    }

    /// Nodes have nothing to read, nothing that they can, or something else from now on: whatever they were given time
    /// for starts again.
    pub(crate) fn forget(&mut self, now: Now) {
        self.timed.observe(None, now.monotonic);
        self.acknowledged.observe(ClusterState::default().snapshot(None, false), now.monotonic);
    }

    /// The incarnations that were asked for were written.
    pub(crate) fn rekeyed(&mut self, now: Now) {
        self.acknowledged.rekeyed(now.monotonic);
    }

    pub(crate) fn settings(&self, ring: Option<&Ring>, now: Now, requests: OperatorRequests) -> Settings {
        let goal = requests.enforce.map_or(self.goal, EnforcementGoal::from);
        Settings { schedule: self.schedule.for_ring(ring, now.wall), suite: self.suite, goal }
    }

    /// By time alone.
    pub(crate) fn by_time(&mut self, context: &Context, now: Now) -> Evaluation {
        let evidence = self.timed.observe(context.ring.as_ref(), now.monotonic);
        self.conclude(context, evidence, None, None, now)
    }

    /// By what the nodes say.
    pub(crate) fn by_acknowledgements(
        &mut self,
        context: &Context,
        cluster: ClusterState,
        now: Now,
    ) -> (Evaluation, NodeCounts) {
        let snapshot = cluster.snapshot(context.ring.as_ref(), context.requests.press_on);
        let counts = snapshot.counts();
        let doubt = self.guard.observe(cluster.nodes.len(), now.monotonic);
        let evidence = self.acknowledged.observe(snapshot, now.monotonic);
        (self.conclude(context, evidence, Some(cluster), doubt, now), counts)
    }

    fn conclude(
        &self,
        context: &Context,
        mut evidence: Evidence,
        cluster: Option<ClusterState>,
        doubt: Option<Duration>,
        now: Now,
    ) -> Evaluation {
        if context.requests.rotate {
            evidence.requested = Some("somebody asked for it by an annotation of the Secret".to_owned());
        }
        let ring = context.ring.as_ref();
        let settings = self.settings(ring, now, context.requests);
        let mut decision = decide(ring, context.installation, &evidence, now.wall, &settings);
        if let Some(left) = doubt.filter(|_| decision.action.requires_all_nodes()) {
            let nodes = cluster.as_ref().map_or(0, |cluster| cluster.nodes.len());
            decision = Decision { wait: decision.wait, ..self.doubted(nodes, left) };
        }
        Evaluation { now, settings, evidence, cluster, decision }
    }

    fn doubted(&self, nodes: usize, left: Duration) -> Decision {
        let (before, text) = (self.guard.believed(), Human(Duration::from_secs(left.as_secs())));
        Decision {
            action: Action::Wait,
            wake_in: left,
            reason: format!(
                "suddenly there are {nodes} Nodes instead of {before}, which is not believed for another {text}"
            ),
            cause: None,
            wait: None,
        }
    }
}

/// The requests that a write answers.
pub(crate) fn answered(action: Action, requests: OperatorRequests, next: &Ring) -> OperatorRequests {
    // A leftover request to press on was not meant for a later rotation that comes by itself.
    let unasked = action == Action::Stage && !requests.rotate;
    let ends = matches!(action, Action::RemoveRetired | Action::Disable | Action::ENFORCE)
        || unasked
        || (action == Action::Activate && matches!(next.phase(), Phase::Steady { .. }));
    let rotate = matches!(action, Action::Bootstrap | Action::Stage);
    OperatorRequests { rotate, press_on: ends, enforce: None }
}
