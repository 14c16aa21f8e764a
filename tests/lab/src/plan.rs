//! Which scenarios of a run go into which lane, and in which order.

use std::cmp::Reverse;

use anyhow::{Context, Result, ensure};

use crate::scenario::{Run, Scenario, Tier};
use crate::scenarios;

/// Seconds that an installation costs which a scenario does not find.
const INSTALLATION: u32 = 25;

/// Every scenario of a run, once.
#[derive(Default)]
pub struct Plan {
    /// What runs at the same time, each lane in a lab of its own.
    pub lanes: Vec<Vec<&'static Scenario>>,
    /// What needs a cluster and the machine for itself: run when the lanes are done.
    pub alone: Vec<&'static Scenario>,
    /// What needs the machine for itself and no cluster: run when all labs are gone.
    pub last: Vec<&'static Scenario>,
}

impl Plan {
    /// For so many lanes, at least one; fewer if there is not enough to do.
    pub fn new(chosen: &[&'static Scenario], lanes: usize) -> Self {
        let (alone, mut others): (Vec<&Scenario>, Vec<&Scenario>) =
            chosen.iter().partition(|scenario| scenario.alone);
        let (alone, last) = alone.into_iter().partition(|scenario| scenario.needs_cluster());
        let lanes = lanes.min(others.len()).max(1);
        if lanes == 1 {
            // In the order asked for.
            return Self { lanes: vec![others], alone, last };
        }
        // The longest first, always to the lane with the least to do: no better balance is needed.
        others.sort_by_key(|scenario| Reverse(scenario.estimate));
        let mut filled: Vec<(u32, Vec<&Scenario>)> = vec![(0, Vec::new()); lanes];
        for scenario in others {
            if let Some((load, lane)) = filled.iter_mut().min_by_key(|(load, _)| *load) {
                *load += cost(scenario);
                lane.push(scenario);
            }
        }
        let place = |scenario: &&Scenario| chosen.iter().position(|other| other.name == scenario.name);
        let ordered = |(_, mut lane): (u32, Vec<&'static Scenario>)| {
            lane.sort_by_key(place);
            shared(&lane)
        };
        Self { lanes: filled.into_iter().map(ordered).collect(), alone, last }
    }
}

/// What a scenario adds to its lane.
fn cost(scenario: &Scenario) -> u32 {
    // One that installs or removes makes another installation necessary.
    scenario.estimate + if matches!(scenario.run, Run::Removes(_)) { INSTALLATION } else { 0 }
}

/// A lane's scenarios in an order in which as many as can be share installations.
fn shared(lane: &[&'static Scenario]) -> Vec<&'static Scenario> {
    let of = |kind: fn(&Run) -> bool| lane.iter().copied().filter(move |scenario| kind(&scenario.run));
    let mut order: Vec<_> = of(|run| matches!(run, Run::Cluster(_) | Run::Guest(_))).collect();
    let mut installs = of(|run| matches!(run, Run::Installs(_)));
    let users = of(|run| matches!(run, Run::Installed(_)));
    let mut removes = of(|run| matches!(run, Run::Removes(_))).peekable();
    // A removal ends the installation of one that installs. The last installation, or one made for them, is for the
    // users, and a last removal ends it.
    let many = lane.iter().filter(|scenario| matches!(scenario.run, Run::Installs(_))).count();
    for _ in 1..many {
        order.extend(installs.next());
        order.extend(removes.next());
    }
    order.extend(installs);
    order.extend(users);
    order.extend(removes);
    order
}

/// The scenarios of these names, in this order; `all` names those of the gate, and with `full` all.
pub fn named(names: &[String], full: bool) -> Result<Vec<&'static Scenario>> {
    let mut found: Vec<&'static Scenario> = Vec::new();
    for name in names {
        if name == "all" {
            found.extend(scenarios::ALL.iter().filter(|scenario| full || scenario.tier == Tier::Gate));
        } else {
            let scenario = scenarios::ALL.iter().find(|scenario| scenario.name == name);
            found.push(scenario.with_context(|| {
                format!("there is no scenario {name}; `cargo lab list` names those that there are")
            })?);
        }
    }
    for (at, scenario) in found.iter().enumerate() {
        let twice = found[..at].iter().any(|other| other.name == scenario.name);
        ensure!(!twice, "{} is named twice; `--times` repeats a run", scenario.name);
    }
    Ok(found)
}

/// Refuses to run one case of scenarios that have no such case.
pub fn ensure_case(chosen: &[&Scenario], case: Option<u8>) -> Result<()> {
    let Some(case) = case else { return Ok(()) };
    for scenario in chosen {
        let cases = scenarios::cases(scenario.name)
            .with_context(|| format!("--case: the scenario {} has no numbered cases", scenario.name))?;
        ensure!(cases.contains(&case), "--case: {} has the cases {cases:?}", scenario.name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(of: &[&Scenario]) -> Vec<String> {
        of.iter().map(|scenario| scenario.name.to_owned()).collect()
    }

    fn all() -> Vec<&'static Scenario> {
        named(&["all".into()], true).unwrap()
    }

    #[test]
    fn names_are_unique_and_known() {
        let found = named(&names(&all()), false).unwrap();
        assert_eq!(found.len(), scenarios::ALL.len());
        assert!(named(&["nonsense".into()], false).is_err());
        assert!(named(&["plain".into(), "plain".into()], false).is_err());
    }

    #[test]
    fn one_case_is_refused_where_there_is_none() {
        let of = |name: &str, case| ensure_case(&named(&[name.to_owned()], false).unwrap(), case);
        assert!(of("field", Some(1)).is_ok() && of("wire", None).is_ok());
        assert!(of("field", Some(200)).is_err() && of("wire", Some(1)).is_err());
    }

    #[test]
    fn a_scenario_is_left_out_of_the_gate_for_a_reason() {
        let gate = named(&["all".into()], false).unwrap();
        for scenario in scenarios::ALL {
            let left_out = match scenario.tier {
                Tier::Gate => false,
                Tier::FullOnly { reason } => {
                    assert!(reason.split_whitespace().count() > 3, "{}: {reason:?}", scenario.name);
                    true
                }
            };
            assert_eq!(gate.iter().any(|it| it.name == scenario.name), !left_out, "{}", scenario.name);
            assert!(scenario.estimate > 0, "{}", scenario.name);
        }
    }

    /// A file beside the others that is not on the list would never run.
    #[test]
    fn every_scenario_that_is_written_is_on_the_list() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/src/scenarios");
        let mut written = 0;
        for file in std::fs::read_dir(directory).unwrap().flatten() {
            let path = file.path();
            // One that is a directory has it in its first file.
            let text = std::fs::read_to_string(if path.is_dir() { path.join("mod.rs") } else { path });
            written += text.unwrap_or_default().matches("pub const SCENARIO: Scenario").count();
        }
        assert_eq!(written, scenarios::ALL.len());
    }

    #[test]
    fn every_scenario_runs_once_and_those_that_measure_alone() {
        for lanes in 1..4 {
            let plan = Plan::new(&all(), lanes);
            assert_eq!(plan.lanes.len(), lanes);
            let mut planned = names(&[plan.lanes.concat(), plan.alone.clone(), plan.last.clone()].concat());
            let mut wanted = names(&all());
            planned.sort();
            wanted.sort();
            assert_eq!(planned, wanted);
            assert!(plan.lanes.concat().iter().all(|scenario| !scenario.alone));
            assert!(plan.alone.iter().all(|scenario| scenario.alone && scenario.needs_cluster()));
            assert!(plan.last.iter().all(|scenario| scenario.alone && !scenario.needs_cluster()));
        }
    }

    #[test]
    fn lanes_are_balanced() {
        let plan = Plan::new(&all(), 2);
        let loads: Vec<u32> = plan.lanes.iter().map(|lane| lane.iter().map(|it| cost(it)).sum()).collect();
        assert!(loads[0].abs_diff(loads[1]) <= 60, "{loads:?}");
    }

    #[test]
    fn those_that_share_follow_each_other() {
        for lane in Plan::new(&all(), 2).lanes {
            let first = lane.iter().position(|scenario| scenario.leaves());
            let Some(first) = first else { continue };
            let between = &lane[first..];
            assert!(between.iter().all(|it| it.leaves() || it.shares()), "{:?}", names(&lane));
            let users = |it: &&&Scenario| matches!(it.run, Run::Installed(_));
            let at = between.iter().position(|it| matches!(it.run, Run::Installed(_))).unwrap_or_default();
            let count = between.iter().filter(users).count();
            assert!(between[at..at + count].iter().all(|it| users(&it)), "{:?}", names(&lane));
        }
    }

    #[test]
    fn one_lane_keeps_the_order_asked_for() {
        let wanted = ["wire", "plain", "enable"].map(String::from);
        let plan = Plan::new(&named(&wanted, false).unwrap(), 1);
        assert_eq!(names(&plan.lanes[0]), wanted);
        assert_eq!(Plan::new(&named(&wanted[..1], false).unwrap(), 2).lanes.len(), 1);
        assert_eq!(Plan::new(&[], 2).lanes.len(), 1);
    }
}
