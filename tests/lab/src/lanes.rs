//! Several labs at work at the same time: a process for each lane, and a command beside them.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{self, Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::cache;
use crate::cache::kubernetes::Kubernetes;
use crate::interrupt;
use crate::lifecycle;
use crate::place::{LAB_VARIABLE, Place};
use crate::process::Recorded;
use crate::product::{self, PROGRAMS_VARIABLE};
use crate::progress::{Stage, note, stage};
use crate::runner::Verdict;
use crate::scenario::{Profile, Scenario};

/// The labs of so many lanes: this process's own, and others beside it.
pub fn places(lanes: usize) -> Result<Vec<Place>> {
    let others = (2..=lanes).map(|number| Place::new(&format!("lane{number}")));
    std::iter::once(Ok(Place::here().clone())).chain(others).collect()
}

/// Runs every lane to its end. The first lane's lab is left running; the others are removed.
pub fn run(
    lanes: &[Vec<&'static Scenario>],
    profile: Profile,
    kubernetes: Option<Kubernetes>,
) -> Result<Vec<Verdict>> {
    let mut started = Vec::new();
    // Each must be a child of this very thread, with which it is to end.
    let kubernetes = kubernetes.and_then(|version| version.to_possible_value());
    let version = kubernetes.map(|version| format!("--kubernetes={}", version.get_name()));
    let flags: Vec<String> = profile.flags().into_iter().chain(version).collect();
    for (place, lane) in places(lanes.len())?.into_iter().zip(lanes) {
        let names: Vec<&str> = lane.iter().map(|scenario| scenario.name).collect();
        note(format!("lane {}: {}", place.name(), names.join(" ")));
        started.push((start(&place, &names, &flags)?, place, names));
    }
    let mut verdicts = Vec::new();
    thread::scope(|scope| {
        let followed: Vec<_> = started
            .into_iter()
            .map(|(lane, place, names)| scope.spawn(move || follow(lane, &place, &names)))
            .collect();
        for lane in followed {
            verdicts.extend(lane.join().unwrap_or_default());
        }
    });
    Ok(verdicts)
}

fn start(place: &Place, scenarios: &[&str], flags: &[String]) -> Result<Child> {
    // By this name the program is found although it may have been built anew since.
    let program = format!("/proc/{}/exe", process::id());
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "SIGKILL", &program, "--lab", place.name(), "lane"])
        .args(flags)
        .args(scenarios)
        .env(PROGRAMS_VARIABLE, product::programs()?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting the lane {}", place.name()))?;
    interrupt::end_on_interrupt(Recorded::of(child.id())?);
    Ok(child)
}

/// Passes on what a lane says until it ends; then every one of its scenarios has a verdict.
fn follow(mut lane: Child, place: &Place, scenarios: &[&str]) -> Vec<Verdict> {
    let (stdout, stderr) = (lane.stdout.take(), lane.stderr.take());
    let name = place.name();
    let mut verdicts: Vec<Verdict> = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| lines(stderr).for_each(|line| eprintln!("{name:5} {line}")));
        for line in lines(stdout) {
            println!("{line}");
            verdicts.extend(serde_json::from_str::<Verdict>(&line));
        }
    });
    let status = lane.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
    for &scenario in scenarios {
        if !verdicts.iter().any(|verdict| verdict.scenario == scenario) {
            verdicts.push(Verdict::broken(scenario, format!("its lane ended without it: {status}")));
        }
    }
    // Its memory and its processor time are the others' now.
    if place != Place::here()
        && let Err(error) = lifecycle::remove(place)
    {
        verdicts.push(Verdict::broken(name, format!("the lane's lab does not go: {error:#}")));
    }
    verdicts
}

fn lines(from: Option<impl Read>) -> impl Iterator<Item = String> {
    from.into_iter().flat_map(|from| BufReader::new(from).lines().map_while(Result::ok))
}

/// The lab of a command beside the lanes, if it makes one.
pub fn beside() -> Result<Place> {
    Place::new("beside")
}

/// Where the kernel shares the processor among sessions (autogroup), `nice` says nothing about other sessions.
const LOW_PRIORITY: &str = r#"{ echo 19 > /proc/self/autogroup; } 2> /dev/null; exec nice -n 19 sh -c "$1""#;

/// A shell command at work beside the lanes, with what they leave of the processor; it ends with this process.
pub struct Beside {
    command: String,
    child: Child,
    process: Recorded,
    log: PathBuf,
    stage: Stage,
}

impl Beside {
    /// Starts it.
    pub fn start(command: &str) -> Result<Self> {
        let log = cache::directory()?.join("beside.log");
        let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let stage = stage(format!("beside the lanes: {command}"), "5 min");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "SIGKILL", "setsid", "sh", "-c", LOW_PRIORITY, "sh", command])
            .env(LAB_VARIABLE, beside()?.name())
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("sharing the log")?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting `{command}`"))?;
        let process = Recorded::of(child.id())?;
        interrupt::end_on_interrupt(process.clone());
        Ok(Self { command: command.to_owned(), child, process, log, stage })
    }

    /// Waits for its end and shows what it said; a verdict if it failed.
    pub fn finish(mut self) -> Result<Option<Verdict>> {
        let status = self.child.wait().with_context(|| format!("waiting for `{}`", self.command))?;
        let said =
            fs::read_to_string(&self.log).with_context(|| format!("reading {}", self.log.display()))?;
        eprintln!("{}", said.trim_end());
        self.stage.tell();
        let failed = || Verdict::broken(&self.command, format!("{status}; its output is above"));
        Ok((!status.success()).then(failed))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Ended already unless the lanes could not even begin.
        self.process.kill_group();
        drop(self.child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(script: &str) -> Child {
        Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    #[test]
    fn a_scenario_of_which_a_lane_says_nothing_has_failed() {
        let line = r#"{"scenario": "a", "failed": [], "seconds": 1.0, "attempts": 1, "sent": 7}"#;
        let script = format!("echo '{line}'; echo no line of ours; echo a message >&2; exit 3");
        let verdicts = follow(lane(&script), Place::here(), &["a", "b"]);
        let [a, b] = &verdicts[..] else { panic!("{verdicts:?}") };
        assert!(a.ok() && a.scenario == "a");
        assert!(!b.ok() && b.failed[0].contains("exit status: 3"), "{b:?}");
    }

    #[test]
    fn lanes_have_labs_of_their_own() {
        let all = places(3).unwrap();
        let names: Vec<&str> = all.iter().map(Place::name).collect();
        assert_eq!(names, ["main", "lane2", "lane3"]);
    }
}
