//! The Nodes and what sets the tunnels' MTU, where the API can be reached.

use std::time::Duration;

use kube::{Api, Client, api::ListParams};
use secureoverlay_common::node::NodeFacts;
use secureoverlay_daemon::{
    client::{connect, describe},
    watched_node::WatchedNode,
};
use tokio::time::timeout;

use crate::{mtu_lookup, mtu_setting::MtuSetting};

/// For all of it: a person waits.
const PATIENCE: Duration = Duration::from_secs(20);
/// Nodes in one answer.
const PAGE: u32 = 200;

/// All Nodes, or why they can't be read, and what sets the tunnels' MTU.
pub async fn read() -> (Result<Vec<NodeFacts>, String>, MtuSetting) {
    let agent = concat!("ucp-secureoverlay-agent-check/", env!("CARGO_PKG_VERSION"));
    let reading = async {
        let client = connect(agent).await.map_err(|error| error.to_string())?;
        let nodes = list(client.clone()).await.map_err(|error| describe(&error))?;
        Ok((nodes, mtu_lookup::look(&client).await))
    };
    let late = |_| format!("no answer from the API server for {} s", PATIENCE.as_secs());
    match timeout(PATIENCE, reading).await.map_err(late).flatten() {
        Ok((nodes, setting)) => (Ok(nodes), setting),
        Err(error) => (Err(error), MtuSetting::Unknown),
    }
}

async fn list(client: Client) -> Result<Vec<NodeFacts>, kube::Error> {
    let api: Api<WatchedNode> = Api::all(client);
    let mut params = ListParams::default().limit(PAGE);
    let mut nodes = Vec::new();
    loop {
        let page = api.list(&params).await?;
        nodes.extend(page.items.into_iter().map(NodeFacts::from));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(nodes),
        }
    }
}
