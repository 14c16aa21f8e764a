//! The start-up taint: pods stay off a node until it encrypts.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Node, NodeSpec};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

/// Between two tries with one node: by then the watch shows what has become of the first.
const AGAIN: Duration = Duration::from_secs(30);
/// Pulling an image may take so long; longer is worth a word.
const LONG: Duration = Duration::from_secs(300);
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

/// Remembers when it tried which node.
#[derive(Debug)]
pub struct Lifter {
    key: String,
    tried: BTreeMap<String, Instant>,
    /// Since when it knows of nodes that keep the taint; `None` once that was told.
    kept: BTreeMap<String, Option<Instant>>,
}

impl Lifter {
    /// For the taint with this key.
    #[must_use]
    pub const fn new(key: String) -> Self {
        Self { key, tried: BTreeMap::new(), kept: BTreeMap::new() }
    }

    /// The taint's key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Those of the `tainted` nodes to take the taint from at `now`.
    pub fn due(&mut self, tainted: &BTreeSet<String>, free: &BTreeSet<String>, now: Instant) -> Vec<String> {
        self.tried.retain(|node, at| tainted.contains(node) && now.saturating_duration_since(*at) < AGAIN);
        let due: Vec<String> =
            tainted.intersection(free).filter(|node| !self.tried.contains_key(*node)).cloned().collect();
        self.tried.extend(due.iter().map(|node| (node.clone(), now)));
        due
    }

    /// Those that have kept it for long, each once.
    pub fn stuck(
        &mut self,
        tainted: &BTreeSet<String>,
        free: &BTreeSet<String>,
        now: Instant,
    ) -> Vec<String> {
        let before = std::mem::take(&mut self.kept);
        self.kept = tainted
            .difference(free)
            .map(|node| (node.clone(), before.get(node).copied().unwrap_or(Some(now))))
            .collect();
        let mut stuck = Vec::new();
        for (node, since) in &mut self.kept {
            if since.is_some_and(|since| now.saturating_duration_since(since) >= LONG) {
                stuck.push(node.clone());
                *since = None;
            }
        }
        stuck
    }
}

/// Takes the taint from a node.
///
/// # Errors
/// The API server refuses, or somebody else keeps writing the Node.
pub async fn lift(client: &Client, node: &str, key: &str) -> Result<(), kube::Error> {
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
                tracing::info!(node, taint = key, "it encrypts: the start-up taint is removed");
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

    #[test]
    fn each_node_once_in_a_while() {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<String>>();
        let (mut lifter, start) = (Lifter::new("starting".to_owned()), Instant::now());
        let free = set(&["a", "b", "c"]);
        assert_eq!(lifter.due(&set(&["a", "x"]), &free, start), ["a"], "x does not encrypt");
        assert_eq!(lifter.due(&set(&["a", "b"]), &free, start), ["b"]);
        assert_eq!(lifter.due(&set(&["a", "b"]), &free, start + AGAIN / 2), [""; 0]);
        assert_eq!(
            lifter.due(&set(&["a", "b"]), &free, start + AGAIN),
            ["a", "b"],
            "it failed, or the taint came back"
        );
        assert_eq!(lifter.due(&set(&["b"]), &free, start + AGAIN), [""; 0]);
        assert_eq!(lifter.due(&set(&["a", "b"]), &free, start + AGAIN), ["a"], "it was gone in between");
    }

    #[test]
    fn who_keeps_it_for_long_is_told_once() {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<String>>();
        let (mut lifter, start) = (Lifter::new("starting".to_owned()), Instant::now());
        let (all, free) = (set(&["a", "x"]), set(&["a"]));
        assert_eq!(lifter.stuck(&all, &free, start), [""; 0]);
        assert_eq!(lifter.stuck(&all, &free, start + LONG), ["x"]);
        assert_eq!(lifter.stuck(&all, &free, start + 2 * LONG), [""; 0]);
        lifter.stuck(&free, &free, start + 2 * LONG);
        assert_eq!(lifter.stuck(&all, &free, start + 2 * LONG), [""; 0], "it has come back just now");
        assert_eq!(lifter.stuck(&all, &free, start + 3 * LONG), ["x"]);
    }
}
