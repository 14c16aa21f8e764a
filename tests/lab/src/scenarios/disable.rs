//! Down to off and up again by the setting `enforcement`: nothing is lost.

use std::time::Duration;

use anyhow::Result;

use super::enforcing::{self, Totals};
use super::xfrm;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};

pub const SCENARIO: Scenario = Scenario {
    name: "disable",
    about: "the setting `enforcement` leads down to off and up again under traffic, and nothing is lost",
    tier: Tier::Gate,
    estimate: 50,
    alone: false,
    run: Run::Installed(run),
};

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    let mut totals = Totals::default();
    let mut left = 0;
    for _ in 0..profile.pick(1, 3) {
        let down = totals.event(report, probe, "enforce permissive", true, || {
            enforcing::request(lab, "permissive")?;
            std::thread::sleep(Duration::from_secs(2));
            Ok(())
        })?;
        report.check(down.wire.esp > 0, "what is not enforced is encrypted all the same");
        totals.event(report, probe, "enforce off", false, || {
            enforcing::request(lab, "off")?;
            enforcing::wait_gone(lab)
        })?;
        let (states, policies) = xfrm::ours_in(&xfrm::dump(lab)?);
        left += states + policies;
        enforcing::check_off(report, probe)?;
        totals.event(report, probe, "enforce auto, from off", false, || {
            enforcing::request_nothing(lab)?;
            enforcing::wait(lab)
        })?;
        totals.event(report, probe, "off at once from enforcing", false, || {
            enforcing::request(lab, "off")?;
            enforcing::wait_gone(lab)
        })?;
        totals.event(report, probe, "and up again", false, || {
            enforcing::request(lab, "enforcing")?;
            enforcing::wait(lab)
        })?;
    }
    totals.tell(report);
    report.expect("left", left as u64, 0);
    // Back to what the manifest says.
    enforcing::request_nothing(lab)
}
