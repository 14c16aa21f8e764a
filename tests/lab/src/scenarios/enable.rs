//! From the clear to nothing but ESP under traffic: first all receive, then all send, then all enforce.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::enforcing::{self, Totals};
use super::manager;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};

pub const SCENARIO: Scenario = Scenario {
    name: "enable",
    about: "kubectl apply leads to enforcing under traffic: nothing is lost, and then nothing is in the clear",
    tier: Tier::Gate,
    estimate: 25,
    alone: false,
    run: Run::Installs(run),
};

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    let mut totals = Totals::default();
    let mut took = Duration::ZERO;
    totals.event(report, probe, "kubectl apply, until every node enforces", false, || {
        let begun = Instant::now();
        enforcing::enable(overlay)?;
        took = begun.elapsed();
        Ok(())
    })?;
    report.figure("enforcing_after_s", took.as_secs());
    let table = manager::table(lab)?;
    let shown = table.lines().filter(|line| line.contains("Enforcing")).count();
    report.check(
        shown == lab.nodes().len(),
        format!("kubectl get nodeencryptions shows {shown} nodes as enforcing:\n{table}"),
    );
    let calm = profile.lasting(6, 30);
    totals.event(report, probe, "while every node enforces", true, || {
        std::thread::sleep(calm);
        Ok(())
    })?;
    totals.tell(report);
    Ok(())
}
