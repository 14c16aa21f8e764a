//! A node joins, reboots and leaves, is excluded for a while, and claims another's address, permissive and enforcing:
//! between the others nothing is lost, and nothing is written for it but the node's own objects.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use secureoverlay_prober::summary::Direction;

use super::cluster::until;
use super::enforcing::{self, Totals};
use super::overlay::{Overlay, PATIENCE, manifest};
use super::probe::Probe;
use super::processes::{AGENT, pids};
use super::writes::{Writes, Written};
use super::{reachable, wire, xfrm};
use crate::interface::manager::STARTUP_TAINT as TAINT_VARIABLE;
use crate::interface::{CALICO_ADDRESS, EXCLUDE_LABEL, EXCLUDED};
use crate::lab::{Lab, STARTUP_TAINT};
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};
use crate::state::Node;

/// The scenario.
pub const SCENARIO: Scenario = Scenario {
    name: "join-leave",
    about: "a node joins, reboots, leaves, is excluded, claims another's address: the others lose and write nothing",
    tier: Tier::Gate,
    estimate: 150,
    alone: false,
    run: Run::Installed(run),
};

const TAINT_MANIFEST: &str = "startup-taint.yaml";
/// From the start of a node's agent until every pair with it is encrypted.
const ENCRYPTED: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    let (moving, others) = enforcing::one_and_others(lab)?;
    let bystanders = probe.without(&moving.name)?;
    lab.apply_file(&manifest(TAINT_MANIFEST))?;
    // Now: the manager may be on the node that goes, and comes back with it.
    overlay.configure_manager(&[&format!("{TAINT_VARIABLE}={STARTUP_TAINT}")])?;
    keep_manager_away(overlay, moving)?;

    let (totals, took, written) = (Totals::default(), Vec::new(), Written::default());
    let mut all = Joins { overlay, moving, others, bystanders, totals, took, written };
    for _ in 0..profile.pick(1, 3) {
        all.leaves(report, true)?;
        all.comes(report, true, true)?;
        all.comes(report, true, false)?;
    }
    enforcing::request(lab, "permissive")?;
    // Every node acknowledges that: not what is counted.
    enforcing::wait_proven(lab)?;
    all.leaves(report, false)?;
    all.comes(report, false, true)?;
    all.comes(report, false, false)?;
    enforcing::request_nothing(lab)?;
    enforcing::wait(lab)?;
    overlay.configure_manager(&[&format!("{TAINT_VARIABLE}-")])?;
    lab.kubectl(&["delete", "-f", &manifest(TAINT_MANIFEST).display().to_string()])?;

    let Joins { mut totals, took, written, .. } = all;
    report.figure("seconds_to_encrypted", took.iter().map(|took| tenths(*took)).collect::<Vec<_>>());
    let slowest = took.iter().max().copied().unwrap_or_default();
    report.check(
        slowest < ENCRYPTED && !took.is_empty(),
        format!("all pairs with a new node were encrypted after {slowest:?}, at most {ENCRYPTED:?}"),
    );
    report.expect("ring_writes", written.ring, 0);
    report.figure("writes", &written.objects);
    report.expect("writes_of_others", written.of_others(&moving.name), 0);
    // Or the watch saw nothing.
    report.check(
        written.objects.keys().any(|object| object.ends_with(&moving.name)),
        "the node wrote its own objects",
    );
    let all = Probe::deploy(lab)?;
    totals.event(report, &all, "all directions, with the new node", true, || {
        thread::sleep(Duration::from_secs(5));
        Ok(())
    })?;
    excluded(lab, report, &all, &mut totals)?;
    another_annotation(lab, report, &all, &mut totals)?;
    totals.tell(report);
    Ok(())
}

/// A node that goes and comes, and the others.
struct Joins<'a> {
    overlay: &'a Overlay<'a>,
    moving: &'a Node,
    others: &'a [Node],
    bystanders: Probe,
    totals: Totals,
    took: Vec<Duration>,
    written: Written,
}

impl Joins<'_> {
    fn leaves(&mut self, report: &mut Report, enforced: bool) -> Result<()> {
        let (lab, name) = (self.overlay.lab, &self.moving.name);
        let (writes, what) = (Writes::watch(lab)?, "a node is gone, and its Node deleted");
        self.totals.event(report, &self.bystanders, what, enforced, || {
            lab.power_off(name)?;
            lab.kubectl(&["delete", "node", name])?;
            lab.withdraw_routes(self.moving)?;
            thread::sleep(Duration::from_secs(3));
            Ok(())
        })?;
        self.note_writes(writes)
    }

    /// Also shows what others wrote.
    fn note_writes(&mut self, writes: Writes) -> Result<()> {
        let written = writes.stop(self.overlay.lab)?;
        let others = written.statuses.iter().filter(|(object, _)| !object.ends_with(&self.moving.name));
        others.for_each(|(object, status)| note(format!("  {object} was written: {status}")));
        self.written.add(written);
        Ok(())
    }

    /// Joins under its old name and address, tainted, or reboots.
    fn comes(&mut self, report: &mut Report, enforced: bool, joins: bool) -> Result<()> {
        let (lab, moving) = (self.overlay.lab, self.moving);
        let taints = if joins { format!("{STARTUP_TAINT}=:NoSchedule") } else { String::new() };
        lab.register_with_taints(&moving.name, &taints)?;
        let writes = Writes::watch(lab)?;
        let (mut tainted_first, mut encrypts_then, mut took) = (!joins, !joins, Duration::MAX);
        let what = if joins { "another joins with its name and address, tainted" } else { "it reboots" };
        self.totals.event(report, &self.bystanders, what, enforced, || {
            if joins {
                lab.power_on(&moving.name)?;
                lab.introduce(moving)?;
                // By Calico's pod, which also makes the Node ready for pods.
                until("the Node to be Ready", PATIENCE, || lab.node_is_ready(&moving.name))?;
                lab.announce_routes(moving)?;
                tainted_first = tainted(lab, moving)?;
            } else {
                lab.reboot(&moving.name, false)?;
            }
            took = until_encrypted(lab, moving, self.others)?;
            if joins {
                until("its taint to go", PATIENCE, || tainted(lab, moving).map(|tainted| !tainted))?;
                encrypts_then = encrypts(lab, moving, self.others)?;
            }
            if enforced {
                until("the node to enforce", PATIENCE, || enforcing::enforces(lab, lab.nodes()))?;
            }
            reachable::wait(lab, moving, self.others).map(drop)
        })?;
        self.note_writes(writes)?;
        report.check(tainted_first, "the node that joins is tainted");
        report.check(encrypts_then, "the taint goes when its node encrypts, not before");
        lab.register_with_taints(&moving.name, "")?;
        self.took.push(took);
        self.overlay.wait_rolled_out()
    }
}

