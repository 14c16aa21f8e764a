//! Other people's IPsec lives beside ours, untouched, and where it stands in our way that is said.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::cluster::until;
use super::ike::Ike;
use super::overlay::{Manifest, NAMESPACE, Overlay, PATIENCE};
use super::probe::Probe;
use super::processes::{AGENT, signal, signal_everywhere};
use super::ring::{self, Ring};
use super::{metrics, wire, xfrm};
use crate::interface::metric;
use crate::lab::Lab;
use crate::progress::note;
use crate::scenario::{Profile, Report, Run, Scenario, Tier};
use crate::state::Node;

pub const SCENARIO: Scenario = Scenario {
    name: "foreign",
    about: "a strongSwan tunnel and entries made by hand are left alone, and reported where they are in the way",
    tier: Tier::Gate,
    estimate: 70,
    alone: false,
    run: Run::Cluster(run),
};

/// A key that is not in use.
const KEY: &str = "0x000102030405060708090a0b0c0d0e0f10111213";

fn run(lab: &Lab, report: &mut Report, _: Profile) -> Result<()> {
    let [one, two, three, ..] = lab.nodes() else { anyhow::bail!("this takes three nodes") };
    let ike = Ike::start(lab, one, two)?;
    let hand = [
        format!(
            "state add src {} dst {} proto esp spi 0x4242 reqid 42 mode tunnel aead rfc4106(gcm(aes)) {KEY} 128",
            two.ip, one.ip
        ),
        // Our very selector, and another that is wider.
        format!("policy add src {}/32 dst {}/32 proto 4 dir out priority 100", one.ip, three.ip),
        "policy add src 198.18.0.0/16 dst 198.19.0.0/16 dir out priority 5000 action block".to_owned(),
    ];
    let outcome = make(lab, one, &hand).and_then(|()| live(lab, report, &ike, [one, two, three]));
    // Whatever happened, the next scenario finds nothing of this.
    for entry in hand.iter().rev() {
        let words: Vec<&str> = entry.split_whitespace().collect();
        let end = words.iter().position(|word| ["reqid", "priority"].contains(word)).unwrap_or(words.len());
        let delete = words[..end].join(" ").replacen(" add ", " delete ", 1);
        drop(lab.exec(&one.name, &["sh", "-c", &format!("ip xfrm {delete}")])?);
    }
    ike.stop()?;
    outcome
}

fn make(lab: &Lab, node: &Node, entries: &[String]) -> Result<()> {
    for entry in entries {
        lab.exec_ok(&node.name, &["sh", "-c", &format!("ip xfrm {}", quoted(entry))])?;
    }
    Ok(())
}

fn live(lab: &Lab, report: &mut Report, ike: &Ike<'_>, [one, two, three]: [&Node; 3]) -> Result<()> {
    let overlay = Overlay::new(lab, Manifest::Ours);
    let before = foreign(lab)?;
    let count = |of: fn(&xfrm::Kernel) -> usize| before.values().map(of).sum::<usize>();
    let (states, policies) = (count(|kernel| kernel.states.len()), count(|kernel| kernel.policies.len()));
    report.figure("foreign_states", states);
    report.figure("foreign_policies", policies);
    // Two states at each end of the tunnel, and in, out and forward policies.
    ensure!(states >= 5 && policies >= 8, "strongSwan made next to nothing: {before:?}");
    ensure!(ike.works()?, "strongSwan's tunnel carries nothing");

    let mut changed = 0;
    let mut untouched = |when: &str, report: &mut Report| -> Result<()> {
        let changes = xfrm::changes(&before, &foreign(lab)?);
        changed += changes.len();
        report.check(changes.is_empty(), format!("{when}: nothing foreign changed {changes:?}"));
        report.check(ike.works()?, format!("{when}: strongSwan's tunnel works"));
        Ok(())
    };
    let probe = Probe::deploy(lab)?;
    let mut rotations = 0;
    let watched = wire::watch(&probe, "beside foreign IPsec", || {
        note("kubectl apply");
        overlay.apply()?;
        wait_programmed(lab, one)?;
        wait_steady(lab)?;
        untouched("enabled", report)?;

        note("a rotation");
        let old = Ring::read(lab)?.and_then(|ring| ring.generation("active"));
        ring::rotate_now(lab)?;
        until("the keys to rotate", PATIENCE, || {
            Ok(Ring::read(lab)?.is_some_and(|ring| ring.is_steady() && ring.generation("active") > old))
        })?;
        rotations += 1;
        untouched("rotated", report)?;

        note("all agents killed");
        let kernels = xfrm::dump(lab)?;
        let killed = signal_everywhere(lab, AGENT, "-KILL")?;
        report.check(killed == lab.nodes().len(), format!("{killed} agents killed"));
        for node in [two, three] {
            until("the agents to be ready again", PATIENCE, || metrics::agent_is_ready(lab, &node.name))?;
        }
        wait_reported(lab, one, 1)?;
        let changes = xfrm::changes(&kernels, &xfrm::dump(lab)?);
        report.check(changes.is_empty(), format!("the new agents changed nothing {changes:?}"));
        untouched("restarted", report)
    })?;
    watched.check_delivered(report);
    report.figure("rotations", rotations);
    report.figure("sent", watched.probes.sent);
    report.figure("lost", watched.probes.lost);

    report
        .check(says(&overlay, one, "a policy that is not ours has the selector")?, "the policy is reported");
    note("an SA with the identity of one of ours");
    in_our_place(lab, one, two)?;
    report.check(says(&overlay, one, "an SA that is not ours has")?, "the SA is reported");
    untouched("with an SA in our way", report)?;

    note("kubectl delete");
    let left = overlay.disable()?;
    report.check(left == (0, 0), format!("after delete {} states and {} policies left", left.0, left.1));
    untouched("deleted", report)?;
    report.expect("foreign_changes", changed as u64, 0);
    Ok(())
}

