//! Processes that end, and an API that is away, are no reason to stop encrypting.

use std::time::Duration;

use anyhow::{Context, Result};

use super::cluster::{kubectl_with, until};
use super::overlay::{AGENTS, NAMESPACE, Overlay, PATIENCE};
use super::processes::{AGENT, pids};
use super::{metrics, wire, xfrm};
use crate::lab::Lab;
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};

/// Something that happens to agents; at its worst moment it waits for a while.
type Event = fn(&Overlay<'_>, Duration) -> Result<()>;

pub const SCENARIO: Scenario = Scenario {
    name: "not-a-removal",
    about: "a drain, an API server that is down or answers 403: nothing is removed",
    tier: Tier::Gate,
    estimate: 180,
    alone: false,
    run: Run::Installed(run),
};

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    let calm = profile.lasting(4, 20);
    let events: [(&str, Event); 3] = [
        ("a drain stops an agent and the manager", drain),
        ("an agent is stopped while the API server is down", without_api),
        ("an agent is stopped while the API server answers 403", forbidden),
    ];
    let (mut sent, mut lost, mut ipip, mut changed) = (0, 0, 0, 0);
    for (what, event) in events {
        note(what);
        let before = xfrm::dump(lab)?;
        let watched = wire::watch(probe, what, || event(overlay, calm))?;
        let changes = xfrm::changes(&before, &xfrm::dump(lab)?);
        report.check(changes.is_empty(), format!("{what}: no kernel changed {changes:?}"));
        watched.check_delivered(report);
        watched.check_encrypted(report);
        sent += watched.probes.sent;
        lost += watched.probes.lost;
        ipip += watched.wire.ipip;
        changed += changes.len();
    }
    report.figure("sent", sent);
    report.figure("lost", lost);
    report.figure("ipip", ipip);
    report.figure("kernel_changes", changed);
    // Watches that these events have cut come back by and by. Who is removed before that, and has no rights then, leaves its
    // kernel encrypting, as it should while it can't tell: not what the next scenario is about.
    lab.kubectl(&["-n", NAMESPACE, "rollout", "restart", AGENTS])?;
    overlay.wait_rolled_out()
}

/// The manager's node is drained; the agent there is evicted too, as drains that do not spare DaemonSets do.
pub fn drain(overlay: &Overlay<'_>, calm: Duration) -> Result<()> {
    let lab = overlay.lab;
    let (_, node) = overlay.managers()?.pop().context("there is no manager")?;
    lab.kubectl(&[
        "drain",
        &node,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--force",
        "--timeout=90s",
    ])?;
    let outcome = evict_agent(overlay, &node).and_then(|()| {
        std::thread::sleep(calm);
        overlay.wait_rolled_out()
    });
    lab.kubectl(&["uncordon", &node])?;
    outcome?;
    wait_ready(lab)
}

fn evict_agent(overlay: &Overlay<'_>, node: &str) -> Result<()> {
    let (pod, _) = overlay
        .agents()?
        .into_iter()
        .find(|(_, at)| at == node)
        .with_context(|| format!("no agent on {node}"))?;
    let eviction = serde_json::json!({
        "apiVersion": "policy/v1beta1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": NAMESPACE},
    });
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction");
    kubectl_with(overlay.lab, &["create", "--raw", &path, "-f", "-"], &eviction.to_string())?;
    until("the evicted agent to be gone", PATIENCE, || {
        Ok(overlay.agents()?.iter().all(|(other, _)| *other != pod))
    })
}

/// The API server dies; then an agent gets SIGTERM, and the kubelet starts it anew.
fn without_api(overlay: &Overlay<'_>, calm: Duration) -> Result<()> {
    let lab = overlay.lab;
    lab.stop_api()?;
    let outcome = restart_agent(lab).map(|()| std::thread::sleep(calm));
    lab.start_api()?;
    outcome?;
    wait_ready(lab)
}

/// The agents' rights are taken away, an agent gets SIGTERM and is started anew without them; then they come back.
fn forbidden(overlay: &Overlay<'_>, calm: Duration) -> Result<()> {
    let lab = overlay.lab;
    for kind in ["clusterrolebinding", "rolebinding"] {
        lab.kubectl(&["-n", NAMESPACE, "delete", kind, AGENT, "--ignore-not-found"])?;
    }
    let outcome = restart_agent(lab).map(|()| std::thread::sleep(calm));
    overlay.apply()?;
    outcome?;
    wait_ready(lab)
}

/// SIGTERM to the agent of the first node, from within the node.
fn restart_agent(lab: &Lab) -> Result<()> {
    let node = &lab.nodes().first().context("a lab without nodes")?.name;
    let old = pids(lab, node, AGENT)?.pop().with_context(|| format!("no agent runs on {node}"))?;
    lab.exec_ok(node, &["kill", "-TERM", &old])?;
    until("the agent to be started anew", PATIENCE, || {
        let now = pids(lab, node, AGENT)?;
        Ok(!now.is_empty() && !now.contains(&old))
    })
}

fn wait_ready(lab: &Lab) -> Result<()> {
    until("all agents to be ready", PATIENCE, || {
        for node in lab.nodes() {
            if !metrics::agent_is_ready(lab, &node.name)? {
                return Ok(false);
            }
        }
        Ok(true)
    })
}
