//! A network that drops ESP: switching on harms no traffic and says which nodes can't reach which, and when ESP passes,
//! everything is encrypted without anybody's doing.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::cluster::until;
use super::overlay::{Manifest, Overlay, PATIENCE};
use super::probe::Probe;
use super::processes::{AGENT, signal_everywhere};
use super::ring::Ring;
use super::{manager, wire};
use crate::lab::Lab;
use crate::progress::note;
use crate::scenario::{Profile, Report, Run, Scenario};

pub const SCENARIO: Scenario = Scenario {
    name: "esp-blocked",
    about: "where the network drops ESP, switching on loses nothing and names the pairs; lifted, all is encrypted",
    estimate: "3 min",
    run: Run::Cluster(run),
};

/// How long it is looked at while nothing gets better.
const BLOCKED: Duration = Duration::from_secs(20);
/// Within what time everything is to be encrypted when ESP passes.
const HEALED: Duration = Duration::from_secs(60);
const TABLE: &str = "esp_blocked";

fn run(lab: &Lab, report: &mut Report, _: Profile) -> Result<()> {
    let overlay = Overlay::new(lab, Manifest::Ours);
    let probe = Probe::deploy(lab)?;
    note("the bridge drops protocol 50");
    block(lab)?;
    let outcome = live(lab, report, &overlay, &probe);
    // Whatever happened, the next scenario finds nothing of this; here it is gone already if all went well.
    drop(lab.in_network(&["nft", "delete", "table", "bridge", TABLE]));
    outcome?;
    overlay.disable_and_check(report)
}

fn live(lab: &Lab, report: &mut Report, overlay: &Overlay<'_>, probe: &Probe) -> Result<()> {
    let pairs = probe.pairs();
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
    let after = wire::watch_for(probe, "after that", Duration::from_secs(10))?;
    after.check_delivered(report);
    after.check_encrypted(report);
    let all = [&blocked, &healing, &after];
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
    for node in lab.nodes() {
        let said = manager::status(lab, &node.name, "conditions")?.unwrap_or_default();
        let of = |condition: &Value| condition["type"] == "EspReachable" && condition["status"] == "False";
        let esp = said.as_array().into_iter().flatten().find(|condition| of(condition));
        let text = esp.and_then(|condition| condition["message"].as_str()).unwrap_or_default();
        let others = lab.nodes().iter().filter(|other| other.name != node.name);
        named += others.filter(|other| text.contains(&format!("{} ({})", other.name, other.ip))).count();
    }
    Ok(named)
}

/// What a person sees.
fn table(lab: &Lab) -> Result<String> {
    lab.kubectl(&["get", "nodeencryptions", "-o", "wide"])
}
