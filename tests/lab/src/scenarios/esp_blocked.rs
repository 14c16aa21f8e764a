//! A network that drops ESP: switching on harms no traffic and names the pairs that are not proven, and when ESP passes,
//! everything is encrypted without a person.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::cluster::until;
use super::overlay::{NAMESPACE, PATIENCE};
use super::processes::{AGENT, signal_everywhere};
use super::ring::Ring;
use super::{enforcing, manager, metrics, wire};
use crate::interface::metric;
use crate::lab::Lab;
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};

pub const SCENARIO: Scenario = Scenario {
    name: "esp-blocked",
    about: "where the network drops ESP, switching on loses nothing and names the pairs; lifted, all is encrypted",
    tier: Tier::Gate,
    estimate: 85,
    alone: false,
    run: Run::Installs(run),
};

/// How long it is looked at while nothing gets better.
const BLOCKED: Duration = Duration::from_secs(8);
/// Within what time everything is to be encrypted when ESP passes.
const HEALED: Duration = Duration::from_secs(60);
const TABLE: &str = "esp_blocked";

fn run(installed: &Installed<'_>, report: &mut Report, _: Profile) -> Result<()> {
    let lab = installed.overlay.lab;
    note("the bridge drops protocol 50");
    block(lab)?;
    let outcome = live(installed, report);
    // Whatever happened, the next scenario finds nothing of this; here it is gone already if all went well.
    drop(lab.in_network(&["nft", "delete", "table", "bridge", TABLE]));
    outcome
}

fn live(Installed { overlay, probe }: &Installed<'_>, report: &mut Report) -> Result<()> {
    let (lab, pairs) = (overlay.lab, probe.pairs());
    let (mut named, mut enforced) = (0, false);
    let blocked = wire::watch(probe, "while ESP is dropped", || {
        note("kubectl apply");
        overlay.apply()?;
        until("every node to name all others as unproven", PATIENCE, || {
            named = named_pairs(lab)?;
            Ok(named == pairs)
        })?;
        note(format!("kubectl get nodeencryptions -o wide:\n{}", table(lab)?));
        note("all agents killed");
        ensure!(signal_everywhere(lab, AGENT, "-KILL")? == lab.nodes().len(), "not all agents were killed");
        // Not what those that were killed have said: their successors have to find out.
        until("the new agents to know it again", PATIENCE, || Ok(unproven(lab)? == Some(pairs)))?;
        std::thread::sleep(BLOCKED);
        named = named_pairs(lab)?;
        enforced = Ring::read(lab)?.is_none_or(|ring| ring.enforcement() != "permissive");
        Ok(())
    })?;
    report.check(!enforced, "what does not pass is not enforced");
    report.figure("named", named);
    report.check(named == pairs, format!("{named} of {pairs} pairs are named as unproven"));
    blocked.check_delivered(report);
    let (clear, sent) = (blocked.wire.ipip, blocked.probes.sent);
    report
        .check(clear >= sent, format!("{clear} packets in the clear for {sent} probes while ESP is dropped"));

    let mut encrypted_after = Duration::MAX;
    let healing = wire::watch(probe, "when ESP passes again", || {
        note("ESP passes");
        let begun = Instant::now();
        lab.in_network(&["nft", "delete", "table", "bridge", TABLE])?;
        overlay.wait_encrypting()?;
        encrypted_after = begun.elapsed();
        enforcing::wait_proven(lab)?;
        overlay.wait_rolled_out()
    })?;
    report.check(named_pairs(lab)? == 0, "no pair is named any more");
    healing.check_delivered(report);
    report.figure("encrypted_after_s", encrypted_after.as_secs());
    report.check(
        encrypted_after <= HEALED,
        format!("everything is encrypted after {encrypted_after:?}, at most {HEALED:?}"),
    );
    enforcing::wait(lab)?;
    let after = wire::watch_for(probe, "while enforcing", Duration::from_secs(4))?;
    after.check_delivered(report);
    after.check_encrypted(report);

    note(
        "ESP is dropped again, and the agents replaced: nothing gets through, and nothing goes in the clear",
    );
    let lost = wire::watch(probe, "while ESP is dropped and enforced", || {
        block(lab)?;
        lab.kubectl(&["-n", NAMESPACE, "delete", "pods", "-l", "k8s-app=ucp-secureoverlay-agent"])?;
        overlay.wait_rolled_out()?;
        // A pinned pair stays pinned: missing answers alone change nothing.
        std::thread::sleep(BLOCKED);
        Ok(())
    })?;
    report.check(lost.probes.sent > 0 && lost.probes.lost > 0, "ESP is dropped for the probes too");
    report.expect("plaintext_packets", after.wire.ipip + lost.wire.ipip, 0);
    lab.in_network(&["nft", "delete", "table", "bridge", TABLE])?;
    enforcing::wait(lab)?;
    let again = wire::watch_for(probe, "when it passes again", Duration::from_secs(4))?;
    again.check_delivered(report);
    again.check_encrypted(report);
    let all = [&blocked, &healing, &after, &again];
    report.figure("sent", all.iter().map(|watched| watched.probes.sent).sum::<u64>());
    report.expect_none("lost", all.iter().map(|watched| watched.probes.lost).sum());
    Ok(())
}

/// Drops ESP between the nodes, and nothing else.
fn block(lab: &Lab) -> Result<()> {
    let rules = format!(
        "add table bridge {TABLE}\n\
         add chain bridge {TABLE} forward {{ type filter hook forward priority 0; }}\n\
         add rule bridge {TABLE} forward ether type ip ip protocol 50 drop\n"
    );
    lab.in_network(&["nft", &rules]).map(drop)
}

/// How many pairs of nodes are named as unproven with the active generation, counted from both ends.
fn named_pairs(lab: &Lab) -> Result<usize> {
    let Some(active) = Ring::read(lab)?.and_then(|ring| ring.uid("active")) else { return Ok(0) };
    let others = |node: &String, peers: &BTreeSet<String>| peers.iter().filter(|peer| *peer != node).count();
    Ok(manager::unproven(lab, &active)?.iter().map(|(node, peers)| others(node, peers)).sum())
}

/// The same as the agents count it that run now; `None` while one does not answer.
fn unproven(lab: &Lab) -> Result<Option<usize>> {
    let mut all = 0;
    for node in lab.nodes() {
        match metrics::of_agent(lab, &node.name, metric::UNPROVEN_PAIRS)? {
            Some(pairs) => all += pairs as usize,
            None => return Ok(None),
        }
    }
    Ok(Some(all))
}

/// What a person sees.
fn table(lab: &Lab) -> Result<String> {
    lab.kubectl(&["get", "nodeencryptions", "-o", "wide"])
}
