//! Agents and manager die while every node enforces: killed, out of memory, evicted.

use std::thread;

use anyhow::{Context, Result, ensure};

use super::cluster::until;
use super::enforcing::{self, Totals};
use super::not_a_removal::drain;
use super::overlay::PATIENCE;
use super::processes::{AGENT, MANAGER, pids, signal_everywhere};
use super::xfrm;
use crate::lab::Lab;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};

pub const SCENARIO: Scenario = Scenario {
    name: "crash",
    about: "agents and manager are killed, run out of memory and are evicted while every node enforces",
    tier: Tier::Gate,
    estimate: 40,
    alone: false,
    run: Run::Installed(run),
};

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    let before = xfrm::dump(lab)?;
    let mut totals = Totals::default();
    let calm = profile.lasting(3, 20);
    totals.event(report, probe, "agents and manager get kill -9", true, || {
        for (program, all) in [(AGENT, lab.nodes().len()), (MANAGER, 1)] {
            let killed = signal_everywhere(lab, program, "-KILL")?;
            ensure!(killed == all, "{killed} of {all} {program} were killed");
        }
        thread::sleep(calm);
        overlay.wait_rolled_out()
    })?;
    enforcing::check_unchanged(lab, report, "killed", &before)?;
    totals.event(report, probe, "an agent runs out of memory", true, || {
        out_of_memory(lab)?;
        thread::sleep(calm);
        overlay.wait_rolled_out()
    })?;
    enforcing::check_unchanged(lab, report, "out of memory", &before)?;
    totals.event(report, probe, "a drain evicts an agent and the manager", true, || drain(overlay, calm))?;
    enforcing::check_unchanged(lab, report, "drained", &before)?;
    totals.tell(report);
    Ok(())
}

/// Leaves an agent's container no memory, so that the kernel kills it.
fn out_of_memory(lab: &Lab) -> Result<()> {
    let node = &lab.nodes().first().context("a lab without nodes")?.name;
    let pid = pids(lab, node, AGENT)?.pop().with_context(|| format!("no agent runs on {node}"))?;
    let script = format!(
        "group=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/{pid}/cgroup); echo 64K > $group/memory.max; \
         grep -o 'oom_kill [0-9]*' $group/memory.events || true"
    );
    lab.exec(node, &["sh", "-c", &script])?;
    until("the kernel to kill the agent", PATIENCE, || Ok(!pids(lab, node, AGENT)?.contains(&pid)))
}
