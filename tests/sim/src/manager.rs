//! What managers do: the product's controller in a shell as small as `manager/src/driver.rs` leaves it. Between any two
//! of its requests it may be killed or stopped, and others may act.

use std::{collections::BTreeMap, time::Duration};

use secureoverlay_common::{
    acknowledgement::Acknowledgement,
    node::NodeFacts,
    ring::{Ring, RingError},
    rotation::{EnforcementGoal, Installation},
    suite::Suite,
};
use secureoverlay_manager_core::{
    controller::{Controller, ControllerOptions, Now, Outcome, Request, Write},
    rollout_mode::RolloutMode,
    schedule::Schedule,
    snapshot::{ClusterState, OperatorRequests, SecretSnapshot},
};

use crate::{
    Time,
    api::{Change, What, Who},
    fault::Scenario,
    variant::Variant,
    world::{Event, Luck, World},
};

/// How often a manager looks though nothing has changed.
const POLL: Duration = Duration::from_secs(30);

/// A manager's process.
pub struct Manager {
    /// It has not been killed.
    pub alive: bool,
    /// Tells its present steps from those of a former life.
    pub pid: u64,
    /// Stopped until then.
    pub stopped_until: Time,
    /// Its lists show a minority of the Nodes until then.
    pub hides_until: Time,
    /// It has seen how many Nodes there are.
    pub counted: bool,
    nodes: Option<BTreeMap<String, NodeFacts>>,
    said: Option<BTreeMap<String, Acknowledgement>>,
    /// The decisions.
    controller: Controller,
    answer: Option<Answer>,
    /// The ring that this evaluation has read, and the cluster that it has seen last.
    pub(crate) seen: (Option<Ring>, ClusterState),
    /// Something came while it was at work.
    changed: bool,
    /// How far its clock is ahead, where the variant has it so.
    pub(crate) ahead: Duration,
    /// When it takes its next step.
    next: Time,
}

/// What a request came to, which arrives a little later.
enum Answer {
    Secret(SecretSnapshot),
    DaemonSet(Installation),
    Cluster(ClusterState),
    Access,
    /// What is written arrives a little later, and its result at once.
    Write(Write),
}

fn options(scenario: &Scenario, hurried: bool) -> ControllerOptions {
    ControllerOptions {
        schedule: Schedule::Every(scenario.interval),
        suite: Suite::Aes128Gcm8,
        goal: EnforcementGoal::Auto,
        mode: RolloutMode::Auto,
        delay: scenario.timed.map_or(POLL, |delay| if hurried { delay / 60 } else { delay }),
        limit: scenario.limit,
        poll_interval: POLL,
        startup_taint: true,
    }
}

impl World {
    /// A manager starts.
    pub fn start_manager(&mut self) {
        let (at, pid) = (self.managers.len(), self.pid());
        self.managers.push(Manager {
            alive: true,
            pid,
            stopped_until: Time::ZERO,
            hides_until: Time::ZERO,
            counted: false,
            nodes: None,
            said: None,
            controller: Controller::new(&options(&self.scenario, self.variant == Some(Variant::HurryTimed))),
            answer: None,
            seen: (None, ClusterState::default()),
            changed: false,
            ahead: Duration::ZERO,
            next: self.now,
        });
        self.tell(|| format!("manager {at} starts"));
        for what in [What::Nodes, What::Said] {
            let pause = self.luck(Luck::Manager(at)).millis(10, 500);
            self.after(pause, Event::Connect(Who::Manager(at), what));
        }
        self.after(Duration::from_millis(600), Event::Manage(at, pid));
    }

    /// A manager is killed.
    pub fn end_manager(&mut self, at: usize) {
        if std::mem::take(&mut self.managers[at].alive) {
            self.tell(|| format!("manager {at} ends"));
        }
        for what in [What::Nodes, What::Said] {
            self.streams.remove(&(Who::Manager(at), what));
        }
    }

