//! `kubectl apply` over a running cluster, unchanged and upgraded, with both manifests.

use anyhow::Result;

use super::cluster::until;
use super::overlay::{Manifest, Overlay, PATIENCE};
use super::probe::Probe;
use super::ring::Ring;
use super::{rotate_timed, wire};
use crate::lab::Lab;
use crate::progress::note;
use crate::scenario::{Profile, Report, Run, Scenario, Tier};

pub const SCENARIO: Scenario = Scenario {
    name: "reapply",
    about: "applying the manifests again, unchanged and upgraded, does nothing to traffic",
    tier: Tier::Gate,
    estimate: 135,
    alone: false,
    run: Run::Cluster(run),
};

fn run(lab: &Lab, report: &mut Report, profile: Profile) -> Result<()> {
    let probe = Probe::deploy(lab)?;
    let settle = profile.lasting(5, 30);
    let (mut sent, mut lost, mut ipip, mut esp) = (0, 0, 0, 0);
    for (manifest, name) in [(Manifest::Ours, "our manifest"), (Manifest::Mke, "MKE's manifest")] {
        let overlay = Overlay::new(lab, manifest);
        overlay.enable()?;
        rotate_timed::wait_steady(lab)?;
        let uids = || Ok::<_, anyhow::Error>(Ring::read(lab)?.map(|ring| ring.uids()));
        let before = uids()?;
        for upgraded in [false, true] {
            let what = format!("{name} applied again, {}", if upgraded { "upgraded" } else { "unchanged" });
            note(&what);
            let watched = wire::watch(&probe, &what, || {
                if upgraded { overlay.apply_upgraded() } else { overlay.apply() }?;
                overlay.wait_rolled_out()?;
                std::thread::sleep(settle);
                until("a key ring", PATIENCE, || {
                    Ok(Ring::read(lab)?.is_some_and(|ring| ring.generation("active").is_some()))
                })?;
                overlay.wait_encrypting()
            })?;
            watched.check_delivered(report);
            watched.check_encrypted(report);
            // MKE's empties the Secret, and a manager that is replaced at that moment can't know what was in it.
            if manifest == Manifest::Ours || !upgraded {
                report.check(uids()? == before, format!("{what}: the keys are the same"));
            }
            sent += watched.probes.sent;
            lost += watched.probes.lost;
            ipip += watched.wire.ipip;
            esp += watched.wire.esp;
        }
        overlay.disable_and_check(report)?;
    }
    report.figure("sent", sent);
    report.figure("lost", lost);
    report.figure("esp", esp);
    report.figure("ipip", ipip);
    Ok(())
}
