//! Finds out whether this node may announce itself, and waits until it can open what it goes on with.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use kube::Client;
use secureoverlay_k8s::names::GROUP;
use secureoverlay_keyring::uid::Uid;
use tokio::time::{Instant, sleep};

use super::startup::{self, Opened};
use crate::{io::rights, state_directory::StateError};

/// The boot ID of the running kernel.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How long another agent may take to end before this one says so.
const LOCK_WAIT: Duration = Duration::from_secs(60);

/// Whether this node announces itself, by its rights: where it may neither watch EncryptionPeers nor Nodes, the rights
/// are not there for the moment, and it asks on.
async fn may_announce(client: &Client) -> bool {
    let all = |group, resource| rights::Object { group, resource, namespace: "", name: "" };
    let mut patience = rights::Patience::default();
    loop {
        if rights::may_watch(client, all(GROUP, "encryptionpeers")).await {
            return true;
        }
        if rights::may_watch(client, all("", "nodes")).await {
            return false;
        }
        tracing::warn!("this agent may watch neither EncryptionPeers nor Nodes; asking on");
        sleep(patience.pause()).await;
    }
}

/// Finds out whether this node may announce itself, and opens what it goes on with.
pub async fn open(client: &Client, name: &str, directory: &Path) -> Result<Opened> {
    if !may_announce(client).await {
        tracing::info!(
            "this agent may not watch EncryptionPeers: nodes are known by the boot IDs in their Node objects"
        );
        let boot_id = fs::read_to_string(BOOT_ID).with_context(|| format!("reading {BOOT_ID}"))?;
        let boot_id: Uid =
            boot_id.trim().parse().with_context(|| format!("the kernel's boot ID in {BOOT_ID}"))?;
        return Ok(startup::by_boot_id(name.to_owned(), boot_id));
    }
    let (begun, mut pause, mut told) = (Instant::now(), Duration::from_millis(200), None);
    loop {
        let error = match startup::from_directory(name, directory) {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        let text = format!("{error:#}");
        let Some(state) = error.downcast_ref::<StateError>() else { return Err(error) };
        let locked = matches!(state, StateError::AnotherAgentRuns { .. });
        // A rolling upgrade may have left the agent before this one in its last moments.
        let ending = locked && begun.elapsed() < LOCK_WAIT;
        pause = match (ending, locked) {
            (true, _) => pause,
            (false, true) => Duration::from_secs(1),
            (false, false) => (2 * pause).min(Duration::from_secs(60)),
        };
        if !ending && told.as_ref() != Some(&text) {
            tracing::warn!(
                reason = state.reason(),
                error = text,
                "cannot use the state directory yet; nothing is changed in the kernel"
            );
            told = Some(text);
        }
        sleep(pause).await;
    }
}
