//! What a shell may rely on.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use jiff::SignedDuration;
use secureoverlay_keyring::{
    keyring::{KeyRing, KeyRingError, Role},
    settings::{EnforcementGoal, Settings},
};
use secureoverlay_manager_core::{
    controller::{Controller, ControllerOptions, Now, Outcome, Request, Write, WriteResult},
    notification::Notification,
    rollout_mode::RolloutMode,
    snapshot::{ClusterState, SecretSnapshot},
};
use secureoverlay_rotation::{Action, Installation};

const DELAY: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_secs(2);

struct Bench {
    controller: Controller,
    now: Now,
    ring: Option<KeyRing>,
    rotate: bool,
    version: u64,
}

impl Bench {
    fn new(mode: RolloutMode) -> Self {
        let options = ControllerOptions {
            settings: Some(Settings { enforcement: EnforcementGoal::Permissive, ..Settings::default() }),
            objects: false,
            mode,
            delay: DELAY,
            limit: Duration::from_secs(3600),
            poll_interval: POLL,
            startup_taint: false,
        };
        let now = Now { wall: "2026-11-20T03:00:00Z".parse().unwrap(), monotonic: Instant::now() };
        let controller = Controller::new(&options);
        Self { controller, now, ring: None, rotate: false, version: 1 }
    }

    fn poll(&mut self) -> Option<Request> {
        let seed = self.version.to_le_bytes()[0];
        let fill = |bytes: &mut [u8]| {
            bytes.fill(seed);
            Ok::<_, Infallible>(())
        };
        self.controller.poll_request(fill).unwrap()
    }

    fn secret(&self) -> SecretSnapshot {
        SecretSnapshot {
            uid: Some("a".to_owned()),
            resource_version: Some(self.version.to_string()),
            ring: self.ring.clone().ok_or(KeyRingError::Empty),
            rotate: self.rotate,
        }
    }

    fn advance(&mut self, by: Duration) {
        self.now.monotonic += by;
        self.now.wall += SignedDuration::try_from(by).unwrap();
    }

    /// An evaluation up to its write, if there is one.
    fn evaluate(&mut self) -> Option<Box<Write>> {
        self.controller.handle_timeout();
        loop {
            match self.poll()? {
                Request::ReadSecret => self.controller.handle_secret(self.secret(), self.now).unwrap(),
                Request::ReadDaemonSet => {
                    self.controller.handle_daemon_set(Installation::Unknown, self.now);
                }
                Request::ReadObjects | Request::CreateEncryption | Request::CreateRotation { .. } => {
                    panic!("operators ask by the Secret here")
                }
                Request::CheckAccess => self.controller.handle_access(false, self.now),
                Request::ReadCache | Request::ListCluster => {
                    self.controller.handle_cluster(ClusterState::default(), self.now);
                }
                Request::Write(write) => return Some(write),
            }
        }
    }

    fn write(&mut self) -> Option<Action> {
        let write = self.evaluate()?;
        assert_eq!(write.resource_version, Some(self.version.to_string()));
        (self.ring, self.version) = (Some(write.ring), self.version + 1);
        self.controller.handle_written(WriteResult::Written, self.now);
        assert_eq!(self.controller.outcome(), Some(&Outcome::Written));
        Some(write.action)
    }
}

#[test]
fn a_request_is_handed_out_once_and_answers_to_others_change_nothing() {
    let mut bench = Bench::new(RolloutMode::Timed);
    assert!(bench.poll().is_none(), "not before the shell begins");
    bench.controller.handle_timeout();
    assert!(matches!(bench.poll(), Some(Request::ReadSecret)));
    assert!(bench.poll().is_none());
    bench.controller.handle_daemon_set(Installation::Unknown, bench.now);
    bench.controller.handle_cluster(ClusterState::default(), bench.now);
    bench.controller.handle_access(true, bench.now);
    bench.controller.handle_written(WriteResult::Written, bench.now);
    assert!(bench.poll().is_none() && bench.controller.outcome().is_none());
    bench.controller.handle_secret(bench.secret(), bench.now).unwrap();
    assert!(matches!(bench.poll(), Some(Request::ReadDaemonSet)));
}

