//! The same under MKE's own manifest, with fewer rights: one timed rotation, one agent restarted.

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

use super::overlay::{Manifest, NAMESPACE, Overlay};
use super::rotate_timed::Leftovers;
use super::{encrypt, ring, rotate_timed, wire, xfrm};
use crate::lab::Lab;
use crate::progress::note;
use crate::scenario::{Profile, Report, Run, Scenario, Tier};

pub const SCENARIO: Scenario = Scenario {
    name: "mke-manifest",
    about: "the main job under MKE's own manifest: a timed rotation, an agent restarted",
    tier: Tier::Gate,
    estimate: 120,
    // Without rights, an agent has one try to find out that it is being removed: an API server that is too slow to
    // answer then looks like one that is restarted.
    alone: true,
    run: Run::Cluster(run),
};

fn run(lab: &Lab, report: &mut Report, profile: Profile) -> Result<()> {
    let overlay = Overlay::new(lab, Manifest::Mke);
    report.figure("manifest_lines_moved", show_moved(&overlay)?);
    encrypt::switch_on_and_off(&overlay, profile, report, |probe, report| {
        note("one rotation");
        let before = rotate_timed::steady(lab)?;
        let rotated = wire::watch(probe, "while rotating", || {
            ring::rotate_now(lab)?;
            rotate_timed::wait_rotated(lab, &before, Leftovers::Go).map(drop)
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

/// Shows how what is applied differs from the file; returns how many lines do.
fn show_moved(overlay: &Overlay<'_>) -> Result<usize> {
    let path = overlay.path();
    let mut applied = NamedTempFile::new().context("writing the manifest")?;
    applied.write_all(overlay.text()?.as_bytes()).context("writing the manifest")?;
    let label = format!("applied on Kubernetes {}", overlay.lab.release().version);
    let diff = Command::new("diff")
        .args(["-U1", "--label", "manifests/mke-original.yaml", "--label", &label])
        .args([&path, applied.path()])
        .output()
        .context("starting diff")?;
    let diff = String::from_utf8_lossy(&diff.stdout);
    eprint!("{diff}");
    Ok(diff.lines().filter(|line| line.starts_with('+') && !line.starts_with("+++")).count())
}
