//! Runs worlds: one of a scenario, many of many seeds, and fewer and fewer faults of one that fails.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{Time, fault::Scenario, variant::Variant, world::World};

/// Runs that shrinking may take.
const SHRINKING: usize = 300;

/// What must never be, and was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its number in `docs/protocol.md`, section 2; 0: a panic; 10: a replay window was opened again.
    pub invariant: u8,
    /// What happened.
    pub text: String,
    /// When.
    pub at: Time,
}

impl Violation {
    /// It is the same thing.
    #[must_use]
    pub fn alike(&self, other: &Self) -> bool {
        let words = |text: &str| text.chars().filter(|c| c.is_alphabetic()).take(24).collect::<String>();
        self.invariant == other.invariant && words(&self.text) == words(&other.text)
    }
}

/// Counts of one world.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Events.
    pub steps: u64,
    /// Virtual time.
    pub time: Time,
    /// Rotations completed.
    pub rotations: u64,
    /// Writes of the ring by what they did.
    pub actions: BTreeMap<String, u64>,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
    /// Packets of pods by what became of them.
    pub packets: BTreeMap<&'static str, u64>,
    /// Identities that agents drew.
    pub draws: u64,
}

/// How a world went.
#[derive(Debug, Default)]
pub struct Run {
    /// Counts.
    pub tally: Tally,
    /// The first thing that must never be.
    pub violation: Option<Violation>,
    /// What happened before, if it was asked for.
    pub story: Vec<String>,
}

/// Runs a scenario to its end, or to the first violation.
#[must_use]
pub fn run(scenario: &Scenario, variant: Option<Variant>, story: bool) -> Run {
    let mut world = World::new(scenario, variant, story);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.run())) {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        world.violate(0, format!("panic: {}", text.unwrap_or_default()));
    }
    Run {
        tally: world.tally.clone(),
        violation: world.violation.take(),
        story: world.story.take().unwrap_or_default(),
    }
}

/// The fewest faults, by their numbers, with which a scenario still violates the same invariant.
#[must_use]
pub fn shrink(scenario: &Scenario, variant: Option<Variant>, violation: &Violation) -> Vec<usize> {
    let mut runs = 0;
    let mut fails = |keep: &[usize]| {
        runs += 1;
        let again = run(&scenario.only(keep), variant, false).violation;
        runs <= SHRINKING && again.is_some_and(|again| again.alike(violation))
    };
    let faults = &scenario.faults;
    let mut keep: Vec<usize> = (0..faults.len()).filter(|&at| faults[at].at <= violation.at).collect();
    let mut chunk = keep.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        while at < keep.len() {
            let mut without = keep.clone();
            without.drain(at..(at + chunk).min(keep.len()));
            if fails(&without) {
                keep = without;
            } else {
                at += chunk;
            }
        }
        if chunk == 1 {
            return keep;
        }
        chunk /= 2;
    }
}

/// A world that is kept: everything that was decided before it began, so that later faults and draws leave it as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// What it shows.
    pub why: String,
    /// The wrong variant that shows itself in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<Variant>,
    /// Where it comes from.
    pub scenario: Scenario,
}

/// Reads the file of kept worlds: one in JSON a line, and lines of comments that begin with `#`.
///
/// # Errors
/// The line that is none.
pub fn kept(text: &str) -> Result<Vec<Kept>, String> {
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    lines
        .map(|line| serde_json::from_str(line).map_err(|error| format!("not a kept world: {error}: {line}")))
        .collect()
}

/// The scenario of a seed, `SEED`, or with some of its faults, `SEED:FAULT,FAULT,…`.
#[must_use]
pub fn named(text: &str) -> Option<Scenario> {
    let (seed, faults) = text.split_once(':').map_or((text, None), |(seed, faults)| (seed, Some(faults)));
    let scenario = Scenario::new(seed.trim().parse().ok()?);
    let Some(faults) = faults else { return Some(scenario) };
    let numbers = faults.split(',').map(str::trim).filter(|number| !number.is_empty());
    let keep = numbers.map(str::parse).collect::<Result<Vec<usize>, _>>().ok()?;
    Some(scenario.only(&keep))
}

/// A variant that was caught, or was not.
#[derive(Clone, Debug)]
pub struct Caught {
    /// Worlds that it took.
    pub worlds: u64,
    /// How it showed.
    pub violation: Option<Violation>,
}

/// Looks for a world in which a variant shows itself, and which holds without it: among those `kept` for it, then from
/// the seed `first` on.
#[must_use]
pub fn catch(variant: Variant, kept: &[Kept], first: u64, worlds: u64) -> Caught {
    let mut tried = 0;
    let kept = kept.iter().filter(|kept| kept.variant == Some(variant)).map(|kept| kept.scenario.clone());
    let seeds = first..first.saturating_add(worlds);
    for scenario in kept.chain(seeds.map(|seed| Scenario::provoking(seed, variant))) {
        tried += 1;
        let wrong = run(&scenario, Some(variant), false).violation;
        if wrong.is_some() && run(&scenario, None, false).violation.is_none() {
            return Caught { worlds: tried, violation: wrong };
        }
    }
    Caught { worlds: tried, violation: None }
}

/// Sums of many worlds.
#[derive(Debug, Default)]
pub struct Sum {
    /// Worlds.
    pub worlds: u64,
    /// Events.
    pub steps: u64,
    /// Virtual time.
    pub time: Duration,
    /// Rotations completed.
    pub rotations: u64,
    /// Writes of the ring by what they did.
    pub actions: BTreeMap<String, u64>,
    /// Packets of pods by what became of them.
    pub packets: BTreeMap<&'static str, u64>,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
}

impl Sum {
    /// Adds a world.
    pub fn add(&mut self, tally: &Tally) {
        self.worlds += 1;
        self.steps += tally.steps;
        self.time += tally.time;
        self.rotations += tally.rotations;
        for (kind, count) in &tally.actions {
            *self.actions.entry(kind.clone()).or_default() += count;
        }
        for (kind, count) in &tally.packets {
            *self.packets.entry(kind).or_default() += count;
        }
        for (kind, count) in &tally.faults {
            *self.faults.entry(kind.clone()).or_default() += count;
        }
    }
}
