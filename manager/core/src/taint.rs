//! Which nodes lose the start-up taint, and when: pods stay off a node until it encrypts.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// Between two tries with one node: by then the watch shows what has become of the first.
const AGAIN: Duration = Duration::from_secs(30);
/// Pulling an image may take so long; longer is reported.
const LONG: Duration = Duration::from_secs(300);

/// Remembers which nodes it tried when.
#[derive(Debug, Default)]
pub struct TaintRemover {
    tried: BTreeMap<String, Instant>,
    /// Since when it knows of nodes that keep the taint; `None` once that was told.
    kept: BTreeMap<String, Option<Instant>>,
}

impl TaintRemover {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_once_in_a_while() {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<String>>();
        let (mut remover, start) = (TaintRemover::default(), Instant::now());
        let free = set(&["a", "b", "c"]);
        assert_eq!(remover.due(&set(&["a", "x"]), &free, start), ["a"], "x does not encrypt");
        assert_eq!(remover.due(&set(&["a", "b"]), &free, start), ["b"]);
        assert_eq!(remover.due(&set(&["a", "b"]), &free, start + AGAIN / 2), [""; 0]);
        assert_eq!(
            remover.due(&set(&["a", "b"]), &free, start + AGAIN),
            ["a", "b"],
            "it failed, or the taint came back"
        );
        assert_eq!(remover.due(&set(&["b"]), &free, start + AGAIN), [""; 0]);
        assert_eq!(remover.due(&set(&["a", "b"]), &free, start + AGAIN), ["a"], "it was gone in between");
    }

    #[test]
    fn who_keeps_it_for_long_is_told_once() {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<String>>();
        let (mut remover, start) = (TaintRemover::default(), Instant::now());
        let (all, free) = (set(&["a", "x"]), set(&["a"]));
        assert_eq!(remover.stuck(&all, &free, start), [""; 0]);
        assert_eq!(remover.stuck(&all, &free, start + LONG), ["x"]);
        assert_eq!(remover.stuck(&all, &free, start + 2 * LONG), [""; 0]);
        remover.stuck(&free, &free, start + 2 * LONG);
        assert_eq!(remover.stuck(&all, &free, start + 2 * LONG), [""; 0], "it has come back just now");
        assert_eq!(remover.stuck(&all, &free, start + 3 * LONG), ["x"]);
    }
}
