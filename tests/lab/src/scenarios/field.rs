//! What breaks this kind of software in the field, and what a review found: each case by its smallest instance, with the
//! outcome that is right. `docs/field-cases.md` has the table, with the cases that other scenarios and tests show.

mod cluster;
mod kernel;
mod network;
mod node;
mod routes;

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use super::chaos::kill_agent;
use super::cluster::{until, until_healed};
use super::overlay::{Overlay, PATIENCE, manifest};
use super::probe::Probe;
use super::{enforcing, manager, metrics, rotate_timed, settings, xfrm};
use crate::interface::agent::MTU_POLICY;
use crate::interface::manager::STARTUP_TAINT as TAINT_VARIABLE;
use crate::lab::{Lab, STARTUP_TAINT, TUNNEL_MTU};
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};
use crate::state::Node;

pub const SCENARIO: Scenario = Scenario {
    name: "field",
    about: "what breaks others in the field, and what a review found: each case has the right outcome",
    tier: Tier::Gate,
    estimate: 240,
    alone: true,
    run: Run::Installs(run),
};

/// MTU of tunnels that have room for ESP.
const ROOM: u32 = 1452;
/// How long a finding may take: some are looked for every 10 s, and some count once they have lasted 10 s.
const SEEN: Duration = Duration::from_secs(60);
/// From the end of a case until every node enforces and every pair is proven.
const HEALED: Duration = Duration::from_secs(90);

/// One case.
struct Case {
    /// As in `docs/field-cases.md`.
    number: u8,
    name: &'static str,
    /// The lab lacks the real thing: what it does is imitated.
    imitated: bool,
    expects: &'static str,
    /// Makes it, says what was found, and takes it back. What is not as expected is an error.
    run: fn(&Field<'_>) -> Result<String>,
}

impl Case {
    const fn new(
        number: u8,
        name: &'static str,
        expects: &'static str,
        run: fn(&Field<'_>) -> Result<String>,
    ) -> Self {
        Self { number, name, imitated: false, expects, run }
    }

    const fn imitated(self) -> Self {
        Self { imitated: true, ..self }
    }
}

/// In their order. Those of one group run side by side; after each group every node enforces again.
const GROUPS: [&[Case]; 13] = [
    &routes::CASES,
    &network::UNPROVEN,
    &[network::TUNNEL_OF_ANOTHER_SIZE],
    &[network::NO_ROOM_FOR_A_NEW_NODE],
    &[kernel::FLUSHED],
    &[kernel::OTHER_SOURCE, node::RESYNC_WITHOUT_END],
    &[kernel::LOST_SA],
    &[kernel::ANOTHER_FORM, node::PORT_TAKEN],
    &[node::BOOT_ID_FLIPS],
    &[kernel::CLEANED_BY_HAND],
    &[cluster::REPLACED],
    &[cluster::NEW_NODE_PULLS],
    &[node::ONE_INTERNAL_IP],
];

/// The numbers of all cases.
pub fn numbers() -> Vec<u8> {
    let mut numbers: Vec<u8> = GROUPS.iter().copied().flatten().map(|case| case.number).collect();
    numbers.sort_unstable();
    numbers
}

/// The cluster that everything happens to.
struct Field<'l> {
    overlay: &'l Overlay<'l>,
    probe: &'l Probe,
    manifest: String,
    nodes: [&'l Node; 3],
}

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    let [one, two, three, ..] = lab.nodes() else { anyhow::bail!("this takes three nodes") };
    let manifest = overlay.text_with(&[(MTU_POLICY, "block"), (TAINT_VARIABLE, STARTUP_TAINT)])?;
    let field = Field { overlay, probe, manifest, nodes: [one, two, three] };
    field.install()?;
    let (mut names, mut passed, mut imitated) = (Vec::new(), 0, Vec::new());
    for group in GROUPS {
        let chosen: Vec<&Case> =
            group.iter().filter(|case| profile.case().is_none_or(|number| number == case.number)).collect();
        for (case, outcome) in chosen.iter().zip(field.side_by_side(&chosen)) {
            names.push(case.name);
            imitated.extend(case.imitated.then_some(case.name));
            let Case { number, name, expects, .. } = case;
            match outcome {
                Ok(found) => {
                    note(format!("case {number}, {name}: expected that {expects}; found: {found}"));
                    passed += 1;
                }
                Err(error) => {
                    report.check(
                        false,
                        format!("case {number}, {name}: expected that {expects}; found: {error:#}"),
                    );
                }
            }
        }
        if !chosen.is_empty()
            && let Err(error) = field.settle()
        {
            let cases: Vec<u8> = chosen.iter().map(|case| case.number).collect();
            report.check(false, format!("after the cases {cases:?}: {error:#}"));
        }
    }
    report.figure("cases", names.len());
    report.figure("passed", passed);
    report.figure("imitated", imitated);
    report.check(!names.is_empty(), "there is such a case");
    field.back_to_what_ships()
}

impl<'l> Field<'l> {
    fn lab(&self) -> &'l Lab {
        self.overlay.lab
    }

    /// With room in the tunnels, which pairs have to prove here.
    fn install(&self) -> Result<()> {
        let lab = self.lab();
        lab.set_tunnel_mtu(ROOM)?;
        lab.apply_file(&manifest("startup-taint.yaml"))?;
        lab.apply(&self.manifest)?;
        settings::apply(lab)?;
        self.overlay.wait_rolled_out()?;
        self.settle()
    }

