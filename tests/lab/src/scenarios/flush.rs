//! A node's kernel is emptied under traffic: nothing in the clear, no key used twice, and the traffic comes back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::ledger::Ledger;
use super::overlay::Overlay;
use super::probe::Probe;
use super::processes::{AGENT, pids, signal};
use super::{enforcing, reachable, rotate_timed, wire, xfrm};
use crate::interface::JOURNAL;
use crate::interface::agent::RESYNC;
use crate::lab::Lab;
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};
use crate::state::Node;

pub const SCENARIO: Scenario = Scenario {
    name: "flush",
    about: "SAs and policies that another program deletes are healed within seconds, and no key is installed twice",
    tier: Tier::Gate,
    estimate: 85,
    alone: false,
    run: Run::Installed(run),
};

/// From the deletion until the node is reached in all directions again.
const BACK: Duration = Duration::from_millis(3000);

/// The same where the agent ended too, and the kubelet has to start another.
const BACK_WITH_AGENT: Duration = Duration::from_secs(30);

/// One way to lose SAs.
struct Loss {
    what: &'static str,
    inflict: fn(&Lab, &Node, &[Node]) -> Result<()>,
    /// Another agent can do nothing meanwhile: its node is reached once it can.
    one_stopped: bool,
    /// The agent ends as well.
    ends_agent: bool,
}

impl Loss {
    const fn of(what: &'static str, inflict: fn(&Lab, &Node, &[Node]) -> Result<()>) -> Self {
        Self { what, inflict, one_stopped: false, ends_agent: false }
    }
}

/// Each outbound loss makes an agent draw a new instance, at most one in 1, 2, 4 … s: the stages take longer than that.
const LOSSES: [Loss; 6] = [
    Loss::of("one inbound SA deleted", |lab, node, others| delete(lab, node, &others[..1], Direction::In)),
    Loss::of("one SA of each direction deleted", |lab, node, others| {
        delete(lab, node, &others[..1], Direction::In)?;
        delete(lab, node, &others[..1], Direction::Out)
    }),
    Loss::of("all SAs of one direction deleted", |lab, node, others| {
        delete(lab, node, others, Direction::Out)
    }),
    Loss { one_stopped: true, ..Loss::of("ip xfrm state flush while another agent is stopped", flush) },
    Loss {
        ends_agent: true,
        ..Loss::of("the agent killed, and the SAs flushed before it is back", |lab, node, _| {
            let pid = pids(lab, &node.name, AGENT)?.pop().context("no agent runs")?;
            lab.exec_ok(&node.name, &["sh", "-c", &format!("kill -KILL {pid}; ip xfrm state flush")])
                .map(drop)
        })
    },
    Loss {
        ends_agent: true,
        ..Loss::of("the SAs flushed and the journal removed", |lab, node, _| {
            let script = format!("rm {JOURNAL}; ip xfrm state flush");
            lab.exec_ok(&node.name, &["sh", "-c", &script]).map(drop)
        })
    },
];

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    // As in a cluster that has no lab's short intervals: nothing is found by looking at everything now and then.
    overlay.configure_agents(&[&format!("{RESYNC}=10m")])?;
    let mut ledger = Ledger::default();
    let (mut back_ms, mut back_with_agent_ms, mut ipip, mut lost) = (Vec::new(), Vec::new(), 0, 0);
    for flushed in lab.nodes().iter().take(profile.pick(1, lab.nodes().len())) {
        let others: Vec<Node> =
            lab.nodes().iter().filter(|node| node.name != flushed.name).cloned().collect();
        let (stopped, moving) = others.split_last().context("a lab of one node")?;
        for Loss { what, inflict, one_stopped, ends_agent } in &LOSSES {
            note(format!("{}: {what}", flushed.name));
            ledger.observe(lab)?;
            let mut took = Duration::ZERO;
            let watched = wire::watch(probe, what, || {
                if *one_stopped {
                    ensure!(signal(lab, &stopped.name, AGENT, "-STOP")? == 1, "no agent to be stopped");
                }
                let begun = Instant::now();
                inflict(lab, flushed, &others)?;
                let waiting = begun.elapsed();
                let reached = reachable::wait(lab, flushed, if *one_stopped { moving } else { &others });
                if *one_stopped {
                    signal(lab, &stopped.name, AGENT, "-CONT")?;
                }
                took = waiting + reached?;
                Ok(())
            })?;
            let most = if *ends_agent { BACK_WITH_AGENT } else { BACK };
            report.check(took <= most, format!("{what}: reached again after {took:?}, at most {most:?}"));
            lost += watched.check_bystanders(report, &flushed.name);
            watched.check_not_in_the_clear(report);
            if *ends_agent { &mut back_with_agent_ms } else { &mut back_ms }.push(took.as_millis());
            ipip += watched.wire.ipip;
            settle(overlay)?;
            all_is_well(report, probe, what)?;
        }
    }
    report.figure("back_ms", back_ms);
    report.figure("back_with_agent_ms", back_with_agent_ms);
    report.figure("ipip", ipip);
    report.expect_none("lost", lost);

    note("ip xfrm policy flush: until it is repaired, traffic goes in the clear");
    let flushed = &lab.nodes().first().context("a lab without nodes")?.name;
    let begun = Instant::now();
    lab.exec_ok(flushed, &["ip", "xfrm", "policy", "flush"])?;
    overlay.wait_encrypting()?;
    let took = begun.elapsed();
    report.figure("policies_back_ms", took.as_millis());
    report.check(took <= BACK, format!("policies come back after {took:?}, at most {BACK:?}"));
    settle(overlay)?;
    all_is_well(report, probe, "ip xfrm policy flush")?;
    ledger.report(lab, report)?;
    overlay.configure_agents(&[&format!("{RESYNC}-")])
}

/// Waits until all pairs are proven, with whatever keys.
fn settle(overlay: &Overlay<'_>) -> Result<()> {
    overlay.wait_rolled_out()?;
    rotate_timed::wait_steady(overlay.lab)?;
    enforcing::wait(overlay.lab)?;
    enforcing::wait_proven(overlay.lab)
}

fn all_is_well(report: &mut Report, probe: &Probe, what: &str) -> Result<()> {
    let after = wire::watch_for(probe, &format!("after: {what}"), Duration::from_secs(4))?;
    after.check_delivered(report);
    after.check_encrypted(report);
    Ok(())
}

fn flush(lab: &Lab, node: &Node, _: &[Node]) -> Result<()> {
    lab.exec_ok(&node.name, &["ip", "xfrm", "state", "flush"]).map(drop)
}

/// As seen from the node that loses SAs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

/// Deletes the SAs between a node and these others in one direction: of inbound ones any, of outbound ones those sent with.
fn delete(lab: &Lab, node: &Node, others: &[Node], direction: Direction) -> Result<()> {
    let kernels = xfrm::dump(lab)?;
    let kernel = |name: &str| kernels.get(name).context("a node is missing");
    let mut script = String::new();
    for other in others {
        let (from, src, dst) = match direction {
            Direction::In => (other, other.ip, node.ip),
            Direction::Out => (node, node.ip, other.ip),
        };
        let spi = kernel(&from.name)?.sends_to(dst).with_context(|| format!("no SA from {src} to {dst}"))?;
        script += &format!("ip xfrm state delete src {src} dst {dst} proto esp spi {spi}\n");
    }
    lab.exec_ok(&node.name, &["sh", "-ec", &script]).map(drop)
}
