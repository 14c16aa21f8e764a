//! Rotations where the nodes say what they have done.

use std::{collections::BTreeMap, time::Duration};

use axum::http::{Method, StatusCode};
use secureoverlay_common::{
    acknowledgement::Acknowledgement,
    names::{PRESS_ON, ROTATE},
    ring::Role::{Active, Retiring, Staged},
    rotation::evidence::acks::{DRAIN, MISSED, PENDING_AFTER},
};
use secureoverlay_manager::{
    driver::ReconcileError,
    outbox::Notice,
    rotate::{Progress, ask, follow},
    store::Store,
};
use secureoverlay_manager_core::{controller::Outcome, notification::EventReason, rollout_mode::RolloutMode};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::fake::{
    Fake,
    bench::{Bench, DELAY, INTERVAL, LIMIT, Options, options},
    cluster::{Case, name, node, uid, word},
};

#[tokio::test]
async fn a_first_generation_waits_until_every_node_knows_whom_esp_reaches() {
    let mut case = Case::new(3);
    assert_eq!(case.settle().await, [(1, Staged)]);
    case.speak_of([1, 3]);
    let trying = Acknowledgement { unreachable: None, ..word(2, &case.fake().ring()) };
    case.say(2, trying);
    case.bench.watch();
    case.bench.advance(2 * PENDING_AFTER);
    assert!(case.waits().await.ends_with("waiting for node-2"));
    case.speak();
    assert_eq!(case.settle().await, [(1, Active)]);
}

#[tokio::test]
async fn one_bad_node_is_left_out() {
    let mut case = Case::new(3);
    case.settle().await;
    case.speak_of([1, 2]);
    assert_eq!(case.settle().await, [(1, Staged)]);
    case.bench.advance(PENDING_AFTER);
    assert_eq!(case.settle().await, [(1, Active)]);
    assert_eq!((case.fake().ring().pending, case.bench.metric("pending_nodes")), ([uid(1, 3)].into(), 1));
    let pending = case.bench.told().into_iter().find_map(|notice| match notice {
        Notice::Event { reason: EventReason::NodesPending, note, .. } => Some(note),
        _ => None,
    });
    assert!(pending.unwrap().starts_with("node-3 are spoken to in the clear"));
    case.bench.advance(INTERVAL);
    case.settle().await;
    case.speak_of([1, 2]);
    assert_eq!(case.settle().await, [(1, Retiring), (2, Active)]);
    case.speak_of([1, 2]);
    case.bench.advance(LIMIT);
    case.settle().await;
    case.bench.advance(DRAIN);
    assert_eq!(case.settle().await, [(2, Active)]);
    case.speak();
    case.settle().await;
    assert_eq!(case.fake().ring().pending, [].into());
}

#[tokio::test]
async fn a_rotation_goes_on_when_every_node_has_spoken() {
    let mut case = Case::staged(3).await;
    case.speak_of([1, 3]);
    assert_eq!(case.waits().await, "generation 2 is on its way to every node, waiting for node-2");
    case.bench.advance(100 * LIMIT);
    assert!(case.waits().await.ends_with("waiting for node-2"), "however long it takes");
    case.speak_of([2]);
    assert_eq!(case.settle().await, [(1, Retiring), (2, Active)]);
    case.speak_of([2, 3]);
    assert_eq!(case.waits().await, "generation 1 is draining, waiting for node-1");
    case.speak();
    assert_eq!(case.settle().await, [(1, Retiring), (2, Active)], "packets are under way");
    case.bench.advance(DRAIN);
    assert_eq!(case.settle().await, [(2, Active)]);
    let events = case.bench.events();
    let started: Vec<_> = events.iter().filter(|reason| **reason != EventReason::RotationStalled).collect();
    assert_eq!(
        started,
        [&EventReason::RotationStarted, &EventReason::KeyActivated, &EventReason::RotationCompleted]
    );
}

#[tokio::test]
async fn a_node_that_is_not_ready_is_left_behind_after_the_limit() {
    let mut case = Case::staged(2).await;
    case.fake().state().nodes.insert(name(2), node(2, "Unknown"));
    case.speak_of([1]);
    case.settle().await;
    case.bench.advance(LIMIT - Duration::from_secs(1));
    assert_eq!(case.settle().await, [(1, Active), (2, Staged)]);
    assert_eq!((case.bench.metric("awaited_nodes"), case.bench.metric("waited_seconds")), (1, 3599));
    case.bench.advance(Duration::from_secs(1));
    assert_eq!(case.settle().await, [(1, Retiring), (2, Active)]);
    assert_eq!((case.bench.metric("expected_nodes"), case.bench.metric("acknowledging_nodes")), (2, 2));
}

