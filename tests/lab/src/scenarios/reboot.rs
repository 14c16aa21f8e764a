//! A node is rebooted: between the others nothing happens, and with it there are new keys without a rotation.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::ledger::Ledger;
use super::overlay::PATIENCE;
use super::probe::Probe;
use super::ring::Ring;
use super::{metrics, reachable, wire, xfrm};
use crate::lab::Lab;
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};
use crate::state::Node;

pub const SCENARIO: Scenario = Scenario {
    name: "reboot",
    about: "traffic with a rebooted node has new keys at once, and nothing happens between the others",
    tier: Tier::Gate,
    estimate: 120,
    alone: false,
    run: Run::Installed(run),
};

/// From the moment that the rebooted node's agent is ready until it is reached in all directions.
const RESUME: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    let (rebooted, others) = lab.nodes().split_last().context("a lab without nodes")?;
    let bystanders = probe.without(&rebooted.name)?;

    let reboots = profile.pick(1, 5);
    let (mut sent, mut lost, mut resumed): (u64, u64, Vec<u128>) = (0, 0, Vec::new());
    let mut ledger = Ledger::default();
    for _ in 0..reboots {
        ledger.observe(lab)?;
        let ring = Ring::read(lab)?.context("there is no ring")?.uids();
        let before = xfrm::dump(lab)?;
        note(format!("{} is rebooted under traffic between the others", rebooted.name));
        let mut took = Duration::ZERO;
        let watched = wire::watch(&bystanders, "between the others", || {
            lab.reboot(&rebooted.name, false)?;
            wait_for_agent(lab, rebooted)?;
            took = reachable::wait(lab, rebooted, others)?;
            Ok(())
        })?;
        watched.check_delivered(report);
        (sent, lost) = (sent + watched.probes.sent, lost + watched.probes.lost);
        resumed.push(took.as_millis());
        report.check(
            took <= RESUME,
            format!("reached again after {} ms, at most {} ms", took.as_millis(), RESUME.as_millis()),
        );
        overlay.wait_encrypting()?;
        report.check(
            Ring::read(lab)?.is_some_and(|now| now.uids() == ring),
            "the ring holds the same generations as before",
        );
        check_keys(lab, report, rebooted, others, &before)?;
        overlay.wait_rolled_out()?;
    }
    report.figure("reboots", reboots);
    report.figure("sent", sent);
    report.expect_none("lost", lost);
    report.figure("resumed_ms", resumed);
    ledger.report(lab, report)?;

    note("all directions afterwards");
    let all = Probe::deploy(lab)?;
    let after = wire::watch_for(&all, "after the reboot", Duration::from_secs(10))?;
    after.check_delivered(report);
    after.check_encrypted(report);
    report.figure("lost_afterwards", after.probes.lost);
    report.figure("ipip_afterwards", after.wire.ipip);
    Ok(())
}

fn wait_for_agent(lab: &Lab, node: &Node) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !metrics::agent_is_ready(lab, &node.name)? {
        if Instant::now() > deadline {
            bail!("the agent of {} was not ready after {PATIENCE:?}", node.name);
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Both directions with the rebooted node are sent with new keys, the same at both ends; all others are as they were.
fn check_keys(
    lab: &Lab,
    report: &mut Report,
    rebooted: &Node,
    others: &[Node],
    before: &BTreeMap<String, xfrm::Kernel>,
) -> Result<()> {
    let now = xfrm::dump(lab)?;
    let name = &rebooted.name;
    for other in others {
        for (src, dst) in [(other.ip, rebooted.ip), (rebooted.ip, other.ip)] {
            let (sender, receiver) = if src == other.ip { (&other.name, name) } else { (name, &other.name) };
            let kernel = |node: &String| now.get(node).with_context(|| format!("no kernel of {node}"));
            let spi = kernel(sender)?.sends_to(dst).unwrap_or_default();
            let key = kernel(sender)?.key_of(src, dst, &spi);
            let known = before
                .values()
                .any(|it| key.as_ref().is_some_and(|key| it.keys_between(src, dst).contains(key)));
            report.check(key.is_some() && !known, format!("{src} → {dst}: a new key is sent with"));
            report.check(
                key == kernel(receiver)?.key_of(src, dst, &spi),
                format!("{src} → {dst}: the same key at both ends"),
            );
        }
    }
    let unconcerned = |kernels: &BTreeMap<String, xfrm::Kernel>| -> BTreeMap<String, xfrm::Kernel> {
        let others = kernels.iter().filter(|(node, _)| *node != name);
        others.map(|(node, kernel)| (node.clone(), kernel.without(rebooted.ip))).collect()
    };
    let changes = xfrm::changes(&unconcerned(before), &unconcerned(&now));
    report.check(changes.is_empty(), format!("nothing changed between the others {changes:?}"));
    Ok(())
}
