//! The bound on the tunnel's MTU is what a kernel carries, to the byte, and what we accept is never above it.

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use secureoverlay_keyring::mtu::Bound;
use secureoverlay_keyring::suite::Suite;
use serde_json::json;

use crate::largest::{EXTERNAL, Found};
use crate::progress::note;
use crate::scenario::{Profile, Report, Run, Scenario, Tier};

pub const SCENARIO: Scenario = Scenario {
    name: "mtu",
    about: "the bound on the tunnel's MTU is what a kernel carries, for every suite",
    tier: Tier::Gate,
    estimate: 10,
    alone: false,
    run: Run::Guest(run),
};

fn run(report: &mut Report, _: Profile) -> Result<()> {
    let found = measure()?;
    let cases: BTreeSet<(u32, Suite)> = found.iter().map(|found| (found.external, found.suite)).collect();
    report.expect("cases", cases.len() as u64, (EXTERNAL.len() * Suite::ALL.len()) as u64);
    let (mut mismatches, mut above, mut mke_too_large) = (0, 0, Vec::new());
    for Found { external, suite, largest } in &found {
        let bound = Bound::new(*external, *suite);
        let case = format!("{external} with {suite}");
        mismatches += u64::from(!report.check(
            bound.kernel == *largest,
            format!("{case}: the kernel carries {largest}, and the bound is {}", bound.kernel),
        ));
        above += u64::from(!report.check(
            bound.accepted() <= *largest,
            format!("{case}: the kernel carries {largest}, and {} is accepted", bound.accepted()),
        ));
        if bound.mke > *largest {
            mke_too_large.push(json!({
                "external": external, "suite": suite.name(), "mke": bound.mke, "carried": largest,
            }));
        }
    }
    report.figure("mismatches", mismatches);
    report.figure("accepted_too_large", above);
    report.figure("mke_too_large", mke_too_large);
    note(table(|external, suite| {
        found.iter().find(|it| (it.external, it.suite) == (external, suite)).map(|found| found.largest)
    }));
    Ok(())
}

/// Every case in turn, in a guest.
fn measure() -> Result<Vec<Found>> {
    let program = env::current_exe().context("finding this program")?;
    let output = Command::new(&program)
        .args(["kernel", "--"])
        .arg(&program)
        .arg("measure-mtu")
        .stderr(Stdio::inherit())
        .output()
        .context("starting a guest")?;
    ensure!(output.status.success(), "measuring failed: {}", output.status);
    let lines = String::from_utf8(output.stdout).context("what was measured is no text")?;
    lines.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("what was measured")
}

/// In Markdown: for each length of the ICV MKE's rule, what is carried, and what we accept.
fn table(carried: impl Fn(u32, Suite) -> Option<u32>) -> String {
    let lengths: BTreeSet<usize> = Suite::ALL.iter().map(|suite| suite.icv_len()).collect();
    let mut head = "| EXTMTU |".to_owned();
    for length in &lengths {
        let bits = length * 8;
        let _ = write!(head, " {bits}-bit ICV: MKE's rule | carried | accepted |");
    }
    let mut lines = vec![head, format!("|---|{}", "---|".repeat(3 * lengths.len()))];
    for external in EXTERNAL {
        let mut line = format!("| {external} |");
        for length in &lengths {
            let suites = || Suite::ALL.into_iter().filter(|suite| suite.icv_len() == *length);
            // One number, unless suites of one ICV differ, which they should not.
            let all: BTreeSet<String> = suites()
                .map(|suite| {
                    carried(external, suite).map_or_else(|| "?".to_owned(), |bytes| bytes.to_string())
                })
                .collect();
            let carried = Vec::from_iter(all).join(" or ");
            for bound in suites().take(1).map(|suite| Bound::new(external, suite)) {
                let mark = if bound.mke > bound.kernel { " (too large)" } else { "" };
                let _ = write!(line, " {}{mark} | {carried} | {} |", bound.mke, bound.accepted());
            }
        }
        lines.push(line);
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operations_guide_has_the_table() {
        let guide = include_str!("../../../../docs/operations/roll-out.md");
        let table = table(|external, suite| Some(Bound::new(external, suite).kernel));
        assert!(guide.contains(&table), "docs/operations/roll-out.md lacks this table:\n{table}");
    }

    #[test]
    fn the_table_shows_what_was_measured() {
        let odd = table(|external, suite| (suite != Suite::Aes256Gcm16).then_some(external));
        let row = odd.lines().find(|line| line.starts_with("| 1450 ")).unwrap();
        assert_eq!(row, "| 1450 | 1404 (too large) | 1450 | 1402 | 1396 (too large) | 1450 or ? | 1394 |");
        assert_eq!(odd.lines().count(), 2 + EXTERNAL.len());
    }
}