#[tokio::test]
async fn the_mode_follows_the_rights_and_never_goes_back_to_time() {
    let fake = Fake::new();
    fake.state().nodes.insert(name(1), node(1, "True"));
    let mut bench = Bench::new(&fake);
    bench.watch();
    assert_eq!(bench.settle().await, [(1, Staged)]);
    fake.state().may_list_nodes = true;
    bench.turn().await.unwrap();
    bench.advance(DELAY / 2);
    bench.settle().await;
    bench.advance(DELAY);
    assert_eq!(bench.settle().await, [(1, Staged)], "time has passed, but node-1 has not spoken");
    // Neither a right that is gone nor an API server that does not say is a reason.
    fake.state().may_list_nodes = false;
    bench.advance(INTERVAL);
    assert_eq!(bench.settle().await, [(1, Staged)]);
    let mut other = Bench::new(&fake);
    fake.state().refuse = Some((Method::POST, StatusCode::FORBIDDEN, "starting".to_owned()));
    assert!(matches!(other.turn().await, Err(ReconcileError::Installation(_) | ReconcileError::Access(_))));
    let required = Options { mode: RolloutMode::Acknowledged, ..options() };
    fake.state().refuse = None;
    let mut other = Bench::with(&fake, required);
    assert!(matches!(other.turn().await, Err(ReconcileError::Snapshot(_))), "whatever the rights");
}

#[tokio::test]
async fn a_request_is_answered_by_the_write_that_stages() {
    let mut case = Case::steady(2).await;
    case.annotate(ROTATE, "");
    assert_eq!(case.settle().await, [(1, Active), (2, Staged)]);
    assert_eq!(case.annotation(ROTATE), None);
    assert_eq!(case.annotation("note").as_deref(), Some("ours"));
    assert_eq!(case.fake().writes(), 1);
    // One that comes while a rotation is under way stays for the next.
    case.annotate(ROTATE, "again");
    case.speak();
    case.settle().await;
    case.speak();
    case.settle().await;
    assert_eq!(case.annotation(ROTATE).as_deref(), Some("again"));
    case.bench.advance(DRAIN);
    assert_eq!(case.settle().await, [(2, Active), (3, Staged)]);
    assert_eq!(case.annotation(ROTATE), None);
}

