//! An agent that does not move: the rotation waits for it, names it, and loses nothing.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::overlay::{AGENTS, NAMESPACE};
use super::processes::{AGENT, signal};
use super::ring::Ring;
use super::rotate_timed::Leftovers;
use super::{manager, rotate_timed, wire};
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};

/// A node is named after 15 s; it goes on waiting after that.
const AWAITED: Duration = Duration::from_secs(20);

pub const SCENARIO: Scenario = Scenario {
    name: "straggler",
    about: "a rotation waits for an agent that does not move, and names it",
    tier: Tier::Gate,
    estimate: 30,
    alone: false,
    run: Run::Installed(run),
};

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    let node = &lab.nodes().last().context("a lab without nodes")?.name;
    let stopped_for = Duration::from_secs(profile.pick(30, 180));
    if profile.full {
        // Or the kubelet would start the agent anew after a minute, and the rotation go on.
        let patience = r#"[{"op": "replace", "path": "/spec/template/spec/containers/0/livenessProbe/failureThreshold", "value": 60}]"#;
        lab.kubectl(&["-n", NAMESPACE, "patch", AGENTS, "--type=json", "--patch", patience])?;
        overlay.wait_rolled_out()?;
    }
    let before = rotate_timed::steady(lab)?;
    let (mut event, mut waited, mut stopped) = (None, false, Duration::ZERO);
    let watched = wire::watch(probe, "while an agent is stopped", || {
        let begun = Instant::now();
        note(format!("the agent of {node} is stopped, and the keys are to rotate"));
        ensure!(signal(lab, node, AGENT, "-STOP")? == 1, "no agent to be stopped on {node}");
        manager::rotate(lab, &[])?;
        let enough = |told: bool| !profile.full && told && begun.elapsed() > AWAITED;
        while begun.elapsed() < stopped_for && !enough(event.is_some()) {
            // Not one about an earlier rotation, or about all nodes.
            let staged = Ring::read(lab)?.and_then(|ring| ring.generation("staged"));
            let number = staged.map(|id| format!("generation {id}"));
            let ours = |message: &String| {
                message.contains(&format!(" for {node}: "))
                    && number.as_ref().is_some_and(|id| message.contains(id))
            };
            if let Some(told) = manager::events(lab, "RotationWaiting")?.into_iter().find(ours) {
                event = Some(told);
            }
            thread::sleep(Duration::from_secs(1));
        }
        note(format!("kubectl get nodeencryptions:\n{}", manager::table(lab)?));
        stopped = begun.elapsed();
        waited = Ring::read(lab)?.is_some_and(|ring| ring.generation("staged").is_some());
        note("it goes on");
        signal(lab, node, AGENT, "-CONT")?;
        rotate_timed::wait_rotated(lab, &before, Leftovers::Go).map(drop)
    })?;
    report.check(waited, "the rotation waited all the time");
    report.check(event.is_some(), format!("an Event names {node}"));
    watched.check_delivered(report);
    watched.check_encrypted(report);
    report.figure("stopped_s", stopped.as_secs());
    report.figure("sent", watched.probes.sent);
    report.figure("lost", watched.probes.lost);
    report.figure("event", event);
    if profile.full {
        overlay.apply()?;
        overlay.wait_rolled_out()?;
    }
    Ok(())
}
