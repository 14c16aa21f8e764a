//! Keys rotate while processes are killed, the API server is away and a kubelet stands still.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::cluster::until;
use super::overlay::PATIENCE;
use super::processes::{AGENT, MANAGER, pids, signal, signal_everywhere};
use super::ring::Ring;
use super::rotate_timed::Leftovers;
use super::{manager, rotate_timed, wire};
use crate::lab::Lab;
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};

pub const SCENARIO: Scenario = Scenario {
    name: "rotate-faults",
    about: "rotations survive killed agents and managers, and an API server and a kubelet that are away",
    tier: Tier::Gate,
    estimate: 100,
    alone: false,
    run: Run::Installed(run),
};

/// Asks for a rotation, and then something happens; the time is how long something is away.
type Fault = fn(&Lab, Duration) -> Result<()>;

const FAULTS: [(&str, Fault); 5] = [
    ("all agents are killed", |lab, _| {
        manager::rotate(lab, &[])?;
        kill(lab, AGENT)
    }),
    ("the manager is killed when it has staged", |lab, _| {
        // Or it might go on before the test has looked.
        let node = &lab.nodes().last().context("a lab without nodes")?.name;
        ensure!(signal(lab, node, AGENT, "-STOP")? == 1, "no agent to be stopped on {node}");
        let asked = manager::rotate(lab, &[]).map(drop);
        let killed = asked.and_then(|()| wait_for_role(lab, "staged")).and_then(|()| kill(lab, MANAGER));
        signal(lab, node, AGENT, "-CONT")?;
        killed
    }),
    ("the manager is killed when it has activated", |lab, _| {
        manager::rotate(lab, &[])?;
        wait_for_role(lab, "retiring")?;
        kill(lab, MANAGER)
    }),
    ("the API server is away", |lab, away| {
        manager::rotate(lab, &[])?;
        wait_for_role(lab, "retiring")?;
        lab.stop_api()?;
        thread::sleep(away);
        lab.start_api()
    }),
    ("a kubelet is away, and its agent is killed when it is back", |lab, away| {
        manager::rotate(lab, &[])?;
        let node = &lab.nodes().first().context("a lab without nodes")?.name;
        lab.stop_kubelet(node)?;
        thread::sleep(away);
        lab.start_kubelet(node)?;
        for pid in pids(lab, node, AGENT)? {
            lab.exec_ok(node, &["kill", "-KILL", &pid])?;
        }
        Ok(())
    }),
];

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    let away = profile.lasting(6, 60);
    let (mut rotations, mut sent, mut lost, mut duplicated) = (0, 0, 0, 0);
    for (what, fault) in FAULTS {
        note(what);
        let before = rotate_timed::steady(lab)?;
        let watched = wire::watch(probe, what, || {
            fault(lab, away)?;
            // Never stuck; a program that was killed several times is started anew after a pause.
            rotate_timed::wait_rotated(lab, &before, Leftovers::Stay)?;
            overlay.wait_rolled_out()
        })?;
        watched.check_delivered(report);
        watched.check_encrypted(report);
        rotations += 1;
        sent += watched.probes.sent;
        lost += watched.probes.lost;
        duplicated += watched.probes.duplicated;
    }
    report.figure("rotations", rotations);
    report.figure("sent", sent);
    report.figure("lost", lost);
    report.figure("duplicated", duplicated);
    overlay.wait_rolled_out()
}

fn kill(lab: &Lab, program: &str) -> Result<()> {
    let wanted = if program == AGENT { lab.nodes().len() } else { 1 };
    until(&format!("{wanted} {program} to kill"), PATIENCE, || {
        let there: Vec<_> =
            lab.nodes().iter().map(|node| pids(lab, &node.name, program)).collect::<Result<_>>()?;
        Ok(there.concat().len() == wanted)
    })?;
    let killed = signal_everywhere(lab, program, "-KILL")?;
    ensure!(killed == wanted, "{killed} of {wanted} {program} were killed");
    Ok(())
}

fn wait_for_role(lab: &Lab, role: &str) -> Result<()> {
    until(&format!("a generation to be {role}"), PATIENCE, || {
        Ok(Ring::read(lab)?.is_some_and(|ring| ring.generation(role).is_some()))
    })
}
