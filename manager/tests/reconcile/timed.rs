//! Rotations by time, and what goes wrong with the Secret and its API server.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use rand::rngs::SysError;
use secureoverlay_k8s::names::ROTATE;
use secureoverlay_keyring::{
    keyring::{Enforcement, Identities, Role},
    settings::RotationSchedule,
};
use secureoverlay_manager::{
    io::{outbox::Notice, store::StoreError},
    run::driver::ReconcileError,
};
use secureoverlay_manager_core::{controller::Outcome, notification::EventReason};
use serde_json::{Value, json};

use crate::fake::{
    Fake,
    bench::{Bench, DELAY, INTERVAL, Options, options},
    status,
};

const ONE: &str = "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b01";
const TWO: &str = "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b02";

#[tokio::test]
async fn the_first_key_and_one_rotation() {
    use Role::{Active, Retiring, Staged};
    let fake = Fake::new();
    let mut bench = Bench::new(&fake);
    assert_eq!(bench.settle().await, [Staged]);
    assert_eq!(fake.ring().enforcement, Enforcement::Permissive);
    assert_eq!(fake.ring().generations[0].identities, Identities::BootId);
    bench.advance(DELAY - Duration::from_secs(1));
    assert_eq!(bench.settle().await, [Staged]);
    bench.advance(Duration::from_secs(1));
    assert_eq!(bench.settle().await, [Active]);
    bench.advance(INTERVAL);
    assert_eq!(bench.settle().await, [Active, Staged]);
    bench.advance(DELAY);
    assert_eq!(bench.settle().await, [Retiring, Active]);
    bench.advance(DELAY);
    assert_eq!(bench.settle().await, [Active]);
    assert_eq!(fake.writes(), 5);
    assert_eq!(fake.ring().revision, 5);
    let secret = fake.state().secret.clone().unwrap();
    assert_eq!(secret["metadata"]["labels"], json!({"team": "network"}));
    assert_eq!(secret["metadata"]["annotations"], json!({"note": "ours"}));
}

#[tokio::test]
async fn a_request_is_heard_where_time_decides_too() {
    let fake = Fake::new();
    let mut bench = Bench::steady(&fake).await;
    fake.state().secret.as_mut().unwrap()["metadata"]["annotations"][ROTATE] = json!("now");
    assert_eq!(bench.settle().await, [Role::Active, Role::Staged]);
    assert_eq!(fake.writes(), 1);
    let secret = fake.state().secret.clone().unwrap();
    assert_eq!(secret["metadata"]["annotations"], json!({"note": "ours"}));
    bench.advance(DELAY);
    assert_eq!(bench.settle().await, [Role::Retiring, Role::Active]);
    let words: Vec<_> = bench.told();
    assert!(words.iter().all(|notice| matches!(notice, Notice::Event { .. })), "{words:?}");
    assert!(!fake.calls().iter().any(|call| call.contains("nodes")), "there is no right to look");
}

#[tokio::test]
async fn a_timetable_is_kept() {
    let fake = Fake::new();
    let mut changed = options();
    changed.settings.rotation.schedule =
        RotationSchedule::Cron { expression: "30 * * * *".to_owned(), time_zone: "UTC".to_owned() };
    let mut bench = Bench::with(&fake, changed);
    bench.settle().await;
    bench.advance(DELAY);
    assert_eq!(bench.settle().await, [Role::Active]);
    // From three o'clock on.
    assert_eq!(fake.ring().next_rotation, Some("2026-11-20T03:30:00Z".parse().unwrap()));
    bench.advance(Duration::from_secs(27 * 60 - 1));
    assert_eq!(bench.settle().await, [Role::Active]);
    bench.advance(Duration::from_secs(1));
    assert_eq!(bench.settle().await, [Role::Active, Role::Staged]);
    bench.advance(DELAY);
    bench.settle().await;
    bench.advance(DELAY);
    assert_eq!(bench.settle().await, [Role::Active]);
    assert_eq!(fake.ring().next_rotation, Some("2026-11-20T04:30:00Z".parse().unwrap()));
    assert_eq!(bench.metric("rotations_started_total{cause=\"schedule\"}"), 1);
}

