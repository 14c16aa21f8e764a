//! An SA that reaches its limit brings the next rotation forward.

use anyhow::Result;

use super::cluster::until;
use super::overlay::PATIENCE;
use super::ring::Ring;
use super::rotate_timed::Leftovers;
use super::{rotate_timed, wire};
use crate::interface::agent::{SOFT_BYTE_LIMIT, SOFT_PACKET_LIMIT};
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};

pub const SCENARIO: Scenario = Scenario {
    name: "limits",
    about: "packet and byte limits of an SA lead to an early rotation",
    tier: Tier::Gate,
    estimate: 90,
    alone: false,
    run: Run::Installed(run),
};

/// What an SA may carry, one after the other; the probes take seconds for it.
const LIMITS: [(&str, u32); 2] = [(SOFT_PACKET_LIMIT, 2000), (SOFT_BYTE_LIMIT, 200_000)];

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    let rotations = profile.pick(1, 5);
    let (mut sent, mut lost, mut early) = (0, 0, 0);
    for (variable, limit) in LIMITS {
        let what = format!("{variable}={limit}");
        note(format!("{what}, and no rotation is asked for"));
        let watched = wire::watch(probe, &format!("with {what}"), || {
            overlay.configure_agents(&[&what])?;
            for _ in 0..rotations {
                let before = rotate_timed::steady(lab)?;
                rotate_timed::wait_rotated(lab, &before, Leftovers::Go)?;
                early += 1;
            }
            Ok(())
        })?;
        watched.check_delivered(report);
        watched.check_encrypted(report);
        overlay.configure_agents(&[&format!("{variable}-")])?;
        sent += watched.probes.sent;
        lost += watched.probes.lost;
    }
    until("rotations to end", PATIENCE, || Ok(Ring::read(lab)?.is_some_and(|ring| ring.is_steady())))?;
    report.figure("rotations", early);
    report.figure("sent", sent);
    report.figure("lost", lost);
    Ok(())
}
