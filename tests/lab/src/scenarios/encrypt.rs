//! Switched on, everything between pods of different nodes is ESP; switched off, nothing of it is left.

use std::time::Duration;

use anyhow::Result;

use super::overlay::{Manifest, Overlay};
use super::probe::Probe;
use super::wire;
use crate::lab::Lab;
use crate::progress::note;
use crate::scenario::{Profile, Report, Run, Scenario, Tier};

pub const SCENARIO: Scenario = Scenario {
    name: "encrypt",
    about: "all pod traffic between nodes is ESP once switched on, and nothing is left once switched off",
    tier: Tier::Gate,
    estimate: 65,
    alone: false,
    run: Run::Cluster(run),
};

fn run(lab: &Lab, report: &mut Report, profile: Profile) -> Result<()> {
    switch_on_and_off(&Overlay::new(lab, Manifest::Ours), profile, report, |_, _| Ok(()))
}

/// From `kubectl apply` to `kubectl delete`, with `meanwhile` between.
pub fn switch_on_and_off(
    overlay: &Overlay<'_>,
    profile: Profile,
    report: &mut Report,
    meanwhile: impl FnOnce(&Probe, &mut Report) -> Result<()>,
) -> Result<()> {
    let lab = overlay.lab;
    let probe = Probe::deploy(lab)?;

    note("kubectl apply");
    let on = wire::watch(&probe, "while switching on", || overlay.enable())?;
    on.check_delivered(report);

    let time = profile.lasting(30, 60);
    note(format!("{} s of probes", time.as_secs()));
    let watched = wire::watch_for(&probe, "while on", time)?;
    watched.check_delivered(report);
    watched.check_encrypted(report);
    report.figure("esp", watched.wire.esp);
    report.figure("ipip", watched.wire.ipip);
    report.figure("sent", watched.probes.sent);
    report.figure("lost", watched.probes.lost);

    meanwhile(&probe, report)?;

    note("kubectl delete");
    let (mut states, mut policies) = (0, 0);
    let off = wire::watch(&probe, "while switching off", || {
        (states, policies) = overlay.disable()?;
        Ok(())
    })?;
    off.check_delivered(report);
    report.figure("lost_switching", on.probes.lost + off.probes.lost);

    report.figure("states_left", states);
    report.figure("policies_left", policies);
    report.check(
        (states, policies) == (0, 0),
        format!("after delete {states} states and {policies} policies left"),
    );

    let after = wire::watch_for(&probe, "when off", Duration::from_secs(2))?;
    after.check_delivered(report);
    report.check(
        after.wire.ipip >= after.probes.sent && after.wire.esp == 0,
        format!("when off: {} packets in the clear, {} ESP", after.wire.ipip, after.wire.esp),
    );
    Ok(())
}