#[tokio::test]
async fn other_entries_of_the_secret_are_kept() {
    let fake = Fake::new();
    fake.state().secret.as_mut().unwrap()["data"] = json!({"keys": "", "other": "AAEC"});
    Bench::new(&fake).settle().await;
    assert_eq!(fake.state().secret.as_ref().unwrap()["data"]["other"], json!("AAEC"));
}

#[tokio::test]
async fn a_restarted_manager_goes_on_from_any_point() {
    let fake = Fake::new();
    let mut seen = Vec::new();
    let mut now = Bench::new(&fake).now;
    for _ in 0..12 {
        // A new process for every single step; each must wait the whole delay by its own clock.
        let mut bench = Bench::new(&fake);
        bench.now = now;
        bench.settle().await;
        bench.advance(DELAY);
        seen.push(bench.settle().await);
        bench.advance(INTERVAL / 4);
        now = bench.now;
    }
    assert!(seen.iter().filter(|ring| *ring == &[Role::Active]).count() > 2, "{seen:?}");
}

#[tokio::test]
async fn a_conflict_is_decided_again() {
    let fake = Fake::new();
    let mut bench = Bench::new(&fake);
    fake.state().interfere = true;
    assert_eq!(bench.turn().await.unwrap(), Outcome::Conflict);
    assert!(fake.state().secret.as_ref().unwrap()["data"].is_null(), "nothing was written over it");
    assert_eq!(bench.turn().await.unwrap(), Outcome::Written);
}

#[tokio::test]
async fn the_loser_of_a_race_makes_no_second_key() {
    let fake = Fake::new();
    let (mut one, mut two) = (Bench::new(&fake), Bench::new(&fake));
    assert_eq!(one.turn().await.unwrap(), Outcome::Written);
    let uid = fake.ring().generations[0].uid;
    assert!(matches!(two.turn().await.unwrap(), Outcome::Waiting { .. }));
    assert_eq!(fake.ring().generations[0].uid, uid);
}

#[tokio::test]
async fn a_missing_secret_is_waited_for() {
    let fake = Fake::new();
    let secret = fake.state().secret.take();
    let mut bench = Bench::new(&fake);
    let error = bench.turn().await.unwrap_err();
    assert!(matches!(error, ReconcileError::Store(StoreError::Missing)));
    assert!(error.to_string().contains("kubectl apply"), "{error}");
    assert_eq!(fake.writes(), 0);
    fake.state().secret = secret;
    assert_eq!(bench.turn().await.unwrap(), Outcome::Written);
}

#[tokio::test]
async fn refusals_and_garbage_change_nothing() {
    let fake = Fake::new();
    let mut bench = Bench::steady(&fake).await;
    let before = fake.state().secret.clone();
    bench.advance(INTERVAL);
    let forbidden = status(StatusCode::FORBIDDEN, "Forbidden", "no RBAC policy matched", &Value::Null);
    let garbage = (StatusCode::OK, "hush: not JSON".to_owned());
    let odd = (StatusCode::OK, json!({"metadata": {"name": "a"}, "data": "hush"}).to_string());
    let proxy = (StatusCode::NOT_FOUND, "<html>hush</html>".to_owned());
    for (code, text) in [forbidden, garbage, odd, proxy] {
        fake.state().refuse = Some((Method::GET, code, text.clone()));
        let error = bench.turn().await.unwrap_err().to_string();
        assert!(code != StatusCode::OK || !error.contains("hush"), "{error}");
        assert_eq!(fake.writes(), 0);
    }
    fake.state().refuse = Some((Method::PUT, StatusCode::INTERNAL_SERVER_ERROR, "etcd is gone".to_owned()));
    let error = bench.turn().await.unwrap_err();
    assert!(matches!(error, ReconcileError::Store(StoreError::Write(_))), "{error}");
    assert_eq!(fake.state().secret, before);
    fake.state().refuse = None;
    assert_eq!(bench.settle().await, [Role::Active, Role::Staged]);
}

