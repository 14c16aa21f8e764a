//! What the lists and watches of the cluster bring, and when it is believed.

use axum::http::StatusCode;
use futures::channel::mpsc::unbounded;
use secureoverlay_keyring::keyring::Role::{Active, Retiring, Staged};
use secureoverlay_manager::{
    io::{
        cluster_cache::{self, ClusterCache},
        snapshot,
    },
    run::driver::ReconcileError,
};
use secureoverlay_manager_core::{node_count_guard::DISTRUST, snapshot::ClusterState};
use serde_json::json;

use crate::fake::{
    Fake,
    bench::Bench,
    cluster::{Case, ack, name, node, peer},
};

#[tokio::test]
async fn what_the_watches_brought_is_checked_before_it_counts() {
    let mut case = Case::staged(2).await;
    case.speak();
    // A node joined, and one took back what it said; the watches have not told yet.
    let fake = case.fake().clone();
    let mut ring = fake.ring();
    ring.generations.pop();
    for number in [1, 3] {
        fake.state().nodes.insert(name(number), node(number, "True"));
        fake.state().peers.insert(name(number), peer(number));
        case.say(number, ack(number, &ring));
    }
    let reason = case.waits().await;
    assert!(reason.ends_with("is on its way to every node, waiting for node-1, node-3"), "{reason}");
    assert_eq!(fake.writes(), 0);
    case.nodes = 3;
    case.speak();
    assert_eq!(case.settle().await, [Retiring, Active]);
}

#[tokio::test]
async fn without_lists_nothing_is_decided() {
    let mut case = Case::staged(2).await;
    case.speak();
    let fake = case.fake().clone();
    // A manager that was just started.
    let mut other = Bench::new(&fake);
    let error = other.turn().await.unwrap_err();
    assert!(matches!(error, ReconcileError::Snapshot(_)), "{error}");
    assert!(error.to_string().contains("not known yet"), "{error}");
    let refused = "/api/v1/nodes".to_owned();
    fake.state().refuse_path = Some((refused, StatusCode::INTERNAL_SERVER_ERROR));
    let error = case.bench.turn().await.unwrap_err();
    assert!(error.to_string().starts_with("failed to list Nodes"), "{error}");
    assert_eq!(fake.writes(), 0);
    fake.state().refuse_path = None;
    assert_eq!(case.settle().await, [Retiring, Active]);
}

#[tokio::test]
async fn long_lists_are_read_to_the_end() {
    let case = Case::new(0);
    for number in 0..1_203 {
        let mut object = node(1, "True");
        object["metadata"]["name"] = json!(format!("many-{number}"));
        case.fake().state().nodes.insert(format!("many-{number}"), object);
    }
    let view = snapshot::list(&case.fake().client(), None, ClusterState::default()).await.unwrap();
    assert_eq!((view.nodes.len(), view.acks.len()), (1_203, 0));
    assert_eq!(case.fake().calls().len(), 5, "three pages of Nodes, one each of the others");
}

#[tokio::test]
async fn nodes_that_vanish_all_at_once_are_not_believed_to_be_gone() {
    let mut case = Case::staged(5).await;
    case.speak_of([1]);
    case.settle().await;
    let lost: Vec<_> = (2..=5).map(|node| case.fake().state().nodes.remove(&name(node)).unwrap()).collect();
    case.bench.watch();
    let reason = case.waits().await;
    assert!(reason.contains("suddenly there are 1 nodes instead of 5"), "{reason}");
    case.bench.advance(DISTRUST / 2);
    assert_eq!(case.settle().await, [Active, Staged]);
    for (number, object) in (2..=5).zip(lost.clone()) {
        case.fake().state().nodes.insert(name(number), object);
    }
    case.bench.watch();
    assert!(case.waits().await.contains("node-2"));
    case.fake().state().nodes.retain(|other, _| *other == name(1));
    case.bench.watch();
    case.waits().await;
    case.bench.advance(DISTRUST);
    assert_eq!(case.settle().await, [Retiring, Active], "in the end they are");
}

#[tokio::test]
async fn the_watches_fill_the_view_and_tell_of_changes() {
    let fake = Fake::new();
    fake.state().nodes.insert(name(1), node(1, "True"));
    let (events, watch) = unbounded();
    fake.state().watch = Some(watch);
    let cluster = ClusterCache::default();
    let watched = cluster.clone();
    let client = fake.client();
    let follow = tokio::spawn(async move { cluster_cache::follow(client, &watched).await });
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(fake.calls().is_empty(), "not before they are wanted");
    cluster.want();
    while cluster.snapshot(None).is_err() {
        cluster.changed().await;
    }
    assert_eq!(cluster.snapshot(None).unwrap().nodes.len(), 1);
    events.unbounded_send(json!({"type": "ADDED", "object": node(2, "True")})).unwrap();
    while cluster.snapshot(None).unwrap().nodes.len() < 2 {
        cluster.changed().await;
    }
    events.unbounded_send(json!({"type": "DELETED", "object": node(1, "True")})).unwrap();
    while cluster.snapshot(None).unwrap().nodes.len() > 1 {
        cluster.changed().await;
    }
    assert_eq!(cluster.snapshot(None).unwrap().nodes[0].name, "node-2");
    follow.abort();
}
