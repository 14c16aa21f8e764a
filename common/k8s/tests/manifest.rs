//! The manifest holds the definitions that the programs were built with.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use serde_json::{Value, to_value};

#[test]
fn manifest_holds_the_generated_definitions() {
    let objects: Vec<Value> =
        serde_saphyr::from_multiple(include_str!("../../../manifests/ucp-secureoverlay.yaml")).unwrap();
    let found: Vec<Value> =
        objects.into_iter().filter(|object| object["kind"] == "CustomResourceDefinition").collect();
    let generated: Vec<Value> = secureoverlay_k8s::definitions::all()
        .iter()
        .map(|definition| to_value(definition).unwrap())
        .collect();
    assert_eq!(found, generated, "put what `ucp-secureoverlay-mgr crd` prints into the manifest");
}
