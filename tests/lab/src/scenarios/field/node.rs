//! A node and its agent: what the Node object says of it, and what the agent needs of its host.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Case, Field, SEEN};
use crate::interface::CALICO_ADDRESS;
use crate::product;
use crate::scenarios::cluster::until;
use crate::scenarios::processes::{AGENT, pids};
use crate::scenarios::{enforcing, manager, metrics, xfrm};
use crate::state::Node;

pub const BOOT_ID_FLIPS: Case = Case::new(
    4,
    "a Node's boot ID flips from A to B to A under a living agent",
    "nothing changes: it is no input of any key",
    boot_id_flips,
);
pub const PORT_TAKEN: Case = Case::new(
    29,
    "another process has the agent's port for metrics",
    "the agent works all the same, and serves once the port is free",
    port_taken,
);
pub const RESYNC_WITHOUT_END: Case = Case::new(
    32,
    "an interval that no clock can count to",
    "it is refused with its name, and nothing panics",
    resync_without_end,
);
pub const ONE_INTERNAL_IP: Case = Case::new(
    3,
    "nodes have one InternalIP, 10.0.2.15",
    "they announce what their kernels send from; the conflict is named, and keeps the cluster from enforcing",
    one_internal_ip,
)
.imitated();

const BOOT_IDS: [&str; 2] = ["0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6a", "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6b"];

fn boot_id_flips(field: &Field<'_>) -> Result<String> {
    let (lab, [.., node]) = (field.lab(), field.nodes);
    let (sender, kernel) = (field.sender(node)?, field.kernel(node)?);
    let kept = |kernel: &xfrm::Kernel| kernel.states.clone();
    let file = "/run/lab-boot-id";
    let flips = || -> Result<()> {
        field.sh(node, &format!("touch {file}; mount --bind {file} /proc/sys/kernel/random/boot_id"))?;
        for boot_id in [BOOT_IDS[0], BOOT_IDS[1], BOOT_IDS[0]] {
            field.sh(node, &format!("echo {boot_id} > {file}"))?;
            lab.stop_kubelet(&node.name)?;
            lab.start_kubelet(&node.name)?;
            until("the Node to show the boot ID", SEEN, || {
                let path = "jsonpath={.status.nodeInfo.bootID}";
                Ok(lab.kubectl(&["get", "node", &node.name, "-o", path])?.trim() == boot_id)
            })?;
        }
        Ok(())
    };
    let flipped = flips();
    field.try_sh(node, "umount /proc/sys/kernel/random/boot_id")?;
    lab.stop_kubelet(&node.name)?;
    lab.start_kubelet(&node.name)?;
    flipped?;
    ensure!(field.sender(node)? == sender, "the node announces something else");
    // Its peers' doings beside this are other cases.
    let lost: Vec<String> = kept(&kernel).difference(&kept(&field.kernel(node)?)).cloned().collect();
    ensure!(lost.is_empty(), "{lost:?}");
    Ok("the same announcement, the same SAs".to_owned())
}

/// The first process of the container, which starts agents, is stopped until the port is taken.
fn port_taken(field: &Field<'_>) -> Result<String> {
    let (lab, [peer, node, _]) = (field.lab(), field.nodes);
    let agent = pids(lab, &node.name, AGENT)?.pop().context("no agent runs")?;
    let listen = "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalAddr => q(127.0.0.1), LocalPort => 9467, \
                  Listen => 5, ReuseAddr => 1) or die $!; sleep 60";
    let script = format!(
        "parent=$(ps -o ppid= -p {agent}); kill -STOP $parent; kill -KILL {agent}; sleep 0.3
         setsid perl -e '{listen}' < /dev/null > /run/lab-port.log 2>&1 & echo $! > /run/lab-port.pid
         sleep 0.5; kill -0 $(cat /run/lab-port.pid); kill -CONT $parent"
    );
    let taken = field.sh(node, &script);
    let seen = taken.and_then(|_| {
        // What only an agent that works does: it makes an SA again.
        let sends = xfrm::dump(lab)?.get(&peer.name).and_then(|it| it.sends_to(node.ip));
        let spi = sends.context("a pair without an SA")?;
        let id = format!("src {} dst {} proto esp spi {spi}", peer.ip, node.ip);
        thread::sleep(Duration::from_secs(2));
        field.sh(node, &format!("ip xfrm state delete {id}"))?;
        until("the SA to be made again", SEEN, || {
            Ok(field.kernel(node)?.key_of(peer.ip, node.ip, &spi).is_some())
        })?;
        ensure!(!metrics::agent_is_ready(lab, &node.name)?, "the port was not taken");
        Ok("an SA that was deleted was made again meanwhile".to_owned())
    });
    field.try_sh(node, "kill $(cat /run/lab-port.pid)")?;
    until("the agent to serve its port", SEEN, || metrics::agent_is_ready(lab, &node.name))?;
    seen
}

