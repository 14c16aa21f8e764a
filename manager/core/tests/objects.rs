//! What operators ask for by objects, and what is told in their status.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    time::{Duration, Instant},
};

use jiff::SignedDuration;
use secureoverlay_keyring::{
    acknowledgement::Acknowledgement,
    cluster_encryption::{ClusterEncryptionSpec, ClusterEncryptionStatus},
    condition::ConditionStatus,
    key_rotation::{COMPLETE, FAILED, KeyRotationSpec, KeyRotationStatus},
    keyring::{Enforcement, KeyRing, KeyRingError, Role},
    node_key::PublicKey,
    peer::{EncryptionPeerSpec, Sender},
    settings::{EnforcementGoal, RotationSettings, Settings},
    suite::Suite,
    uid::Uid,
};
use secureoverlay_manager_core::{
    controller::{Controller, ControllerOptions, Now, Outcome, Request, WriteResult},
    notification::Notification,
    operator::{EncryptionObject, ObjectReference, ObjectWrite, OperatorObjects, RotationObject},
    rollout_mode::RolloutMode,
    snapshot::{ClusterState, SecretSnapshot},
};
use secureoverlay_rotation::{Action, Installation, NodeFacts, Object};

const LIMIT: Duration = Duration::from_secs(3600);
const MINIMUM: Duration = Duration::from_secs(300);
const NODES: [u8; 2] = [1, 2];

fn uid(n: u8) -> Uid {
    Uid::from_random([n; 16])
}

/// A cluster of nodes that follow, and an API server that keeps what is written.
struct Bench {
    controller: Controller,
    now: Now,
    ring: Option<KeyRing>,
    version: u64,
    objects: OperatorObjects,
    /// Nodes that acknowledge.
    follow: BTreeSet<u8>,
    /// Nodes that acknowledge nothing.
    silent: BTreeSet<u8>,
    may_create: bool,
    drawn: u8,
    actions: Vec<Action>,
    deleted: Vec<(String, u64)>,
    writes: usize,
}

impl Bench {
    fn new() -> Self {
        let options = ControllerOptions {
            settings: None,
            objects: true,
            mode: RolloutMode::Acknowledged,
            delay: Duration::from_secs(180),
            limit: LIMIT,
            poll_interval: Duration::from_secs(2),
            startup_taint: false,
        };
        Self {
            controller: Controller::new(&options),
            now: Now { wall: "2026-11-20T03:00:00Z".parse().unwrap(), monotonic: Instant::now() },
            ring: None,
            version: 1,
            objects: OperatorObjects::default(),
            follow: NODES.into(),
            silent: BTreeSet::new(),
            may_create: true,
            drawn: 0,
            actions: Vec::new(),
            deleted: Vec::new(),
            writes: 0,
        }
    }

    /// One with a first key, at rest.
    fn ready() -> Self {
        let mut bench = Self::new();
        bench.settle();
        bench.actions.clear();
        bench
    }

    fn advance(&mut self, by: Duration) {
        self.now.monotonic += by;
        self.now.wall += SignedDuration::try_from(by).unwrap();
    }

    fn edit(&mut self, settings: Result<Settings, String>) {
        let encryption = self.objects.encryption.as_mut().unwrap();
        encryption.settings = settings;
        encryption.generation = encryption.generation.map(|generation| generation + 1);
    }

    fn ask(&mut self, name: &str, skip_unresponsive: bool) {
        let object = self.object(name, skip_unresponsive);
        self.objects.rotations.push(object);
    }

    fn object(&mut self, name: &str, skip_unresponsive: bool) -> RotationObject {
        self.drawn += 1;
        RotationObject {
            reference: ObjectReference { name: name.to_owned(), uid: uid(self.drawn) },
            resource_version: "1".to_owned(),
            created: Some(self.now.wall),
            spec: KeyRotationSpec { skip_unresponsive },
            status: KeyRotationStatus::default(),
        }
    }

