//! What an operator asks of the manager, and what it tells: requests, Events, `kubectl get nodeencryptions`.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

use super::overlay::NAMESPACE;
use crate::lab::Lab;
use crate::product;
use crate::run::output;

/// `ucp-secureoverlay-mgr rotate …` with the administrator's kubeconfig, as from a workstation.
pub fn rotate(lab: &Lab, flags: &[&str]) -> Result<String> {
    run(lab, "rotate", flags)
}

/// `ucp-secureoverlay-mgr enforce …`, likewise.
pub fn enforce(lab: &Lab, arguments: &[&str]) -> Result<String> {
    run(lab, "enforce", arguments)
}

fn run(lab: &Lab, command: &str, arguments: &[&str]) -> Result<String> {
    let program = product::programs()?.join("ucp-secureoverlay-mgr");
    let program = program.to_str().context("the build directory's path is not text")?;
    // An error is a sentence for people.
    output(lab.inside_command(program).env_remove("RUST_BACKTRACE").arg(command).args(arguments))
}

/// A field of the node's NodeEncryption status; `None` while there is no object or no such field.
pub fn status(lab: &Lab, node: &str, field: &str) -> Result<Option<Value>> {
    Ok(statuses(lab, field)?.remove(node))
}

/// The same of all nodes that have it, by their names.
pub fn statuses(lab: &Lab, field: &str) -> Result<BTreeMap<String, Value>> {
    let list = lab.kubectl_json(&["get", "nodeencryptions"])?;
    let items = list["items"].as_array().into_iter().flatten();
    let named = items.map(|item| {
        let name = item["metadata"]["name"].as_str().unwrap_or_default();
        (name.to_owned(), item["status"][field].clone())
    });
    Ok(named.filter(|(_, value)| !value.is_null()).collect())
}

/// What `kubectl get nodeencryptions` shows.
pub fn table(lab: &Lab) -> Result<String> {
    lab.kubectl(&["get", "nodeencryptions"])
}

/// Messages of the Events of this reason on the Secret, both of this and of earlier rotations.
pub fn events(lab: &Lab, reason: &str) -> Result<Vec<String>> {
    let list =
        lab.kubectl_json(&["-n", NAMESPACE, "get", "events", &format!("--field-selector=reason={reason}")])?;
    let items = list["items"].as_array().into_iter().flatten();
    Ok(items.filter_map(|event| event["message"].as_str().map(str::to_owned)).collect())
}
