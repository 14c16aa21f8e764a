//! Keys change under traffic, one rotation after the other, each as soon as every node has said that it is ready.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::manager;
use super::rotate_timed::Leftovers;
use super::{rotate_timed, wire};
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};

/// Packets a second in each direction.
const RATES: [u32; 2] = [200, 1000];

pub const SCENARIO: Scenario = Scenario {
    name: "rotate",
    about: "keys rotate under traffic as soon as every node has acknowledged",
    tier: Tier::Gate,
    estimate: 120,
    alone: true,
    run: Run::Installed(run),
};

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    // Rotations at each rate.
    let (rotations, calm) = (profile.pick([3, 2], [20, 20]), profile.lasting(10, 60));
    let (mut sent, mut lost, mut duplicated, mut done) = (0, 0, 0, 0_u32);
    let (mut gaps, mut baselines, mut took) = (Vec::new(), Vec::new(), Duration::ZERO);
    for (rate, count) in RATES.into_iter().zip(rotations) {
        let probe = probe.at(rate);
        note(format!("{rate} packets a second in each direction, without a rotation"));
        let baseline = wire::baseline(&probe, report, calm)?;
        note(format!("{count} rotations"));
        let rotated = wire::watch(&probe, &format!("rotating at {rate} a second"), || {
            let begun = Instant::now();
            for _ in 0..count {
                let before = rotate_timed::steady(lab)?;
                manager::rotate(lab, &["--wait"])?;
                rotate_timed::wait_rotated(lab, &before, Leftovers::Go)?;
                done += 1;
            }
            took += begun.elapsed();
            Ok(())
        })?;
        rotated.check_delivered(report);
        rotated.check_encrypted(report);
        rotated.check_gap(report, &baseline);
        sent += rotated.probes.sent;
        lost += rotated.probes.lost;
        duplicated += rotated.probes.duplicated;
        gaps.push(rotated.probes.longest_gap_ms);
        baselines.push(baseline.longest_gap_ms);
    }
    report.figure("rotations", done);
    report.figure("sent", sent);
    report.expect_none("lost", lost);
    report.expect_none("duplicated", duplicated);
    report.figure("rates", RATES);
    report.figure("max_gap_ms", gaps);
    report.figure("baseline_gap_ms", baselines);
    report.figure("seconds_per_rotation", (took.as_secs_f64() / f64::from(done) * 10.0).round() / 10.0);
    Ok(())
}