    /// Something came on one of a manager's watches.
    pub fn manager_hears(&mut self, at: usize, change: Change) {
        let manager = &mut self.managers[at];
        match (change, &mut manager.nodes, &mut manager.said) {
            (Change::Nodes(list), ..) => {
                manager.nodes = Some(list.into_iter().map(|node| (node.name.clone(), node)).collect());
            }
            (Change::AllSaid(all), ..) => manager.said = Some(all),
            (Change::Node(node), Some(nodes), _) => drop(nodes.insert(node.name.clone(), node)),
            (Change::NodeGone(name), Some(nodes), _) => drop(nodes.remove(&name)),
            (Change::Said(name, Some(said)), _, Some(all)) => drop(all.insert(name, said)),
            (Change::Said(name, None), _, Some(all)) => drop(all.remove(&name)),
            _ => {}
        }
        manager.changed = true;
        if manager.answer.is_none() {
            let pause = self.rest(at);
            self.manage_after(at, pause);
        }
    }

    fn manage_after(&mut self, at: usize, pause: Duration) {
        let next = self.now + pause;
        let manager = &mut self.managers[at];
        if manager.next <= self.now || next < manager.next {
            manager.next = next;
            let pid = manager.pid;
            self.at(next, Event::Manage(at, pid));
        }
    }

    /// A step of an evaluation.
    pub fn manage(&mut self, at: usize, pid: u64) {
        let manager = &self.managers[at];
        if !manager.alive || manager.pid != pid {
            return;
        }
        if manager.stopped_until > self.now {
            return self.at(manager.stopped_until, Event::Manage(at, pid));
        }
        if manager.next > self.now {
            return;
        }
        let pause = match self.managers[at].answer.take() {
            None => {
                self.managers[at].controller.handle_timeout();
                self.ask(at)
            }
            Some(answer) => self.hand_in(at, answer),
        };
        // One that does not care what was written meanwhile is given a meanwhile.
        let slow = self.variant == Some(Variant::WriteUnconditionally);
        let more = if slow { self.luck(Luck::Manager(at)).millis(0, 15_000) } else { Duration::ZERO };
        self.manage_after(at, pause + more);
    }

    /// The clocks of a manager.
    fn clocks(&self, at: usize) -> Now {
        Now { wall: self.wall(), monotonic: self.instant() + self.managers[at].ahead }
    }

    /// Carries out what the controller asks for; how long its answer takes.
    fn ask(&mut self, at: usize) -> Duration {
        let mut keys = self.luck(Luck::Keys).clone();
        let request = self.managers[at].controller.poll_request(|bytes| {
            keys.fill(bytes);
            Ok::<_, std::convert::Infallible>(())
        });
        *self.luck(Luck::Keys) = keys;
        let Ok(request) = request;
        let Some(request) = request else { return self.rest(at) };
        let (answer, longest) = match request {
            Request::ReadSecret => (self.secret().map(Answer::Secret), 50),
            Request::ReadDaemonSet => (Some(Answer::DaemonSet(self.installation())), 50),
            Request::CheckAccess => (Some(Answer::Access), 50),
            Request::ReadCache => (self.cache(at).map(Answer::Cluster), 1),
            Request::ListCluster => (Some(Answer::Cluster(self.list(at))), 200),
            Request::Write(write) => (Some(Answer::Write(write)), 50),
        };
        if answer.is_none() {
            self.managers[at].controller.handle_failure();
            return Duration::from_secs(1);
        }
        self.managers[at].answer = answer;
        self.luck(Luck::Manager(at)).millis(1, longest)
    }

