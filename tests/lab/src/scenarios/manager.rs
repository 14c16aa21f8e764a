//! What an operator asks of the manager, and what it tells: requests, Events, `kubectl get nodeencryptions`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::lab::Lab;
use crate::product;
use crate::run::output;

/// `ucp-secureoverlay-mgr rotate …` with the administrator's kubeconfig, as from a workstation.
pub fn rotate(lab: &Lab, flags: &[&str]) -> Result<String> {
    let program = product::programs()?.join("ucp-secureoverlay-mgr");
    let program = program.to_str().context("the build directory's path is not text")?;
    // An error is a sentence for people.
    output(lab.inside_command(program).env_remove("RUST_BACKTRACE").arg("rotate").args(flags))
}

/// A field of the NodeEncryptions' status, of all nodes that have it, by their names.
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

/// The nodes that a node has no proven SA to under this generation, as it names them itself; by node.
pub fn unproven(lab: &Lab, generation: &str) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let all = statuses(lab, "acknowledgement")?;
    Ok(all
        .into_iter()
        .map(|(node, acknowledgement)| (node, unproven_in(&acknowledgement, generation)))
        .collect())
}

/// The nodes that an acknowledgement names for this generation.
pub fn unproven_in(acknowledgement: &Value, generation: &str) -> BTreeSet<String> {
    let pairs = acknowledgement["unprovenPairs"].as_array().into_iter().flatten();
    let of = pairs.filter(|pairs| pairs["generation"] == generation);
    let named = of.flat_map(|pairs| pairs["nodes"].as_array().into_iter().flatten());
    named.filter_map(|node| node.as_str().map(str::to_owned)).collect()
}

/// Messages of the Events of this reason, both of this and of earlier rotations.
pub fn events(lab: &Lab, reason: &str) -> Result<Vec<String>> {
    let list = lab.kubectl_json(&["get", "events", "-A", &format!("--field-selector=reason={reason}")])?;
    let items = list["items"].as_array().into_iter().flatten();
    Ok(items.filter_map(|event| event["message"].as_str().map(str::to_owned)).collect())
}

/// How often an Event of this reason came: one that is repeated is counted in one object.
pub fn event_count(lab: &Lab, reason: &str) -> Result<u64> {
    let list = lab.kubectl_json(&["get", "events", "-A", &format!("--field-selector=reason={reason}")])?;
    Ok(list["items"].as_array().into_iter().flatten().map(times).sum())
}

fn times(event: &Value) -> u64 {
    let counts = [&event["count"], &event["series"]["count"]];
    counts.into_iter().filter_map(Value::as_u64).max().unwrap_or_default().max(1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn repeated_event_counts_as_often_as_it_came() {
        assert_eq!(times(&json!({"reason": "A"})), 1);
        assert_eq!(times(&json!({"count": 3})), 3);
        assert_eq!(times(&json!({"count": null, "series": {"count": 4}})), 4);
    }

    #[test]
    fn unproven_pairs_are_those_of_one_generation() {
        let pairs = json!([
            {"generation": "a", "count": 2, "nodes": ["n2", "n3"], "hashes": ""},
            {"generation": "b", "count": 1, "nodes": ["n1"], "hashes": ""},
        ]);
        let acknowledgement = json!({ "unprovenPairs": pairs });
        assert_eq!(unproven_in(&acknowledgement, "a"), ["n2", "n3"].map(str::to_owned).into());
        assert!(unproven_in(&acknowledgement, "c").is_empty());
        assert!(unproven_in(&json!({}), "a").is_empty());
    }
}
