//! The Nodes and what sets the tunnels' MTU, where the API can be reached.

use std::time::Duration;

use kube::{Api, Client, api::ListParams};
use secureoverlay_k8s::{
    client::{connect, describe},
    encryption_peer::EncryptionPeer,
    node::{NodeFacts, SlimNode},
    watch::{Source, list_by_quorum},
};
use secureoverlay_keyring::peer::EncryptionPeerSpec;
use tokio::time::timeout;

use crate::{io::mtu_lookup, network::mtu_setting::MtuSetting};

/// For all of it: a person waits.
const PATIENCE: Duration = Duration::from_secs(20);
/// Nodes in one answer.
const PAGE: u32 = 200;

/// All Nodes, or why they can't be read, and what sets the tunnels' MTU.
pub async fn read() -> (Result<Vec<NodeFacts>, String>, MtuSetting) {
    let agent = concat!("ucp-secureoverlay-agent-check/", env!("CARGO_PKG_VERSION"));
    let reading = async {
        let client = connect(agent).await.map_err(|error| error.to_string())?;
        let nodes = match list(client.clone()).await {
            Err(kube::Error::Api(status)) if status.code == 403 => announced(&client).await,
            nodes => nodes,
        };
        Ok((nodes.map_err(|error| describe(&error)), mtu_lookup::look(&client).await))
    };
    let late = |_| format!("no answer from the API server for {} s", PATIENCE.as_secs());
    match timeout(PATIENCE, reading).await.map_err(late).flatten() {
        Ok((nodes, setting)) => (nodes, setting),
        Err(error) => (Err(error), MtuSetting::Unknown),
    }
}

/// What nodes announce, where Nodes may not be listed: agents may not.
async fn announced(client: &Client) -> Result<Vec<NodeFacts>, kube::Error> {
    let objects = list_by_quorum::<EncryptionPeerSpec>(client, &Source::cluster::<EncryptionPeer>()).await?;
    let facts = objects.into_iter().filter_map(|object| {
        let spec = object.content.ok()?;
        let internal_addresses = spec.newest().map(|sender| sender.address).collect();
        Some(NodeFacts { name: object.meta.name, internal_addresses, linux: true, ..NodeFacts::default() })
    });
    Ok(facts.collect())
}

async fn list(client: Client) -> Result<Vec<NodeFacts>, kube::Error> {
    let api: Api<SlimNode> = Api::all(client);
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
