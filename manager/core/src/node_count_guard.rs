//! Whether the number of Nodes is one to rely on.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// For so long a list that has lost more than half of the Nodes is not believed.
pub const DISTRUST: Duration = Duration::from_secs(600);

/// Holds decisions back that would leave nodes out, while most Nodes are suddenly missing.
///
/// A broken cache or proxy may hide most of them, and the rotation would not wait for those.
#[derive(Debug, Default)]
pub struct NodeCountGuard {
    /// The count of now, and before it the higher ones of the last while, falling.
    counts: VecDeque<Count>,
}

#[derive(Debug)]
struct Count {
    nodes: usize,
    /// Since when there are fewer.
    fewer_since: Option<Instant>,
}

impl Count {
    /// For how long it is still remembered.
    fn left(&self, now: Instant) -> Duration {
        let passed = self.fewer_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        DISTRUST.saturating_sub(passed)
    }
}

impl NodeCountGuard {
    /// Notes that there are `nodes` at `now`; returns for how long that is not believed yet.
    pub fn observe(&mut self, nodes: usize, now: Instant) -> Option<Duration> {
        while self.counts.back().is_some_and(|count| count.nodes <= nodes) {
            self.counts.pop_back();
        }
        if let Some(before) = self.counts.back_mut() {
            before.fewer_since.get_or_insert(now);
        }
        self.counts.push_back(Count { nodes, fewer_since: None });
        while self.counts.front().is_some_and(|count| count.left(now).is_zero()) {
            self.counts.pop_front();
        }
        // They may go one by one, and still all at once.
        let more = self.counts.iter().rev().find(|count| nodes.saturating_mul(2) < count.nodes);
        more.map(|count| count.left(now))
    }

    /// The most Nodes that there were lately.
    #[must_use]
    pub fn believed(&self) -> usize {
        self.counts.front().map_or(0, |count| count.nodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_lost_most_nodes_is_doubted_for_a_while() {
        let (mut guard, start) = (NodeCountGuard::default(), Instant::now());
        assert_eq!(guard.observe(10, start), None);
        assert_eq!(guard.observe(5, start), None, "half is not less than half");
        assert_eq!(guard.observe(2, start), Some(DISTRUST));
        let later = start + DISTRUST / 2;
        assert_eq!(guard.observe(2, later), Some(DISTRUST / 2));
        assert_eq!((guard.observe(10, later), guard.believed()), (None, 10), "they are back");
        assert_eq!(guard.observe(1, later), Some(DISTRUST), "from the start");
        let end = later + DISTRUST;
        assert_eq!((guard.observe(1, end), guard.believed()), (None, 1), "so it is");
        assert_eq!(guard.observe(0, end), Some(DISTRUST));
        // One by one within a moment, and at leisure.
        let mut guard = NodeCountGuard::default();
        for count in (5..=10).rev() {
            assert_eq!(guard.observe(count, start), None);
        }
        assert_eq!(guard.observe(4, start), Some(DISTRUST));
        let mut guard = NodeCountGuard::default();
        for (count, at) in (1..=10).rev().zip(0..) {
            assert_eq!(guard.observe(count, start + DISTRUST * at), None, "{count}");
        }
    }

    #[test]
    fn a_node_that_left_before_shortens_no_doubt() {
        let (mut guard, start) = (NodeCountGuard::default(), Instant::now());
        guard.observe(10, start);
        assert_eq!(guard.observe(9, start), None);
        let later = start + DISTRUST - Duration::from_secs(1);
        assert_eq!(guard.observe(2, later), Some(DISTRUST));
        assert_eq!(guard.observe(2, start + DISTRUST), Some(DISTRUST - Duration::from_secs(1)));
        assert_eq!(guard.observe(2, later + DISTRUST), None);
    }
}
