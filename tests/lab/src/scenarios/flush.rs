//! Somebody empties a node's kernel under traffic: nothing in the clear, no key used twice, and the traffic comes back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::probe::Probe;
use super::processes::{AGENT, pids, signal};
use super::{reachable, rotate_timed, wire, xfrm};
use crate::lab::Lab;
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};
use crate::state::Node;

pub const SCENARIO: Scenario = Scenario {
    name: "flush",
    about: "SAs and policies that somebody deletes are healed, with new keys",
    tier: Tier::Gate,
    estimate: 120,
    alone: false,
    run: Run::Installed(run),
};

/// From the deletion until the node is reached in all directions again.
const BACK: Duration = Duration::from_secs(10);

/// The same where the agent was killed too, and the kubelet has to notice.
const BACK_WITH_AGENT: Duration = Duration::from_secs(30);

/// One way to lose SAs.
struct Loss {
    what: &'static str,
    inflict: fn(&Lab, &Node, &[Node]) -> Result<()>,
    /// Another agent can do nothing meanwhile: its node is reached once it can.
    one_stopped: bool,
    back: Duration,
}

const LOSSES: [Loss; 4] = [
    Loss { what: "ip xfrm state flush", inflict: flush, one_stopped: false, back: BACK },
    Loss { what: "one SA of each direction deleted", inflict: delete_some, one_stopped: false, back: BACK },
    Loss {
        what: "the agent killed, and the SAs flushed before it is back",
        inflict: flush_without_agent,
        one_stopped: false,
        back: BACK_WITH_AGENT,
    },
    Loss {
        what: "ip xfrm state flush while another agent is stopped",
        inflict: flush,
        one_stopped: true,
        back: BACK,
    },
];

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    let (flushed, others) = lab.nodes().split_first().context("a lab without nodes")?;
    let (stopped, moving) = others.split_last().context("a lab of one node")?;
    // As in a cluster that has no lab's short intervals: nothing is found by looking at everything now and then.
    overlay.configure_agents(&["SECUREOVERLAY_RESYNC=10m"])?;
    let mut used = BTreeSet::new();
    let (mut back_ms, mut ipip, mut keys_twice) = (Vec::new(), 0, 0);
    for _ in 0..profile.pick(1, 3) {
        for Loss { what, inflict, one_stopped, back } in &LOSSES {
            note(*what);
            used.extend(sent_with(lab, flushed)?);
            let mut took = Duration::ZERO;
            let watched = wire::watch(probe, what, || {
                if *one_stopped {
                    ensure!(signal(lab, &stopped.name, AGENT, "-STOP")? == 1, "no agent to be stopped");
                }
                let begun = Instant::now();
                inflict(lab, flushed, others)?;
                let waiting = begun.elapsed();
                let reached = reachable::wait(lab, flushed, if *one_stopped { moving } else { others });
                if *one_stopped {
                    signal(lab, &stopped.name, AGENT, "-CONT")?;
                }
                took = waiting + reached?;
                Ok(())
            })?;
            report.check(took <= *back, format!("{what}: reached again after {took:?}, at most {back:?}"));
            report
                .check(watched.probes.sent > 0 && watched.wire.esp > 0, format!("{what}: there was traffic"));
            let bystanders =
                watched.probes.directions.iter().filter(|it| ![&it.from, &it.to].contains(&&flushed.name));
            let lost: u32 = bystanders.map(|it| it.lost).sum();
            if watched.probes.invalid.is_empty() {
                report.check(lost == 0, format!("{what}: {lost} lost between the others"));
            } else {
                report.proves_nothing(format!(
                    "{what}: the measurement proves nothing: {:?}",
                    watched.probes.invalid
                ));
            }
            let clear = watched.captured.in_the_clear();
            report.check(watched.wire.ipip == 0, format!("{what}: packets in the clear {clear:?}"));
            back_ms.push(took.as_millis());
            ipip += watched.wire.ipip;
            overlay.wait_encrypting()?;
            rotate_timed::wait_steady(lab)?;
            reachable::wait(lab, flushed, others)?;
            let twice = sent_with(lab, flushed)?.intersection(&used).count();
            report.check(twice == 0, format!("{what}: {twice} outbound keys were installed a second time"));
            keys_twice += twice;
            all_is_well(report, probe, what)?;
        }
    }
    report.figure("back_ms", back_ms);
    report.figure("ipip", ipip);
    report.figure("keys_installed_twice", keys_twice);

    note("ip xfrm policy flush: until it is repaired, traffic goes in the clear");
    let begun = Instant::now();
    lab.exec_ok(&flushed.name, &["ip", "xfrm", "policy", "flush"])?;
    overlay.wait_encrypting()?;
    let took = begun.elapsed();
    report.figure("policies_back_ms", took.as_millis());
    report.check(took <= BACK, format!("policies come back after {took:?}, at most {BACK:?}"));
    all_is_well(report, probe, "ip xfrm policy flush")?;
    overlay.configure_agents(&["SECUREOVERLAY_RESYNC-"])
}

fn all_is_well(report: &mut Report, probe: &Probe, what: &str) -> Result<()> {
    let after = wire::watch_for(probe, &format!("after: {what}"), Duration::from_secs(4))?;
    after.check_delivered(report);
    after.check_encrypted(report);
    Ok(())
}

/// The keys of the SAs that this node sends with, hashed.
fn sent_with(lab: &Lab, node: &Node) -> Result<BTreeSet<String>> {
    let kernels = xfrm::dump(lab)?;
    let kernel = kernels.get(&node.name).context("a node is missing")?;
    let others = lab.nodes().iter().filter(|other| other.name != node.name);
    Ok(others.flat_map(|other| kernel.keys_between(node.ip, other.ip)).collect())
}

fn flush(lab: &Lab, node: &Node, _: &[Node]) -> Result<()> {
    lab.exec_ok(&node.name, &["ip", "xfrm", "state", "flush"]).map(drop)
}

fn flush_without_agent(lab: &Lab, node: &Node, _: &[Node]) -> Result<()> {
    let pid = pids(lab, &node.name, AGENT)?.pop().context("no agent runs")?;
    let script = format!("kill -KILL {pid}; ip xfrm state flush");
    lab.exec_ok(&node.name, &["sh", "-c", &script]).map(drop)
}

fn delete_some(lab: &Lab, node: &Node, others: &[Node]) -> Result<()> {
    let other = others.first().context("a lab of one node")?;
    let kernels = xfrm::dump(lab)?;
    let kernel = kernels.get(&node.name).context("a node is missing")?;
    for (src, dst) in [(node.ip, other.ip), (other.ip, node.ip)] {
        let spi = kernel.spis_between(src, dst).pop_first().context("no SA to delete")?;
        let (src, dst) = (src.to_string(), dst.to_string());
        let words = ["ip", "xfrm", "state", "delete", "src", &src, "dst", &dst, "proto", "esp", "spi", &spi];
        lab.exec_ok(&node.name, &words)?;
    }
    Ok(())
}
