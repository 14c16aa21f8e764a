//! Reads the cluster at one moment.

use jiff::Timestamp;
use secureoverlay_kubectl_core::{
    assess::{Assessment, assess},
    snapshot::{AGENT, Cleaned, Encryption, MANAGER, Read, Snapshot},
};

use crate::api::{Api, Kind};

/// Reads what the caller may.
pub async fn snapshot(api: &Api) -> Snapshot {
    let (agents, managers) = (format!("k8s-app={AGENT}"), format!("app={MANAGER}"));
    let (encryption, rotations, reports, nodes, agents, managers) = tokio::join!(
        api.get(Kind::ClusterEncryption, "default"),
        api.list(Kind::KeyRotation, ""),
        api.list(Kind::NodeEncryption, ""),
        api.list(Kind::Node, ""),
        api.list(Kind::Pod, &agents),
        api.list(Kind::Pod, &managers),
    );
    let encryption = encryption.map(|found| found.map(|object| Encryption::read(Cleaned::new(object))));
    Snapshot { now: Timestamp::now(), encryption, rotations, reports, nodes, agents, managers }
}

/// Reads it, and judges it.
pub async fn assessed(api: &Api) -> (Snapshot, Assessment) {
    let snapshot = snapshot(api).await;
    let assessment = assess(&snapshot);
    (snapshot, assessment)
}
