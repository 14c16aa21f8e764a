//! Nodes that lose, change or share their identity: no key is installed twice, nothing goes in the clear, and each case
//! heals without a person.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::cluster::{kubectl_with, until, until_healed};
use super::enforcing;
use super::ledger::Ledger;
use super::overlay::{NAMESPACE, Overlay, PATIENCE};
use super::probe::Probe;
use super::processes::AGENT;
use super::rotate_timed::Leftovers;
use super::{manager, reachable, rotate_timed, wire, xfrm};
use crate::interface::{IDENTITY, STATE_DIRECTORY};
use crate::lab::Lab;
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};
use crate::state::Node;

pub const SCENARIO: Scenario = Scenario {
    name: "identity",
    about: "identities lost, changed, copied and deleted: no key used twice, nothing in the clear, all heals by itself",
    tier: Tier::Gate,
    estimate: 200,
    alone: true,
    run: Run::Installed(run),
};

/// The node that all cases happen to, and what they happen to.
struct Stage<'a> {
    lab: &'a Lab,
    overlay: &'a Overlay<'a>,
    node: &'a Node,
    others: &'a [Node],
    /// The node's EncryptionPeer as it was at the beginning.
    old_copy: Value,
    full: bool,
}

/// What must not be lost.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loses {
    /// Nothing at all.
    Nothing,
    /// Nothing between the other nodes; the node's pods live on.
    ItsOwn,
    /// Nothing between the other nodes; its pods end.
    ItsPods,
}

/// One case.
struct Case {
    name: &'static str,
    loses: Loses,
    in_gate: bool,
    inflict: fn(&Stage<'_>) -> Result<()>,
}

impl Case {
    const fn new(name: &'static str, loses: Loses, inflict: fn(&Stage<'_>) -> Result<()>) -> Self {
        Self { name, loses, in_gate: true, inflict }
    }

    const fn full_only(self) -> Self {
        Self { in_gate: false, ..self }
    }
}

/// In the order in which they run.
const CASES: [Case; 13] = [
    Case::new("encryptionpeers_deleted", Loses::Nothing, peers_deleted),
    Case::new("definitions_deleted", Loses::Nothing, definitions_deleted),
    Case::new("directory_emptied", Loses::ItsOwn, directory_emptied),
    Case::new("old_copy_without_owner", Loses::Nothing, old_copy),
    Case::new("address_changed", Loses::ItsOwn, |stage| {
        stage.lab.move_address(stage.node, stage.node.other_ip())
    }),
    Case::new("address_back", Loses::ItsOwn, |stage| stage.lab.move_address(stage.node, stage.node.ip)),
    Case::new("node_recreated_under_its_agent", Loses::ItsOwn, recreated_under_its_agent),
    // A machine that starts agents again and again is too busy to say what was lost between the others.
    Case::new("agent_killed_at_every_step", Loses::ItsOwn, killed_at_every_step).full_only(),
    Case::new("same_boot_id", Loses::ItsPods, |stage| {
        [BOOT_A, BOOT_A].into_iter().try_for_each(|boot_id| reboot(stage, boot_id))
    })
    .full_only(),
    Case::new("boot_id_flips", Loses::ItsPods, |stage| {
        [BOOT_B, BOOT_A].into_iter().try_for_each(|boot_id| reboot(stage, boot_id))
    })
    .full_only(),
    Case::new("node_recreated", Loses::ItsPods, recreated).full_only(),
    Case::new("host_renamed", Loses::ItsPods, renamed).full_only(),
    // The last: what it announced is remembered for ten minutes.
    Case::new("two_nodes_with_one_address", Loses::Nothing, stranger_with_its_address),
];

