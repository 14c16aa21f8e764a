//! The API server's objects: what tools and kubelets write there, and what the manager makes of it.

use std::fmt::Write;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Case, Field, SEEN};
use crate::interface::{EXCLUDE_LABEL, EXCLUDED};
use crate::scenario::Report;
use crate::scenarios::cluster::{kubectl_with, until};
use crate::scenarios::processes::{AGENT, MANAGER, pids, signal, signal_everywhere};
use crate::scenarios::ring::{self, Ring};
use crate::scenarios::{manager, settings, wire, xfrm};

pub const REPLACED: Case = Case::new(
    11,
    "a GitOps tool replaces every object of the manifest, the Secret included",
    "the ring is put back, and nothing changes in any kernel",
    replaced,
);
pub const NEW_NODE_PULLS: Case = Case::new(
    14,
    "a new node has to pull its agent over the overlay while all enforce",
    "excluded, it reaches pods of others; nothing else goes in the clear",
    new_node_pulls,
)
.imitated();
pub const OLDER_RING: Case = Case::new(
    19,
    "an older ring is in the Secret, and no manager corrects it",
    "every node refuses it and keeps every SA",
    older_ring,
);
pub const OTHER_SYSTEM: Case = Case::new(
    24,
    "a Node says that it runs another operating system",
    "it is not exempt: all others still encrypt to it and enforce",
    other_system,
);
pub const ROTATIONS_IN_A_ROW: Case = Case::new(
    25,
    "rotations are asked for without a pause",
    "the minimum interval holds",
    rotations_in_a_row,
);
pub const OBJECTS_WITHOUT_NODE: Case = Case::new(
    27,
    "an agent's token makes many large NodeEncryptions",
    "fields have limits, and the manager does not grow by what it has no Node for",
    objects_without_node,
);

fn replaced(field: &Field<'_>) -> Result<String> {
    let lab = field.lab();
    let (before, told) = (xfrm::dump(lab)?, manager::event_count(lab, "KeyRingRestored")?);
    let watched = wire::watch(field.probe, "field: every object is replaced", || {
        kubectl_with(lab, &["replace", "-f", "-"], &field.manifest)?;
        until("the ring to be put back", SEEN, || {
            Ok(Ring::read(lab).ok().flatten().is_some_and(|ring| ring.is_steady())
                && manager::event_count(lab, "KeyRingRestored")? > told)
        })
    })?;
    let mut checks = Report::default();
    watched.check_delivered(&mut checks);
    watched.check_encrypted(&mut checks);
    ensure!(checks.ok(), "{:?}", checks.failed());
    let changes = xfrm::changes(&before, &xfrm::dump(lab)?);
    ensure!(changes.is_empty(), "kernels changed: {changes:?}");
    Ok(format!("KeyRingRestored; of {} probes none lost or in the clear", watched.probes.sent))
}

/// The node is one without an agent, as far as its kernel goes.
fn new_node_pulls(field: &Field<'_>) -> Result<String> {
    let (lab, [registry, _, node]) = (field.lab(), field.nodes);
    ensure!(signal(lab, &node.name, AGENT, "-STOP")? == 1, "no agent to be stopped");
    let reach = |wanted: bool| {
        let pod = field.probe.pod_on(&registry.name)?.to_string();
        let from = node.tunnel_ip.to_string();
        let ping = ["ping", "-q", "-c", "1", "-W", "1", "-I", &from, &pod];
        until(&format!("the pod to be reached: {wanted}"), SEEN, || {
            Ok((lab.exec(&node.name, &ping)?.status == 0) == wanted)
        })
    };
    let pulls = || -> Result<String> {
        field.sh(node, "ip xfrm policy flush; ip xfrm state flush")?;
        reach(false).context("as long as it is not excluded")?;
        lab.kubectl(&["label", "node", &node.name, &format!("{EXCLUDE_LABEL}={EXCLUDED}")])?;
        reach(true).context("once it is excluded")?;
        let others = field.probe.without(&node.name)?;
        let between = wire::watch_for(&others, "field: between the others", Duration::from_secs(1))?;
        let mut checks = Report::default();
        between.check_delivered(&mut checks);
        between.check_encrypted(&mut checks);
        ensure!(checks.ok(), "{:?}", checks.failed());
        Ok("refused before, answered in the clear once excluded; the others go on encrypted".to_owned())
    };
    let outcome = pulls();
    signal(lab, &node.name, AGENT, "-CONT")?;
    lab.kubectl(&["label", "node", &node.name, &format!("{EXCLUDE_LABEL}-")])?;
    until("it to take part again", SEEN, || {
        let kernels = xfrm::dump(lab)?;
        Ok(lab.nodes().iter().all(|from| xfrm::sends_to_all(&kernels, from, lab.nodes())))
    })?;
    outcome
}

fn older_ring(field: &Field<'_>) -> Result<String> {
    let lab = field.lab();
    let before = xfrm::dump(lab)?;
    let ring = Ring::read(lab)?.context("there is no ring")?;
    let older = ring.changed(|ring| {
        if let Some(generation) = ring["generations"].get_mut(0) {
            generation["id"] = json!(generation["id"].as_u64().unwrap_or_default() - 1);
            generation["uid"] = json!("7b0f0c64-5c1c-4d8e-8f1e-3f3a6f0e9c11");
        }
    });
    ensure!(signal_everywhere(lab, MANAGER, "-STOP")? == 1, "no manager to be stopped");
    let refused = || -> Result<String> {
        ring::write_document(lab, &older)?;
        for node in lab.nodes() {
            field.found(node, "KeyRingOlderThanApplied", &[])?;
        }
        let changes = xfrm::changes(&before, &xfrm::dump(lab)?);
        ensure!(changes.is_empty(), "kernels changed: {changes:?}");
        Ok("KeyRingOlderThanApplied on every node; no kernel changed".to_owned())
    };
    let outcome = refused();
    signal_everywhere(lab, MANAGER, "-CONT")?;
    until("the manager to put the ring back", SEEN, || {
        Ok(Ring::read(lab)?.is_some_and(|now| now.uids() == ring.uids()))
    })?;
    outcome
}

