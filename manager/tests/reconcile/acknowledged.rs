//! Rotations where the nodes acknowledge what they have done.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use secureoverlay_k8s::names::ROTATE;
use secureoverlay_keyring::{
    acknowledgement::Acknowledgement,
    keyring::Role::{Active, Retiring, Staged},
};
use secureoverlay_manager::run::driver::ReconcileError;
use secureoverlay_manager_core::{controller::Outcome, notification::EventReason, rollout_mode::RolloutMode};
use secureoverlay_rotation::{DRAIN, step_wait};
use serde_json::json;

use crate::fake::{
    Fake,
    bench::{Bench, DELAY, INTERVAL, LIMIT, Options, options},
    cluster::{Case, ack, name, node},
};

#[tokio::test]
async fn a_rotation_goes_on_when_every_node_has_acknowledged() {
    let mut case = Case::staged(3).await;
    case.speak_of([1, 3]);
    assert!(case.waits().await.ends_with("is on its way to every node, waiting for node-2"));
    case.speak_of([2]);
    assert_eq!(case.settle().await, [Retiring, Active]);
    case.speak_of([2, 3]);
    assert!(case.waits().await.ends_with("waiting for node-1"));
    case.speak();
    assert_eq!(case.settle().await, [Retiring, Active], "packets are under way");
    case.bench.advance(DRAIN);
    assert_eq!(case.settle().await, [Active]);
    let expected = [EventReason::RotationStarted, EventReason::KeyActivated, EventReason::RotationCompleted];
    assert_eq!(case.bench.events(), expected);
}

#[tokio::test]
async fn a_first_generation_does_not_wait_for_long() {
    let mut case = Case::new(3);
    assert_eq!(case.settle().await, [Staged]);
    case.bench.advance(step_wait(3));
    assert_eq!(case.settle().await, [Staged], "no node has acknowledged it");
    case.speak_of([1]);
    assert_eq!(case.settle().await, [Active]);
}

#[tokio::test]
async fn a_generation_that_is_not_proven_in_time_is_dropped() {
    let mut case = Case::staged(2).await;
    case.bench.advance(LIMIT - Duration::from_secs(1));
    case.speak_of([1]);
    // Acknowledgements were renewed meanwhile.
    case.settle().await;
    case.speak_of([1]);
    assert_eq!(case.settle().await, [Active, Staged]);
    assert_eq!(case.bench.metric("missing_nodes"), 1);
    case.bench.told();
    case.bench.advance(Duration::from_secs(1));
    assert_eq!(case.settle().await, [Active]);
    assert_eq!(case.bench.events(), [EventReason::RotationFailed]);
    assert_eq!(case.bench.metric("rotations_failed_total"), 1);
    case.speak();
    case.bench.advance(LIMIT - Duration::from_secs(1));
    assert_eq!(case.settle().await, [Active]);
    case.bench.advance(Duration::from_secs(1));
    assert_eq!(case.settle().await, [Active, Staged], "it is tried again");
}

#[tokio::test]
async fn a_node_that_is_not_ready_holds_up_no_activation_and_removal_until_the_limit() {
    let mut case = Case::staged(2).await;
    case.fake().state().nodes.insert(name(2), node(2, "Unknown"));
    case.speak_of([1]);
    assert_eq!(case.settle().await, [Retiring, Active]);
    case.speak_of([1]);
    case.settle().await;
    case.bench.advance(LIMIT);
    case.settle().await;
    case.speak_of([1]);
    case.settle().await;
    case.bench.advance(DRAIN);
    assert_eq!(case.settle().await, [Active]);
}

#[tokio::test]
async fn another_process_has_the_acknowledgements_renewed_before_it_acts() {
    let case = Case::staged(2).await;
    case.speak();
    let mut other = Bench::new(case.fake());
    other.now = case.bench.now;
    other.watch();
    let before = case.fake().ring();
    assert_eq!(other.settle().await, [Active, Staged]);
    let renewed = case.fake().ring();
    assert!(renewed.ack_id != before.ack_id && renewed.revision == before.revision + 1);
    case.speak();
    other.watch();
    assert_eq!(other.settle().await, [Retiring, Active]);
}

#[tokio::test]
async fn a_lost_write_that_was_done_is_recognized() {
    let mut case = Case::steady(2).await;
    let fake = case.fake().clone();
    case.annotate(ROTATE, "now");
    // The answer is lost, the write is not.
    fake.state().lose_answer = true;
    assert!(case.bench.turn().await.is_err());
    assert_eq!(case.settle().await, [Active, Staged]);
    case.speak();
    assert_eq!(case.settle().await, [Retiring, Active], "the ackId is this process's");
}

#[tokio::test]
async fn of_two_managers_one_acts() {
    let mut case = Case::staged(2).await;
    case.speak();
    let fake = case.fake().clone();
    fake.writes();
    fake.state().interfere = true;
    assert_eq!(case.bench.turn().await.unwrap(), Outcome::Conflict);
    assert_eq!(case.settle().await, [Retiring, Active]);
    assert_eq!(fake.writes(), 2);
}