#[test]
fn a_wait_has_a_deadline_which_a_change_brings_forward() {
    let mut bench = Bench::new(RolloutMode::Timed);
    assert_eq!(bench.write(), Some(Action::Bootstrap));
    assert_eq!(bench.controller.poll_timeout(), None, "at once");
    assert!(bench.evaluate().is_none());
    let Some(Outcome::Waiting { wake_in, .. }) = bench.controller.outcome() else { panic!("it waits") };
    assert_eq!(*wake_in, DELAY);
    assert_eq!(bench.controller.poll_timeout(), Some(bench.now.monotonic + POLL));
    bench.controller.handle_change(bench.now.monotonic);
    let deadline = bench.controller.poll_timeout().unwrap();
    assert!(deadline > bench.now.monotonic && deadline < bench.now.monotonic + POLL);
    bench.controller.handle_change(bench.now.monotonic + POLL);
    assert_eq!(bench.controller.poll_timeout(), Some(deadline), "a later change puts nothing off");
    bench.advance(DELAY);
    assert_eq!(bench.write(), Some(Action::Activate));
}

#[test]
fn an_abandoned_evaluation_and_a_failed_one_leave_nothing_behind() {
    let mut bench = Bench::new(RolloutMode::Timed);
    let lost = bench.evaluate().unwrap();
    let again = bench.evaluate().unwrap();
    assert_eq!((lost.action, again.action), (Action::Bootstrap, Action::Bootstrap));
    bench.controller.handle_failure();
    assert_eq!((bench.controller.outcome(), bench.controller.poll_timeout()), (None, None));
    assert!(
        bench.poll().is_none()
            && bench.controller.poll_notification().is_none_or(|told| matches!(told, Notification::Waits(_)))
    );
    bench.evaluate().unwrap();
    bench.controller.handle_written(WriteResult::Conflict, bench.now);
    assert_eq!(bench.controller.outcome(), Some(&Outcome::Conflict));
    assert!(
        std::iter::from_fn(|| bench.controller.poll_notification())
            .all(|told| matches!(told, Notification::Waits(_))),
        "nothing was written"
    );
}

#[test]
fn an_emptied_secret_gets_its_ring_back_and_an_invalid_one_is_left_alone() {
    let mut bench = Bench::new(RolloutMode::Timed);
    bench.write();
    let before = bench.ring.clone().unwrap();
    bench.evaluate();
    bench.ring = None;
    assert_eq!(bench.write(), Some(Action::Restore));
    let restored = bench.ring.clone().unwrap();
    assert_eq!((restored.generations, restored.revision), (before.generations, before.revision + 1));
    bench.controller.handle_timeout();
    bench.poll();
    let invalid = SecretSnapshot { ring: KeyRing::parse(b"version: 9\n"), ..bench.secret() };
    assert_eq!(bench.controller.handle_secret(invalid, bench.now), Err(KeyRingError::Version(9)));
    assert!(bench.poll().is_none() && bench.controller.outcome().is_none());
}

#[test]
fn a_request_for_off_is_followed_and_one_for_a_rotation_is_answered() {
    let mut bench = Bench::new(RolloutMode::Auto);
    bench.write();
    assert!(bench.evaluate().is_none());
    bench.advance(DELAY);
    assert!(bench.write() == Some(Action::Activate) && bench.write().is_none());
    bench.rotate = true;
    let write = bench.evaluate().unwrap();
    assert!(write.action == Action::Stage && write.answers);
    bench.controller.handle_failure();
    bench.rotate = false;
    let off = Settings { enforcement: EnforcementGoal::Off, ..Settings::default() };
    bench.controller.handle_settings(Some(off), bench.now.monotonic);
    bench.advance(DELAY);
    assert_eq!(bench.write(), Some(Action::StopSending));
    assert_eq!(bench.ring.as_ref().unwrap().generations[0].role, Role::Retiring);
    bench.evaluate();
    bench.advance(DELAY);
    assert_eq!(bench.write(), Some(Action::Disable));
}
