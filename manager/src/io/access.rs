//! Whether the manager may see what the nodes say.

use kube::Client;
use secureoverlay_k8s::{access, client::describe, names::GROUP};

/// Why it is not known.
#[derive(Debug, thiserror::Error)]
#[error("failed to ask whether {what} may be listed: {}", describe(.error))]
pub struct AccessError {
    what: &'static str,
    #[source]
    error: kube::Error,
}

/// Whether Nodes, EncryptionPeers and NodeEncryptions may be listed.
///
/// # Errors
/// Where the API server does not say.
pub async fn may_list_cluster(client: &Client) -> Result<bool, AccessError> {
    Ok(may_list(client, "", "nodes").await?
        && may_list(client, GROUP, "encryptionpeers").await?
        && may_list(client, GROUP, "nodeencryptions").await?)
}

async fn may_list(client: &Client, group: &str, what: &'static str) -> Result<bool, AccessError> {
    let answer = access::allowed(client, "list", group, what, None, None).await;
    answer.map_err(|error| AccessError { what, error })
}
