//! What managers do: the product's controller in a shell as small as it can be. Between any two of its requests it may
//! be killed or stopped, and others may act.

use std::{collections::BTreeMap, convert::Infallible, rc::Rc, time::Duration};

use jiff::Timestamp;
use secureoverlay_keyring::{
    key_rotation::{KeyRotationSpec, KeyRotationStatus},
    keyring::{KeyRing, KeyRingError},
    uid::Uid,
};
use secureoverlay_manager_core::{
    controller::{Controller, ControllerOptions, Now, Outcome, Request, Write, WriteResult},
    operator::{ObjectReference, OperatorObjects, RotationObject},
    orphans::ObjectKind,
    rollout_mode::RolloutMode,
    snapshot::{ClusterState, SecretSnapshot},
};
use secureoverlay_rotation::{Action, History, Installation, NodeFacts, Object};

use crate::{
    Time,
    api::{Objects, Secret},
    variant::Variant,
    world::{Event, World},
};

/// How often a manager looks though nothing has changed.
const POLL: Duration = Duration::from_secs(30);
/// How often it compares a quorum read of the Secret with its watch.
const COMPARE: Duration = Duration::from_secs(60);

/// Something that happens to a manager's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManagerEvent {
    /// It takes a step, unless another one comes later.
    Step(u64),
    /// It compares quorum and cache.
    Compare,
}

/// A manager's process.
pub struct Manager {
    /// Tells it from the ones before it.
    pub pid: u64,
    /// Stopped until then.
    pub stopped_until: Time,
    /// Its lists show a minority of the Nodes until then.
    pub hides_until: Time,
    controller: Controller,
    answer: Option<Answer>,
    /// The ring that this evaluation has read.
    pub ring: Option<KeyRing>,
    /// Something came while it was at work.
    changed: bool,
    /// Which step counts.
    step: u64,
}

/// What a request came to, which arrives a little later.
enum Answer {
    Objects(Box<OperatorObjects>),
    Rotation(String),
    Secret(Box<SecretSnapshot>),
    DaemonSet(Installation),
    Cluster(Box<ClusterState>),
    Access,
    /// What is written arrives a little later, and its result at once.
    Write(Box<Write>),
}

impl World {
    fn options(&self) -> ControllerOptions {
        ControllerOptions {
            settings: Some(self.settings.clone()),
            objects: true,
            mode: RolloutMode::Acknowledged,
            delay: POLL,
            limit: self.scenario.limit,
            poll_interval: POLL,
            startup_taint: false,
        }
    }

    /// A manager starts.
    pub fn start_manager(&mut self, at: usize) {
        let pid = self.pid();
        let manager = Manager {
            pid,
            stopped_until: Time::ZERO,
            hides_until: Time::ZERO,
            controller: Controller::new(&self.options()),
            answer: None,
            ring: None,
            changed: false,
            step: 0,
        };
        while self.managers.len() <= at {
            self.managers.push(None);
        }
        if self.managers[at].is_some() {
            return;
        }
        self.managers[at] = Some(manager);
        self.tell(|| format!("manager {at} starts"));
        self.after(Duration::from_millis(600), Event::Manager(at, pid, ManagerEvent::Step(0)));
        self.after(COMPARE, Event::Manager(at, pid, ManagerEvent::Compare));
    }

    /// A manager is killed.
    pub fn end_manager(&mut self, at: usize) {
        if self.managers.get_mut(at).is_some_and(|manager| manager.take().is_some()) {
            self.tell(|| format!("manager {at} ends"));
        }
    }

    /// Other settings are wanted.
    pub fn settings_changed(&mut self) {
        let now = self.clocks().monotonic;
        let settings = self.settings.clone();
        for manager in self.managers.iter_mut().flatten() {
            manager.controller.handle_settings(Some(settings.clone()), now);
        }
        self.wake_managers();
    }

    /// Something changed that managers watch.
    pub fn wake_managers(&mut self) {
        for at in 0..self.managers.len() {
            let Some(manager) = &mut self.managers[at] else { continue };
            if !std::mem::replace(&mut manager.changed, true) && manager.answer.is_none() {
                let pause = self.rest(at);
                self.step_after(at, pause);
            }
        }
    }

