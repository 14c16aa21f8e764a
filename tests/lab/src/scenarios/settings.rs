//! The cluster's settings, edited as an operator edits them.

use anyhow::Result;
use serde_json::{Value, json};

use super::cluster::until;
use super::overlay::PATIENCE;
use crate::lab::Lab;

/// The one object.
pub const OBJECT: &str = "clusterencryption/default";

/// What a lab's installation has, beside the defaults: scenarios rotate as fast as nodes can follow.
const LAB: &str = r#"
apiVersion: secureoverlay.io/v1alpha1
kind: ClusterEncryption
metadata: {name: default}
spec: {rotation: {interval: 12h, minimumInterval: 1s}}
"#;

/// Changes fields of the spec; null brings a default back.
pub fn edit(lab: &Lab, spec: &Value) -> Result<()> {
    let patch = json!({ "spec": spec }).to_string();
    lab.kubectl(&["patch", OBJECT, "--type=merge", "--patch", &patch]).map(drop)
}

/// Gives a lab its settings, as soon as the definition is served.
pub fn apply(lab: &Lab) -> Result<()> {
    until("the definition of ClusterEncryption to be served", PATIENCE, || Ok(lab.apply(LAB).is_ok()))
}