#[tokio::test]
async fn what_cannot_be_read_is_never_written_over() {
    let fake = Fake::new();
    let mut bench = Bench::steady(&fake).await;
    let good = fake.ring().to_yaml();
    let noise = vec![b'x'; 1 << 20];
    let short = good.replace("key: ", "key: AA");
    let suite = good.replace("aes128gcm8", "rot13");
    let junk: [&[u8]; 4] = [b"{]: no yaml", &noise, short.as_bytes(), suite.as_bytes()];
    for document in junk {
        fake.set(document);
        bench.advance(INTERVAL);
        let error = bench.turn().await.unwrap_err();
        assert!(matches!(error, ReconcileError::InvalidRing(_)), "{error}");
        assert_eq!(fake.writes(), 0);
    }
    fake.set(good.as_bytes());
    assert_eq!(bench.settle().await, [Role::Active, Role::Staged], "repaired, and a rotation was due");
}

#[tokio::test]
async fn time_under_an_unreadable_ring_does_not_count() {
    let fake = Fake::new();
    let mut bench = Bench::new(&fake);
    bench.settle().await;
    let good = fake.ring().to_yaml();
    fake.set(b"junk: true");
    bench.advance(DELAY);
    assert!(bench.turn().await.is_err());
    fake.set(good.as_bytes());
    assert_eq!(bench.settle().await, [Role::Staged], "no node could read it meanwhile");
    bench.advance(DELAY);
    assert_eq!(bench.settle().await, [Role::Active]);
}

#[tokio::test]
async fn an_emptied_secret_gets_its_ring_back() {
    let fake = Fake::new();
    let mut bench = Bench::steady(&fake).await;
    let before = fake.ring();
    for empty in [json!({"keys": ""}), json!({}), Value::Null] {
        fake.state().secret.as_mut().unwrap()["data"] = empty;
        assert_eq!(bench.turn().await.unwrap(), Outcome::Written);
        assert_eq!(fake.ring().generations, before.generations);
        assert!(matches!(bench.turn().await.unwrap(), Outcome::Waiting { .. }));
    }
    assert_eq!(fake.ring().revision, before.revision + 3);
    // The write may be lost, too.
    fake.set(b"");
    fake.state().refuse = Some((Method::PUT, StatusCode::INTERNAL_SERVER_ERROR, "etcd is gone".to_owned()));
    assert!(bench.turn().await.is_err());
    fake.state().refuse = None;
    assert_eq!(bench.settle().await, [Role::Active]);
    assert_eq!(fake.ring().generations, before.generations);
}

#[tokio::test]
async fn a_secret_made_anew_gets_a_new_key() {
    let fake = Fake::new();
    let mut bench = Bench::steady(&fake).await;
    let before = fake.ring();
    {
        let mut state = fake.state();
        let secret = state.secret.as_mut().unwrap();
        secret["data"] = Value::Null;
        secret["metadata"]["uid"] = json!("99999999-2222-3333-4444-555555555555");
    }
    assert_eq!(bench.settle().await, [Role::Staged]);
    assert!(fake.ring().generations[0].uid != before.generations[0].uid);
}

#[tokio::test]
async fn a_ring_belongs_to_its_daemon_set() {
    let fake = Fake::new();
    fake.state().may_read_daemon_set = true;
    let mut bench = Bench::new(&fake);
    assert!(matches!(bench.turn().await.unwrap(), Outcome::Waiting { .. }), "no DaemonSet, no key");
    assert_eq!(fake.writes(), 0);
    fake.state().daemon_set = Some(json!({"name": "ucp-secureoverlay-agent", "uid": ONE}));
    bench.settle().await;
    let first = fake.ring();
    assert_eq!(first.installation, Some(ONE.parse().unwrap()));

    fake.state().daemon_set = None;
    bench.settle().await;
    assert_eq!(fake.ring(), first, "orphaned agents keep their keys");

    fake.state().daemon_set = Some(json!({"name": "ucp-secureoverlay-agent", "uid": TWO}));
    assert_eq!(bench.settle().await, [Role::Staged]);
    let second = fake.ring();
    assert_eq!(second.installation, Some(TWO.parse().unwrap()));
    assert!(second.generations[0].uid != first.generations[0].uid);
}