#[tokio::test]
async fn a_request_is_answered_by_the_write_that_stages() {
    let mut case = Case::steady(2).await;
    case.annotate(ROTATE, "");
    assert_eq!(case.settle().await, [Active, Staged]);
    assert_eq!((case.annotation(ROTATE), case.annotation("note").as_deref()), (None, Some("ours")));
    // One that comes while a rotation is under way stays for the next, which keeps the minimum interval.
    case.annotate(ROTATE, "again");
    case.speak();
    case.settle().await;
    case.speak();
    case.settle().await;
    case.bench.advance(DRAIN);
    assert_eq!(case.settle().await, [Active]);
    assert_eq!(case.annotation(ROTATE).as_deref(), Some("again"));
    case.bench.advance(Duration::from_secs(300));
    assert_eq!(case.settle().await, [Active, Staged]);
    assert_eq!(case.annotation(ROTATE), None);
}

#[tokio::test]
async fn an_acknowledgement_that_cannot_be_read_counts_as_none_and_harms_no_other() {
    for junk in [json!("hush"), json!({"ackId": 3}), json!(null)] {
        let mut case = Case::staged(3).await;
        case.speak();
        case.say(2, &junk);
        case.bench.watch();
        assert!(case.waits().await.ends_with("waiting for node-2"), "{junk}");
        case.speak();
        assert_eq!(case.settle().await, [Retiring, Active]);
    }
}

#[tokio::test]
async fn a_wiped_ring_begins_above_what_living_nodes_know() {
    let case = Case::steady(2).await;
    let known = case.fake().ring().highest_id() + 1_000_000;
    for node in 1..=2 {
        let said = Acknowledgement { highest_generation_seen: known, ..ack(node, &case.fake().ring()) };
        case.say(node, said);
    }
    case.fake().set(b"");
    // Not the manager that knew the ring.
    let mut other = Bench::new(case.fake());
    other.watch();
    assert_eq!(other.settle().await, [Staged]);
    assert_eq!(case.fake().ring().highest_id(), known + 1);
}

#[tokio::test]
async fn an_older_ring_is_answered_by_a_new_one() {
    let case = Case::steady(3).await;
    let older = case.fake().ring();
    for node in 1..=2 {
        let said = Acknowledgement { highest_generation_seen: older.highest_id() + 9, ..ack(node, &older) };
        case.say(node, said);
    }
    let mut other = Bench::new(case.fake());
    other.watch();
    assert_eq!(other.settle().await, [Staged]);
    assert!(other.events().contains(&EventReason::KeyRingReplaced));
    assert_eq!(case.fake().ring().highest_id(), older.highest_id() + 10);
}

#[tokio::test]
async fn labelled_nodes_are_excluded_with_their_addresses() {
    let mut case = Case::steady(3).await;
    let label = json!({"node-restriction.kubernetes.io/secureoverlay": "disabled"});
    case.fake().state().nodes.get_mut(&name(3)).unwrap()["metadata"]["labels"] = label;
    case.bench.watch();
    case.bench.advance(DRAIN * 2);
    let before = case.fake().ring();
    case.settle().await;
    let ring = case.fake().ring();
    assert_eq!(ring.excluded.nodes, [name(3)].into());
    assert_eq!(ring.excluded.addresses, ["192.0.2.3".parse().unwrap()].into());
    assert_eq!((ring.ack_id, ring.revision), (before.ack_id, before.revision + 1));
}

#[tokio::test]
async fn the_mode_follows_the_rights_and_never_goes_back_to_time() {
    let fake = Fake::new();
    fake.state().nodes.insert(name(1), node(1, "True"));
    let mut bench = Bench::new(&fake);
    bench.watch();
    assert_eq!(bench.settle().await, [Staged]);
    fake.state().may_list_nodes = true;
    bench.turn().await.unwrap();
    bench.advance(DELAY / 2);
    bench.settle().await;
    bench.advance(DELAY);
    assert_eq!(bench.settle().await, [Staged], "time has passed, but no node has acknowledged");
    // Neither a right that is gone nor an API server that does not answer is a reason.
    fake.state().may_list_nodes = false;
    bench.advance(INTERVAL);
    assert_eq!(bench.settle().await, [Staged]);
    let mut other = Bench::new(&fake);
    fake.state().refuse = Some((Method::POST, StatusCode::FORBIDDEN, "starting".to_owned()));
    assert!(matches!(other.turn().await, Err(ReconcileError::Installation(_) | ReconcileError::Access(_))));
    let required = Options { mode: RolloutMode::Acknowledged, ..options() };
    fake.state().refuse = None;
    let mut other = Bench::with(&fake, required);
    assert!(matches!(other.turn().await, Err(ReconcileError::Snapshot(_))), "whatever the rights");
}