    /// Hands in what the controller asked for, and goes on.
    fn hand_in(&mut self, at: usize, answer: Answer) -> Duration {
        let now = self.clocks(at);
        match answer {
            Answer::Secret(secret) => {
                self.managers[at].seen.0 = secret.ring.as_ref().ok().cloned();
                if self.managers[at].controller.handle_secret(secret, now).is_err() {
                    return POLL;
                }
            }
            Answer::DaemonSet(installation) => {
                self.managers[at].controller.handle_daemon_set(installation, now);
            }
            Answer::Access => {
                let granted = self.scenario.timed.is_none();
                self.managers[at].controller.handle_access(granted, now);
            }
            Answer::Cluster(cluster) => {
                self.managers[at].counted |= self.managers[at].hides_until <= self.now;
                self.managers[at].seen.1 = cluster.clone();
                let cluster = self.mistake(at, cluster);
                self.managers[at].controller.handle_cluster(cluster, now);
            }
            Answer::Write(write) => {
                let result = self.write(at, &write);
                self.managers[at].controller.handle_written(result, now);
            }
        }
        let pause = self.ask(at);
        while let Some(node) = self.managers[at].controller.poll_taint_removal() {
            self.remove_taint(&node);
        }
        while self.managers[at].controller.poll_notification().is_some() {}
        pause
    }

    /// Until the controller's deadline, which comes sooner when something has changed.
    fn rest(&mut self, at: usize) -> Duration {
        let now = self.clocks(at).monotonic;
        let manager = &mut self.managers[at];
        if std::mem::take(&mut manager.changed) {
            manager.controller.handle_change(now);
        }
        match (manager.controller.outcome().cloned(), manager.controller.poll_timeout()) {
            (Some(Outcome::Conflict), _) => self.luck(Luck::Manager(at)).millis(200, 1000),
            (_, Some(deadline)) => deadline.saturating_duration_since(now).max(Duration::from_millis(50)),
            (Some(_), None) => Duration::from_millis(50),
            (None, None) => Duration::from_secs(1),
        }
    }

    fn secret(&self) -> Option<SecretSnapshot> {
        let (secret, version) = self.objects.secret.as_ref()?;
        let ring = secret.document.as_deref().map_or(Err(RingError::Empty), Ring::parse);
        Some(SecretSnapshot {
            uid: Some(secret.uid.as_str().to_owned()),
            resource_version: Some(version.to_string()),
            ring,
            requests: OperatorRequests {
                press_on: secret.requests.press_on || self.variant == Some(Variant::PressUnasked),
                ..secret.requests
            },
        })
    }

    fn installation(&self) -> Installation {
        self.objects.daemon_set.map_or(Installation::Absent, |set| Installation::Present(set.uid))
    }

    /// What the watches have brought, once they have.
    fn cache(&self, at: usize) -> Option<ClusterState> {
        let manager = &self.managers[at];
        let nodes = manager.nodes.as_ref()?.values().cloned().collect();
        Some(self.snapshot(at, nodes, manager.said.clone()?))
    }

    fn list(&self, at: usize) -> ClusterState {
        self.snapshot(at, self.objects.nodes.values().cloned().collect(), self.objects.said())
    }

    fn snapshot(
        &self,
        at: usize,
        mut nodes: Vec<NodeFacts>,
        acknowledgements: BTreeMap<String, Acknowledgement>,
    ) -> ClusterState {
        if self.managers[at].hides_until > self.now {
            nodes.truncate(nodes.len().saturating_sub(1) / 2);
        }
        let nodes = nodes.into_iter().map(|node| self.node_of(node)).collect();
        let tainted = self.machines.iter().filter(|machine| machine.tainted);
        let tainted = tainted.map(|machine| machine.name.clone()).collect();
        ClusterState { nodes, acknowledgements, awaited: BTreeMap::new(), tainted }
    }

    /// What this world's variant takes a snapshot for.
    fn mistake(&mut self, at: usize, mut cluster: ClusterState) -> ClusterState {
        if let Some(variant) = self.variant {
            let all: Vec<NodeFacts> =
                self.objects.nodes.values().cloned().map(|node| self.node_of(node)).collect();
            let manager = &mut self.managers[at];
            variant.mishear(&mut cluster, manager.seen.0.as_ref(), &self.numbers, &all);
            manager.ahead += variant.hurries(&cluster, manager.seen.0.as_ref());
        }
        cluster
    }

    fn remove_taint(&mut self, node: &str) {
        if let Some(machine) = self.machines.iter_mut().find(|machine| machine.name == node) {
            machine.tainted = false;
        }
    }
}