#[tokio::test]
async fn an_emptied_secret_of_another_daemon_set_gets_a_new_key() {
    let fake = Fake::new();
    fake.state().may_read_daemon_set = true;
    fake.state().daemon_set = Some(json!({"uid": ONE}));
    let mut bench = Bench::new(&fake);
    bench.settle().await;
    let before = fake.ring();
    fake.state().daemon_set = Some(json!({"uid": TWO}));
    fake.set(b"");
    bench.settle().await;
    assert!(fake.ring().generations[0].uid != before.generations[0].uid);
}

#[tokio::test]
async fn a_right_granted_later_is_noticed() {
    let fake = Fake::new();
    fake.state().daemon_set = Some(json!({"uid": ONE}));
    let mut bench = Bench::steady(&fake).await;
    bench.turn().await.unwrap();
    assert!(fake.calls().iter().all(|call| !call.starts_with("POST")), "the answer was no a moment ago");
    fake.state().may_read_daemon_set = true;
    bench.advance(INTERVAL);
    bench.settle().await;
    assert_eq!(fake.ring().installation, Some(ONE.parse().unwrap()));
}

#[tokio::test]
async fn a_stray_answer_about_the_daemon_set_switches_nothing_off() {
    let fake = Fake::new();
    fake.state().may_read_daemon_set = true;
    fake.state().daemon_set = Some(json!({"uid": ONE}));
    let mut bench = Bench::new(&fake);
    bench.settle().await;
    let before = fake.ring();
    let answers = [
        status(StatusCode::FORBIDDEN, "Forbidden", "starting", &Value::Null),
        status(StatusCode::UNAUTHORIZED, "Unauthorized", "starting", &Value::Null),
        (StatusCode::NOT_FOUND, "404 page not found".to_owned()),
        (StatusCode::OK, json!({"metadata": {}}).to_string()),
    ];
    for (code, text) in answers {
        fake.state().override_daemon_set = Some((code, text));
        assert!(matches!(bench.turn().await.unwrap_err(), ReconcileError::Installation(_)));
        assert_eq!(fake.ring(), before);
    }
}

#[tokio::test]
async fn without_random_bytes_no_key_is_made() {
    let fake = Fake::new();
    let options = Options { random: |_| Err(SysError::UNSUPPORTED), ..options() };
    let mut bench = Bench::with(&fake, options);
    assert!(matches!(bench.turn().await, Err(ReconcileError::Random(_))));
    assert_eq!(fake.writes(), 0);
}

#[tokio::test]
async fn a_secret_that_is_gone_is_made_anew_where_the_daemon_set_is_there() {
    let fake = Fake::new();
    fake.state().may_read_daemon_set = true;
    fake.state().daemon_set = Some(json!({"uid": ONE}));
    let mut bench = Bench::new(&fake);
    bench.settle().await;
    let before = fake.ring();
    fake.state().secret = None;
    assert_eq!(bench.turn().await.unwrap(), Outcome::Written);
    assert_eq!(fake.ring().generations, before.generations, "put back as it was");
    // While all of it is being removed, nothing is made.
    fake.state().secret = None;
    fake.state().daemon_set = None;
    assert!(matches!(bench.turn().await.unwrap(), Outcome::Waiting { .. }));
    assert!(fake.state().secret.is_none());
}

#[tokio::test]
async fn a_store_that_went_back_under_a_running_api_server_is_left_alone() {
    let fake = Fake::new();
    let mut bench = Bench::steady(&fake).await;
    bench.turn().await.unwrap();
    let version = |version: &str| {
        fake.state().secret.as_mut().unwrap()["metadata"]["resourceVersion"] = json!(version);
    };
    version("100");
    bench.turn().await.unwrap();
    version("50");
    fake.state().cached = Some(100);
    bench.advance(INTERVAL);
    bench.told();
    for _ in 0..2 {
        let Outcome::Waiting { reason, .. } = bench.turn().await.unwrap() else { panic!("it writes") };
        assert!(reason.contains("history of the API server"), "{reason}");
    }
    assert_eq!(bench.events(), [EventReason::ApiServerHistoryWentBack], "told once");
    // The API server was restarted.
    fake.state().cached = None;
    assert_eq!(bench.settle().await, [Role::Active, Role::Staged]);
}