    fn step_after(&mut self, at: usize, pause: Duration) {
        let Some(manager) = self.managers[at].as_mut() else { return };
        manager.step += 1;
        let (pid, step) = (manager.pid, manager.step);
        self.after(pause, Event::Manager(at, pid, ManagerEvent::Step(step)));
    }

    /// Something about a manager that may be dead, or stopped, by now.
    pub fn manager(&mut self, at: usize, pid: u64, event: ManagerEvent) {
        let Some(manager) = self.managers[at].as_mut().filter(|manager| manager.pid == pid) else { return };
        if manager.stopped_until > self.now {
            let until = manager.stopped_until;
            return self.at(until, Event::Manager(at, pid, event));
        }
        match event {
            ManagerEvent::Compare => {
                self.compare(at);
                self.after(COMPARE, Event::Manager(at, pid, ManagerEvent::Compare));
            }
            ManagerEvent::Step(step) if step == manager.step => self.step(at),
            ManagerEvent::Step(_) => {}
        }
    }

    fn compare(&mut self, at: usize) {
        let went_back = self.api.frozen.is_some();
        let history = if went_back { History::WentBack } else { History::Consistent };
        let now = self.clocks().monotonic;
        if let Some(manager) = &mut self.managers[at] {
            manager.controller.handle_history(history, now);
        }
    }

    /// Lists show that the history went back, and are believed.
    pub fn history_went_back(&mut self) {
        for manager in self.managers.iter_mut().flatten() {
            manager.controller.handle_history_went_back();
        }
        self.wake_managers();
    }

    fn step(&mut self, at: usize) {
        let Some(manager) = &mut self.managers[at] else { return };
        let pause = match manager.answer.take() {
            None => {
                manager.controller.handle_timeout();
                self.ask(at)
            }
            Some(answer) => self.hand_in(at, answer),
        };
        let slow = self.variant == Some(Variant::WriteUnconditionally);
        let more = if slow { self.rng.millis(0, 15_000) } else { Duration::ZERO };
        self.step_after(at, pause + more);
    }

    /// The clocks of a manager.
    fn clocks(&self) -> Now {
        Now { wall: self.wall(), monotonic: self.begun + self.now }
    }