fn other_system(field: &Field<'_>) -> Result<String> {
    let (lab, [.., node]) = (field.lab(), field.nodes);
    let label = |os: &str| {
        lab.kubectl(&["label", "--overwrite", "node", &node.name, &format!("kubernetes.io/os={os}")])
    };
    label("windows")?;
    let seen = || -> Result<String> {
        // The DaemonSet is for Linux: its pod leaves the node, which is no removal.
        until("its agent to be gone", SEEN, || {
            Ok(field.overlay.agents()?.iter().all(|(_, at)| *at != node.name))
        })?;
        ensure!(pids(lab, &node.name, AGENT)?.is_empty(), "the agent runs");
        let watched = wire::watch_for(field.probe, "field: another system", Duration::from_secs(2))?;
        let mut checks = Report::default();
        watched.check_delivered(&mut checks);
        watched.check_encrypted(&mut checks);
        ensure!(checks.ok(), "{:?}", checks.failed());
        let kernels = xfrm::dump(lab)?;
        let blocks = lab.nodes().iter().all(|it| kernels.get(&it.name).is_some_and(|it| it.blocks() >= 2));
        let all = lab.nodes().iter().all(|from| xfrm::sends_to_all(&kernels, from, lab.nodes()));
        ensure!(blocks && all, "a node does not enforce, or does not encrypt to all");
        Ok(format!("of {} probes none lost or in the clear", watched.probes.sent))
    };
    let outcome = seen();
    label("linux")?;
    until("its agent to run again", SEEN, || Ok(!pids(lab, &node.name, AGENT)?.is_empty()))?;
    field.overlay.wait_rolled_out()?;
    outcome
}

fn rotations_in_a_row(field: &Field<'_>) -> Result<String> {
    let lab = field.lab();
    settings::edit(lab, &json!({"rotation": {"minimumInterval": "1h"}}))?;
    let before = Ring::read(lab)?.context("there is no ring")?;
    let in_a_row = || -> Result<String> {
        until("the interval to be in force", SEEN, || {
            let object = lab.kubectl_json(&["get", settings::OBJECT])?;
            Ok(object["status"]["observedGeneration"] == object["metadata"]["generation"])
        })?;
        manager::rotate(lab, &[])?;
        thread::sleep(Duration::from_secs(4));
        let now = Ring::read(lab)?.context("there is no ring")?;
        ensure!(now.uids() == before.uids(), "a generation was staged within the interval");
        settings::edit(lab, &json!({"rotation": {"minimumInterval": "1s"}}))?;
        until("the rotation to begin", SEEN, || {
            Ok(Ring::read(lab)?.is_some_and(|ring| ring.uids() != before.uids()))
        })?;
        Ok("no key within the interval, and one as soon as it was shorter".to_owned())
    };
    let outcome = in_a_row();
    settings::edit(lab, &json!({"rotation": {"minimumInterval": "1s"}}))?;
    outcome
}

fn objects_without_node(field: &Field<'_>) -> Result<String> {
    const OBJECTS: usize = 40;
    const SIZE: usize = 200_000;
    let (lab, [node, ..]) = (field.lab(), field.nodes);
    let long = json!({"status": {"conditions": [{
        "type": "Ready", "status": "True", "reason": "Long", "lastTransitionTime": "2026-01-01T00:00:00Z",
        "message": "x".repeat(5000),
    }]}});
    let words = ["patch", "nodeencryption", &node.name, "--subresource=status", "--type=merge"];
    let refused = lab.kubectl(&[&words[..], &["--patch", &long.to_string()]].concat());
    ensure!(refused.is_err(), "a message of 5,000 characters was taken");
    let size = || -> Result<u64> {
        let (_, at) = field.overlay.managers()?.pop().context("there is no manager")?;
        let pid = pids(lab, &at, MANAGER)?.pop().context("no manager runs")?;
        let shown = lab.exec_ok(&at, &["awk", "/^VmRSS/ {print $2}", &format!("/proc/{pid}/status")])?;
        shown.trim().parse().context("reading the manager's size")
    };
    let before = size()?;
    let mut list = String::new();
    for number in 0..OBJECTS {
        let object = json!({
            "apiVersion": "secureoverlay.io/v1alpha1", "kind": "NodeEncryption", "spec": {},
            "metadata": {"name": format!("field-{number}"), "labels": {"lab": "field"},
                "annotations": {"filling": "x".repeat(SIZE)}},
        });
        let _ = writeln!(list, "---\n{object}");
    }
    let made = kubectl_with(lab, &["create", "-f", "-"], &list);
    thread::sleep(Duration::from_secs(2));
    let after = size();
    lab.kubectl(&["delete", "nodeencryptions", "-l", "lab=field", "--wait=false"])?;
    made?;
    let grown = after?.saturating_sub(before);
    let most = (OBJECTS * SIZE / 2 / 1024) as u64;
    ensure!(grown < most, "the manager grew by {grown} KiB, at most {most}");
    Ok(format!(
        "a long field is refused; for {OBJECTS} objects of {SIZE} bytes the manager grew by {grown} KiB"
    ))
}