fn resync_without_end(field: &Field<'_>) -> Result<String> {
    let (lab, [node, ..]) = (field.lab(), field.nodes);
    let agent = lab.share(&product::programs()?.join(AGENT))?;
    let mut said = Vec::new();
    for interval in ["2562047788015215h", "18446744073709551615s", "0s"] {
        let flag = format!("--resync-interval={interval}");
        let out = lab.exec(&node.name, &["timeout", "5", &agent, "--node-name=none", &flag])?;
        let text = out.stderr.trim().to_owned();
        ensure!(out.status == 2 && text.contains("--resync-interval"), "{interval}: {}: {text}", out.status);
        ensure!(!text.contains("panicked"), "{text}");
        said.push(text.lines().next().unwrap_or_default().to_owned());
    }
    Ok(said.join("; "))
}

/// Writes InternalIPs into a Node's status, whose kubelet has been stopped.
fn write_addresses(field: &Field<'_>, node: &Node, addresses: &[&str]) -> Result<()> {
    let entry = |address: &&str| json!({"type": "InternalIP", "address": address});
    let addresses: Vec<Value> = addresses.iter().map(entry).collect();
    let patch = json!([{"op": "replace", "path": "/status/addresses", "value": addresses}]).to_string();
    let words = ["patch", "node", &node.name, "--subresource=status", "--type=json", "--patch", &patch];
    field.lab().kubectl(&words).map(drop)
}

fn one_internal_ip(field: &Field<'_>) -> Result<String> {
    let (lab, [one, two, _]) = (field.lab(), field.nodes);
    enforcing::request(lab, "permissive")?;
    let before = manager::event_count(lab, "EnforcementWaiting")?;
    let conflict = || -> Result<String> {
        for node in [one, two] {
            lab.stop_kubelet(&node.name)?;
            write_addresses(field, node, &["10.0.2.15"])?;
            lab.kubectl(&["annotate", "node", &node.name, &format!("{CALICO_ADDRESS}-")])?;
            field.restart_agent(node)?;
        }
        enforcing::request_nothing(lab)?;
        until("the conflict to be named", SEEN, || {
            let told = manager::events(lab, "EnforcementWaiting")?;
            Ok(manager::event_count(lab, "EnforcementWaiting")? > before
                && told.iter().any(|note| note.contains("AddressConflict (node1 has 10.0.2.15, too)")))
        })?;
        ensure!(!enforcing::enforces(lab, lab.nodes())?, "it enforces");
        for node in [one, two] {
            let announced = field.sender(node)?["address"].clone();
            ensure!(announced == node.ip.to_string(), "{} announces {announced}", node.name);
        }
        Ok("AddressConflict in an Event; both announce the address that their tunnels use".to_owned())
    };
    let outcome = conflict();
    for node in [one, two] {
        lab.start_kubelet(&node.name)?;
        lab.introduce(node)?;
    }
    enforcing::request_nothing(lab)?;
    until("kubelets to correct their Nodes", SEEN, || {
        let all = lab.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].status.addresses[*].address}"])?;
        Ok(!all.contains("10.0.2.15"))
    })?;
    outcome
}
