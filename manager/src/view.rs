//! All nodes at one moment, and whether to believe it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kube::{Api, Client, api::ListParams};
use secureoverlay_common::{
    acknowledgement::Acknowledgement, node::NodeFacts, ring::Ring, rotation::ClusterSnapshot,
};
use secureoverlay_daemon::{client::describe, watched_node::WatchedNode};
use serde::de::DeserializeOwned;

use crate::encryptions::WatchedEncryption;

pub(crate) const NODES: &str = "Nodes";
pub(crate) const ENCRYPTIONS: &str = "NodeEncryptions";
/// Objects in one answer of a fresh list.
const PAGE: u32 = 500;
/// For so long a list that has lost more than half of the Nodes is not believed.
pub const DISTRUST: Duration = Duration::from_secs(600);

/// All Nodes, and what each has said.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The Nodes.
    pub nodes: Vec<NodeFacts>,
    /// By the Node's name.
    pub said: BTreeMap<String, Acknowledgement>,
}

impl View {
    /// For [`secureoverlay_common::rotation::evidence`].
    #[must_use]
    pub const fn snapshot<'s>(&'s self, ring: Option<&'s Ring>, forced: bool) -> ClusterSnapshot<'s> {
        ClusterSnapshot { ring, nodes: self.nodes.as_slice(), acks: &self.said, forced, probing: true }
    }
}

/// Why there is no view.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// A watch has not brought its first list yet.
    #[error(
        "{what} are not known yet{}: nothing is rotated. Is the manifest applied, with the manager's right to list and watch them?",
        .error.as_ref().map_or_else(String::new, |error| format!(" ({error})"))
    )]
    Unknown {
        /// The objects.
        what: &'static str,
        /// What the watch says, if it fails.
        error: Option<String>,
    },
    /// A fresh list failed.
    #[error("listing {what}: {}. Nothing is rotated until they can be listed", describe(.error))]
    List {
        /// The objects.
        what: &'static str,
        /// Why.
        #[source]
        error: kube::Error,
    },
}

/// Lists everything anew, past every cache.
///
/// # Errors
/// Where a list is refused, or breaks off.
pub async fn list(client: &Client) -> Result<View, ViewError> {
    let nodes = pages(client, NODES, |node: WatchedNode| NodeFacts::from(node));
    let said = pages(client, ENCRYPTIONS, WatchedEncryption::into_parts);
    let (nodes, said) = tokio::try_join!(nodes, said)?;
    Ok(View {
        nodes,
        said: said.into_iter().filter_map(|(name, said)| Some((name, said.acknowledgement?))).collect(),
    })
}

/// All objects of a kind, a page at a time. `to` takes from each what is needed: 5,000 whole ones take a lot of room.
pub(crate) async fn pages<K, T>(
    client: &Client,
    what: &'static str,
    to: impl Fn(K) -> T,
) -> Result<Vec<T>, ViewError>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let api = Api::<K>::all(client.clone());
    // Without a resourceVersion: what the store holds now, not what a cache of the API server does.
    let mut params = ListParams::default().limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = api.list(&params).await.map_err(|error| ViewError::List { what, error })?;
        all.extend(page.items.into_iter().map(&to));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(all),
        }
    }
}

/// Whether the number of Nodes is one to rely on.
///
/// A broken cache or proxy may leave most of them out, and the rotation would not wait for those.
#[derive(Debug, Default)]
pub struct Trust {
    believed: usize,
    /// Since when there are fewer.
    fewer: Option<Instant>,
}

impl Trust {
    /// Notes that there are `count` at `now`; for how long that is not believed yet.
    pub fn doubt(&mut self, count: usize, now: Instant) -> Option<Duration> {
        // They may go one by one, and still all at once.
        if count < self.believed {
            let since = *self.fewer.get_or_insert(now);
            let left = DISTRUST.saturating_sub(now.saturating_duration_since(since));
            if !left.is_zero() {
                return (count.saturating_mul(2) < self.believed).then_some(left);
            }
        }
        *self = Self { believed: count, fewer: None };
        None
    }

    /// How many there were before, or are.
    #[must_use]
    pub const fn believed(&self) -> usize {
        self.believed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_lost_most_nodes_is_doubted_for_a_while() {
        let (mut trust, start) = (Trust::default(), Instant::now());
        assert_eq!(trust.doubt(10, start), None);
        assert_eq!(trust.doubt(5, start), None, "half is not less than half");
        assert_eq!(trust.doubt(2, start), Some(DISTRUST));
        let later = start + DISTRUST / 2;
        assert_eq!(trust.doubt(2, later), Some(DISTRUST / 2));
        assert_eq!((trust.doubt(10, later), trust.believed()), (None, 10), "they are back");
        assert_eq!(trust.doubt(1, later), Some(DISTRUST), "from the start");
        let end = later + DISTRUST;
        assert_eq!((trust.doubt(1, end), trust.believed()), (None, 1), "so it is");
        assert_eq!(trust.doubt(0, end), Some(DISTRUST));
        // One by one within a moment, and at leisure.
        let mut trust = Trust::default();
        for count in (5..=10).rev() {
            assert_eq!(trust.doubt(count, start), None);
        }
        assert_eq!(trust.doubt(4, start), Some(DISTRUST));
        let mut trust = Trust::default();
        for (count, at) in (0..=10).rev().zip(0..) {
            assert_eq!(trust.doubt(count, start + DISTRUST * at), None, "{count}");
        }
    }
}
