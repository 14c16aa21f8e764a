//! The memory of agents and manager is private: no core file, and not to be read by others.

use anyhow::{Context, Result};

use super::cluster::until;
use super::overlay::PATIENCE;
use super::processes::{AGENT, MANAGER, pids};
use crate::lab::Lab;
use crate::scenario::Report;

/// A root without the rights to look into any process; into its equals' it may, unless they forbid it.
const UNPRIVILEGED: &str = "setpriv --inh-caps -all --bounding-set -sys_ptrace,-perfmon,-sys_admin";
/// As an agent's process is, but one that forbids nothing.
const EQUAL: &str = "setpriv --inh-caps -all --bounding-set -all,+net_admin";

const CRASH: &str = include_str!("dumpable.sh");

/// Crashes an agent and the manager in the way that leaves a core, and tries to look into a process of each.
pub fn check(lab: &Lab, report: &mut Report) -> Result<()> {
    let mut cores = 0;
    for program in [AGENT, MANAGER] {
        let (node, pid) = first(lab, program)?;
        let look = |pid: &str| -> Result<bool> {
            let script = format!(
                "{EQUAL} sleep 60 & equal=$!; sleep 0.3; \
                 {UNPRIVILEGED} cat /proc/{pid}/environ > /dev/null; status=$?; kill $equal; exit $status"
            );
            Ok(lab.exec(&node, &["sh", "-c", &script])?.status == 0)
        };
        report.check(look("$equal")?, format!("{node}: the look into an equal process works"));
        report.check(!look(&pid)?, format!("{program}: others can't look into it"));
        // Files of a process that forbids it belong to root, not to the user that runs it.
        let owner = lab.exec_ok(&node, &["stat", "-c", "%u", &format!("/proc/{pid}/environ")])?;
        report.check(owner.trim() == "0", format!("{program}: its files belong to user {}", owner.trim()));
        let limit = lab.exec_ok(&node, &["grep", "core file", &format!("/proc/{pid}/limits")])?;
        report.check(limit.split_whitespace().nth(4) == Some("0"), format!("{program}: {}", limit.trim()));

        let counts = lab.exec_ok(&node, &["bash", "-c", CRASH, "crash", &pid])?;
        let mut counts = counts.split_whitespace();
        report.check(counts.next() == Some("1"), format!("{node}: another process leaves a core"));
        cores += counts.next().and_then(|count| count.parse::<u64>().ok()).context("counting cores")?;
        until(&format!("{program} to be started anew"), PATIENCE, || {
            Ok(pids(lab, &node, program)?.first().is_some_and(|now| *now != pid))
        })?;
    }
    report.expect("cores", cores, 0);
    Ok(())
}

/// A node with a process of this program, and its id.
fn first(lab: &Lab, program: &str) -> Result<(String, String)> {
    for node in lab.nodes() {
        if let Some(pid) = pids(lab, &node.name, program)?.pop() {
            return Ok((node.name.clone(), pid));
        }
    }
    anyhow::bail!("no node runs {program}")
}
