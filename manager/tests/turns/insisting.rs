//! The way up to enforcing, and down to off.

use std::time::Duration;

use axum::http::StatusCode;
use secureoverlay_common::{
    acknowledgement::Acknowledgement,
    names::{ENFORCE, PRESS_ON},
    ring::{
        Enforcement,
        Role::{Active, Retiring, Staged},
    },
    rotation::{EnforcementGoal, evidence::acks::DRAIN},
};
use secureoverlay_manager::{driver::ReconcileError, enforce, outbox::Notice, store::Store};
use secureoverlay_manager_core::{
    controller::Outcome, node_count_guard::DISTRUST, notification::EventReason,
};

use crate::fake::{
    bench::{Bench, LIMIT, Options, options},
    cluster::{Case, QUIET, name, node, uid, word},
};

/// A manager that goes up to enforcing.
async fn insisting(nodes: usize) -> Case {
    let mut case = Case::new(nodes);
    case.bench = Bench::with(case.fake(), Options { goal: EnforcementGoal::Auto, ..options() });
    case.bench.watch();
    case.settle().await;
    case.speak();
    assert_eq!(case.settle().await, [(1, Active)]);
    case
}

#[tokio::test]
async fn insisting_waits_for_everybody_and_is_told() {
    let mut case = insisting(2).await;
    assert_eq!(case.fake().ring().enforcement, Enforcement::Permissive, "nobody has said that it sends");
    let mut hindered = word(2, &case.fake().ring());
    hindered.obstacles.insert("eth0 has disable_policy set".to_owned());
    case.speak();
    case.say(2, hindered);
    case.bench.watch();
    let reason = case.waits().await;
    assert!(reason.contains("not insisted on yet (node-2: eth0 has disable_policy set)"), "{reason}");
    case.bench.advance(QUIET);
    case.waits().await;
    let told = case.bench.told();
    let waiting = told.iter().find_map(|notice| match notice {
        Notice::Event { reason: EventReason::EnforcementWaiting, note, .. } => Some(note.as_str()),
        _ => None,
    });
    assert!(waiting.unwrap().ends_with("node-2: insisting: node-2: eth0 has disable_policy set"));
    case.speak();
    case.settle().await;
    assert_eq!(case.fake().ring().enforcement, Enforcement::Enforcing);
    assert_eq!(case.bench.metric("enforcement{enforcement=\"enforcing\"}"), 1);
    assert!(case.bench.events().contains(&EventReason::Enforcing));
    // What comes up later lowers nothing.
    case.fake().state().encryptions.clear();
    case.bench.watch();
    case.settle().await;
    assert_eq!(case.fake().ring().enforcement, Enforcement::Enforcing);
}

#[tokio::test]
async fn what_was_pressed_on_is_over_when_the_ring_insists() {
    let mut case = insisting(2).await;
    case.annotate(PRESS_ON, "true");
    case.settle().await;
    assert!(case.annotation(PRESS_ON).is_some(), "not yet");
    case.speak();
    case.settle().await;
    assert_eq!(case.fake().ring().enforcement, Enforcement::Enforcing);
    assert_eq!(case.annotation(PRESS_ON), None);
}

#[tokio::test]
async fn insisting_is_checked_against_fresh_lists_and_not_done_in_doubt() {
    let mut case = insisting(5).await;
    case.speak();
    // One joined meanwhile.
    let fake = case.fake().clone();
    fake.state().nodes.insert(name(6), node(6, "True"));
    case.settle().await;
    assert_eq!((fake.ring().enforcement, fake.ring().pending), (Enforcement::Permissive, [uid(1, 6)].into()));
    fake.state().nodes.retain(|other, _| [name(1), name(2)].contains(other));
    case.bench.watch();
    case.bench.advance(Duration::from_secs(5));
    let reason = case.waits().await;
    assert!(reason.contains("suddenly there are 2 Nodes instead of 6"), "{reason}");
    assert_eq!(fake.ring().pending.len(), 1, "nor does anybody leave the list");
    case.bench.advance(DISTRUST);
    case.settle().await;
    assert_eq!((fake.ring().enforcement, fake.ring().pending), (Enforcement::Permissive, [].into()));
    case.speak_of([1, 2]);
    case.settle().await;
    assert_eq!(fake.ring().enforcement, Enforcement::Enforcing, "in the end they are gone");
}