/// The manager starts anew without the node's doing: what it writes then is not what is counted here.
fn keep_manager_away(overlay: &Overlay<'_>, from: &Node) -> Result<()> {
    let lab = overlay.lab;
    lab.kubectl(&["cordon", &from.name])?;
    for (pod, node) in overlay.managers()? {
        if node == from.name {
            lab.kubectl(&["-n", super::overlay::NAMESPACE, "delete", "pod", &pod])?;
        }
    }
    overlay.wait_rolled_out()?;
    lab.kubectl(&["uncordon", &from.name])?;
    enforcing::wait_proven(lab)
}

fn tainted(lab: &Lab, node: &Node) -> Result<bool> {
    let taints = lab.kubectl(&["get", "node", &node.name, "-o", "jsonpath={.spec.taints[*].key}"])?;
    Ok(taints.split(' ').any(|key| key == STARTUP_TAINT))
}

/// Whether the node sends to every other with ESP, and they to it.
fn encrypts(lab: &Lab, node: &Node, others: &[Node]) -> Result<bool> {
    let kernels = xfrm::dump(lab)?;
    let sends = |from: &Node, to: &Node| {
        let Some((own, theirs)) = kernels.get(&from.name).zip(kernels.get(&to.name)) else { return false };
        // With an SA that the receiver has as well, or it is one of before.
        let spi = own.sends_to(to.ip).unwrap_or_default();
        own.key_of(from.ip, to.ip, &spi).is_some() && theirs.key_of(from.ip, to.ip, &spi).is_some()
    };
    Ok(others.iter().all(|other| sends(node, other) && sends(other, node)))
}

/// Waits for the node's agent to start; returns how long it took from then until all pairs with it are encrypted.
fn until_encrypted(lab: &Lab, node: &Node, others: &[Node]) -> Result<Duration> {
    let deadline = Instant::now() + PATIENCE;
    let mut started = None;
    loop {
        anyhow::ensure!(Instant::now() < deadline, "{} does not encrypt after {PATIENCE:?}", node.name);
        if started.is_none() && !pids(lab, &node.name, AGENT)?.is_empty() {
            started = Some(Instant::now());
        }
        if let Some(started) = started
            && encrypts(lab, node, others)?
        {
            return Ok(started.elapsed());
        }
        thread::sleep(PAUSE);
    }
}

/// A node is excluded for a while: its traffic is in the clear, and none of it is lost.
fn excluded(lab: &Lab, report: &mut Report, all: &Probe, totals: &mut Totals) -> Result<()> {
    let (moving, others) = enforcing::one_and_others(lab)?;
    let with_it = |it: &&Direction| it.from == moving.name || it.to == moving.name;
    let watched = wire::watch(all, "a node is excluded", || {
        lab.kubectl(&["label", "node", &moving.name, &format!("{EXCLUDE_LABEL}={EXCLUDED}")])?;
        until("its traffic to be in the clear", PATIENCE, || {
            let kernels = xfrm::dump(lab)?;
            let sends = |from: &Node, to: &Node| {
                kernels.get(&from.name).is_some_and(|it| it.sends_to(to.ip).is_some())
            };
            Ok(others.iter().all(|other| !sends(moving, other) && !sends(other, moving)))
        })
    })?;
    watched.check_delivered(report);
    let plain = wire::watch_for(all, "while it is excluded", Duration::from_secs(3))?;
    plain.check_delivered(report);
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
    until("it to enforce again", PATIENCE, || {
        Ok(enforcing::enforces(lab, lab.nodes())? && encrypts(lab, moving, others)?)
    })?;
    reachable::wait(lab, moving, others)?;
    totals.event(report, all, "all directions, when it is included again", true, || {
        thread::sleep(Duration::from_secs(3));
        Ok(())
    })?;
    Ok(())
}

/// Calico's annotation says another node's address: what the kernel shows counts, and nothing changes.
fn another_annotation(lab: &Lab, report: &mut Report, all: &Probe, totals: &mut Totals) -> Result<()> {
    let (moving, others) = enforcing::one_and_others(lab)?;
    let victim = others.first().context("a lab of one node")?;
    let claim = |node: &Node| {
        let address = format!("{CALICO_ADDRESS}={}", node.calico_address());
        lab.kubectl(&["annotate", "--overwrite", "node", &moving.name, &address])
    };
    let before = xfrm::dump(lab)?;
    totals.event(report, all, "its Node claims another's address", true, || {
        claim(victim)?;
        thread::sleep(Duration::from_secs(5));
        claim(moving).map(drop)
    })?;
    enforcing::check_unchanged(lab, report, "another's address in an annotation", &before)
}

fn tenths(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}
