//! Faults one after the other, drawn from a seed, while every node enforces: nothing readable leaves, the others lose
//! nothing, and what was broken comes back.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::cluster::until;
use super::ledger::Ledger;
use super::overlay::{Overlay, PATIENCE};
use super::partition::{cut_off, join_again};
use super::probe::Probe;
use super::processes::{AGENT, MANAGER, pids, signal};
use super::ring::Ring;
use super::wire::{self, Watched};
use super::{enforcing, manager, metrics, reachable, xfrm};
use crate::interface::STATE_DIRECTORY;
use crate::lab::Lab;
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};
use crate::state::Node;

pub const SCENARIO: Scenario = Scenario {
    name: "chaos",
    about: "faults drawn from a seed while every node enforces: nothing is readable, the others lose nothing, all heals",
    tier: Tier::Gate,
    estimate: 100,
    alone: true,
    run: Run::Installed(run),
};

/// From the kill of an agent's process until its successor is ready.
const HEALED: Duration = Duration::from_secs(10);
/// Kills of an agent's process in a row.
const KILLS: usize = 10;
/// Readable packets after a flush of policies.
const CLEAR: Duration = Duration::from_millis(100);
/// How long what is stopped or cut off stays so.
const AWAY: Duration = Duration::from_secs(3);

/// A fault, and what it may cost.
struct Fault {
    name: &'static str,
    inflict: fn(&Lab, &Node) -> Result<()>,
    /// The node's own traffic may be lost for a while. That between others never.
    own_traffic: bool,
    /// Packets may be readable for a moment: the kernel has no policies.
    readable: bool,
    /// The process is killed: its successor is ready soon.
    killed: bool,
}

impl Fault {
    const fn harmless(name: &'static str, inflict: fn(&Lab, &Node) -> Result<()>) -> Self {
        Self { name, inflict, own_traffic: false, readable: false, killed: false }
    }

    const fn costs_traffic(name: &'static str, inflict: fn(&Lab, &Node) -> Result<()>) -> Self {
        Self { own_traffic: true, ..Self::harmless(name, inflict) }
    }

    const fn flush(name: &'static str, inflict: fn(&Lab, &Node) -> Result<()>) -> Self {
        Self { readable: true, ..Self::costs_traffic(name, inflict) }
    }
}

const FAULTS: [Fault; 12] = [
    Fault { killed: true, ..Fault::harmless("the agent is killed", kill_agent) },
    Fault::harmless("the agent stands still", |lab, node| {
        stand_still(lab, node, || {
            thread::sleep(AWAY);
            Ok(())
        })
    }),
    Fault::harmless("the manager is killed", |lab, _| {
        for node in lab.nodes() {
            signal(lab, &node.name, MANAGER, "-KILL")?;
        }
        Ok(())
    }),
    Fault::harmless("the keys rotate", |lab, _| manager::rotate(lab, &[]).map(drop)),
    Fault::harmless("the keys rotate while an agent stands still", |lab, node| {
        stand_still(lab, node, || {
            manager::rotate(lab, &[])?;
            thread::sleep(AWAY);
            Ok(())
        })
    }),
    Fault::harmless("the API server starts anew", |lab, _| {
        lab.stop_api()?;
        thread::sleep(AWAY);
        lab.start_api()
    }),
    Fault::harmless("the node is cut off from the API server", |lab, node| {
        cut_off(lab, &node.ip.to_string())?;
        thread::sleep(AWAY);
        join_again(lab)
    }),
    Fault::costs_traffic("the SAs are flushed", |lab, node| flush(lab, node, "ip xfrm state flush")),
    Fault::costs_traffic("the agent is killed, and the SAs are flushed", |lab, node| {
        let pid = pids(lab, &node.name, AGENT)?.pop().context("no agent runs")?;
        flush(lab, node, &format!("kill -KILL {pid}; ip xfrm state flush"))
    }),
    Fault::flush("the policies are flushed", |lab, node| flush(lab, node, "ip xfrm policy flush")),
    Fault::flush("both tables are flushed", |lab, node| {
        flush(lab, node, "ip xfrm policy flush; ip xfrm state flush")
    }),
    Fault::harmless("the agent's directory is emptied", |lab, node| {
        flush(lab, node, &format!("rm -rf {STATE_DIRECTORY}/*"))
    }),
];

