//! What people hear of it, and nodes.

use axum::http::{Method, StatusCode};
use secureoverlay_common::{
    names::ENFORCE,
    ring::Role::{Active, Retiring},
};
use secureoverlay_manager::outbox::{self, Notice};
use secureoverlay_manager_core::{controller::Outcome, notification::EventReason};
use serde_json::json;

use crate::fake::{
    bench::{Options, options},
    cluster::{Case, QUIET, name},
};

#[tokio::test]
async fn people_hear_of_a_wait_and_nothing_depends_on_that() {
    let mut case = Case::staged(2).await;
    case.speak_of([1]);
    case.settle().await;
    assert_eq!(case.bench.events(), [EventReason::RotationStarted]);
    case.bench.advance(QUIET);
    case.settle().await;
    let told = case.bench.told();
    let [Notice::Event { reason, note, secret }, Notice::Awaited { node, what }] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!(
        (*reason, note.as_str()),
        (EventReason::RotationWaiting, "waiting for 15s for node-2: receiving generation 2")
    );
    assert!(secret.is_some());
    assert_eq!((node.as_str(), what.as_deref()), ("node-2", Some("receiving generation 2")));

    // Both reach the API; a node that never said anything has no object, which is no failure.
    let (outbox, receiver) = outbox::queue();
    told.iter().for_each(|notice| outbox.put(notice.clone()));
    outbox.put(Notice::Awaited { node: name(1), what: what.clone() });
    drop(outbox);
    let fake = case.fake().clone();
    outbox::deliver(fake.client(), receiver).await;
    let event = fake.state().events[0].clone();
    assert_eq!((&event["reason"], &event["type"]), (&json!("RotationWaiting"), &json!("Normal")));
    assert_eq!(event["involvedObject"]["kind"], json!("Secret"));
    assert_eq!(fake.state().encryptions[&name(1)]["status"]["awaited"], json!("receiving generation 2"));

    // Nobody takes notices any more: rotations go on.
    fake.state().refuse = Some((Method::POST, StatusCode::FORBIDDEN, "no".to_owned()));
    case.speak();
    assert_eq!(case.settle().await, [(1, Retiring), (2, Active)]);
}

#[tokio::test]
async fn a_ring_that_cannot_be_read_is_told_once() {
    let mut case = Case::steady(2).await;
    let good = case.fake().ring().to_yaml();
    for document in ["junk: true", "junk: true", "version: 9"] {
        case.fake().set(document.as_bytes());
        assert!(case.bench.turn().await.is_err());
    }
    assert_eq!(case.bench.events(), [EventReason::RingUnreadable, EventReason::RingUnreadable]);
    case.fake().set(b"");
    assert_eq!(case.bench.turn().await.unwrap(), Outcome::Written);
    assert_eq!(case.bench.events(), [EventReason::RingRestored]);
    assert_eq!(*case.fake().ring().to_yaml().lines().last().unwrap(), *good.lines().last().unwrap());
}

#[tokio::test]
async fn the_startup_taint_goes_when_a_node_encrypts_or_nobody_is_to() {
    const TAINT: &str = "secureoverlay.io/starting";
    let mut case = Case::with(3, Options { startup_taint: Some(TAINT.to_owned()), ..options() });
    let other = json!({"key": "other", "value": "x", "effect": "NoExecute"});
    for node in 1..=3 {
        let taints = json!([{"key": TAINT, "effect": "NoSchedule"}, other]);
        case.fake().state().nodes.get_mut(&name(node)).unwrap()["spec"]["taints"] = taints;
    }
    let lifted = |case: &mut Case| {
        let lifts =
            case.bench.told().into_iter().filter(|notice| matches!(notice, Notice::RemoveTaint { .. }));
        lifts.collect::<Vec<_>>()
    };
    case.bench.watch();
    case.settle().await;
    case.speak();
    assert_eq!(case.settle().await, [(1, Active)]);
    assert_eq!(lifted(&mut case), [], "nobody encrypts yet");

    case.speak_of([1, 2]);
    case.settle().await;
    let lifts = lifted(&mut case);
    let lift = |node| Notice::RemoveTaint { node: name(node), key: TAINT.to_owned() };
    assert_eq!(lifts, [lift(1), lift(2)]);
    let (outbox, receiver) = outbox::queue();
    lifts.into_iter().chain([lift(9)]).for_each(|lift| outbox.put(lift));
    drop(outbox);
    // Its kubelet writes one of them at the same moment.
    case.fake().state().interfere = true;
    outbox::deliver(case.fake().client(), receiver).await;
    let taints = |node| case.fake().state().nodes[&name(node)]["spec"]["taints"].as_array().unwrap().clone();
    assert_eq!([1, 2].map(taints), [[other.clone()], [other.clone()]]);
    assert_eq!(taints(3).len(), 2);

    case.bench.watch();
    case.settle().await;
    assert_eq!(lifted(&mut case), []);
    case.annotate(ENFORCE, "off");
    case.settle().await;
    assert_eq!(lifted(&mut case), [lift(3)]);
}