const BOOT_A: &str = "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6a";
const BOOT_B: &str = "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6b";
/// How long a case may take until it has healed, reboots included.
const HEALED: Duration = Duration::from_secs(180);

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    let (node, others) = enforcing::one_and_others(lab)?;
    let old_copy = lab.kubectl_json(&["get", "encryptionpeer", &node.name])?;
    let stage = Stage { lab, overlay, node, others, old_copy, full: profile.full };
    let (mut ledger, mut healed) = (Ledger::default(), BTreeMap::new());
    let (mut sent, mut lost, mut clear) = (0, 0, 0);
    let mut probe = probe.clone();
    for Case { name, loses, in_gate, inflict } in &CASES {
        if !in_gate && !profile.full {
            continue;
        }
        note(*name);
        ledger.observe(lab)?;
        let bystanders = probe.without(&node.name)?;
        let mut took = Duration::MAX;
        let sending = if *loses == Loses::ItsPods { &bystanders } else { &probe };
        let watched = wire::watch(sending, name, || {
            let begun = Instant::now();
            inflict(&stage)?;
            until_healed(&format!("{name} to heal"), HEALED, || lacks(&stage))?;
            reachable::wait(lab, node, others)?;
            took = begun.elapsed();
            Ok(())
        })?;
        if *loses == Loses::Nothing {
            watched.check_delivered(report);
            lost += watched.probes.lost;
        } else {
            lost += watched.check_bystanders(report, &node.name);
        }
        watched.check_not_in_the_clear(report);
        report.check(took <= HEALED, format!("{name}: healed after {took:?}, at most {HEALED:?}"));
        healed.insert(*name, (took.as_secs_f64() * 10.0).round() / 10.0);
        sent += watched.probes.sent;
        clear += watched.wire.ipip;
        ledger.observe(lab)?;
        if *loses == Loses::ItsPods {
            probe = Probe::deploy(lab)?;
        }
    }
    node.write_boot_id(None)?;
    let after = wire::watch_for(&probe, "after all of it", Duration::from_secs(5))?;
    after.check_delivered(report);
    after.check_encrypted(report);
    report.figure("cases", healed.len());
    report.figure("healed_s", healed);
    report.figure("sent", sent);
    report.expect_none("lost", lost);
    report.expect("plaintext_packets", clear, 0);
    ledger.report(lab, report)
}

/// What is lacking until every node enforces, has proven all pairs, and announces what it is.
fn lacks(stage: &Stage<'_>) -> Option<String> {
    let lab = stage.lab;
    let silent = || lab.nodes().iter().find(|node| !announces(lab, node).unwrap_or_default());
    enforcing::lacks(lab)
        .or_else(|| silent().map(|node| format!("{} does not announce what it is", node.name)))
}

/// The node's EncryptionPeer is its Node's, and names first what its agent has: instance, and the address that it sends
/// from.
fn announces(lab: &Lab, node: &Node) -> Result<bool> {
    let peer = lab.kubectl_json(&["get", "encryptionpeer", &node.name])?;
    let uid = lab.kubectl(&["get", "node", &node.name, "-o", "jsonpath={.metadata.uid}"])?;
    let identity = lab.exec_ok(&node.name, &["cat", IDENTITY])?;
    let instance = identity.lines().find_map(|line| line.strip_prefix("instance ")).unwrap_or_default();
    let address = if lab.has_moved(node)? { node.other_ip() } else { node.ip };
    Ok(is_announcement(&peer, uid.trim(), instance, &address.to_string()))
}

fn is_announcement(peer: &Value, uid: &str, instance: &str, address: &str) -> bool {
    let first = &peer["spec"]["senders"][0];
    let owners = peer["metadata"]["ownerReferences"].as_array();
    peer["spec"]["nodeUid"] == uid
        && owners.is_some_and(|owners| owners.len() == 1 && owners[0]["uid"] == uid)
        && first["instance"] == instance
        && first["address"] == address
}

fn peers_deleted(stage: &Stage<'_>) -> Result<()> {
    unchanged(stage, || stage.lab.kubectl(&["delete", "encryptionpeers", "--all"]).map(drop))
}

fn definitions_deleted(stage: &Stage<'_>) -> Result<()> {
    let definitions = ["encryptionpeers", "nodeencryptions"].map(|kind| format!("{kind}.secureoverlay.io"));
    unchanged(stage, || {
        stage.lab.kubectl(&["delete", "customresourcedefinition", &definitions[0], &definitions[1]])?;
        thread::sleep(Duration::from_secs(3));
        stage.overlay.apply()
    })
}