/// What all faults cost together.
#[derive(Default)]
struct Sums {
    faults: u64,
    by_name: BTreeMap<&'static str, u64>,
    sent: u64,
    plaintext: u64,
    readable: u64,
    clear: Duration,
    bystander_lost: u64,
    healed: Duration,
    settled: Duration,
}

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    let lasting = profile.lasting(60, 600);
    let mut rng = StdRng::seed_from_u64(profile.seed());
    let mut deck: Vec<&Fault> = Vec::new();
    let (mut ledger, mut sums) = (Ledger::default(), Sums::default());
    note(format!("seed {}", profile.seed()));
    killed_in_a_row(overlay, probe, report, &mut sums)?;
    // The container too: what the kubelet makes of that is measured, not judged.
    let container = killed_with_its_container(overlay, probe, report, &mut sums)?;
    let begun = Instant::now();
    while begun.elapsed() < lasting {
        // Each comes before one comes again.
        if deck.is_empty() {
            deck = FAULTS.iter().collect();
            deck.shuffle(&mut rng);
        }
        let Some(fault) = deck.pop() else { break };
        let node = &lab.nodes()[rng.random_range(0..lab.nodes().len())];
        one(overlay, probe, report, fault, node, &mut sums)?;
        ledger.observe(lab)?;
    }
    report.figure("seed", profile.seed());
    report.figure("faults", sums.faults);
    report.figure("by_fault", &sums.by_name);
    report.figure("sent", sums.sent);
    report.expect("plaintext_packets", sums.plaintext, 0);
    report.figure("readable_packets_of_flushes", sums.readable);
    report.figure("clear_ms_max", sums.clear.as_millis());
    report.check(sums.clear <= CLEAR, format!("readable for {:?}, at most {CLEAR:?}", sums.clear));
    report.expect_none("bystander_lost", sums.bystander_lost);
    report.figure("heal_s_max", tenths(sums.healed));
    report.check(sums.healed <= HEALED, format!("healed after {:?}, at most {HEALED:?}", sums.healed));
    report.figure("container_heal_s", tenths(container));
    report.figure("settled_s_max", tenths(sums.settled));
    ledger.report(lab, report)
}

/// One fault under traffic, and the way back.
fn one(
    overlay: &Overlay<'_>,
    probe: &Probe,
    report: &mut Report,
    fault: &Fault,
    node: &Node,
    sums: &mut Sums,
) -> Result<()> {
    let lab = overlay.lab;
    let what = format!("{}: {}", node.name, fault.name);
    note(&what);
    let others: Vec<Node> = lab.nodes().iter().filter(|other| other.name != node.name).cloned().collect();
    let begun = Instant::now();
    let watched = wire::watch(probe, &what, || {
        let killed = Instant::now();
        (fault.inflict)(lab, node)?;
        if fault.killed {
            until("another agent to be ready", PATIENCE, || metrics::agent_is_ready(lab, &node.name))?;
            sums.healed = sums.healed.max(killed.elapsed());
        }
        reachable::wait(lab, node, &others)?;
        settle(overlay)
    })?;
    sums.settled = sums.settled.max(begun.elapsed());
    sums.faults += 1;
    *sums.by_name.entry(fault.name).or_default() += 1;
    sums.add(&watched, report, fault, node);
    Ok(())
}

impl Sums {
    fn add(&mut self, watched: &Watched, report: &mut Report, fault: &Fault, node: &Node) {
        self.sent += watched.probes.sent;
        if fault.own_traffic {
            self.bystander_lost += watched.check_bystanders(report, &node.name);
        } else {
            watched.check_delivered(report);
            self.bystander_lost += watched.probes.lost;
        }
        if fault.readable {
            self.readable += watched.wire.ipip;
            self.clear = self.clear.max(clear_for(watched));
        } else {
            watched.check_not_in_the_clear(report);
            self.plaintext += watched.wire.ipip;
        }
    }
}

