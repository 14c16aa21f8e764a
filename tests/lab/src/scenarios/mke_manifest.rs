//! The same under MKE's own manifest, with fewer rights: one timed rotation, one agent restarted.

use std::time::Duration;

use anyhow::{Context, Result};

use super::overlay::{Manifest, NAMESPACE, Overlay};
use super::rotate_timed::Leftovers;
use super::{encrypt, ring, rotate_timed, wire, xfrm};
use crate::lab::Lab;
use crate::progress::note;
use crate::scenario::{Profile, Report, Run, Scenario};

pub const SCENARIO: Scenario = Scenario {
    name: "mke-manifest",
    about: "the main job under MKE's own manifest: a timed rotation, an agent restarted",
    estimate: "2 min",
    run: Run::Cluster(run),
};

fn run(lab: &Lab, report: &mut Report, profile: Profile) -> Result<()> {
    let overlay = Overlay::new(lab, Manifest::Mke);
    encrypt::switch_on_and_off(&overlay, profile, report, |probe, report| {
        note("one rotation");
        let before = rotate_timed::steady(lab, Leftovers::Go)?;
        let rotated = wire::watch(probe, "while rotating", || {
            ring::rotate_now(lab)?;
            rotate_timed::wait_rotated(lab, &before, Leftovers::Go)
        })?;
        rotated.check_delivered(report);
        rotated.check_encrypted(report);
        report.figure("rotations", 1);

        note("one agent restarted");
        let kernels = xfrm::dump(lab)?;
        let (pod, node) = overlay.agents()?.pop().context("there is no agent")?;
        let restarted = wire::watch(probe, "while an agent restarts", || {
            lab.kubectl(&["-n", NAMESPACE, "delete", "pod", &pod])?;
            overlay.wait_rolled_out()?;
            // What a starting agent might do wrong it does at once.
            std::thread::sleep(Duration::from_secs(3));
            Ok(())
        })?;
        restarted.check_delivered(report);
        restarted.check_encrypted(report);
        let changes = xfrm::changes(&kernels, &xfrm::dump(lab)?);
        report
            .check(changes.is_empty(), format!("restarting the agent of {node} changes nothing {changes:?}"));
        Ok(())
    })
}
