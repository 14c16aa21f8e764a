//! The way between nodes: what it lets through, and how much room the tunnels leave.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Case, Field, ROOM, SEEN};
use crate::interface::metric;
use crate::lab::{STARTUP_TAINT, TUNNEL_MTU};
use crate::scenarios::cluster::{kubectl_with, until};
use crate::scenarios::mtu_policy::{CALICO_NODE, FROM_CONFIG_MAP, advice};
use crate::scenarios::ring::Ring;
use crate::scenarios::{chaos, manager, metrics, settings, wire, xfrm};
use crate::state::Node;

/// Of one generation: the candidate is not proven, and traffic goes on with the one before.
pub const UNPROVEN: [Case; 2] = [
    Case::new(
        9,
        "large packets are dropped on the way, and nothing says so",
        "a finding says that small ones pass and large ones do not; traffic goes on with the key of before",
        narrow_path,
    ),
    Case::new(
        17,
        "a packet filter at a node passes established flows only",
        "pairs toward that node are named as unproven, and traffic goes on",
        established_only,
    )
    .imitated(),
];
pub const TUNNEL_OF_ANOTHER_SIZE: Case = Case::new(
    16,
    "Calico was installed by calico.yaml, whose environment sets the MTU",
    "the command that works for this installation is advised",
    advised,
)
.imitated();
pub const NO_ROOM_FOR_A_NEW_NODE: Case = Case::new(
    10,
    "a new node has the start-up taint and Calico's default MTU",
    "conditions and metrics say at once why the taint stays; with room it goes",
    no_room_for_a_new_node,
);

/// Makes a generation be staged, unless one is.
fn stage(field: &Field<'_>) -> Result<String> {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let staged = || Ok::<_, anyhow::Error>(Ring::read(field.lab())?.and_then(|ring| ring.uid("staged")));
    if staged()?.is_none() {
        manager::rotate(field.lab(), &[])?;
    }
    until("a generation to be staged", SEEN, || Ok(staged()?.is_some()))?;
    staged()?.context("the staged generation is gone already")
}

/// A packet filter on the bridge for as long as something is looked at.
fn filtered(
    field: &Field<'_>,
    table: &str,
    rule: &str,
    seen: impl FnOnce() -> Result<String>,
) -> Result<String> {
    let lab = field.lab();
    let chain = format!(
        "table bridge {table} {{ chain forward {{ type filter hook forward priority 0; {rule} drop; }}; }}"
    );
    lab.in_network(&["nft", &chain])?;
    let outcome = seen();
    lab.in_network(&["nft", "delete", "table", "bridge", table])?;
    outcome
}

fn narrow_path(field: &Field<'_>) -> Result<String> {
    let [node, peer, _] = field.nodes;
    let rule = format!("ip protocol 50 ip saddr {} ip daddr {} ip length > 1300", node.ip, peer.ip);
    filtered(field, "field_narrow", &rule, || {
        stage(field)?;
        field.found(node, "LargePacketsUnanswered", &[&peer.name])
    })
}

/// What a host firewall does that knows the addresses of flows: here it knows the SPIs of those that there are.
fn established_only(field: &Field<'_>) -> Result<String> {
    let (lab, [node, _, filtering]) = (field.lab(), field.nodes);
    let kernels = xfrm::dump(lab)?;
    let known: BTreeSet<String> = kernels.values().filter_map(|it| it.sends_to(filtering.ip)).collect();
    let known: Vec<String> = known.into_iter().collect();
    let rule = format!("ip protocol 50 ip daddr {} @th,0,32 != {{ {} }}", filtering.ip, known.join(", "));
    filtered(field, "field_established", &rule, || {
        let before = Ring::read(lab)?.and_then(|ring| ring.uid("active"));
        let staged = stage(field)?;
        until("the pair to be named", SEEN, || {
            let unproven = manager::unproven(lab, &staged)?;
            Ok(unproven.get(&node.name).is_some_and(|peers| peers.contains(&filtering.name)))
        })?;
        let going_on = wire::watch_for(field.probe, "field: established flows only", Duration::from_secs(2))?;
        let (lost, clear) = (going_on.probes.lost, going_on.wire.ipip);
        ensure!(lost == 0 && clear == 0, "{lost} lost, {clear} in the clear");
        let active = Ring::read(lab)?.and_then(|ring| ring.uid("active"));
        ensure!(active == before, "the key that is not proven was activated");
        Ok(format!(
            "{} names {} for the staged key; nothing lost with the active one",
            node.name, filtering.name
        ))
    })
}

