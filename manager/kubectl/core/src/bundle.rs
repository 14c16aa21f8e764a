//! What of an object goes into a support bundle: enough to see what is wrong, and nothing that a stranger must not read.

use serde_json::{Map, Value, json};

use crate::snapshot::Cleaned;

/// What a file of the bundle is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// An object of SecureOverlay: all of it. It holds public keys and addresses, and no key ring.
    Ours,
    /// A Node: what SecureOverlay reads of it.
    Node,
    /// A DaemonSet, Deployment or Pod of SecureOverlay.
    Workload,
    /// An Event.
    Event,
}

/// Annotations of Nodes that are kept.
const ANNOTATIONS: [&str; 2] = ["projectcalico.org/IPv4Address", crate::snapshot::REASON];
/// Variables whose values are kept: all of ours, none of which is a secret, and the node's name.
const VARIABLES: [&str; 3] = ["SECUREOVERLAY_", "NODE_NAME", "MY_NODE_NAME"];

/// The object without what does not belong into a bundle.
#[must_use]
pub fn redact(content: Content, object: Cleaned) -> Value {
    let mut object = object.into_inner();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            // What was applied, in whole.
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
            if content == Content::Node {
                annotations.retain(|name, _| ANNOTATIONS.contains(&name.as_str()));
            }
        }
    }
    match content {
        Content::Ours | Content::Event => object,
        Content::Node => node(&object),
        Content::Workload => {
            variables(&mut object);
            object
        }
    }
}

fn node(object: &Value) -> Value {
    let pick = |from: &Value, fields: &[&str]| -> Value {
        fields
            .iter()
            .filter_map(|field| Some(((*field).to_owned(), from.get(*field)?.clone())))
            .collect::<Map<_, _>>()
            .into()
    };
    json!({
        "metadata": pick(&object["metadata"], &["name", "uid", "creationTimestamp", "labels", "annotations"]),
        "spec": pick(&object["spec"], &["podCIDRs", "taints", "unschedulable"]),
        "status": pick(&object["status"], &["addresses", "conditions", "nodeInfo"]),
    })
}

/// Takes out the values of variables that are not ours, wherever they are.
fn variables(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(variables),
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), value) {
                    ("env", Value::Array(variables)) => variables.iter_mut().for_each(variable),
                    (_, value) => variables(value),
                }
            }
        }
        _ => {}
    }
}

fn variable(variable: &mut Value) {
    let kept =
        variable["name"].as_str().is_some_and(|name| VARIABLES.iter().any(|ours| name.starts_with(ours)));
    if let Some(value) = variable.get_mut("value").filter(|_| !kept) {
        *value = json!("(redacted)");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundle_holds_nothing_but_what_is_named() {
        let meta = json!({
            "name": "a", "managedFields": [{"x": "hush"}],
            "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": "hush", "team.example/token": "hush",
                "projectcalico.org/IPv4Address": "10.0.0.5/24",
            },
        });
        let node =
            json!({"metadata": meta, "status": {"nodeInfo": {"kernelVersion": "6.1"}, "images": ["hush"]}});
        let shown = redact(Content::Node, Cleaned::new(node));
        assert!(!shown.to_string().contains("hush"), "{shown}");
        assert_eq!(shown["metadata"]["annotations"], json!({"projectcalico.org/IPv4Address": "10.0.0.5/24"}));
        assert_eq!(shown["status"]["nodeInfo"]["kernelVersion"], "6.1");

        let env = json!([
            {"name": "SECUREOVERLAY_LOG", "value": "debug"}, {"name": "HTTPS_PROXY", "value": "http://user:hush@proxy"},
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s"}}}, 5,
        ]);
        let workload = json!({"spec": {"template": {"spec": {"containers": [{"env": env}]}}}});
        let shown = redact(Content::Workload, Cleaned::new(workload));
        assert!(!shown.to_string().contains("hush") && shown.to_string().contains("debug"), "{shown}");
        for hostile in [json!(null), json!("text"), json!({"metadata": 5, "spec": {"env": {"env": []}}})] {
            for content in [Content::Ours, Content::Node, Content::Workload, Content::Event] {
                let _ = redact(content, Cleaned::new(hostile.clone()));
            }
        }
    }
}
