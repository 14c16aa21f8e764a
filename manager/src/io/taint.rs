//! The start-up taint: its key, and how it is taken from a Node.

use k8s_openapi::api::core::v1::{Node, NodeSpec};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

/// A kubelet may write its Node at the same moment.
const TRIES: usize = 5;

/// Parses the key of a taint.
///
/// # Errors
/// A sentence for the user.
pub fn parse_key(text: &str) -> Result<String, String> {
    let (prefix, name) = text.rsplit_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let plain = |part: &str, longest: usize, more: &[char]| {
        let known = |c: char| c.is_ascii_alphanumeric() || more.contains(&c);
        let ends = [part.chars().next(), part.chars().last()];
        part.len() <= longest
            && part.chars().all(known)
            && ends.into_iter().all(|end| end.is_some_and(|c| c.is_ascii_alphanumeric()))
    };
    if plain(name, 63, &['-', '_', '.']) && prefix.is_none_or(|prefix| plain(prefix, 253, &['-', '.'])) {
        return Ok(text.to_owned());
    }
    Err("the key of a taint is expected, without value and effect, for instance secureoverlay.io/starting"
        .to_owned())
}

/// Takes the taint from a node.
///
/// # Errors
/// The API server refuses, or another writer keeps changing the Node.
pub async fn remove(client: &Client, node: &str, key: &str) -> Result<(), kube::Error> {
    let nodes = Api::<Node>::all(client.clone());
    let mut result = Ok(());
    for _ in 0..TRIES {
        let Some(found) = nodes.get_opt(node).await? else { return Ok(()) };
        let Some(NodeSpec { taints: Some(taints), .. }) = found.spec else { return Ok(()) };
        let rest: Vec<_> = taints.iter().filter(|taint| taint.key != key).collect();
        if rest.len() == taints.len() {
            return Ok(());
        }
        // Only over what was read: others have taints of their own.
        let version = found.metadata.resource_version;
        let patch = Patch::Merge(json!({"metadata": {"resourceVersion": version}, "spec": {"taints": rest}}));
        result = nodes.patch(node, &PatchParams::default(), &patch).await.map(drop);
        match &result {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Ok(()) => {
                tracing::info!(node, taint = key, "all pairs of the node are proven: start-up taint removed");
                return Ok(());
            }
            Err(_) => return result,
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        for good in ["starting", "secureoverlay.io/starting", "a.b-c/d_e.f"] {
            assert_eq!(parse_key(good).as_deref(), Ok(good));
        }
        for bad in
            ["", "/", "a/", "/a", "a b", "a=b:NoSchedule", "a/b:NoSchedule", "-a", "a.", &"x".repeat(64)]
        {
            assert!(parse_key(bad).is_err(), "{bad}");
        }
    }
}