/// From the first readable packet to the last.
pub fn clear_for(watched: &Watched) -> Duration {
    let clear = watched.captured.packets.iter().filter(|packet| packet.ip_protocol() == Some(4));
    let times: Vec<Duration> = clear.map(|packet| packet.time).collect();
    times.last().zip(times.first()).map_or(Duration::ZERO, |(last, first)| last.saturating_sub(*first))
}

/// An agent's process is killed as soon as it is ready, again and again.
fn killed_in_a_row(overlay: &Overlay<'_>, probe: &Probe, report: &mut Report, sums: &mut Sums) -> Result<()> {
    let lab = overlay.lab;
    let node = lab.nodes().first().context("a lab without nodes")?;
    let fault = Fault::harmless("an agent is killed ten times in a row", kill_agent);
    note(fault.name);
    let watched = wire::watch(probe, fault.name, || {
        for _ in 0..KILLS {
            let killed = Instant::now();
            kill_agent(lab, node)?;
            until("another agent to be ready", PATIENCE, || metrics::agent_is_ready(lab, &node.name))?;
            sums.healed = sums.healed.max(killed.elapsed());
        }
        settle(overlay)
    })?;
    sums.faults += KILLS as u64;
    sums.add(&watched, report, &fault, node);
    Ok(())
}

/// The first process of the container is killed: the kubelet starts another container when it sees fit.
fn killed_with_its_container(
    overlay: &Overlay<'_>,
    probe: &Probe,
    report: &mut Report,
    sums: &mut Sums,
) -> Result<Duration> {
    let lab = overlay.lab;
    let node = lab.nodes().last().context("a lab without nodes")?;
    let fault = Fault::harmless("an agent's container is killed", |lab, node| {
        let pid = pids(lab, &node.name, AGENT)?.pop().context("no agent runs")?;
        lab.exec_ok(&node.name, &["sh", "-c", &format!("kill -KILL $(ps -o ppid= -p {pid})")]).map(drop)
    });
    note(fault.name);
    let mut took = Duration::ZERO;
    let watched = wire::watch(probe, fault.name, || {
        let killed = Instant::now();
        (fault.inflict)(lab, node)?;
        until("the old agent to be gone", PATIENCE, || Ok(!metrics::agent_is_ready(lab, &node.name)?))?;
        until("another agent to be ready", PATIENCE, || metrics::agent_is_ready(lab, &node.name))?;
        took = killed.elapsed();
        settle(overlay)
    })?;
    sums.faults += 1;
    sums.add(&watched, report, &fault, node);
    Ok(took)
}

/// Kills a node's agent, and waits until another runs.
pub fn kill_agent(lab: &Lab, node: &Node) -> Result<()> {
    let old = pids(lab, &node.name, AGENT)?;
    ensure!(signal(lab, &node.name, AGENT, "-KILL")? == 1, "no agent to be killed on {}", node.name);
    until("another agent to run", PATIENCE, || {
        let now = pids(lab, &node.name, AGENT)?;
        Ok(!now.is_empty() && now != old)
    })
}

fn stand_still(lab: &Lab, node: &Node, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
    ensure!(signal(lab, &node.name, AGENT, "-STOP")? == 1, "no agent to be stopped on {}", node.name);
    let outcome = meanwhile();
    signal(lab, &node.name, AGENT, "-CONT")?;
    outcome
}

fn flush(lab: &Lab, node: &Node, script: &str) -> Result<()> {
    lab.exec_ok(&node.name, &["sh", "-c", script]).map(drop)
}

/// Waits until there is one generation, every node enforces, and every pair is proven.
fn settle(overlay: &Overlay<'_>) -> Result<()> {
    let lab = overlay.lab;
    until("one generation", PATIENCE, || Ok(Ring::read(lab)?.is_some_and(|ring| ring.is_steady())))?;
    overlay.wait_rolled_out()?;
    enforcing::wait(lab)?;
    enforcing::wait_proven(lab)?;
    let held = xfrm::ours_in(&xfrm::dump(lab)?);
    ensure!(held.0 > 0 && held.1 > 0, "the kernels hold nothing of ours");
    Ok(())
}

fn tenths(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}
