//! A scenario: something done to a running cluster, with figures and checks, told in one line of JSON.

use std::panic::{self, AssertUnwindSafe};

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::clean;
use crate::lab::Lab;
use crate::progress::{note, stage};
use crate::scenarios::overlay::{Manifest, Overlay};
use crate::scenarios::probe::Probe;
use crate::scenarios::{self, enforcing};

/// How long a scenario may take for its figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// As short as the checks allow: part of every test run.
    Short,
    /// The long figures.
    Full,
}

/// One scenario.
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it shows, in a line.
    pub about: &'static str,
    /// Usual duration of the short profile, for a person.
    pub estimate: &'static str,
    /// What it does.
    pub run: Run,
}

/// What a scenario does. An error means that it could not be carried out; failed checks go into the report.
#[derive(Clone, Copy)]
pub enum Run {
    /// Needs a cluster with nothing of ours in it, and leaves it so.
    Cluster(fn(&Lab, &mut Report, Profile) -> Result<()>),
    /// Needs a cluster with nothing of ours in it, and leaves SecureOverlay at work, for those that follow to share.
    Installs(fn(&Installed<'_>, &mut Report, Profile) -> Result<()>),
    /// Needs SecureOverlay at work as it ships, and leaves it so: consecutive ones share an installation.
    Installed(fn(&Installed<'_>, &mut Report, Profile) -> Result<()>),
    /// Needs SecureOverlay at work as well, and leaves nothing of it.
    Removes(fn(&Installed<'_>, &mut Report, Profile) -> Result<()>),
    /// Needs no more than a guest, which it boots itself.
    Guest(fn(&mut Report, Profile) -> Result<()>),
}

impl Scenario {
    /// Whether it needs a cluster.
    pub fn needs_cluster(&self) -> bool {
        !matches!(self.run, Run::Guest(_))
    }

    fn shares(&self) -> bool {
        matches!(self.run, Run::Installed(_) | Run::Removes(_))
    }

    fn leaves(&self) -> bool {
        matches!(self.run, Run::Installs(_) | Run::Installed(_))
    }
}

/// SecureOverlay, at work, insisting and between two rotations if the scenario needs that; and a prober on each node.
#[derive(Debug)]
pub struct Installed<'l> {
    /// SecureOverlay, from our manifest.
    pub overlay: Overlay<'l>,
    /// The probers.
    pub probe: Probe,
}

impl<'l> Installed<'l> {
    /// Nothing is installed yet.
    fn ready(lab: &'l Lab) -> Result<Self> {
        Ok(Self { overlay: Overlay::new(lab, Manifest::Ours), probe: Probe::deploy(lab)? })
    }

    /// Installs it, or goes on with what the scenario before has left `at_work`.
    fn new(lab: &'l Lab, at_work: bool) -> Result<Self> {
        let installed = Self::ready(lab)?;
        if at_work {
            installed.overlay.wait_rolled_out()?;
            enforcing::wait(lab)?;
        } else {
            enforcing::enable(&installed.overlay)?;
        }
        Ok(installed)
    }
}

/// What a scenario found.
#[derive(Debug, Default)]
pub struct Report {
    figures: Map<String, Value>,
    failed: Vec<String>,
    /// How many of these say that a measurement shows nothing.
    unproven: usize,
}

impl Report {
    /// Adds a figure.
    pub fn figure(&mut self, name: &str, value: impl Serialize) {
        let value = serde_json::to_value(value).unwrap_or(Value::Null);
        note(format!("  {name} = {value}"));
        self.figures.insert(name.to_owned(), value);
    }

    /// A check that must hold for the scenario to succeed; returns whether it does.
    pub fn check(&mut self, holds: bool, what: impl Into<String>) -> bool {
        let what = what.into();
        if !holds {
            note(format!("  FAILED: {what}"));
            self.failed.push(what);
        }
        holds
    }

    /// The measurement itself went wrong, so that it shows nothing, good or bad: the machine was too busy.
    pub fn proves_nothing(&mut self, why: impl Into<String>) {
        self.unproven += 1;
        self.check(false, why);
    }

    /// Nothing but measurements that show nothing speaks against it.
    fn is_unproven(&self) -> bool {
        self.unproven > 0 && self.unproven == self.failed.len()
    }

    /// A figure that must have one value.
    pub fn expect(&mut self, name: &str, value: u64, wanted: u64) -> bool {
        self.figure(name, value);
        self.check(value == wanted, format!("{name} is {value}, and should be {wanted}"))
    }

    /// A sum over all measurements that must be 0; where one of them shows nothing, it doesn't either.
    pub fn expect_none(&mut self, name: &str, value: u64) {
        if value > 0 && self.unproven > 0 {
            self.figure(name, value);
            self.proves_nothing(format!("{name} is {value}"));
        } else {
            self.expect(name, value, 0);
        }
    }

    /// Whether all checks held so far.
    pub fn ok(&self) -> bool {
        self.failed.is_empty()
    }

    /// The checks that did not hold.
    pub fn failed(&self) -> &[String] {
        &self.failed
    }

    /// The one line.
    fn line(&self, scenario: &str) -> String {
        let mut line = json!({"scenario": scenario, "ok": self.ok(), "failed": self.failed});
        if let Some(object) = line.as_object_mut() {
            object.extend(self.figures.clone());
        }
        line.to_string()
    }
}

/// The scenarios of these names, in this order.
pub fn named(names: &[String]) -> Result<Vec<&'static Scenario>> {
    let mut found = Vec::new();
    for name in names {
        match scenarios::ALL.iter().find(|scenario| scenario.name == name) {
            Some(scenario) => found.push(scenario),
            None => bail!("there is no scenario {name}; `cargo lab list` names those that there are"),
        }
    }
    Ok(found)
}

/// Runs every scenario, whatever became of the one before; returns those that failed.
pub fn run_all(lab: Option<&Lab>, chosen: &[&Scenario], profile: Profile) -> Vec<(&'static str, Report)> {
    let mut failed = Vec::new();
    let mut at_work = false;
    for (at, scenario) in chosen.iter().enumerate() {
        let next_shares = chosen.get(at + 1).is_some_and(|next| next.shares());
        let mut report = run(lab, scenario, profile, at_work && scenario.shares(), next_shares);
        if report.is_unproven() {
            note(format!("NOTE: the measurement of {} proves nothing; once more", scenario.name));
            report = run(lab, scenario, profile, false, next_shares);
        }
        println!("{}", report.line(scenario.name));
        // What a failed one has left is not built upon.
        at_work = report.ok() && scenario.leaves() && next_shares;
        if !report.ok() {
            failed.push((scenario.name, report));
        }
    }
    failed
}

/// Tells which of so many scenarios failed, and why; says whether all held.
pub fn conclude(count: usize, failed: &[(&str, Report)]) -> bool {
    for (name, report) in failed {
        for what in report.failed() {
            note(format!("FAILED: {name}: {what}"));
        }
    }
    // In the words that any CI understands.
    eprintln!("{} passed, {} failed", count - failed.len(), failed.len());
    failed.is_empty()
}

/// Runs one scenario. The cluster is cleaned first unless SecureOverlay is `at_work` already; `stays` says
/// that it is to be at work afterwards.
fn run(lab: Option<&Lab>, scenario: &Scenario, profile: Profile, at_work: bool, stays: bool) -> Report {
    let step = stage(format!("scenario {}: {}", scenario.name, scenario.about), scenario.estimate);
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

    #[test]
    fn names_are_unique_and_known() {
        let mut names: Vec<String> = scenarios::ALL.iter().map(|s| s.name.to_owned()).collect();
        assert_eq!(named(&names).unwrap().len(), names.len());
        names.sort();
        names.dedup();
        assert_eq!(names.len(), scenarios::ALL.len());
        assert!(named(&["nonsense".into()]).is_err());
    }

    #[test]
    fn every_scenario_is_part_of_the_gate() {
        let makefile = include_str!("../../../Makefile");
        let (_, list) = makefile.split_once("\nSCENARIOS :=").unwrap();
        let (list, _) = list.split_once("\n#").unwrap();
        let mut gate: Vec<&str> = list.split_whitespace().filter(|word| *word != "\\").collect();
        let mut all: Vec<&str> = scenarios::ALL.iter().map(|scenario| scenario.name).collect();
        gate.sort_unstable();
        all.sort_unstable();
        assert_eq!(gate, all);
    }

    #[test]
    fn only_what_shows_nothing_is_measured_once_more() {
        let mut report = Report::default();
        assert!(!report.is_unproven());
        report.proves_nothing("a socket overran");
        report.expect_none("lost", 3);
        assert!(report.is_unproven() && !report.ok());
        report.expect("plaintext_packets", 1, 0);
        assert!(!report.is_unproven());
        let mut proven = Report::default();
        proven.expect_none("lost", 3);
        assert!(!proven.is_unproven() && !proven.ok());
    }

    #[test]
    fn a_failed_check_fails_the_report() {
        let mut report = Report::default();
        assert!(report.expect("lost", 0, 0) && report.ok());
        assert!(!report.expect("lost", 1, 0));
        let line: Value = serde_json::from_str(&report.line("x")).unwrap();
        assert_eq!((&line["ok"], &line["lost"], &line["scenario"]), (&json!(false), &json!(1), &json!("x")));
    }
}