    fn back_to_what_ships(&self) -> Result<()> {
        let lab = self.lab();
        lab.set_tunnel_mtu(TUNNEL_MTU)?;
        self.overlay.apply()?;
        self.overlay.wait_rolled_out()?;
        lab.kubectl(&["delete", "-f", &manifest("startup-taint.yaml").display().to_string()])?;
        self.settle()
    }

    fn side_by_side(&self, cases: &[&Case]) -> Vec<Result<String>> {
        thread::scope(|scope| {
            let running: Vec<_> = cases
                .iter()
                .map(|case| {
                    note(format!("case {}: {}", case.number, case.name));
                    scope.spawn(|| (case.run)(self))
                })
                .collect();
            let end = |case: thread::ScopedJoinHandle<'_, Result<String>>| {
                case.join().map_err(|_| anyhow!("the case's thread failed"))?
            };
            running.into_iter().map(end).collect()
        })
    }

    /// Waits until every node enforces, and every pair is proven.
    fn settle(&self) -> Result<()> {
        until_healed("every node to enforce", HEALED, || enforcing::lacks(self.lab()))?;
        rotate_timed::wait_steady(self.lab())
    }

    fn sh(&self, node: &Node, script: &str) -> Result<String> {
        self.lab().exec_ok(&node.name, &["sh", "-ec", script])
    }

    /// Whatever becomes of it: for what is there to be taken away.
    fn try_sh(&self, node: &Node, script: &str) -> Result<()> {
        self.lab().exec(&node.name, &["sh", "-c", script]).map(drop)
    }

    /// Waits for a finding on a node whose message has these words, and returns it.
    fn found(&self, node: &Node, reason: &str, words: &[&str]) -> Result<String> {
        let (mut found, mut others) = (None, Vec::new());
        until_healed(&format!("{reason} on {}", node.name), SEEN, || {
            others = self.findings(node).unwrap_or_default();
            let meant = |(is, message): &&(String, String)| {
                is == reason && words.iter().all(|word| message.contains(word))
            };
            found = others.iter().find(meant).map(|(is, message)| format!("{is}: {message}"));
            found.is_none().then(|| format!("its findings are {others:?}"))
        })?;
        found.context("nothing was found")
    }

    /// Blockers and findings of a node: reason and message.
    fn findings(&self, node: &Node) -> Result<Vec<(String, String)>> {
        let all = manager::statuses(self.lab(), "findings")?;
        let of = all.get(&node.name).and_then(Value::as_array).cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(of.iter().map(|it| (text(&it["reason"]), text(&it["message"]))).collect())
    }

    /// Status, reason and message of a condition of a node.
    fn condition(&self, node: &Node, kind: &str) -> Result<[String; 3]> {
        let all = manager::statuses(self.lab(), "conditions")?;
        condition(all.get(&node.name).unwrap_or(&Value::Null), kind)
    }

    /// The same of the cluster.
    fn cluster_condition(&self, kind: &str) -> Result<[String; 3]> {
        condition(&self.lab().kubectl_json(&["get", settings::OBJECT])?["status"]["conditions"], kind)
    }

    /// Waits until a condition of a node has this status, and returns reason and message.
    fn until_condition(&self, node: &Node, kind: &str, wanted: &str) -> Result<String> {
        let mut last = Default::default();
        until_healed(&format!("{kind} of {} to be {wanted}", node.name), SEEN, || {
            last = self.condition(node, kind).unwrap_or_default();
            (last[0] != wanted).then(|| format!("it is {last:?}"))
        })?;
        let [status, reason, message] = last;
        Ok(format!("{kind} {status}, {reason}: {message}"))
    }

    /// Kills a node's agent, and waits until another is ready.
    fn restart_agent(&self, node: &Node) -> Result<()> {
        kill_agent(self.lab(), node)?;
        until("another agent to be ready", PATIENCE, || metrics::agent_is_ready(self.lab(), &node.name))
    }

    /// What a node's kernel holds.
    fn kernel(&self, node: &Node) -> Result<xfrm::Kernel> {
        xfrm::dump(self.lab())?.remove(&node.name).context("no such node")
    }

    /// The entry that a node sends with: where it comes from first.
    fn sender(&self, node: &Node) -> Result<Value> {
        Ok(self.lab().kubectl_json(&["get", "encryptionpeer", &node.name])?["spec"]["senders"][0].clone())
    }
}

fn condition(all: &Value, kind: &str) -> Result<[String; 3]> {
    let found = all.as_array().into_iter().flatten().find(|it| it["type"] == kind);
    let found = found.with_context(|| format!("there is no condition {kind}"))?;
    Ok(["status", "reason", "message"].map(|field| found[field].as_str().unwrap_or_default().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_case_has_a_number_of_its_own() {
        let numbers = numbers();
        assert!(numbers.len() >= 18 && numbers.windows(2).all(|two| two[0] < two[1]), "{numbers:?}");
    }

    /// The table names each case by number; a case that it does not have could not be understood.
    #[test]
    fn each_case_is_in_the_table() {
        let table = include_str!("../../../../docs/field-cases.md");
        for number in numbers() {
            assert!(table.contains(&format!("`--case {number}`")), "docs/field-cases.md lacks case {number}");
        }
    }
}
