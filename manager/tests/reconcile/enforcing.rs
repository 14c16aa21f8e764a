//! The way up to enforcing, and down to off.

use std::time::Duration;

use secureoverlay_keyring::{
    acknowledgement::EnforcementBlocker,
    keyring::{
        Enforcement,
        Role::{Active, Retiring, Staged},
    },
    settings::EnforcementGoal,
};
use secureoverlay_manager::io::outbox::Notice;
use secureoverlay_manager_core::notification::EventReason;
use secureoverlay_rotation::DRAIN;

use crate::fake::{
    bench::{Bench, Options, options},
    cluster::{Case, QUIET, ack},
};

/// A manager that goes up to enforcing.
async fn up(nodes: usize) -> Case {
    let mut case = Case::with(nodes, Options { objects: true, ..options() });
    case.bench.goal("Auto");
    case.settle().await;
    case.speak();
    assert_eq!(case.settle().await, [Active]);
    case
}

#[tokio::test]
async fn enforcing_waits_for_every_node_and_is_never_lowered_by_a_blocker() {
    let mut case = up(2).await;
    assert_eq!(case.fake().ring().enforcement, Enforcement::Permissive);
    case.speak();
    let mut hindered = ack(2, &case.fake().ring());
    let blocker = EnforcementBlocker { reason: "PlaintextBypass".into(), detail: "eth0".into() };
    hindered.enforcement_blockers.insert(blocker);
    case.say(2, &hindered);
    case.bench.watch();
    assert!(case.waits().await.ends_with("not enforced yet, waiting for node-2"));
    case.bench.advance(QUIET);
    case.waits().await;
    let told = case.bench.told();
    let waiting = told.iter().find_map(|notice| match notice {
        Notice::Event { reason: EventReason::EnforcementWaiting, note, .. } => Some(note.as_str()),
        _ => None,
    });
    assert!(waiting.unwrap().ends_with("node-2: PlaintextBypass (eth0)"), "{told:?}");
    case.speak();
    case.settle().await;
    assert_eq!(case.fake().ring().enforcement, Enforcement::Enforcing);
    assert_eq!(case.bench.metric("enforcement{enforcement=\"enforcing\"}"), 1);
    assert!(case.bench.events().contains(&EventReason::Enforcing));
    case.say(2, &hindered);
    case.bench.watch();
    case.settle().await;
    assert_eq!(case.fake().ring().enforcement, Enforcement::Enforcing);
}

#[tokio::test]
async fn enforcing_rests_on_young_acknowledgements_alone() {
    let mut case = up(2).await;
    case.bench.advance(Duration::from_secs(600));
    case.speak();
    let before = case.fake().ring();
    case.settle().await;
    let renewed = case.fake().ring();
    assert!(renewed.enforcement == Enforcement::Permissive && renewed.ack_id != before.ack_id);
    case.speak();
    case.settle().await;
    assert_eq!(case.fake().ring().enforcement, Enforcement::Enforcing);
}

#[tokio::test]
async fn off_is_reached_step_by_step() {
    let mut case = up(2).await;
    case.speak();
    case.settle().await;
    case.bench.goal("Off");
    assert_eq!(case.settle().await, [Active]);
    assert_eq!(case.fake().ring().enforcement, Enforcement::Permissive, "plaintext is accepted first");
    case.speak();
    assert_eq!(case.settle().await, [Retiring]);
    case.speak();
    assert_eq!(case.settle().await, [Retiring], "packets are under way");
    case.bench.advance(DRAIN);
    assert!(case.settle().await.is_empty());
    let ring = case.fake().ring();
    assert_eq!((ring.enforcement, ring.settings.enforcement), (Enforcement::Off, EnforcementGoal::Off));
    case.bench.goal("Permissive");
    assert_eq!(case.settle().await, [Staged]);
}

#[tokio::test]
async fn plaintext_is_accepted_again_whatever_nodes_say() {
    let mut case = up(2).await;
    case.speak();
    case.settle().await;
    // Not even the lists are needed.
    let mut other = Bench::new(case.fake());
    other.turn().await.unwrap();
    assert_eq!(case.fake().ring().enforcement, Enforcement::Permissive);
}

#[tokio::test]
async fn a_ring_begun_anew_enforces_where_most_nodes_do() {
    let mut case = up(3).await;
    case.speak();
    case.settle().await;
    case.fake().set(b"");
    let mut changed = options();
    changed.settings.enforcement = EnforcementGoal::Auto;
    case.bench = Bench::with(case.fake(), changed);
    case.bench.watch();
    assert_eq!(case.settle().await, [Staged]);
    let ring = case.fake().ring();
    for node in 1..=3 {
        let mut said = ack(node, &ring);
        said.enforcement = if node == 3 { Enforcement::Permissive } else { Enforcement::Enforcing };
        case.say(node, said);
    }
    case.bench.watch();
    assert_eq!(case.settle().await, [Active]);
    assert_eq!(case.fake().ring().enforcement, Enforcement::Enforcing);
}