    fn rotation(&self, name: &str) -> &KeyRotationStatus {
        let mut all = self.objects.rotations.iter();
        &all.find(|object| object.reference.name == name).unwrap_or_else(|| panic!("no {name}")).status
    }

    fn reason(&self, name: &str) -> &str {
        &self.rotation(name).condition(COMPLETE).unwrap().reason
    }

    fn status(&self) -> &ClusterEncryptionStatus {
        &self.objects.encryption.as_ref().unwrap().status
    }

    fn condition(&self, kind: &str) -> (ConditionStatus, &str) {
        let condition = self.status().conditions.iter().find(|it| it.r#type == kind).unwrap();
        (condition.status, condition.reason.as_str())
    }

    fn cluster(&self) -> ClusterState {
        let Some(ring) = &self.ring else { return ClusterState::default() };
        let mut state = ClusterState::default();
        for n in NODES {
            let name = format!("n{n}");
            let address = format!("192.0.2.{n}").parse().unwrap();
            state.nodes.push(NodeFacts {
                name: name.clone(),
                uid: Some(uid(100 + n)),
                ready: true,
                excluded: false,
                linux: true,
                addresses: [address].into(),
            });
            let public_key = PublicKey::try_from([n; 32]).unwrap();
            let sender = Sender { instance: uid(n).into(), address, public_key };
            let spec = EncryptionPeerSpec {
                node_uid: uid(100 + n),
                senders: vec![sender],
                pod_networks: BTreeSet::new(),
            };
            state
                .peers
                .insert(name.clone(), Object { uid: Some(uid(200)), created: None, content: Some(spec) });
            let active = ring.active().map(|active| active.uid);
            let ack = Acknowledgement {
                ack_id: if self.follow.contains(&n) { ring.ack_id } else { uid(99) },
                node_uid: uid(100 + n),
                instance: uid(n).into(),
                receivable: ring.generations.iter().map(|generation| generation.uid).collect(),
                proven_generations: BTreeSet::new(),
                active_generation: active,
                sends_none: active.is_none(),
                all_pairs_proven: true,
                exhausted_generations: BTreeSet::new(),
                highest_generation_seen: ring.highest_id(),
                enforcement: ring.enforcement,
                enforcement_blockers: BTreeSet::new(),
                unproven_pairs: Vec::new(),
                tunnel_mtu_too_large: false,
                unknown_gateways: Default::default(),
                no_peers: false,
            };
            let content = Some(ack).filter(|_| !self.silent.contains(&n));
            state.acks.insert(name.clone(), Object { uid: None, created: None, content });
            state.covered.insert(name.clone());
            state.ready_pods.insert(name);
        }
        state
    }

    /// One evaluation; the action that was written.
    fn evaluate(&mut self) -> Option<Action> {
        let mut done = None;
        self.controller.handle_timeout();
        loop {
            let (mut seed, version) = (self.drawn, self.version);
            let request = self.controller.poll_request(|bytes| {
                seed = seed.wrapping_add(17);
                bytes.fill(seed);
                bytes[0] = version.to_le_bytes()[0];
                Ok::<_, Infallible>(())
            });
            self.drawn = self.drawn.wrapping_add(1).max(1);
            let Some(request) = request.unwrap() else { break };
            match request {
                Request::ReadObjects => self.controller.handle_objects(self.objects.clone()),
                Request::CreateEncryption => {
                    self.objects.encryption = Some(EncryptionObject {
                        uid: Some(uid(77)),
                        resource_version: "1".to_owned(),
                        generation: Some(1),
                        settings: ClusterEncryptionSpec::default().settings(),
                        status: ClusterEncryptionStatus::default(),
                    });
                    self.controller.handle_encryption_created(self.now);
                }
                Request::CreateRotation { name } => {
                    let object = self.may_create.then(|| self.object(&name, false));
                    self.objects.rotations.extend(object.clone());
                    self.controller.handle_rotation_created(object);
                }
                Request::ReadSecret => {
                    let secret = SecretSnapshot {
                        uid: Some("a".to_owned()),
                        resource_version: Some(self.version.to_string()),
                        ring: self.ring.clone().ok_or(KeyRingError::Empty),
                        rotate: true, // Must not count.
                    };
                    self.controller.handle_secret(secret, self.now).unwrap();
                }
                Request::ReadDaemonSet => {
                    self.controller.handle_daemon_set(Installation::Present(uid(90)), self.now);
                }
                Request::CheckAccess => panic!("nodes acknowledge here"),
                Request::ReadCache | Request::ListCluster => {
                    self.controller.handle_cluster(self.cluster(), self.now);
                }
                Request::Write(write) => {
                    (self.ring, self.version) = (Some(write.ring), self.version + 1);
                    self.controller.handle_written(WriteResult::Written, self.now);
                    done = Some(write.action);
                }
            }
        }
        while let Some(write) = self.controller.poll_object_write() {
            self.writes += 1;
            self.carry_out(write);
        }
        while let Some(told) = self.controller.poll_notification() {
            if let Notification::RotationDeleted { rotation, generation } = told {
                self.deleted.push((rotation.name, generation));
            }
        }
        self.actions.extend(done);
        done
    }

    fn carry_out(&mut self, write: ObjectWrite) {
        match write {
            ObjectWrite::EncryptionStatus { status, .. } => {
                self.objects.encryption.as_mut().unwrap().status = *status;
            }
            ObjectWrite::RotationStatus { rotation, status, .. } => {
                let mut all = self.objects.rotations.iter_mut();
                all.find(|object| object.reference == rotation).unwrap().status = *status;
            }
            ObjectWrite::DeleteRotation(rotation) => {
                self.objects.rotations.retain(|object| object.reference != rotation);
            }
        }
    }

    /// Evaluates every two seconds for a while, or for as long as it takes until nothing but time is waited for.
    fn run(&mut self, time: Duration) {
        for _ in 0..time.as_secs().div_ceil(2) {
            while self.evaluate().is_some() {}
            self.advance(Duration::from_secs(2));
        }
    }

    fn settle(&mut self) {
        self.run(Duration::from_secs(30));
    }
}

#[test]
fn manager_makes_the_settings_where_there_are_none_and_no_ring() {
    let mut bench = Bench::new();
    assert_eq!(bench.evaluate(), None);
    assert!(bench.objects.encryption.is_some(), "before the first key");
    bench.settle();
    assert_eq!(bench.actions, [Action::Bootstrap, Action::Activate, Action::ENFORCE]);
    use ConditionStatus::{False, True};
    for (kind, expected) in [
        ("Ready", (True, "PlaintextRefused")),
        ("Reconciling", (False, "Settled")),
        ("Stalled", (False, "NotStalled")),
        ("Encrypted", (True, "AllPairsEncrypted")),
        ("Enforced", (True, "PlaintextRefused")),
        ("ESPReachable", (True, "AllAnswered")),
        ("CoverageComplete", (True, "NoBypassFound")),
    ] {
        assert_eq!(bench.condition(kind), expected, "{kind}");
    }
    let status = bench.status();
    assert_eq!((status.observed_generation, status.enforcement.as_str()), (Some(1), "enforcing"));
    assert!(status.active_key.is_some() && status.next_rotation_time.is_some());
    let nodes = status.nodes.unwrap();
    assert_eq!((nodes.total, nodes.encrypting, nodes.enforcing, nodes.plaintext), (2, 2, 2, 0));
    let first = &bench.objects.rotations[0];
    assert!(first.reference.name.starts_with("first-") && first.status.holds(COMPLETE), "{first:?}");
}

#[test]
fn nothing_is_written_while_nothing_happens() {
    let mut bench = Bench::ready();
    bench.writes = 0;
    bench.run(Duration::from_secs(3600));
    assert_eq!((bench.writes, &bench.actions[..]), (0, &[][..]));
}

#[test]
fn edit_takes_effect_at_once_and_a_deleted_object_changes_nothing() {
    let mut bench = Bench::ready();
    let permissive = Settings { enforcement: EnforcementGoal::Permissive, ..Settings::default() };
    bench.edit(Ok(permissive.clone()));
    assert_eq!(bench.evaluate(), Some(Action::RELAX));
    bench.settle();
    assert_eq!(bench.condition("Ready"), (ConditionStatus::True, "AllPairsEncrypted"));
    assert_eq!(bench.condition("Enforced"), (ConditionStatus::False, "PlaintextAccepted"));
    let (before, generations) = (bench.actions.len(), bench.ring.as_ref().unwrap().generations.clone());
    bench.objects.encryption = None;
    bench.settle();
    // Neither does the next process.
    let ring = bench.ring.take();
    let mut next = Bench { ring, version: bench.version, now: bench.now, ..Bench::new() };
    next.settle();
    assert_eq!((bench.actions.len(), next.actions.len()), (before, 0), "{:?}", next.actions);
    assert!(next.objects.encryption.is_none(), "there is a ring: none is made");
    let ring = next.ring.as_ref().unwrap();
    assert_eq!((&ring.generations, &ring.settings), (&generations, &permissive));
}

#[test]
fn invalid_edit_keeps_the_last_good_settings_and_says_so() {
    let mut bench = Bench::ready();
    bench.edit(Err("spec.rotation: exactly one of interval and schedule is needed".to_owned()));
    bench.settle();
    assert!(bench.actions.is_empty());
    assert_eq!(bench.status().observed_generation, Some(2));
    assert_eq!(bench.condition("Stalled"), (ConditionStatus::True, "InvalidSettings"));
    assert_eq!(bench.condition("Ready"), (ConditionStatus::False, "InvalidSettings"));
    bench.edit(Ok(Settings::default()));
    bench.settle();
    assert_eq!(bench.condition("Ready"), (ConditionStatus::True, "PlaintextRefused"));

    let mut first = Bench::new();
    first.evaluate();
    first.edit(Err("no".to_owned()));
    first.settle();
    assert!(first.ring.is_none(), "there are no good settings");
}

#[test]
fn nothing_is_told_as_encrypted_that_no_node_reports() {
    let mut bench = Bench::ready();
    bench.silent = [2].into();
    bench.settle();
    for kind in ["Encrypted", "Enforced", "Ready"] {
        assert_eq!(bench.condition(kind).0, ConditionStatus::False, "{kind}");
    }
    assert_eq!(bench.condition("ESPReachable"), (ConditionStatus::Unknown, "NodesSilent"));
    assert_eq!(bench.condition("Reconciling").0, ConditionStatus::True);
    let nodes = bench.status().nodes.unwrap();
    assert_eq!((nodes.encrypting, nodes.plaintext), (1, 1));
    let ready = bench.status().conditions.iter().find(|it| it.r#type == "Ready").unwrap();
    assert!(ready.message.contains("n2"), "{ready:?}");
}

#[test]
fn wiped_ring_is_restored_before_anything_is_told_of_it() {
    let mut bench = Bench::ready();
    let (before, writes) = (bench.status().clone(), bench.writes);
    bench.ring = None;
    bench.settle();
    assert_eq!(bench.actions, [Action::Restore]);
    assert_eq!((bench.status(), bench.writes), (&before, writes));
}

#[test]
fn all_that_wait_are_served_by_one_key_and_the_next_ones_by_another() {
    let mut bench = Bench::ready();
    bench.run(MINIMUM);
    let rotation = RotationSettings { history_limit: 100, ..RotationSettings::default() };
    bench.edit(Ok(Settings { rotation, ..Settings::default() }));
    for n in 0..10 {
        bench.ask(&format!("r{n}"), false);
    }
    assert_eq!(bench.evaluate(), Some(Action::Stage));
    bench.ask("late", false);
    bench.run(Duration::from_secs(60));
    let staged = |bench: &Bench| bench.actions.iter().filter(|action| **action == Action::Stage).count();
    assert_eq!(staged(&bench), 1);
    let first = bench.rotation("r0").generation;
    for n in 0..10 {
        let status = bench.rotation(&format!("r{n}"));
        assert!(status.holds(COMPLETE) && status.generation == first, "{status:?}");
        assert_eq!((status.cause.as_str(), status.suite), ("Request", Some(Suite::Aes128Gcm8)));
        let times = status.phase_times;
        assert!(times.staged <= times.activated && times.activated < times.retired, "{times:?}");
        assert_eq!(status.waiting_for, None);
    }
    assert_eq!(bench.reason("late"), "Waiting");
    bench.run(MINIMUM);
    assert!(staged(&bench) == 2 && bench.rotation("late").holds(COMPLETE));
    assert!(bench.rotation("late").generation > first);
}

#[test]
fn rotation_that_is_due_has_an_object_first_and_goes_on_without_one() {
    let mut bench = Bench::ready();
    let other = Settings { cipher_suite: Suite::Aes256Gcm16, ..Settings::default() };
    bench.run(MINIMUM);
    bench.edit(Ok(other));
    bench.settle();
    let made = bench.objects.rotations.iter().find(|it| it.reference.name.starts_with("suite-")).unwrap();
    assert_eq!((made.status.cause.as_str(), made.status.holds(COMPLETE)), ("Suite", true));
    assert_eq!(bench.objects.rotations.len(), 2);
    bench.may_create = false;
    bench.run(MINIMUM);
    bench.edit(Ok(Settings::default()));
    bench.settle();
    assert_eq!(bench.objects.rotations.len(), 2);
    assert_eq!(bench.ring.as_ref().unwrap().active().unwrap().suite, Suite::Aes128Gcm8);
}

#[test]
fn nodes_that_are_waited_for_are_named_until_they_are_skipped() {
    let mut bench = Bench::ready();
    bench.run(MINIMUM);
    bench.follow = [1].into();
    bench.ask("stuck", false);
    bench.run(Duration::from_secs(20));
    let waiting = bench.rotation("stuck").waiting_for.clone().unwrap();
    assert_eq!((waiting.step.as_str(), waiting.done, waiting.total), ("receive", 1, 2));
    assert_eq!(waiting.nodes, ["n2"]);
    let writes = bench.writes;
    bench.run(Duration::from_secs(20));
    assert_eq!((bench.writes, bench.reason("stuck")), (writes, "Staged"), "it is said once");
    bench.ask("other", true);
    bench.run(Duration::from_secs(70));
    assert_eq!(bench.rotation("stuck").waiting_for.as_ref().unwrap().step, "switch", "whichever says so");
    bench.run(LIMIT);
    let status = bench.rotation("stuck");
    let message = &status.condition(COMPLETE).unwrap().message;
    assert!(status.holds(COMPLETE) && message.contains("held back until proven: pairs of n2"), "{message}");
}

#[test]
fn key_that_is_not_proven_in_time_fails_its_rotation() {
    let mut bench = Bench::ready();
    bench.run(MINIMUM);
    bench.follow = [1].into();
    bench.ask("lost", false);
    bench.run(LIMIT + Duration::from_secs(10));
    let failed = bench.rotation("lost").condition(FAILED).unwrap();
    assert_eq!((failed.status, failed.reason.as_str()), (ConditionStatus::True, "NotProven"));
    assert!(failed.message.contains("n2"), "{failed:?}");
    assert_eq!(bench.reason("lost"), "NotProven");
}

#[test]
fn deleting_one_under_way_undoes_nothing_and_is_told() {
    let mut bench = Bench::ready();
    bench.run(MINIMUM);
    bench.ask("gone", false);
    bench.ask("withdrawn", false);
    bench.objects.rotations.pop();
    assert_eq!(bench.evaluate(), Some(Action::Stage));
    bench.follow = [1].into();
    bench.run(Duration::from_secs(4));
    let generation = bench.rotation("gone").generation.unwrap();
    bench.objects.rotations.retain(|object| object.reference.name != "gone");
    bench.follow = NODES.into();
    bench.run(Duration::from_secs(60));
    assert_eq!(bench.deleted, [("gone".to_owned(), generation)]);
    let ring = bench.ring.as_ref().unwrap();
    assert_eq!((ring.active().unwrap().id, ring.generations.len()), (generation, 1));
    assert!(bench.actions.iter().filter(|action| **action == Action::Stage).count() == 1);
}

#[test]
fn oldest_finished_ones_are_deleted() {
    let mut bench = Bench::ready();
    let rotation = RotationSettings { history_limit: 2, ..RotationSettings::default() };
    bench.edit(Ok(Settings { rotation, ..Settings::default() }));
    for n in 0..4 {
        bench.run(MINIMUM);
        bench.ask(&format!("r{n}"), false);
        bench.run(Duration::from_secs(20));
    }
    let names: Vec<_> = bench.objects.rotations.iter().map(|it| it.reference.name.as_str()).collect();
    assert_eq!(names, ["r2", "r3"]);
}

#[test]
fn next_process_finishes_what_another_began() {
    for stop_after in [Action::Stage, Action::Activate, Action::RemoveRetired] {
        let mut bench = Bench::ready();
        bench.run(MINIMUM);
        bench.ask("r", false);
        // The process is killed right after this write, and what it had not said yet with it.
        for _ in 0..30 {
            if bench.evaluate() == Some(stop_after) {
                break;
            }
            bench.advance(Duration::from_secs(1));
        }
        let Bench { ring, version, now, objects, .. } = bench;
        let mut next = Bench { ring, version, now, objects, ..Bench::new() };
        next.run(MINIMUM * 2);
        assert!(next.rotation("r").holds(COMPLETE), "{stop_after:?}: {:?}", next.rotation("r"));
        assert!(next.objects.rotations.iter().all(|object| object.status.is_finished()));
    }
}

#[test]
fn rotation_that_waits_while_encryption_is_off_fails() {
    let mut bench = Bench::ready();
    bench.edit(Ok(Settings { enforcement: EnforcementGoal::Off, ..Settings::default() }));
    bench.run(Duration::from_secs(60));
    assert_eq!(bench.ring.as_ref().unwrap().enforcement, Enforcement::Off);
    assert_eq!(bench.condition("Ready"), (ConditionStatus::True, "Off"));
    assert_eq!(bench.condition("Encrypted").0, ConditionStatus::False);
    bench.ask("r", false);
    bench.run(Duration::from_secs(4));
    assert_eq!(bench.reason("r"), "EncryptionOff");
    bench.edit(Ok(Settings::default()));
    bench.settle();
    assert!(bench.rotation("r").holds(FAILED), "it does not come back");
    assert!(bench.ring.as_ref().unwrap().generations.iter().any(|it| it.role == Role::Active));
}

#[test]
fn statuses_are_written_at_most_once_a_second() {
    let mut bench = Bench::ready();
    bench.run(MINIMUM);
    bench.ask("r", false);
    let mut at: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    let start = bench.now.monotonic;
    for turn in 0..300 {
        // Never both: the generation stays staged.
        bench.follow = if turn % 2 == 0 { [1].into() } else { BTreeSet::new() };
        bench.controller.handle_change(bench.now.monotonic);
        let (writes, before) = (bench.writes, bench.rotation("r").clone());
        bench.evaluate();
        if bench.writes > writes && *bench.rotation("r") != before {
            at.entry("r".to_owned()).or_default().push(bench.now.monotonic - start);
        }
        bench.advance(Duration::from_millis(100));
    }
    let times = &at["r"];
    assert!(
        times.len() >= 10 && times.windows(2).all(|pair| pair[1] - pair[0] >= Duration::from_secs(1)),
        "{times:?}"
    );
    assert!(matches!(bench.controller.outcome(), Some(Outcome::Waiting { .. })));
}