/// What is not ours, in all kernels.
fn foreign(lab: &Lab) -> Result<BTreeMap<String, xfrm::Kernel>> {
    Ok(xfrm::dump(lab)?.into_iter().map(|(node, kernel)| (node, kernel.foreign())).collect())
}

/// Waits until all nodes encrypt to each other, but for the one direction that a foreign policy covers.
fn wait_programmed(lab: &Lab, hindered: &Node) -> Result<()> {
    let peers = lab.nodes().len() - 1;
    until("every node to encrypt, as far as it can", PATIENCE, || {
        let kernels = xfrm::dump(lab)?;
        Ok(kernels.iter().all(|(node, kernel)| {
            kernel.sends_with().len() == if *node == hindered.name { peers - 1 } else { peers }
        }))
    })?;
    wait_reported(lab, hindered, 1)
}

fn wait_steady(lab: &Lab) -> Result<()> {
    until("one generation", PATIENCE, || Ok(Ring::read(lab)?.is_some_and(|ring| ring.is_steady())))
}

fn wait_reported(lab: &Lab, node: &Node, findings: u32) -> Result<()> {
    until(&format!("{findings} findings on {}", node.name), PATIENCE, || {
        let now = metrics::of_agent(lab, &node.name, metric::FINDINGS)?;
        Ok(now == Some(f64::from(findings)))
    })
}

/// Replaces an inbound SA of ours by one that is not ours, until the agent reports it; then takes it away again.
///
/// The agent is stopped for that moment. If it saw that its SA is gone before the other is there, it would rightly ask for new
/// keys, with which the other SA is in no node's way and the report is over before it can be seen.
fn in_our_place(lab: &Lab, node: &Node, peer: &Node) -> Result<()> {
    let kernel = || -> Result<xfrm::Kernel> { xfrm::dump(lab)?.remove(&node.name).context("no such node") };
    let whole = kernel()?.our_states();
    let spi = kernel()?.spis_between(peer.ip, node.ip).pop_first().context("no SA to replace")?;
    let id = format!("src {} dst {} proto esp spi {spi}", peer.ip, node.ip);
    let foreign = quoted(&format!("{id} reqid 42 mode transport aead rfc4106(gcm(aes)) {KEY} 128"));
    let replace = format!("ip xfrm state delete {id} && ip xfrm state add {foreign}");
    ensure!(signal(lab, &node.name, AGENT, "-STOP")? == 1, "no agent to be stopped on {}", node.name);
    let replaced = lab.exec_ok(&node.name, &["sh", "-c", &replace]);
    signal(lab, &node.name, AGENT, "-CONT")?;
    replaced?;
    wait_reported(lab, node, 2)?;
    let theirs = kernel()?.foreign().states;
    ensure!(theirs.iter().any(|entry| entry.contains(&spi)), "the SA in our place is gone");
    lab.exec_ok(&node.name, &["sh", "-c", &format!("ip xfrm state delete {id}")])?;
    until("our own SA to be there again", PATIENCE, || Ok(kernel()?.our_states() == whole))?;
    wait_reported(lab, node, 1)
}

/// Does the log of this node's agent hold these words?
fn says(overlay: &Overlay<'_>, node: &Node, words: &str) -> Result<bool> {
    let agents = overlay.agents()?;
    let (pod, _) = agents.iter().find(|(_, at)| *at == node.name).context("no agent on this node")?;
    Ok(overlay.lab.kubectl(&["-n", NAMESPACE, "logs", pod])?.contains(words))
}

/// For a shell.
fn quoted(words: &str) -> String {
    words.replace("rfc4106(gcm(aes))", "'rfc4106(gcm(aes))'")
}