    /// The wall clock.
    #[must_use]
    pub fn wall(&self) -> Timestamp {
        const BEGIN: i64 = 1_795_000_000;
        let seconds = BEGIN + i64::try_from(self.now.as_secs()).unwrap_or(0) + self.clock;
        Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// Carries out what the controller asks for; how long its answer takes.
    fn ask(&mut self, at: usize) -> Duration {
        let rng = &mut self.keys;
        let Some(manager) = &mut self.managers[at] else { return POLL };
        let request = manager.controller.poll_request(|bytes| {
            rng.fill(bytes);
            Ok::<_, Infallible>(())
        });
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                self.violate(6, format!("the manager makes a ring that is none: {error}"));
                return POLL;
            }
        };
        let Some(request) = request else { return self.rest(at) };
        let (answer, longest) = match request {
            Request::ReadObjects => {
                let rotations = self.api.cache().rotations.clone();
                (Answer::Objects(Box::new(OperatorObjects { encryption: None, rotations })), 1)
            }
            Request::CreateRotation { name } => (Answer::Rotation(name), 50),
            Request::CreateEncryption => {
                self.violate(6, "the manager makes settings though it was given some".to_owned());
                return POLL;
            }
            Request::ReadSecret => (Answer::Secret(Box::new(self.secret())), 50),
            Request::ReadDaemonSet => {
                let set = self.api.store.daemon_set;
                (Answer::DaemonSet(set.map_or(Installation::Absent, Installation::Present)), 50)
            }
            Request::CheckAccess => (Answer::Access, 50),
            Request::ReadCache => (Answer::Cluster(Box::new(self.cluster(at, self.api.cache()))), 1),
            Request::ListCluster => (Answer::Cluster(Box::new(self.cluster(at, &self.api.store))), 200),
            Request::Write(write) => (Answer::Write(write), 50),
        };
        if let Some(manager) = &mut self.managers[at] {
            manager.answer = Some(answer);
        }
        self.rng.millis(1, longest)
    }

    /// Hands in what the controller asked for, and goes on.
    fn hand_in(&mut self, at: usize, answer: Answer) -> Duration {
        let now = self.clocks();
        if let Answer::Write(mut write) = answer {
            if let Some(variant) = self.variant {
                let before = self.managers[at].as_ref().and_then(|manager| manager.ring.clone());
                variant.miswrite(&mut write, before.as_ref());
            }
            let result = self.write_ring(&write);
            if let Some(manager) = &mut self.managers[at] {
                manager.controller.handle_written(result, now);
            }
        } else if let Answer::Rotation(name) = answer {
            // One in ten is refused: the rotation goes on without it.
            let object = (!self.rng.permille(100)).then(|| self.rotation(name, false));
            let made = object.map(|object| self.api.create_rotation(object));
            if let Some(manager) = &mut self.managers[at] {
                manager.controller.handle_rotation_created(made);
            }
        } else {
            let variant = self.variant;
            let Some(manager) = &mut self.managers[at] else { return POLL };
            match answer {
                Answer::Secret(secret) => {
                    manager.ring = secret.ring.as_ref().ok().cloned();
                    if manager.controller.handle_secret(*secret, now).is_err() {
                        return POLL;
                    }
                }
                Answer::DaemonSet(installation) => manager.controller.handle_daemon_set(installation, now),
                Answer::Access => manager.controller.handle_access(true, now),
                Answer::Cluster(mut cluster) => {
                    if let Some(variant) = variant {
                        variant.mishear(&mut cluster, manager.ring.as_ref());
                    }
                    manager.controller.handle_cluster(*cluster, now);
                }
                Answer::Objects(objects) => manager.controller.handle_objects(*objects),
                Answer::Write(_) | Answer::Rotation(_) => {}
            }
        }
        let pause = self.ask(at);
        self.delete_orphans(at);
        while let Some(write) =
            self.managers[at].as_mut().and_then(|manager| manager.controller.poll_object_write())
        {
            self.api.write_object(write);
        }
        if let Some(manager) = &mut self.managers[at] {
            while manager.controller.poll_notification().is_some() {}
            while manager.controller.poll_taint_removal().is_some() {}
        }
        pause
    }

    fn delete_orphans(&mut self, at: usize) {
        while let Some(orphan) =
            self.managers[at].as_mut().and_then(|manager| manager.controller.poll_deletion())
        {
            if self.api.store.nodes.contains_key(&orphan.name) {
                continue;
            }
            match orphan.kind {
                ObjectKind::EncryptionPeer
                    if self.api.store.peers.get(&orphan.name).is_some_and(|peer| peer.uid == orphan.uid) =>
                {
                    self.api.next("EncryptionPeer");
                    self.api.put_peer(&orphan.name, None);
                    self.wake_watches();
                }
                ObjectKind::NodeEncryption
                    if self.api.store.acks.get(&orphan.name).is_some_and(|ack| ack.uid == orphan.uid) =>
                {
                    self.api.next("NodeEncryption");
                    self.api.store.acks.remove(&orphan.name);
                }
                _ => {}
            }
        }
    }

    /// Until the controller's deadline, which comes sooner when something has changed.
    fn rest(&mut self, at: usize) -> Duration {
        let now = self.clocks().monotonic;
        let Some(manager) = &mut self.managers[at] else { return POLL };
        if std::mem::take(&mut manager.changed) {
            manager.controller.handle_change(now);
        }
        match (manager.controller.outcome().cloned(), manager.controller.poll_timeout()) {
            (Some(Outcome::Conflict), _) => self.rng.millis(200, 1000),
            (_, Some(deadline)) => deadline.saturating_duration_since(now).max(Duration::from_millis(50)),
            (Some(_), None) => Duration::from_millis(50),
            (None, None) => Duration::from_secs(1),
        }
    }

    /// What the manager waits for.
    #[must_use]
    pub fn manager_says(&self) -> String {
        let manager = self.managers.first().and_then(Option::as_ref);
        match manager.and_then(|manager| manager.controller.outcome()) {
            Some(Outcome::Waiting { reason, wait, .. }) => format!("{reason} {wait:?}"),
            other => format!("{other:?}"),
        }
    }

    fn secret(&self) -> SecretSnapshot {
        let secret = self.api.store.secret.as_ref();
        let document = secret.and_then(|secret| secret.document.as_ref());
        SecretSnapshot {
            uid: secret.map(|secret| secret.uid.to_string()),
            resource_version: secret.map(|secret| secret.version.to_string()),
            ring: document.map_or(Err(KeyRingError::Empty), |document| KeyRing::parse(document)),
            rotate: false,
        }
    }

    fn rotation(&mut self, name: String, skip_unresponsive: bool) -> RotationObject {
        RotationObject {
            reference: ObjectReference { name, uid: self.rng.uid() },
            resource_version: String::new(),
            created: Some(self.wall()),
            spec: KeyRotationSpec { skip_unresponsive },
            status: KeyRotationStatus::default(),
        }
    }

    /// An operator makes a KeyRotation.
    pub fn ask_for_rotation(&mut self) {
        let object = self.rotation(format!("asked-{}", self.now.as_millis()), false);
        self.api.create_rotation(object);
        self.wake_managers();
    }

    /// An operator lets the rotations that are not finished go on without nodes that do not respond.
    pub fn skip_unresponsive(&mut self) {
        for at in 0..self.api.store.rotations.len() {
            if !self.api.store.rotations[at].status.is_finished() {
                let version = self.api.next("KeyRotation").to_string();
                let object = &mut self.api.store.rotations[at];
                (object.spec.skip_unresponsive, object.resource_version) = (true, version);
            }
        }
        self.wake_managers();
    }

    fn cluster(&self, at: usize, objects: &Objects) -> ClusterState {
        let hides = self.managers[at].as_ref().is_some_and(|manager| manager.hides_until > self.now);
        let shown = if hides { objects.nodes.len().div_ceil(3) } else { usize::MAX };
        let time = |seconds: i64| Timestamp::from_second(seconds).ok();
        let nodes = objects.nodes.iter().take(shown).map(|(name, node)| NodeFacts {
            name: name.clone(),
            uid: Some(node.uid),
            ready: node.ready,
            excluded: node.excluded,
            linux: true,
            addresses: [node.address].into(),
        });
        let peers = objects.peers.iter().map(|(name, peer)| {
            let content = Some(peer.spec.clone());
            (name.clone(), Object { uid: Some(peer.uid), created: time(peer.created), content })
        });
        let acks = objects.acks.iter().map(|(name, object)| {
            let content = Some(object.ack.clone());
            (name.clone(), Object { uid: Some(object.uid), created: None, content })
        });
        let ready = objects.nodes.iter().filter(|(_, node)| node.pod_ready);
        ClusterState {
            nodes: nodes.collect(),
            peers: peers.collect(),
            acks: acks.collect::<BTreeMap<_, _>>(),
            ready_pods: ready.map(|(name, _)| name.clone()).collect(),
            covered: std::collections::BTreeSet::new(),
            tainted: std::collections::BTreeSet::new(),
        }
    }

    fn write_ring(&mut self, write: &Write) -> WriteResult {
        let there = self.api.store.secret.clone();
        let version = there.as_ref().map(|secret| secret.version.to_string());
        if version != write.resource_version && self.variant != Some(Variant::WriteUnconditionally) {
            return WriteResult::Conflict;
        }
        let document: Rc<[u8]> = Rc::from(write.ring.to_yaml().as_bytes());
        let secret = Secret {
            uid: there.map_or_else(|| self.rng.uid(), |secret| secret.uid),
            version: 0,
            document: Some(document),
        };
        let mut unfinished = self.api.store.rotations.iter().filter(|object| !object.status.is_finished());
        let skip = unfinished.any(|object| object.spec.skip_unresponsive);
        self.skipped |= skip && matches!(write.action, Action::Activate | Action::RemoveRetired);
        let short = |uid: &Uid| uid.as_str()[..4].to_owned();
        let line = format!(
            "manager writes revision {}: {:?}: {} {:?} {:?}, ackId {}",
            write.ring.revision,
            write.action,
            write.ring.phase().name(),
            write.ring.enforcement,
            write
                .ring
                .generations
                .iter()
                .map(|found| (found.id, short(&found.uid), found.role))
                .collect::<Vec<_>>(),
            short(&write.ring.ack_id),
        );
        self.tell(|| line);
        *self.tally.actions.entry(format!("{:?}", write.action)).or_default() += 1;
        self.tally.rotations += u64::from(write.action == Action::RemoveRetired);
        self.api.put_secret(Some(secret));
        self.wake_watches();
        WriteResult::Written
    }
}
