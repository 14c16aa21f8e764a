//! A network that drops ESP: switching on harms no traffic and says which nodes can't reach which, and when ESP passes,
//! everything is encrypted without anybody's doing.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::cluster::until;
use super::overlay::{NAMESPACE, PATIENCE};
use super::processes::{AGENT, signal_everywhere};
use super::ring::Ring;
use super::{enforcing, manager, metrics, wire};
use crate::lab::Lab;
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};

pub const SCENARIO: Scenario = Scenario {
    name: "esp-blocked",
    about: "where the network drops ESP, switching on loses nothing and names the pairs; lifted, all is encrypted",
    tier: Tier::Gate,
    estimate: 180,
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
    let (mut named, mut insisted) = (0, false);
    let blocked = wire::watch(probe, "while ESP is dropped", || {
        note("kubectl apply");
        overlay.apply()?;
        until("every node to name all others as unreachable", PATIENCE, || {
            named = named_pairs(lab)?;
            Ok(named == pairs)
        })?;
        note(format!("kubectl get nodeencryptions -o wide:\n{}", table(lab)?));
        note("all agents killed: nobody knows any more whom ESP reaches");
        ensure!(signal_everywhere(lab, AGENT, "-KILL")? == lab.nodes().len(), "not all agents were killed");
        // Not what those that were killed have said: their successors have to find out.
        until("the new agents to know it again", PATIENCE, || Ok(unreachable(lab)? == Some(pairs)))?;
        std::thread::sleep(BLOCKED);
        named = named_pairs(lab)?;
        insisted = Ring::read(lab)?.is_none_or(|ring| ring.enforcement() != "permissive");
        Ok(())
    })?;
    report.check(!insisted, "nobody insists on what does not pass");
    report.figure("named", named);
    report.check(named == pairs, format!("{named} of {pairs} pairs are named as unreachable"));
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
        until("nobody to be named any more", PATIENCE, || Ok(named_pairs(lab)? == 0))?;
        overlay.wait_rolled_out()
    })?;
    healing.check_delivered(report);
    report.figure("encrypted_after_s", encrypted_after.as_secs());
    report.check(
        encrypted_after <= HEALED,
        format!("everything is encrypted after {encrypted_after:?}, at most {HEALED:?}"),
    );
    enforcing::wait(lab)?;
    let after = wire::watch_for(probe, "while every node insists", Duration::from_secs(4))?;
    after.check_delivered(report);
    after.check_encrypted(report);

    note(
        "ESP is dropped again, and the agents replaced: now nothing gets through, and nothing goes in the clear",
    );
    let lost = wire::watch(probe, "while ESP is dropped and every node insists", || {
        block(lab)?;
        lab.kubectl(&["-n", NAMESPACE, "delete", "pods", "-l", "k8s-app=ucp-secureoverlay-agent"])?;
        until("every node to name all others again", PATIENCE, || Ok(named_pairs(lab)? == pairs))
    })?;
    report.check(lost.probes.sent > 0 && lost.probes.lost > 0, "ESP is dropped for the probes too");
    report.expect("plaintext_packets", after.wire.ipip + lost.wire.ipip, 0);
    lab.in_network(&["nft", "delete", "table", "bridge", TABLE])?;
    until("nobody to be named any more", PATIENCE, || Ok(named_pairs(lab)? == 0))?;
    overlay.wait_rolled_out()?;
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

/// How many pairs of nodes are told to be out of reach, counted from both ends.
fn named_pairs(lab: &Lab) -> Result<usize> {
    let mut named = 0;
    let all = manager::statuses(lab, "conditions")?;
    for node in lab.nodes() {
        let said = all.get(&node.name).cloned().unwrap_or_default();
        let of = |condition: &Value| condition["type"] == "EspReachable" && condition["status"] == "False";
        let esp = said.as_array().into_iter().flatten().find(|condition| of(condition));
        let text = esp.and_then(|condition| condition["message"].as_str()).unwrap_or_default();
        let others = lab.nodes().iter().filter(|other| other.name != node.name);
        named += others.filter(|other| text.contains(&format!("{} ({})", other.name, other.ip))).count();
    }
    Ok(named)
}

/// The same as the agents count it that run now; `None` while one does not answer.
fn unreachable(lab: &Lab) -> Result<Option<usize>> {
    let mut all = 0;
    for node in lab.nodes() {
        match metrics::of_agent(lab, &node.name, "secureoverlay_agent_esp_unreachable_peers")? {
            Some(peers) => all += peers as usize,
            None => return Ok(None),
        }
    }
    Ok(Some(all))
}

/// What a person sees.
fn table(lab: &Lab) -> Result<String> {
    lab.kubectl(&["get", "nodeencryptions", "-o", "wide"])
}
