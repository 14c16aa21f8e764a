//! A scenario: something done to a running cluster, with figures and checks, told in one line of JSON.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::lab::Lab;
use crate::progress::note;
use crate::scenarios::enforcing;
use crate::scenarios::overlay::{Manifest, Overlay};
use crate::scenarios::probe::Probe;

/// What is asked of the scenarios of a run.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Profile {
    /// The long figures; and `all` names the scenarios that are too long for the gate too.
    #[arg(long)]
    pub full: bool,
    /// How long traffic or chaos lasts in the scenarios that leave it running for a while.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// What scenarios draw their random numbers from: the one that an earlier run printed repeats its draws.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// One case of a scenario that has numbered cases.
    #[arg(long, value_name = "N")]
    case: Option<u8>,
}

impl Profile {
    /// The same with a seed, drawn if none was given.
    pub fn seeded(self) -> Self {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
        Self { seed: Some(self.seed.unwrap_or_else(now)), ..self }
    }

    /// One value for the gate, another for the long figures.
    pub fn pick<T>(self, gate: T, full: T) -> T {
        if self.full { full } else { gate }
    }

    /// Seconds for which something is left running, unless others were asked for.
    pub fn lasting(self, gate: u64, full: u64) -> Duration {
        Duration::from_secs(self.seconds.unwrap_or(self.pick(gate, full)))
    }

    /// The one case that is asked for.
    pub fn case(self) -> Option<u8> {
        self.case
    }

    /// What to draw from.
    pub fn seed(self) -> u64 {
        self.seed.unwrap_or_default()
    }

    /// The flags that ask another process for the same.
    pub fn flags(self) -> Vec<String> {
        let value = |name: &str, value: Option<u64>| value.map(|value| format!("--{name}={value}"));
        let full = self.full.then(|| "--full".to_owned());
        full.into_iter()
            .chain(value("seconds", self.seconds))
            .chain(value("seed", self.seed))
            .chain(value("case", self.case.map(u64::from)))
            .collect()
    }
}

/// Which runs a scenario is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// Every test run.
    Gate,
    /// The long runs alone.
    FullOnly {
        /// Why the gate does without it.
        reason: &'static str,
    },
}

/// One scenario.
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it shows, in a line.
    pub about: &'static str,
    /// Which runs it is part of.
    pub tier: Tier,
    /// Usual duration in the gate, in seconds.
    pub estimate: u32,
    /// Nothing else is to run on this machine meanwhile: it judges gaps or speed, or a machine that is too busy fails it.
    pub alone: bool,
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

    /// Whether it goes on with the installation that another leaves.
    pub fn shares(&self) -> bool {
        matches!(self.run, Run::Installed(_) | Run::Removes(_))
    }

    /// Whether it can leave its installation for another.
    pub fn leaves(&self) -> bool {
        matches!(self.run, Run::Installs(_) | Run::Installed(_))
    }
}

/// SecureOverlay, at work, enforcing and between two rotations if the scenario needs that; and a prober on each node.
#[derive(Debug)]
pub struct Installed<'l> {
    /// SecureOverlay, from our manifest.
    pub overlay: Overlay<'l>,
    /// The probers.
    pub probe: Probe,
}

impl<'l> Installed<'l> {
    /// Nothing is installed yet.
    pub(crate) fn ready(lab: &'l Lab) -> Result<Self> {
        Ok(Self { overlay: Overlay::new(lab, Manifest::Ours), probe: Probe::deploy(lab)? })
    }

    /// Installs it, or goes on with what the scenario before has left `at_work`.
    pub(crate) fn new(lab: &'l Lab, at_work: bool) -> Result<Self> {
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
    pub(crate) fn is_unproven(&self) -> bool {
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

    /// Adds what a part of the scenario found.
    pub fn absorb(&mut self, part: Self) {
        self.figures.extend(part.figures);
        self.failed.extend(part.failed);
        self.unproven += part.unproven;
    }

    /// Whether all checks held so far.
    pub fn ok(&self) -> bool {
        self.failed.is_empty()
    }

    /// The checks that did not hold.
    pub fn failed(&self) -> &[String] {
        &self.failed
    }

    /// The one line, with the seconds that the scenario took and how often it was measured.
    pub(crate) fn line(&self, scenario: &str, seconds: f64, attempts: u32) -> String {
        let seconds = (seconds * 10.0).round() / 10.0;
        let mut line = json!({
            "scenario": scenario, "ok": self.ok(), "failed": self.failed, "seconds": seconds, "attempts": attempts,
        });
        if let Some(object) = line.as_object_mut() {
            object.extend(self.figures.clone());
        }
        line.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let line: Value = serde_json::from_str(&report.line("x", 1.26, 1)).unwrap();
        assert_eq!((&line["ok"], &line["lost"], &line["scenario"]), (&json!(false), &json!(1), &json!("x")));
        assert_eq!(line["seconds"], json!(1.3));
    }

    #[test]
    fn a_profile_is_handed_on_whole() {
        let asked = Profile { full: true, seconds: Some(7), seed: None, case: Some(3) }.seeded();
        assert_eq!(asked.flags()[..2], ["--full", "--seconds=7"]);
        assert_eq!(asked.flags()[2], format!("--seed={}", asked.seed()));
        assert_eq!(asked.flags()[3], "--case=3");
        assert_eq!((asked.lasting(1, 2).as_secs(), asked.pick(1, 2)), (7, 2));
        assert_eq!(Profile::default().lasting(1, 2).as_secs(), 1);
    }
}
