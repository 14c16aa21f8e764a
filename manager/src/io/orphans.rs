//! Deletes objects whose Node is gone for good.

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{DeleteParams, Preconditions},
};
use secureoverlay_k8s::{encryption_peer::EncryptionPeer, node_encryption::NodeEncryption};
use secureoverlay_manager_core::orphans::{Deletion, ObjectKind};

/// Deletes an object, if there is no Node of its name, and it is still the object that was seen.
///
/// # Errors
/// The API server refuses.
pub async fn delete(client: &Client, Deletion { kind, name, uid }: &Deletion) -> Result<(), kube::Error> {
    let nodes = Api::<Node>::all(client.clone());
    if nodes.get_metadata_opt(name).await?.is_some() {
        return Ok(());
    }
    let preconditions = Preconditions { uid: Some(uid.to_string()), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    let result = match kind {
        ObjectKind::EncryptionPeer => {
            Api::<EncryptionPeer>::all(client.clone()).delete(name, &params).await.map(drop)
        }
        ObjectKind::NodeEncryption => {
            Api::<NodeEncryption>::all(client.clone()).delete(name, &params).await.map(drop)
        }
    };
    match result {
        // It is gone, or another one: neither is ours to delete.
        Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(()),
        Ok(()) => {
            tracing::info!(?kind, name, "deleted: its Node has been gone for an hour");
            Ok(())
        }
        result => result,
    }
}
