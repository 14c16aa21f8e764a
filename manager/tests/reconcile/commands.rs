//! `rotate` where the request is an annotation: what it asks for, and how it follows it.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use secureoverlay_keyring::keyring::Role::Active;
use secureoverlay_manager::{
    cli::rotate::{Progress, ask, follow},
    io::store::Store,
};
use secureoverlay_rotation::DRAIN;
use tokio::time::{Instant, sleep};

use crate::fake::cluster::Case;

#[tokio::test]
async fn the_command_asks_beside_whatever_else_is_written() {
    let mut case = Case::steady(2).await;
    let (fake, store) = (case.fake().clone(), Store::new(case.fake().client()));
    let before = fake.ring();
    fake.state().interfere = true;
    let goal = ask(&store).await.unwrap();
    assert_eq!(fake.writes(), 2, "the first one ran into another's");
    assert_eq!((fake.ring(), case.annotation("note").as_deref()), (before, Some("ours")));
    let phase = async || {
        let (ring, read) = store.read().await.unwrap();
        goal.progress(ring.ok().as_ref(), read.rotate)
    };
    assert_eq!(phase().await, Progress::Asked);
    case.settle().await;
    assert!(matches!(phase().await, Progress::Staged(_)));
    case.speak();
    case.settle().await;
    assert!(matches!(phase().await, Progress::Draining(_)));
    case.speak();
    case.settle().await;
    case.bench.advance(DRAIN);
    case.settle().await;
    assert!(matches!(phase().await, Progress::Done(_)));
    // What is no ring is not touched.
    fake.set(b"junk: true");
    fake.writes();
    let error = format!("{:#}", ask(&store).await.unwrap_err());
    assert!(error.contains("repaired") && error.contains("not a YAML document"), "{error}");
    assert_eq!(fake.writes(), 0);
}

#[tokio::test(start_paused = true)]
async fn following_a_rotation_waits_for_an_api_server_that_is_away() {
    let mut case = Case::steady(2).await;
    let fake = case.fake().clone();
    let (client, away) = (fake.client(), Some((Method::GET, StatusCode::SERVICE_UNAVAILABLE, String::new())));
    let goal = ask(&Store::new(client.clone())).await.unwrap();
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
        assert_eq!(case.settle().await, [Active]);
    });
    followed.unwrap();
    // Not for ever.
    fake.state().refuse = away;
    let start = Instant::now();
    let error = follow(&client, goal).await.unwrap_err();
    assert!(format!("{error:#}").contains("503"), "{error:#}");
    assert_eq!(start.elapsed().as_secs(), 61);
}
