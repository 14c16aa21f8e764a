//! From the clear to nothing but ESP under traffic: first all receive, then all send, then all insist.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::enforcing::{self, Totals};
use super::manager;
use super::overlay::{Manifest, Overlay};
use super::probe::Probe;
use crate::lab::Lab;
use crate::scenario::{Profile, Report, Run, Scenario};

pub const SCENARIO: Scenario = Scenario {
    name: "enable",
    about: "kubectl apply leads to enforcing under traffic: nothing is lost, and then nothing is in the clear",
    estimate: "1 min",
    run: Run::Cluster(run),
};

fn run(lab: &Lab, report: &mut Report, profile: Profile) -> Result<()> {
    let overlay = Overlay::new(lab, Manifest::Ours);
    let probe = Probe::deploy(lab)?;
    let mut totals = Totals::default();
    let mut took = Duration::ZERO;
    totals.event(report, &probe, "kubectl apply, until every node insists", false, || {
        let begun = Instant::now();
        enforcing::enable(&overlay)?;
        took = begun.elapsed();
        Ok(())
    })?;
    report.figure("enforcing_after_s", took.as_secs());
    let table = manager::table(lab)?;
    let shown = table.lines().filter(|line| line.contains("enforcing")).count();
    report.check(
        shown == lab.nodes().len(),
        format!("kubectl get nodeencryptions shows {shown} nodes as enforcing:\n{table}"),
    );
    let calm = Duration::from_secs(if profile == Profile::Full { 30 } else { 6 });
    totals.event(report, &probe, "while every node insists", true, || {
        std::thread::sleep(calm);
        Ok(())
    })?;
    let (states, policies) = overlay.disable()?;
    totals.tell(report);
    report.expect("left", (states + policies) as u64, 0);
    Ok(())
}
