//! A node goes and one comes under its name and address, one is excluded for a while, one claims another's address:
//! nobody else notices.

use std::time::Duration;

use anyhow::{Context, Result};
use secureoverlay_common::names::{CALICO_ADDRESS, EXCLUDE_LABEL};
use secureoverlay_prober::summary::Direction;

use super::cluster::until;
use super::enforcing::{self, Totals};
use super::overlay::{PATIENCE, manifest};
use super::probe::Probe;
use super::{reachable, wire};
use crate::lab::{Lab, STARTUP_TAINT};
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};
use crate::state::Node;

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "join-leave",
    about: "a node leaves, joins, is excluded, claims another's address: nobody else loses a packet",
    tier: Tier::Gate,
    estimate: 120,
    alone: false,
    run: Run::Installed(run),
};

const TAINT_MANIFEST: &str = "startup-taint.yaml";

fn tainted(lab: &Lab, node: &Node) -> Result<bool> {
    let taints = lab.kubectl(&["get", "node", &node.name, "-o", "jsonpath={.spec.taints[*].key}"])?;
    Ok(taints.split(' ').any(|key| key == STARTUP_TAINT))
}

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, _: Profile) -> Result<()> {
    let lab = overlay.lab;
    let (moving, others) = enforcing::one_and_others(lab)?;
    let bystanders = probe.without(&moving.name)?;
    let mut totals = Totals::default();
    lab.apply_file(&manifest(TAINT_MANIFEST))?;
    // Now: the manager may be on the node that goes, and comes back with it.
    overlay.configure_manager(&[&format!("SECUREOVERLAY_STARTUP_TAINT={STARTUP_TAINT}")])?;

    totals.event(report, &bystanders, "a node is gone, and its Node deleted", true, || {
        lab.power_off(&moving.name)?;
        lab.kubectl(&["delete", "node", &moving.name])?;
        std::thread::sleep(Duration::from_secs(3));
        Ok(())
    })?;
    lab.register_with_taints(&moving.name, &format!("{STARTUP_TAINT}=:NoSchedule"))?;
    let (mut tainted_first, mut insists_then) = (false, false);
    totals.event(report, &bystanders, "another joins with its name and address, tainted", true, || {
        lab.power_on(&moving.name)?;
        lab.introduce(moving)?;
        tainted_first = tainted(lab, moving)?;
        until("its taint to go", PATIENCE, || tainted(lab, moving).map(|tainted| !tainted))?;
        insists_then = enforcing::insists(lab, std::slice::from_ref(moving))?;
        until("the new node to insist", PATIENCE, || enforcing::insists(lab, lab.nodes()))?;
        overlay.wait_encrypting()?;
        reachable::wait(lab, moving, others).map(drop)
    })?;
    report.check(tainted_first, "the node that joins is tainted");
    report.check(insists_then, "the taint goes when its node insists, not before");
    lab.register_with_taints(&moving.name, "")?;
    overlay.configure_manager(&["SECUREOVERLAY_STARTUP_TAINT-"])?;
    lab.kubectl(&["delete", "-f", &manifest(TAINT_MANIFEST).display().to_string()])?;
    let all = Probe::deploy(lab)?;
    let bystanders = all.without(&moving.name)?;
    totals.event(report, &all, "all directions, with the new node", true, || {
        std::thread::sleep(Duration::from_secs(5));
        Ok(())
    })?;

    let watched = wire::watch(&bystanders, "a node is excluded", || {
        lab.kubectl(&["label", "node", &moving.name, &format!("{EXCLUDE_LABEL}=true")])?;
        reachable::wait(lab, moving, others).map(drop)
    })?;
    watched.check_delivered(report);
    let plain = wire::watch_for(&all, "while it is excluded", Duration::from_secs(3))?;
    plain.check_delivered(report);
    let with_it = |it: &&Direction| it.from == moving.name || it.to == moving.name;
    let clear: u64 = plain.probes.directions.iter().filter(with_it).map(|it| u64::from(it.sent)).sum();
    report.check(
        plain.wire.ipip >= clear && plain.wire.esp >= plain.probes.sent - clear,
        format!(
            "{} in the clear for {clear} with the excluded node, {} ESP, of {} sent",
            plain.wire.ipip, plain.wire.esp, plain.probes.sent
        ),
    );
    note("it is included again");
    lab.kubectl(&["label", "node", &moving.name, &format!("{EXCLUDE_LABEL}-")])?;
    until("it to insist again", PATIENCE, || enforcing::insists(lab, lab.nodes()))?;
    overlay.wait_encrypting()?;
    reachable::wait(lab, moving, others)?;
    totals.event(report, &all, "all directions, when it is included again", true, || {
        std::thread::sleep(Duration::from_secs(3));
        Ok(())
    })?;
    // Until somebody mends it: another node's address, in the annotation that Calico keeps.
    let claim = |node: &Node| {
        let address = format!("{CALICO_ADDRESS}={}", node.calico_address());
        lab.kubectl(&["annotate", "--overwrite", "node", &moving.name, &address])
    };
    let (victim, _) = others.split_first().context("a lab of one node")?;
    totals.event(report, &bystanders, "its Node claims another's address", true, || {
        claim(victim)?;
        std::thread::sleep(Duration::from_secs(5));
        claim(moving)?;
        until("it to insist again", PATIENCE, || enforcing::insists(lab, lab.nodes()))?;
        overlay.wait_encrypting()?;
        reachable::wait(lab, moving, others).map(drop)
    })?;
    totals.event(report, &all, "all directions, when it has its own again", true, || {
        std::thread::sleep(Duration::from_secs(3));
        Ok(())
    })?;
    totals.tell(report);
    Ok(())
}
