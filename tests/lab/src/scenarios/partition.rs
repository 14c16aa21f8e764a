//! A node cut off from the API server, but not from the network: a rotation goes on for the others, the node keeps its
//! traffic until the limit, and is left behind then; afterwards it catches up.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::cluster::until;
use super::overlay::PATIENCE;
use super::ring::Ring;
use super::{enforcing, manager, rotate_timed, wire};
use crate::interface::manager::NOT_READY_TIMEOUT;
use crate::lab::Lab;
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};

pub const SCENARIO: Scenario = Scenario {
    name: "partition",
    about: "a node that can't reach the API keeps its traffic until the limit",
    tier: Tier::Gate,
    estimate: 95,
    alone: false,
    run: Run::Removes(run),
};

/// How long old keys are kept for a node that is not Ready, which it is for 25 s after it was cut off.
const LIMIT: Duration = Duration::from_secs(20);
/// So long before it is looked at whether it still waits: a measurement takes a while to end.
const MARGIN: Duration = Duration::from_secs(8);
/// The manager looks again at least once a minute, and has a reason to look when the limit is over.
const LATE: Duration = Duration::from_secs(15);

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, _: Profile) -> Result<()> {
    let lab = overlay.lab;
    overlay.configure_manager(&[&format!("{NOT_READY_TIMEOUT}={}s", LIMIT.as_secs())])?;
    let before = rotate_timed::steady(lab)?;
    // Not the manager's node: that one is cut off from nothing.
    let (_, home) = overlay.managers()?.pop().context("there is no manager")?;
    let cut = lab.nodes().iter().find(|node| node.name != home).context("a lab with one node")?;
    let bystanders = probe.without(&cut.name)?;

    note(format!("{} is cut off from the API server", cut.name));
    cut_off(lab, &cut.ip.to_string())?;
    let mut missed = Instant::now();
    let awaited = wire::watch(probe, "while a node is cut off", || {
        until("its Node not to be Ready", PATIENCE, || Ok(!lab.node_is_ready(&cut.name)?))?;
        missed = Instant::now();
        note("the keys are to rotate");
        manager::rotate(lab, &[])?;
        // The others move on. What it sends with stays, and so does what is sent to it.
        std::thread::sleep(LIMIT - MARGIN);
        Ok(())
    });
    let left_behind = awaited.and_then(|awaited| {
        let ring = Ring::read(lab)?.context("there is no ring")?;
        let waiting = ring.generation("retiring") == Some(before.generation());
        let mut after = Duration::ZERO;
        let rotated = wire::watch(&bystanders, "between the others, when it is left behind", || {
            let over = |ring: Ring| ring.is_steady() && ring.generation("active") > Some(before.generation());
            until("the rotation to end without it", PATIENCE, || Ok(Ring::read(lab)?.is_some_and(over)))?;
            after = missed.elapsed();
            Ok(())
        })?;
        Ok((awaited, waiting, rotated, after))
    });
    note("it can reach the API server again");
    join_again(lab)?;
    let (awaited, waiting, rotated, waited) = left_behind?;
    report.check(waiting, format!("the old keys stay as long as {} may still come back", cut.name));
    // Who asks every now and then sees a Node that is not Ready a little later than the manager, which watches.
    report.check(
        waited + Duration::from_secs(1) >= LIMIT,
        format!("it was left behind after {waited:?}, not before {LIMIT:?}"),
    );
    report
        .check(waited <= LIMIT + LATE, format!("it was left behind after {waited:?}, at most {LATE:?} late"));
    for watched in [&awaited, &rotated] {
        watched.check_delivered(report);
        watched.check_encrypted(report);
    }
    let back = Instant::now();
    until("it to catch up", 2 * PATIENCE, || {
        let active = Ring::read(lab)?.and_then(|ring| ring.generation("active"));
        let sends = manager::statuses(lab, "key")?.remove(&cut.name).and_then(|id| id.as_u64());
        Ok(active.is_some() && sends == active)
    })?;
    report.figure("caught_up_after_s", back.elapsed().as_secs());
    lab.wait_ready(PATIENCE)?;
    enforcing::wait_proven(lab)?;
    note("it has caught up: all directions");
    let after = wire::watch_for(probe, "after it came back", Duration::from_secs(10))?;
    after.check_delivered(report);
    after.check_encrypted(report);
    report.figure("limit_s", LIMIT.as_secs());
    report.figure("left_behind_after_s", waited.as_secs());
    report.figure("sent", awaited.probes.sent + rotated.probes.sent + after.probes.sent);
    report.figure("lost", awaited.probes.lost + rotated.probes.lost + after.probes.lost);
    // The node that missed a rotation can't explain the SAs from before it, and keeps them for ten minutes: not for others to share.
    overlay.disable_and_check(report)
}

const TABLE: &str = "partition";

/// Drops what the node and the API server send to each other.
pub fn cut_off(lab: &Lab, ip: &str) -> Result<()> {
    let rules = format!(
        "add table inet {TABLE}\n\
         add chain inet {TABLE} input {{ type filter hook input priority -10; }}\n\
         add rule inet {TABLE} input ip saddr {ip} tcp dport 443 drop\n\
         add chain inet {TABLE} output {{ type filter hook output priority -10; }}\n\
         add rule inet {TABLE} output ip daddr {ip} tcp sport 443 drop\n"
    );
    lab.in_network(&["nft", &rules]).map(drop)
}

/// Ends that.
pub fn join_again(lab: &Lab) -> Result<()> {
    lab.in_network(&["nft", "delete", "table", "inet", TABLE]).map(drop)
}
