//! Making the cluster clean: no object of ours, nothing in any kernel, every node as it was after `up`.

use std::time::Duration;

use crate::interface::{CALICO_ADDRESS, EXCLUDE_LABEL};
use anyhow::{Context, Result};

use crate::lab::{Lab, STARTUP_TAINT, TUNNEL_MTU};
use crate::wait::wait_until;

/// Our objects, in the order in which they go: those whose removal is work for our pods first.
const OBJECTS: &[&str] = &[
    "daemonset/ucp-secureoverlay-agent",
    "deployment/ucp-secureoverlay-mgr",
    "secret/ucp-secureoverlay",
    "serviceaccount/ucp-secureoverlay-agent",
    "serviceaccount/ucp-secureoverlay-mgr",
    "clusterrolebinding/ucp-secureoverlay-agent",
    "clusterrolebinding/ucp-secureoverlay-mgr",
    "clusterrole/ucp-secureoverlay-agent",
    "clusterrole/ucp-secureoverlay-mgr",
    "rolebinding/ucp-secureoverlay-agent",
    "rolebinding/ucp-secureoverlay-mgr",
    "role/ucp-secureoverlay-agent",
    "role/ucp-secureoverlay-mgr",
    "clusterrolebinding/ucp-secureoverlay-startup-taint",
    "clusterrole/ucp-secureoverlay-startup-taint",
    "clusterrolebinding/secureoverlay-lab-operator",
    "clusterrole/secureoverlay-operator",
    "clusterrole/secureoverlay-view",
    "customresourcedefinition/clusterencryptions.secureoverlay.io",
    "customresourcedefinition/keyrotations.secureoverlay.io",
    "customresourcedefinition/encryptionpeers.secureoverlay.io",
    "customresourcedefinition/nodeencryptions.secureoverlay.io",
];
/// The same in the namespace `default`.
const ELSEWHERE: &[&str] = &["rolebinding/ucp-secureoverlay-mgr-events", "role/ucp-secureoverlay-mgr-events"];

/// Deletes Nodes that are none of the lab's; says which there were.
fn strangers(lab: &Lab) -> Result<Vec<String>> {
    let names = lab.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"])?;
    let strange = names.split_whitespace().filter(|name| lab.nodes().iter().all(|node| node.name != *name));
    strange
        .map(|name| {
            lab.kubectl(&["delete", "node", name])?;
            Ok(format!("the Node {name}"))
        })
        .collect()
}

const PODS: &str = "k8s-app=ucp-secureoverlay-agent";
const MANAGER_PODS: &str = "app=ucp-secureoverlay-mgr";

/// Cleans the cluster and returns what it had to remove or to mend; empty means that it was clean.
pub fn clean(lab: &Lab) -> Result<Vec<String>> {
    let mut found = lab.revive()?;
    for node in lab.nodes() {
        // An agent that a scenario stopped could not end.
        lab.exec(&node.name, &["pkill", "-CONT", "-x", "ucp-secureoverl"])?;
    }
    let said = lab.kubectl(
        &[&["-n", "kube-system", "delete", "--ignore-not-found", "--wait=false", "-o", "name"], OBJECTS]
            .concat(),
    )?;
    let elsewhere = lab.kubectl(
        &[&["-n", "default", "delete", "--ignore-not-found", "--wait=false", "-o", "name"], ELSEWHERE]
            .concat(),
    )?;
    found.extend(said.lines().chain(elsewhere.lines()).map(str::to_owned));
    for selector in [PODS, MANAGER_PODS] {
        let gone = || {
            let pods = lab.kubectl(&["-n", "kube-system", "get", "pods", "-l", selector, "-o", "name"])?;
            Ok(pods.trim().is_empty().then_some(()))
        };
        if wait_until("our pods to be gone", Duration::from_secs(60), gone).is_err() {
            // What only exists in the API by now, if a kubelet lost sight of it.
            let force = ["--force", "--grace-period=0"];
            lab.kubectl(&[&["-n", "kube-system", "delete", "pods", "-l", selector], &force[..]].concat())?;
            found.push("pods that did not end".into());
            wait_until("our pods to be gone", Duration::from_secs(30), gone)?;
        }
    }
    found.extend(strangers(lab)?);
    for node in lab.nodes() {
        if lab.has_moved(node)? {
            lab.move_address(node, node.ip)?;
            found.push(format!("{} had another address", node.name));
        }
        let object = lab.kubectl_json(&["get", "node", &node.name])?;
        if object["spec"]["unschedulable"] == true {
            lab.kubectl(&["uncordon", &node.name])?;
            found.push(format!("{} was cordoned", node.name));
        }
        if !object["metadata"]["labels"][EXCLUDE_LABEL].is_null() {
            lab.kubectl(&["label", "node", &node.name, &format!("{EXCLUDE_LABEL}-")])?;
            found.push(format!("{} was excluded", node.name));
        }
        if object["metadata"]["annotations"][CALICO_ADDRESS] != node.calico_address() {
            lab.introduce(node)?;
            found.push(format!("{} had another's address", node.name));
        }
        let taints = object["spec"]["taints"].as_array();
        if taints.into_iter().flatten().any(|taint| taint["key"] == STARTUP_TAINT) {
            lab.kubectl(&["taint", "node", &node.name, &format!("{STARTUP_TAINT}-")])?;
            found.push(format!("{} was tainted", node.name));
        }
        lab.register_with_taints(&node.name, "")?;
    }
    for entries in lab.on_all_nodes(|node| {
        let count =
            node.exec_ok(&["sh", "-c", "{ ip xfrm state list; ip xfrm policy list; } | grep -c ^src; true"])?;
        let count: u64 = count.trim().parse().context("counting kernel entries")?;
        node.exec_ok(&["sh", "-c", "ip xfrm policy flush; ip xfrm state flush; rm -rf /run/secureoverlay"])?;
        Ok((count > 0).then(|| format!("{count} XFRM entries on {}", node.name)))
    })? {
        found.extend(entries);
    }
    if lab.tunnel_mtu() != TUNNEL_MTU {
        found.push(format!("tunnel MTU {}", lab.tunnel_mtu()));
        lab.set_tunnel_mtu(TUNNEL_MTU)?;
    }
    if !lab.in_network(&["nft", "list", "ruleset"])?.trim().is_empty() {
        lab.in_network(&["nft", "flush", "ruleset"])?;
        found.push("packet filters on the bridge".into());
    }
    Ok(found)
}