/// Does something, waits until it has healed, and fails if a kernel changed.
fn unchanged(stage: &Stage<'_>, event: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = xfrm::dump(stage.lab)?;
    event()?;
    until_healed("it to heal", HEALED, || lacks(stage))?;
    let changes = xfrm::changes(&before, &xfrm::dump(stage.lab)?);
    anyhow::ensure!(changes.is_empty(), "kernels changed: {changes:?}");
    Ok(())
}

/// Nothing is missing until something has to be written down: a rotation.
fn directory_emptied(stage: &Stage<'_>) -> Result<()> {
    let (lab, before) = (stage.lab, rotate_timed::steady(stage.lab)?);
    lab.exec_ok(&stage.node.name, &["sh", "-c", &format!("rm -rf {STATE_DIRECTORY}/*")])?;
    manager::rotate(lab, &[])?;
    rotate_timed::wait_rotated(lab, &before, Leftovers::Stay).map(drop)
}

/// The object as it was before its node drew a new identity, as a tool restores it that knows nothing of owners.
fn old_copy(stage: &Stage<'_>) -> Result<()> {
    let copy = json!({
        "apiVersion": stage.old_copy["apiVersion"], "kind": stage.old_copy["kind"],
        "metadata": {"name": stage.old_copy["metadata"]["name"]}, "spec": stage.old_copy["spec"],
    });
    // Between the deletion and the creation the agent may be faster.
    until("the old copy to be there", PATIENCE, || {
        match kubectl_with(stage.lab, &["replace", "--force", "-f", "-"], &copy.to_string()) {
            Err(error) if format!("{error:#}").contains("AlreadyExists") => Ok(false),
            replaced => replaced.map(|_| true),
        }
    })
}

/// The Node is deleted while its kubelet is away, and made anew when that is back; the agent goes on all the time.
fn recreated_under_its_agent(stage: &Stage<'_>) -> Result<()> {
    let (lab, node) = (stage.lab, stage.node);
    lab.stop_kubelet(&node.name)?;
    lab.kubectl(&["delete", "node", &node.name])?;
    thread::sleep(Duration::from_secs(3));
    lab.start_kubelet(&node.name)?;
    lab.introduce(node)
}

fn recreated(stage: &Stage<'_>) -> Result<()> {
    let (lab, node) = (stage.lab, stage.node);
    lab.power_off(&node.name)?;
    lab.kubectl(&["delete", "node", &node.name])?;
    lab.power_on(&node.name)?;
    lab.introduce(node)
}

/// A boot after which the Node shows this boot ID, whatever it was before.
fn reboot(stage: &Stage<'_>, boot_id: &str) -> Result<()> {
    let (lab, node) = (stage.lab, stage.node);
    node.write_boot_id(Some(boot_id))?;
    lab.reboot(&node.name, false)?;
    until("the Node to show the boot ID", PATIENCE, || {
        let shown = lab.kubectl(&["get", "node", &node.name, "-o", "jsonpath={.status.nodeInfo.bootID}"])?;
        Ok(shown.trim() == boot_id)
    })?;
    until_healed("it to heal", HEALED, || lacks(stage))
}

/// An agent that begins with nothing is killed again and again, each time a little later in its start.
fn killed_at_every_step(stage: &Stage<'_>) -> Result<()> {
    let (kills, step) = if stage.full { (40, 50) } else { (6, 200) };
    // The manager's name begins alike, and a kernel keeps no more than fifteen characters of it.
    // Its parent, the first process of the container, starts the next one at once.
    let find = format!("pgrep -P \"$(pgrep -d, -f ^/{AGENT})\" -f ^/{AGENT}");
    let mut script = format!("kill -KILL $({find}); ip xfrm state flush; rm -rf {STATE_DIRECTORY}/*\n");
    for kill in 0..kills {
        let seconds = f64::from(kill * step) / 1000.0;
        script += &format!(
            "until pid=$({find}); do sleep 0.02; done; sleep {seconds}; kill -KILL $pid || true; \
             while kill -0 $pid 2> /dev/null; do sleep 0.02; done\n"
        );
    }
    stage.lab.exec_ok(&stage.node.name, &["bash", "-c", &script]).map(drop)
}

