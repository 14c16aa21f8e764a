//! The watch of the Nodes.

use futures::StreamExt;
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt,
        watcher::{Config, Event as Watched, watcher},
    },
};
use secureoverlay_common::node::NodeFacts;
use secureoverlay_daemon::watched_node::WatchedNode;
use tokio::sync::mpsc::Sender;

use crate::{agent::Event, watching::Watching};

/// Nodes in one answer. Full Nodes take more than 10 kB each, in the answer if not in memory afterwards; and every page is a
/// request to the API server, for each of thousands of agents.
const PAGE: u32 = 200;

/// Tells all Nodes, then every change, for as long as somebody listens.
pub async fn follow(client: Client, events: Sender<Event>, mut watching: Watching) {
    let config = Config::default().page_size(PAGE);
    let mut stream = watcher(Api::<WatchedNode>::all(client), config).default_backoff().boxed();
    let mut list = Vec::new();
    while let Some(event) = stream.next().await {
        let event = match watching.heard(event) {
            None => continue,
            Some(Watched::Init) => {
                list.clear();
                continue;
            }
            Some(Watched::InitApply(node)) => {
                list.push(NodeFacts::from(node));
                continue;
            }
            Some(Watched::InitDone) => Event::Nodes(std::mem::take(&mut list)),
            Some(Watched::Apply(node)) => Event::NodeApplied(NodeFacts::from(node)),
            Some(Watched::Delete(node)) => Event::NodeDeleted(node.metadata.name.unwrap_or_default()),
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}
