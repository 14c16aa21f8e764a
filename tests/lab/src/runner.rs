//! Runs scenarios one after the other in one lab, and tells what became of them.

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::clean;
use crate::lab::Lab;
use crate::progress::{note, seconds, stage};
use crate::scenario::{Installed, Profile, Report, Run, Scenario};

/// What became of a scenario: the part of its line that says so.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Verdict {
    /// Its name.
    pub scenario: String,
    /// The checks that did not hold.
    pub failed: Vec<String>,
    /// How long it took.
    pub seconds: f64,
    /// How often it was measured: once more if the first time showed nothing.
    pub attempts: u32,
}

impl Verdict {
    /// Of something that could not be carried out.
    pub fn broken(scenario: &str, why: impl Into<String>) -> Self {
        Self { scenario: scenario.to_owned(), failed: vec![why.into()], seconds: 0.0, attempts: 1 }
    }

    /// Whether all checks held.
    pub fn ok(&self) -> bool {
        self.failed.is_empty()
    }
}

/// Runs every scenario, whatever became of the one before.
pub fn run_all(lab: Option<&Lab>, chosen: &[&Scenario], profile: Profile) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let mut at_work = false;
    for (at, scenario) in chosen.iter().enumerate() {
        let next_shares = chosen.get(at + 1).is_some_and(|next| next.shares());
        let (begun, mut attempts) = (Instant::now(), 1);
        let mut report = run(lab, scenario, profile, at_work && scenario.shares(), next_shares);
        if report.is_unproven() {
            note(format!("NOTE: the measurement of {} proves nothing; once more", scenario.name));
            note(format!("  because: {}", report.failed().join("; ")));
            attempts += 1;
            report = run(lab, scenario, profile, false, next_shares);
        }
        let took = begun.elapsed().as_secs_f64();
        println!("{}", report.line(scenario.name, took, attempts));
        // What a failed one has left is not built upon.
        at_work = report.ok() && scenario.leaves() && next_shares;
        let failed = report.failed().to_vec();
        verdicts.push(Verdict { scenario: scenario.name.to_owned(), failed, seconds: took, attempts });
    }
    verdicts
}

/// Tells which scenarios failed, and why; says whether all held.
pub fn conclude(verdicts: &[Verdict]) -> bool {
    for Verdict { scenario, failed, .. } in verdicts {
        for what in failed {
            note(format!("FAILED: {scenario}: {what}"));
        }
    }
    let passed = verdicts.iter().filter(|verdict| verdict.ok()).count();
    // In the words that any CI understands.
    eprintln!("{passed} passed, {} failed", verdicts.len() - passed);
    passed == verdicts.len()
}

/// For each scenario that was repeated a line: how often it failed, for which reasons, and how long it took.
pub fn repetitions(verdicts: &[Verdict]) -> Vec<Value> {
    let mut by_name: BTreeMap<&str, Vec<&Verdict>> = BTreeMap::new();
    for verdict in verdicts {
        by_name.entry(&verdict.scenario).or_default().push(verdict);
    }
    let line = |(name, all): (&str, Vec<&Verdict>)| {
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        all.iter().flat_map(|it| &it.failed).for_each(|reason| *reasons.entry(reason).or_default() += 1);
        let mut times: Vec<f64> = all.iter().map(|it| (it.seconds * 10.0).round() / 10.0).collect();
        times.sort_by(f64::total_cmp);
        let passed = all.iter().filter(|it| it.ok()).count();
        json!({
            "repeated": name, "runs": all.len(), "passed": passed, "failed": all.len() - passed,
            "measured_again": all.iter().filter(|it| it.attempts > 1).count(), "reasons": reasons,
            "seconds": {"least": times.first(), "median": times.get(times.len() / 2), "most": times.last()},
        })
    };
    by_name.into_iter().map(line).collect()
}

/// Runs one scenario. The cluster is cleaned first unless SecureOverlay is `at_work` already; `stays` says
/// that it is to be at work afterwards.
fn run(lab: Option<&Lab>, scenario: &Scenario, profile: Profile, at_work: bool, stays: bool) -> Report {
    let step = stage(format!("scenario {}: {}", scenario.name, scenario.about), &seconds(scenario.estimate));
    let mut report = Report::default();
    let cluster = || -> Result<&Lab> {
        let lab = lab.context("it needs a cluster, and there is none")?;
        if !at_work {
            let leftovers = clean::clean(lab)?;
            if !leftovers.is_empty() {
                note(format!("NOTE: the cluster was not clean; removed: {}", leftovers.join(", ")));
            }
        }
        Ok(lab)
    };
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| match scenario.run {
        Run::Guest(run) => run(&mut report, profile),
        Run::Cluster(run) => run(cluster()?, &mut report, profile),
        Run::Removes(run) => run(&Installed::new(cluster()?, at_work)?, &mut report, profile),
        Run::Installs(run) | Run::Installed(run) => {
            let installed = if scenario.shares() {
                Installed::new(cluster()?, at_work)?
            } else {
                Installed::ready(cluster()?)?
            };
            run(&installed, &mut report, profile)?;
            if stays && report.ok() { Ok(()) } else { installed.overlay.disable_and_check(&mut report) }
        }
    }))
    .unwrap_or_else(|_| Err(anyhow!("the scenario panicked")));
    if let Err(error) = outcome {
        report.check(false, format!("{error:#}"));
    }
    step.done();
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(seconds: f64, failed: &[&str]) -> Verdict {
        let failed = failed.iter().map(ToString::to_string).collect();
        Verdict { scenario: "x".into(), failed, seconds, attempts: 1 }
    }

    #[test]
    fn a_line_tells_the_verdict() {
        let mut report = Report::default();
        report.check(false, "lost is 1");
        let told: Verdict = serde_json::from_str(&report.line("x", 4.0, 2)).unwrap();
        assert_eq!(told, Verdict { attempts: 2, ..verdict(4.0, &["lost is 1"]) });
    }

    #[test]
    fn repetitions_are_counted_by_their_reasons() {
        let all = [verdict(3.0, &[]), verdict(1.0, &["a", "b"]), verdict(2.0, &["a"])];
        let [line] = &repetitions(&all)[..] else { panic!("one scenario, one line") };
        assert_eq!((&line["runs"], &line["passed"], &line["failed"]), (&json!(3), &json!(1), &json!(2)));
        assert_eq!(line["reasons"], json!({"a": 2, "b": 1}));
        assert_eq!(line["seconds"], json!({"least": 1.0, "median": 2.0, "most": 3.0}));
        assert!(!conclude(&all) && conclude(&all[..1]));
    }
}