#[tokio::test]
async fn what_was_insisted_on_goes_on_beside_a_ring_begun_anew() {
    for (second, asked, wanted) in [
        (Enforcement::Enforcing, None, Enforcement::Enforcing),
        // This one was started anew, and its kernel holds nothing.
        (Enforcement::Permissive, None, Enforcement::Permissive),
        (Enforcement::Enforcing, Some("permissive"), Enforcement::Permissive),
    ] {
        let mut case = insisting(2).await;
        case.speak();
        case.settle().await;
        case.speak();
        // Not the manager that knew the ring.
        let fake = case.fake().clone();
        fake.set(b"");
        if let Some(asked) = asked {
            case.annotate(ENFORCE, asked);
        }
        let mut other = Bench::with(&fake, Options { goal: EnforcementGoal::Auto, ..options() });
        other.watch();
        assert_eq!(other.settle().await, [(2, Staged)]);
        let ring = fake.ring();
        for (node, enforcement) in [(1, Enforcement::Enforcing), (2, second)] {
            case.say(node, Acknowledgement { enforcement, ..word(node, &ring) });
        }
        other.watch();
        assert_eq!(other.settle().await, [(2, Active)]);
        assert_eq!(fake.ring().enforcement, wanted);
    }
}

#[tokio::test]
async fn relenting_needs_nobodys_word() {
    let mut case = insisting(2).await;
    case.speak();
    case.settle().await;
    let fake = case.fake().clone();
    assert_eq!(fake.ring().enforcement, Enforcement::Enforcing);
    case.annotate(ENFORCE, "off");
    let enforcing = fake.ring();
    // Just started, the lists are not there yet; and then nobody says whether they may be read at all.
    let mut other = Bench::with(&fake, options());
    let review = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews".to_owned();
    for refused in [None, Some((review, StatusCode::INTERNAL_SERVER_ERROR))] {
        fake.state().refuse_path = refused;
        fake.set(enforcing.to_yaml().as_bytes());
        assert_eq!(other.turn().await.unwrap(), Outcome::Written);
        assert_eq!(fake.ring().enforcement, Enforcement::Permissive);
        assert_eq!(other.events(), [EventReason::Relented]);
    }
    let error = other.turn().await.unwrap_err();
    assert!(matches!(error, ReconcileError::Access(_)), "all the rest needs it: {error}");
    fake.state().refuse_path = None;
    let error = other.turn().await.unwrap_err();
    assert!(matches!(error, ReconcileError::Snapshot(_)), "all the rest needs it: {error}");
    assert_eq!(fake.ring().enforcement, Enforcement::Permissive);
}

#[tokio::test]
async fn who_has_to_relent_again_has_the_whole_time_again() {
    let mut case = insisting(2).await;
    case.speak();
    case.settle().await;
    case.speak();
    let (fake, enforcing) = (case.fake().clone(), case.fake().ring());
    case.annotate(ENFORCE, "permissive");
    case.settle().await;
    fake.state().nodes.insert(name(2), node(2, "False"));
    case.speak_of([1]);
    case.settle().await;
    case.bench.advance(LIMIT);
    fake.set(enforcing.to_yaml().as_bytes());
    case.annotate(ENFORCE, "off");
    assert_eq!(case.settle().await, [(1, Active)], "node-2 insists");
    assert_eq!(fake.ring().enforcement, Enforcement::Permissive);
    case.bench.advance(LIMIT);
    assert_eq!(case.settle().await, [(1, Retiring)], "it is left behind");
}

#[tokio::test]
async fn somebody_asks_for_the_way_down_and_up_again() {
    let mut case = insisting(2).await;
    case.speak();
    case.settle().await;
    let (fake, store) = (case.fake().clone(), Store::new(case.fake().client()));
    // Nonsense is none.
    case.annotate(ENFORCE, "aus");
    case.settle().await;
    assert_eq!(fake.ring().enforcement, Enforcement::Enforcing);
    case.speak();
    fake.state().interfere = true;
    enforce::ask(&store, Some(Enforcement::Off)).await.unwrap();
    assert_eq!(
        (case.annotation(ENFORCE).as_deref(), case.annotation("note").as_deref()),
        (Some("off"), Some("ours"))
    );
    case.annotate(PRESS_ON, "false");
    let reason = {
        case.settle().await;
        case.waits().await
    };
    assert!(reason.ends_with("every node accepts plaintext again, waiting for node-1, node-2"), "{reason}");
    assert_eq!(fake.ring().enforcement, Enforcement::Permissive);
    case.speak();
    assert_eq!(case.settle().await, [(1, Retiring)]);
    assert_eq!(case.bench.metric("phase{phase=\"stopping\"}"), 1);
    for node in 1..=2 {
        let silent = Acknowledgement { silent: true, ..word(node, &fake.ring()) };
        case.say(node, silent);
    }
    case.bench.watch();
    assert_eq!(case.settle().await, [(1, Retiring)], "packets are under way");
    case.bench.advance(DRAIN);
    assert_eq!(case.settle().await, []);
    assert_eq!(fake.ring().enforcement, Enforcement::Off);
    let events = case.bench.events();
    assert!(
        events.ends_with(&[EventReason::Relented, EventReason::SwitchingOff, EventReason::SwitchedOff]),
        "{events:?}"
    );
    enforce::ask(&store, None).await.unwrap();
    assert_eq!(case.annotation(ENFORCE), None);
    assert_eq!(case.settle().await, [(2, Staged)], "what the manager was started with counts again");
}