#[tokio::test]
async fn the_command_asks_beside_whatever_else_is_written() {
    let mut case = Case::steady(2).await;
    let (fake, store) = (case.fake().clone(), Store::new(case.fake().client()));
    let before = fake.ring();
    fake.state().interfere = true;
    let goal = ask(&store, false).await.unwrap();
    assert_eq!(fake.writes(), 2, "the first one ran into another's");
    assert_eq!((fake.ring(), case.annotation("note").as_deref()), (before, Some("ours")));
    let phase = async || {
        let (ring, held) = store.read().await.unwrap();
        goal.progress(ring.ok().as_ref(), held.requests)
    };
    assert_eq!(phase().await, Progress::Asked);
    case.settle().await;
    assert_eq!(phase().await, Progress::Staged(2));
    case.speak_of([1]);
    case.settle().await;
    ask(&store, true).await.unwrap();
    assert_eq!((case.annotation(PRESS_ON).as_deref(), case.annotation(ROTATE)), (Some("true"), None));
    case.bench.advance(Duration::from_secs(30));
    case.settle().await;
    assert_eq!(phase().await, Progress::Draining(2));
    case.speak();
    case.settle().await;
    case.bench.advance(DRAIN);
    case.settle().await;
    assert_eq!(phase().await, Progress::Done(2));
    // What is no ring is not touched.
    fake.set(b"junk: true");
    fake.writes();
    let error = format!("{:#}", ask(&store, false).await.unwrap_err());
    assert!(error.contains("mended") && error.contains("not a YAML document"), "{error}");
    assert_eq!(fake.writes(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_follows_a_rotation_waits_for_an_api_server_that_is_away() {
    let mut case = Case::steady(2).await;
    let fake = case.fake().clone();
    let (client, away) = (fake.client(), Some((Method::GET, StatusCode::SERVICE_UNAVAILABLE, String::new())));
    let goal = ask(&Store::new(client.clone()), false).await.unwrap();
    fake.state().refuse.clone_from(&away);
    let (followed, ()) = tokio::join!(follow(&client, goal), async {
        sleep(Duration::from_secs(45)).await;
        fake.state().refuse = None;
        case.settle().await;
        case.speak();
        case.settle().await;
        case.speak();
        case.settle().await;
        case.bench.advance(DRAIN);
        assert_eq!(case.settle().await, [(2, Active)]);
    });
    followed.unwrap();
    // Not for ever.
    fake.state().refuse = away;
    let start = Instant::now();
    let error = follow(&client, goal).await.unwrap_err();
    assert!(format!("{error:#}").contains("503"), "{error:#}");
    assert_eq!(start.elapsed().as_secs(), 61);
}

#[tokio::test]
async fn a_rotation_that_is_pressed_on_leaves_nodes_behind_and_only_that_one_does() {
    let mut case = Case::staged(2).await;
    case.speak_of([1]);
    case.annotate(PRESS_ON, "true");
    assert_eq!(case.settle().await, [(1, Active), (2, Staged)], "not at once");
    case.bench.advance(Duration::from_secs(30));
    assert_eq!(case.settle().await, [(1, Retiring), (2, Active)]);
    assert!(case.annotation(PRESS_ON).is_some(), "it is not over yet");
    case.speak_of([1]);
    case.settle().await;
    case.bench.advance(Duration::from_secs(30));
    case.settle().await;
    case.bench.advance(DRAIN);
    assert_eq!(case.settle().await, [(2, Active)]);
    assert_eq!(case.annotation(PRESS_ON), None);
    // The first key is over when it is activated.
    let mut case = Case::new(2);
    case.annotate(PRESS_ON, "true");
    case.settle().await;
    case.speak();
    assert_eq!(case.settle().await, [(1, Active)]);
    assert_eq!(case.annotation(PRESS_ON), None);
}

#[tokio::test]
async fn a_leftover_press_on_forces_no_rotation_that_comes_by_itself() {
    let mut case = Case::steady(2).await;
    case.annotate(PRESS_ON, "true");
    case.bench.advance(INTERVAL);
    assert_eq!(case.settle().await, [(1, Active), (2, Staged)]);
    assert_eq!(case.annotation(PRESS_ON), None);
    // Asked for together, it stays.
    let mut case = Case::steady(2).await;
    case.annotate(PRESS_ON, "true");
    case.annotate(ROTATE, "now");
    assert_eq!(case.settle().await, [(1, Active), (2, Staged)]);
    assert_eq!(case.annotation(PRESS_ON).as_deref(), Some("true"));
}

#[tokio::test]
async fn a_node_that_lost_its_sas_gets_a_new_incarnation() {
    let mut case = Case::steady(3).await;
    let ring = case.fake().ring();
    let mut lost = word(2, &ring);
    lost.burnt.insert(ring.generations[0].uid, 0);
    case.say(2, lost);
    case.bench.watch();
    assert_eq!(case.settle().await, [(1, Active)]);
    let rekeyed = case.fake().ring();
    assert_eq!(rekeyed.generations[0].incarnations, BTreeMap::from([(uid(1, 2), 1)]));
    assert_eq!(rekeyed.revision, ring.revision + 1, "once");
    let [Notice::Event { reason: EventReason::NodesRekeyed, note, .. }] = &case.bench.told()[..] else {
        panic!("one Event")
    };
    assert!(note.ends_with("node-2"), "{note}");
}

#[tokio::test]
async fn a_word_that_cannot_be_read_is_none() {
    for junk in [json!("hush"), json!({"node": 3}), json!(null)] {
        let mut case = Case::staged(3).await;
        case.say(2, &junk);
        case.bench.watch();
        assert!(case.settle().await.ends_with(&[(2, Staged)]), "{junk}");
        assert_eq!(case.fake().ring().pending, [].into(), "not at once: its kernel is as it was");
        case.bench.advance(MISSED);
        assert!(case.settle().await.ends_with(&[(2, Staged)]), "{junk}");
        assert_eq!(case.fake().ring().pending, [uid(1, 2)].into(), "peers do not encrypt to it");
        assert!(case.waits().await.ends_with("waiting for node-1, node-3"), "{junk}");
        case.speak();
        assert_eq!(case.settle().await, [(1, Retiring), (2, Active)]);
        // Those who leave do so together.
        case.bench.advance(Duration::from_secs(5));
        case.settle().await;
        assert_eq!(case.fake().ring().pending, [].into());
    }
}

#[tokio::test]
async fn a_wiped_ring_begins_above_what_living_nodes_know() {
    let mut case = Case::staged(2).await;
    case.speak();
    case.fake().set(b"");
    // Not the manager that knew the ring.
    let fake = case.fake().clone();
    let mut other = Bench::new(&fake);
    other.watch();
    assert_eq!(other.settle().await, [(3, Staged)]);
    case.bench = other;
    case.speak();
    assert_eq!(case.settle().await, [(3, Active)]);
}

#[tokio::test]
async fn of_two_managers_one_acts() {
    let mut case = Case::staged(2).await;
    let fake = case.fake().clone();
    let mut other = Bench::new(&fake);
    other.now = case.bench.now;
    case.speak();
    other.watch();
    fake.writes();
    // The other one writes while this one lists.
    fake.state().interfere = true;
    assert_eq!(case.bench.turn().await.unwrap(), Outcome::Conflict);
    assert_eq!(other.turn().await.unwrap(), Outcome::Written);
    assert_eq!(case.settle().await, [(1, Retiring), (2, Active)]);
    assert_eq!(fake.writes(), 2);
}
