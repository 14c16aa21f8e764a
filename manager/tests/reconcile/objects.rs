//! Requests and their status by way of the API server.

use secureoverlay_keyring::keyring::Role::{Active, Retiring, Staged};
use secureoverlay_rotation::DRAIN;
use serde_json::json;

use crate::fake::{
    bench::{Options, options},
    cluster::Case,
};

#[tokio::test]
async fn keyrotation_is_served_and_its_status_tells_how_it_goes() {
    let mut case = Case::with(2, Options { objects: true, ..options() });
    case.bench.goal("Permissive");
    assert_eq!(case.settle().await, [Staged]);
    case.speak();
    assert_eq!(case.settle().await, [Active]);
    case.bench.advance(std::time::Duration::from_secs(300));
    let asked =
        json!({"metadata": {"name": "mine", "uid": crate::fake::cluster::uid(8, 1), "resourceVersion": "1"}});
    case.fake().state().rotations.insert("mine".to_owned(), asked);
    case.bench.watch();
    assert_eq!(case.settle().await, [Active, Staged]);
    // An annotation does not count beside objects.
    case.annotate(secureoverlay_k8s::names::ROTATE, "now");
    let status = async |case: &mut Case| {
        case.settle().await;
        case.bench.deliver().await;
        case.bench.advance(std::time::Duration::from_secs(1));
        case.fake().state().rotations["mine"]["status"].clone()
    };
    let staged = status(&mut case).await;
    let generation = case.fake().ring().highest_id();
    assert_eq!((&staged["generation"], &staged["cause"]), (&json!(generation), &json!("Request")));
    assert_eq!(staged["waitingFor"]["nodes"], json!(["node-1", "node-2"]));
    case.speak();
    assert_eq!(case.settle().await, [Retiring, Active]);
    let draining = status(&mut case).await;
    assert_eq!(draining["waitingFor"]["step"], "switch");
    case.speak();
    case.settle().await;
    case.bench.advance(DRAIN);
    assert_eq!(case.settle().await, [Active]);
    // A write over what another one has changed meanwhile comes again a second later.
    status(&mut case).await;
    let done = status(&mut case).await;
    assert_eq!(
        (&done["conditions"][0]["type"], &done["conditions"][0]["status"]),
        (&json!("Complete"), &json!("True"))
    );
    assert!(done["waitingFor"].is_null() && done["phaseTimes"]["retired"].is_string(), "{done}");
    assert_eq!(case.settle().await, [Active]);
    assert!(case.annotation(secureoverlay_k8s::names::ROTATE).is_some());
}
