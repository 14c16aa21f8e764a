//! Agents and manager are replaced while every node enforces: no SA is made anew, nothing is lost, nothing in the clear.

use anyhow::Result;

use super::enforcing::{self, Totals};
use super::overlay::{AGENTS, DEPLOYMENT, NAMESPACE};
use super::xfrm;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};

pub const SCENARIO: Scenario = Scenario {
    name: "upgrade",
    about: "kubectl rollout restart, and images of another version, while every node enforces",
    tier: Tier::Gate,
    estimate: 60,
    alone: false,
    run: Run::Installed(run),
};

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    let before = xfrm::dump(lab)?;
    let mut totals = Totals::default();
    for _ in 0..profile.pick(1, 5) {
        totals.event(report, probe, "kubectl rollout restart", true, || {
            for what in [AGENTS, DEPLOYMENT] {
                lab.kubectl(&["-n", NAMESPACE, "rollout", "restart", what])?;
            }
            overlay.wait_rolled_out()
        })?;
        enforcing::check_unchanged(lab, report, "restarted", &before)?;
        totals.event(report, probe, "images of another version", true, || {
            overlay.apply_upgraded()?;
            overlay.wait_rolled_out()
        })?;
        enforcing::check_unchanged(lab, report, "upgraded", &before)?;
        totals.event(report, probe, "and back to the version that the manifest names", true, || {
            overlay.apply()?;
            overlay.wait_rolled_out()
        })?;
        enforcing::check_unchanged(lab, report, "back", &before)?;
    }
    totals.tell(report);
    Ok(())
}