fn advised(field: &Field<'_>) -> Result<String> {
    let lab = field.lab();
    let objects = CALICO_NODE.replace("ENV", FROM_CONFIG_MAP);
    lab.set_tunnel_mtu(TUNNEL_MTU)?;
    lab.apply(&objects)?;
    let command = "patch configmap calico-config";
    let mut said = String::new();
    let outcome = until("the advice", SEEN, || {
        said = advice(field.overlay)?;
        Ok(said.contains(command))
    });
    kubectl_with(lab, &["delete", "-f", "-"], &objects)?;
    lab.set_tunnel_mtu(ROOM)?;
    outcome.with_context(|| format!("`{command}` is not in: {said}"))?;
    Ok(said)
}

/// The node is one that has just booted, as far as its kernel goes.
fn no_room_for_a_new_node(field: &Field<'_>) -> Result<String> {
    let (lab, [.., node]) = (field.lab(), field.nodes);
    lab.set_tunnel_mtu(TUNNEL_MTU)?;
    let outcome = tainted(field, node);
    lab.set_tunnel_mtu(ROOM)?;
    let found = outcome.and_then(|found| {
        until("the taint to go", SEEN, || Ok(!has_taint(field, node)?))?;
        Ok(format!("{found}; with room it went"))
    });
    lab.exec(&node.name, &["true"])?;
    if has_taint(field, node)? {
        lab.kubectl(&["taint", "node", &node.name, &format!("{STARTUP_TAINT}-")])?;
    }
    found
}

fn tainted(field: &Field<'_>, node: &Node) -> Result<String> {
    let lab = field.lab();
    field.until_condition(node, "MTUValid", "False")?;
    let old = field.sender(node)?["instance"].clone();
    chaos::kill_agent(lab, node)?;
    field.sh(node, "ip xfrm state flush")?;
    until("the node to draw anew", SEEN, || Ok(field.sender(node)?["instance"] != old))?;
    lab.kubectl(&["taint", "node", &node.name, &format!("{STARTUP_TAINT}=:NoSchedule")])?;
    let ready = field.until_condition(node, "ESPReachable", "False")?;
    let mtu = field.until_condition(node, "MTUValid", "False")?;
    let valid = metrics::of_agent(lab, &node.name, metric::MTU_VALID)?;
    ensure!(valid == Some(0.0), "the metric is {valid:?}");
    let mut counted = json!(null);
    until("the cluster's object to count it", SEEN, || {
        counted = lab.kubectl_json(&["get", settings::OBJECT])?["status"]["nodes"].clone();
        Ok(counted["mtuTooLarge"].as_u64().is_some_and(|nodes| nodes > 0))
    })?;
    ensure!(has_taint(field, node)?, "the taint went although no pair is proven");
    ensure!(xfrm::dump(lab)?.len() == lab.nodes().len(), "a node is missing");
    Ok(format!("the taint stays. {ready} {mtu} The cluster counts {counted}"))
}

fn has_taint(field: &Field<'_>, node: &Node) -> Result<bool> {
    let keys = field.lab().kubectl(&["get", "node", &node.name, "-o", "jsonpath={.spec.taints[*].key}"])?;
    Ok(keys.split(' ').any(|key| key == STARTUP_TAINT))
}