/// The host comes back under another name beside its old Node, and then under its own again.
fn renamed(stage: &Stage<'_>) -> Result<()> {
    let (lab, node, renamed) = (stage.lab, stage.node, stage.node.renamed());
    lab.rename(node, &renamed)?;
    until("the renamed host to announce itself", HEALED, || {
        let peer = lab.kubectl_json(&["get", "encryptionpeer", &renamed.name]).unwrap_or_default();
        let old = lab.kubectl_json(&["get", "encryptionpeer", &node.name])?;
        let (own, theirs) = (&peer["spec"]["senders"][0], &old["spec"]["senders"]);
        // What the older object lists is not its any more.
        Ok(!own.is_null()
            && theirs.as_array().is_some_and(|all| all.iter().all(|it| it["publicKey"] != own["publicKey"])))
    })?;
    until("all pairs with it to be encrypted", HEALED, || {
        let kernels = xfrm::dump(lab)?;
        let sends = |from: &Node, to: &Node| {
            let Some((own, its)) = kernels.get(&from.name).zip(kernels.get(&to.name)) else { return false };
            own.sends_to(to.ip).is_some_and(|spi| its.key_of(from.ip, to.ip, &spi).is_some())
        };
        Ok(stage.others.iter().all(|other| sends(node, other) && sends(other, node)))
    })?;
    lab.rename(node, node)?;
    lab.kubectl(&["delete", "node", &renamed.name])?;
    delete_pods_of(lab, &renamed.name)
}

/// Another Node, which never runs, announces this node's address with keys that it made up: the pairs stay with the one
/// that answers.
fn stranger_with_its_address(stage: &Stage<'_>) -> Result<()> {
    let (lab, name) = (stage.lab, "stranger");
    lab.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}).to_string())?;
    let uid = lab.kubectl(&["get", "node", name, "-o", "jsonpath={.metadata.uid}"])?;
    let sender = json!({
        "instance": "4b8e0c2d-2a6f-4d31-9c57-e2f0a1b3cb02", "address": stage.node.ip,
        // The key of RFC 7748, section 6.1: Bob's.
        "publicKey": "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=",
    });
    let peer = json!({
        "apiVersion": "secureoverlay.io/v1alpha1", "kind": "EncryptionPeer",
        "metadata": {"name": name, "ownerReferences": [
            {"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid.trim()},
        ]},
        "spec": {"nodeUid": uid.trim(), "senders": [sender], "podNetworks": []},
    });
    lab.apply(&peer.to_string())?;
    thread::sleep(Duration::from_secs(10));
    let kernels = xfrm::dump(lab)?;
    let its = kernels.get(&stage.node.name).context("no such node")?;
    for other in stage.others {
        let spi =
            kernels.get(&other.name).and_then(|kernel| kernel.sends_to(stage.node.ip)).unwrap_or_default();
        if its.key_of(other.ip, stage.node.ip, &spi).is_none() {
            bail!("{} sends to {} with an SA that it does not have", other.name, stage.node.name);
        }
    }
    lab.kubectl(&["delete", "encryptionpeer", name])?;
    lab.kubectl(&["delete", "node", name])?;
    delete_pods_of(lab, name)
}

/// Pods of a Node that is gone: nothing else removes them soon.
fn delete_pods_of(lab: &Lab, node: &str) -> Result<()> {
    let of = format!("--field-selector=spec.nodeName={node}");
    for namespace in [NAMESPACE, "default"] {
        lab.kubectl(&["-n", namespace, "delete", "pods", &of, "--force", "--grace-period=0"])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcement_is_of_the_node_and_names_the_newest_instance_first() {
        let peer = json!({
            "metadata": {"ownerReferences": [{"uid": "n"}]},
            "spec": {"nodeUid": "n", "senders": [
                {"instance": "i", "address": "10.0.0.1"}, {"instance": "j", "address": "10.0.0.1"},
            ]},
        });
        assert!(is_announcement(&peer, "n", "i", "10.0.0.1"));
        for (uid, instance, address) in
            [("m", "i", "10.0.0.1"), ("n", "j", "10.0.0.1"), ("n", "i", "10.0.0.2")]
        {
            assert!(!is_announcement(&peer, uid, instance, address));
        }
        let mut orphan = peer;
        orphan["metadata"] = json!({});
        assert!(!is_announcement(&orphan, "n", "i", "10.0.0.1"));
    }
}
