//! What people hear of it, and what is done beside the ring.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use secureoverlay_keyring::keyring::Role::{Active, Retiring};
use secureoverlay_manager::io::outbox::{self, Notice, Subject};
use secureoverlay_manager_core::{controller::Outcome, notification::EventReason};
use serde_json::json;

use crate::fake::{
    bench::{Options, options},
    cluster::{Case, QUIET, name},
};

#[tokio::test]
async fn a_wait_is_told_and_nothing_depends_on_that() {
    let mut case = Case::staged(2).await;
    case.speak_of([1]);
    case.settle().await;
    assert_eq!(case.bench.events(), [EventReason::RotationStarted]);
    case.bench.advance(QUIET);
    case.settle().await;
    let told = case.bench.told();
    let [Notice::Event { reason, note, about: Subject::Secret(secret) }] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!((*reason, secret.is_some()), (EventReason::RotationWaiting, true));
    assert!(note.starts_with("waiting for 15s for node-2: receiving and proving"), "{note}");
    let (outbox, receiver) = outbox::queue();
    told.iter().for_each(|notice| outbox.put(notice.clone()));
    drop(outbox);
    let fake = case.fake().clone();
    outbox::deliver(fake.client(), receiver).await;
    let event = fake.state().events[0].clone();
    assert_eq!((&event["reason"], &event["type"]), (&json!("RotationWaiting"), &json!("Normal")));
    assert_eq!(event["involvedObject"]["kind"], json!("Secret"));
    // Events may be refused: rotations go on.
    fake.state().refuse = Some((Method::POST, StatusCode::FORBIDDEN, "no".to_owned()));
    case.speak();
    assert_eq!(case.settle().await, [Retiring, Active]);
}

#[tokio::test]
async fn a_ring_that_cannot_be_read_is_told_once() {
    let mut case = Case::steady(2).await;
    let good = case.fake().ring();
    for document in ["junk: true", "junk: true", "version: 9"] {
        case.fake().set(document.as_bytes());
        assert!(case.bench.turn().await.is_err());
    }
    assert_eq!(case.bench.events(), [EventReason::KeyRingInvalid, EventReason::KeyRingInvalid]);
    case.fake().set(b"");
    assert_eq!(case.bench.turn().await.unwrap(), Outcome::Written);
    assert_eq!(case.bench.events(), [EventReason::KeyRingRestored]);
    assert_eq!(case.fake().ring().generations, good.generations);
}

#[tokio::test]
async fn the_startup_taint_goes_when_a_node_encrypts_or_none_is_to() {
    const TAINT: &str = "secureoverlay.io/starting";
    let mut case =
        Case::with(3, Options { startup_taint: Some(TAINT.to_owned()), objects: true, ..options() });
    case.bench.goal("Permissive");
    let other = json!({"key": "other", "value": "x", "effect": "NoExecute"});
    for node in 1..=3 {
        let taints = json!([{"key": TAINT, "effect": "NoSchedule"}, other]);
        case.fake().state().nodes.get_mut(&name(node)).unwrap()["spec"]["taints"] = taints;
    }
    let removed = |case: &mut Case| {
        let told = case.bench.told().into_iter();
        told.filter(|notice| matches!(notice, Notice::RemoveTaint { .. })).collect::<Vec<_>>()
    };
    case.bench.watch();
    case.settle().await;
    case.speak();
    assert_eq!(case.settle().await, [Active]);
    assert_eq!(removed(&mut case), [], "no node encrypts yet");
    case.speak_of([1, 2]);
    case.settle().await;
    let removals = removed(&mut case);
    let removal = |node| Notice::RemoveTaint { node: name(node), key: TAINT.to_owned() };
    assert_eq!(removals, [removal(1), removal(2)]);
    let (outbox, receiver) = outbox::queue();
    removals.into_iter().chain([removal(9)]).for_each(|removal| outbox.put(removal));
    drop(outbox);
    // Its kubelet writes one of them at the same moment.
    case.fake().state().interfere = true;
    outbox::deliver(case.fake().client(), receiver).await;
    let taints = |node| case.fake().state().nodes[&name(node)]["spec"]["taints"].as_array().unwrap().clone();
    assert_eq!([1, 2].map(taints), [[other.clone()], [other.clone()]]);
    assert_eq!(taints(3).len(), 2);
    case.bench.watch();
    case.settle().await;
    assert_eq!(removed(&mut case), []);
    case.bench.goal("Off");
    case.settle().await;
    assert_eq!(removed(&mut case), [removal(3)]);
}

#[tokio::test]
async fn objects_whose_node_is_gone_are_deleted_after_an_hour() {
    let mut case = Case::steady(2).await;
    let node = case.fake().state().nodes.remove(&name(2)).unwrap();
    case.bench.watch();
    case.settle().await;
    case.bench.advance(Duration::from_secs(3600));
    case.settle().await;
    let deletions: Vec<_> =
        case.bench.told().into_iter().filter(|notice| matches!(notice, Notice::Delete(_))).collect();
    assert_eq!(deletions.len(), 2, "{deletions:?}");
    let deliver = async |case: &Case| {
        let (outbox, receiver) = outbox::queue();
        deletions.iter().for_each(|notice| outbox.put(notice.clone()));
        drop(outbox);
        outbox::deliver(case.fake().client(), receiver).await;
        let state = case.fake().state();
        (state.peers.len(), state.encryptions.len())
    };
    // It is back after all.
    case.fake().state().nodes.insert(name(2), node);
    assert_eq!(deliver(&case).await, (2, 2));
    // Another object has taken the place of one.
    case.fake().state().nodes.remove(&name(2));
    case.fake().state().peers.get_mut(&name(2)).unwrap()["metadata"]["uid"] = json!("another");
    assert_eq!(deliver(&case).await, (2, 1));
}
