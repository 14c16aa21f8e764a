//! Many agents at a real API server: what a start, a join, a rotation and doing nothing cost.
//!
//! Two measured agents, each in a process of its own, hold SAs with every node. All others are light: they hear what every
//! agent hears and write what every agent writes, and hold SAs with the measured ones only. All of them run the product's
//! core and client code over a kernel that only counts (`tests/rig`).

mod meter;
mod rig;

use std::env;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use self::meter::Writes;
use self::rig::{MEASURED, Rig, measured_name};
use super::ring;
use crate::cache::kubernetes::Kubernetes;
use crate::lab::Lab;
use crate::place::Place;
use crate::process::Recorded;
use crate::progress::note;
use crate::scenario::{Profile, Report, Run, Scenario, Tier};
use crate::state::Lock;

pub const SCENARIO: Scenario = Scenario {
    name: "scale",
    about: "what a start, a join, a rotation and doing nothing cost with hundreds of agents",
    tier: Tier::FullOnly {
        reason: "a start, a rotation and a minute of doing nothing take five minutes together",
    },
    estimate: 310,
    alone: true,
    run: Run::Guest(run),
};

/// Overrides the number of nodes.
const NODES_VARIABLE: &str = "SECUREOVERLAY_LAB_SCALE";
/// For everything that is waited for.
const PATIENCE: Duration = Duration::from_secs(1800);
/// After a change, until what follows from it is over.
const SETTLE: Duration = Duration::from_secs(20);
/// Between two looks at the API server's counters: its page of metrics costs it a tenth of a second.
const LOOK: Duration = Duration::from_secs(2);

fn run(report: &mut Report, profile: Profile) -> Result<()> {
    let asked = env::var(NODES_VARIABLE).ok();
    let asked =
        asked.map(|nodes| nodes.parse().with_context(|| format!("{NODES_VARIABLE}={nodes}"))).transpose()?;
    let nodes: u32 = asked.unwrap_or(profile.pick(300, 1000));
    let lock = Lock::take(Place::here())?;
    let lab = Lab::up(&lock, 0, Kubernetes::default())?;
    let outcome =
        Rig::new(&lab).and_then(|rig| Measurement::begin(&rig, report, nodes)?.go_on(report, profile));
    if outcome.is_ok() {
        lab.down(&lock)?;
    } else {
        note("the rig is left as it is, for a look; `cargo lab down` removes it");
    }
    outcome
}

/// The rig at work.
struct Measurement<'r> {
    rig: &'r Rig<'r>,
    nodes: u32,
    measured: Vec<Recorded>,
    light: Recorded,
    manager: Recorded,
}

/// What was used up to a moment.
struct Sample {
    at: Instant,
    writes: Writes,
    /// Seconds of the manager, of a measured agent on average, and of a light one.
    manager: f64,
    measured: f64,
    light: f64,
    /// Bytes that came to a measured agent on average, to a light one, and to the manager.
    measured_bytes: f64,
    light_bytes: f64,
    /// Events of peers that came to all agents of the first start.
    events: u64,
}

impl<'r> Measurement<'r> {
    /// Makes all objects, starts everything at once, and waits until every node encrypts and enforces.
    fn begin(rig: &'r Rig<'r>, report: &mut Report, nodes: u32) -> Result<Self> {
        report.figure("nodes", nodes);
        report.figure("measured_agents", MEASURED);
        let begun = Instant::now();
        let made = rig.objects("objects", 1, nodes)?;
        report.figure("objects_s", tenths(begun.elapsed().as_secs_f64()));
        report.figure("node_object_bytes", &made["node_bytes"]);
        report.figure("pod_object_bytes", &made["pod_bytes"]);
        let (begun, before) = (Instant::now(), meter::writes(rig.lab)?);
        let manager = rig.manager()?;
        let measured = (1..=MEASURED).map(|number| rig.measured(number)).collect::<Result<Vec<_>>>()?;
        let light = rig.light("light", MEASURED + 1, nodes - MEASURED)?;
        let this = Self { rig, nodes, measured, light, manager };
        let mut peak = Peak::new(before);
        let encrypting = this.wait_for(nodes, "encrypting", &mut peak)?;
        report.figure("first_start_s", tenths(begun.elapsed().as_secs_f64()));
        note(format!("  {encrypting}"));
        this.wait_for(nodes, "enforcing", &mut peak)?;
        report.figure("first_enforcing_s", tenths(begun.elapsed().as_secs_f64()));
        report.figure("first_start_writes_per_s_max", tenths(peak.most));
        let now = this.sample()?;
        report.figure("first_start_writes", now.writes.ours - before.ours);
        report.figure("agent_start_cpu_s", hundredths(now.measured));
        report.figure("light_start_cpu_s", hundredths(now.light));
        report.figure("first_start_peer_events_per_agent", tenths(this.each(now.events)));
        report.figure("first_start_mib_per_agent", hundredths(now.measured_bytes / f64::from(1 << 20)));
        report.figure("first_start_mib_per_light_agent", hundredths(now.light_bytes / f64::from(1 << 20)));
        Ok(this)
    }

    fn go_on(mut self, report: &mut Report, profile: Profile) -> Result<()> {
        thread::sleep(SETTLE);
        let idle = self.idle(report, profile.lasting(60, 60))?;
        self.join(report, idle)?;
        self.rotate(report)?;
        self.restart_manager(report)?;
        let running = self.measured.iter().chain([&self.light, &self.manager]).all(Recorded::is_running);
        report.check(running, "a process of the rig ended");
        Ok(())
    }

    /// Nothing changes but the heartbeats. Returns the seconds of processor time that a measured agent uses in a second.
    fn idle(&self, report: &mut Report, lasting: Duration) -> Result<f64> {
        for (name, process) in [("agent_rss_mib", &self.measured[0]), ("manager_rss_mib", &self.manager)] {
            report.figure(name, tenths(meter::rss_mib(process)?));
        }
        let light = meter::rss_mib(&self.light)?;
        report.figure("light_process_rss_mib", tenths(light));
        report.figure("light_rss_mib_each", hundredths(light / self.lights()));
        let (before, looks) = (self.sample()?, self.looks()?);
        thread::sleep(lasting);
        let (after, looked) = (self.sample()?, self.looks()?);
        let seconds = (after.at - before.at).as_secs_f64();
        report.figure("idle_s", tenths(seconds));
        report.expect("idle_writes", after.writes.ours - before.writes.ours, 0);
        report.figure("idle_event_writes", after.writes.events - before.writes.events);
        report.expect("idle_object_events", after.events - before.events, 0);
        let percent = |after: f64, before: f64| hundredths((after - before) / seconds * 100.0);
        report.figure("agent_idle_cpu_percent", percent(after.measured, before.measured));
        report.figure("light_idle_cpu_percent", percent(after.light, before.light));
        report.figure("manager_idle_cpu_percent", percent(after.manager, before.manager));
        let bytes = |after: f64, before: f64| tenths((after - before).max(0.0) / seconds);
        report.figure("idle_api_bytes_per_s_per_agent", bytes(after.measured_bytes, before.measured_bytes));
        report.figure("idle_api_bytes_per_s_per_light_agent", bytes(after.light_bytes, before.light_bytes));
        let (count, spent) = (looked.0 - looks.0, looked.1 - looks.1);
        report.figure("noop_ms", if count > 0.0 { Some(hundredths(spent / count * 1000.0)) } else { None });
        Ok((after.measured - before.measured) / seconds)
    }

    /// One node joins.
    fn join(&mut self, report: &mut Report, idle: f64) -> Result<()> {
        let number = self.nodes + 1;
        self.rig.objects("objects-join", number, 1)?;
        thread::sleep(Duration::from_secs(5));
        let before = self.sample()?;
        self.rig.light("light-join", number, 1)?;
        self.wait_for(number, "enforcing", &mut Peak::new(before.writes))?;
        report.figure("join_s", tenths(before.at.elapsed().as_secs_f64()));
        thread::sleep(Duration::from_secs(5));
        let after = self.sample()?;
        let seconds = (after.at - before.at).as_secs_f64();
        report.figure("join_events_per_agent", hundredths(self.each(after.events - before.events)));
        report.figure("join_writes", after.writes.ours - before.writes.ours);
        let cpu = (after.measured - before.measured - idle * seconds).max(0.0);
        report.figure("agent_join_cpu_ms", tenths(cpu * 1000.0));
        report.figure("light_join_cpu_ms", hundredths((after.light - before.light) * 1000.0));
        self.nodes = number;
        Ok(())
    }

    /// All keys change.
    fn rotate(&self, report: &mut Report) -> Result<()> {
        let before = self.sample()?;
        let (mut peak, mut largest) = (Peak::new(before.writes), 0);
        let rotated = thread::scope(|scope| {
            let rotation = scope.spawn(|| self.rig.rotate());
            while !rotation.is_finished() {
                peak.look(self.rig.lab)?;
                largest =
                    largest.max(ring::read_document(self.rig.lab)?.map_or(0, |document| document.len()));
                thread::sleep(LOOK);
            }
            rotation.join().map_err(|_| anyhow::anyhow!("the rotation's thread failed"))?
        });
        report.check(rotated.is_ok(), format!("the rotation came to its end ({rotated:?})"));
        report.figure("rotation_s", tenths(before.at.elapsed().as_secs_f64()));
        thread::sleep(Duration::from_secs(5));
        let after = self.sample()?;
        report.figure("api_writes_per_s_max", tenths(peak.most));
        report.figure("rotation_writes", after.writes.ours - before.writes.ours);
        report.figure("rotation_peer_events_per_agent", hundredths(self.each(after.events - before.events)));
        report.figure("rotation_bytes_per_agent", (after.measured_bytes - before.measured_bytes).round());
        report.figure("rotation_bytes_per_light_agent", (after.light_bytes - before.light_bytes).round());
        report.figure("rotation_agent_cpu_s", hundredths(after.measured - before.measured));
        report.figure("rotation_light_cpu_s", hundredths(after.light - before.light));
        report.figure("rotation_manager_cpu_s", hundredths(after.manager - before.manager));
        report.figure("ring_bytes", largest);
        Ok(())
    }

    /// The manager is killed, and another one takes over.
    fn restart_manager(&mut self, report: &mut Report) -> Result<()> {
        self.manager.stop(Duration::ZERO)?;
        let (before, begun) = (meter::writes(self.rig.lab)?, Instant::now());
        self.manager = self.rig.manager()?;
        crate::wait::wait_until("the manager to be ready", PATIENCE, || {
            Ok(self.rig.manager_is_ready().then_some(()))
        })?;
        report.figure("manager_restart_s", tenths(begun.elapsed().as_secs_f64()));
        thread::sleep(SETTLE);
        report.figure("manager_restart_cpu_s", hundredths(meter::cpu(&self.manager)?));
        report.figure("manager_restart_writes", meter::writes(self.rig.lab)?.ours - before.ours);
        report.figure("manager_restart_rss_mib", tenths(meter::rss_mib(&self.manager)?));
        Ok(())
    }

    /// Waits until so many nodes are there, and all do this.
    fn wait_for(&self, nodes: u32, what: &str, peak: &mut Peak) -> Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        let mut told = Value::Null;
        loop {
            peak.look(self.rig.lab)?;
            let summary = self.rig.summary().unwrap_or_default();
            if summary["total"] == nodes && summary[what] == nodes {
                return Ok(summary);
            }
            if summary != told {
                note(format!("  {summary}"));
                told = summary;
            }
            anyhow::ensure!(Instant::now() < deadline, "not all of {nodes} nodes are {what}: {told}");
            for process in self.measured.iter().chain([&self.light, &self.manager]) {
                anyhow::ensure!(process.is_running(), "a process of the rig ended; see `cargo lab logs`");
            }
            thread::sleep(LOOK);
        }
    }

    fn lights(&self) -> f64 {
        f64::from(self.nodes - MEASURED)
    }

    /// Of all agents of the first start, for each.
    fn each(&self, all: u64) -> f64 {
        all as f64 / f64::from(self.nodes)
    }

    fn sample(&self) -> Result<Sample> {
        let received = meter::received(self.rig.lab)?;
        let bytes = |process: &Recorded| received.get(&process.pid).copied().unwrap_or_default() as f64;
        let mut measured = 0.0;
        for process in &self.measured {
            measured += meter::cpu(process)?;
        }
        let measured_bytes: f64 = self.measured.iter().map(bytes).sum();
        let mut events = 0;
        for name in (1..=MEASURED).map(measured_name).chain(["light".to_owned()]) {
            events += self.rig.stats(&name)?["peer_events"].as_u64().unwrap_or_default();
        }
        Ok(Sample {
            at: Instant::now(),
            writes: meter::writes(self.rig.lab)?,
            manager: meter::cpu(&self.manager)?,
            measured: measured / f64::from(MEASURED),
            light: meter::cpu(&self.light)? / self.lights(),
            measured_bytes: measured_bytes / f64::from(MEASURED),
            light_bytes: bytes(&self.light) / self.lights(),
            events,
        })
    }

    /// How many looks at the kernel the measured agents have made, and the seconds that they took.
    fn looks(&self) -> Result<(f64, f64)> {
        let (mut count, mut seconds) = (0.0, 0.0);
        for number in 1..=MEASURED {
            let page = self.rig.metrics(number)?;
            let metric = |name: &str| {
                meter::metric(&page, &format!("secureoverlay_agent_reconcile_duration_seconds_{name}"))
            };
            count += metric("count").context("no count of looks")?;
            seconds += metric("sum").context("no duration of looks")?;
        }
        Ok((count, seconds))
    }
}

/// The most writes in a second, over the time between two looks.
struct Peak {
    last: (Instant, u64),
    most: f64,
}

impl Peak {
    fn new(writes: Writes) -> Self {
        Self { last: (Instant::now(), writes.ours), most: 0.0 }
    }

    fn look(&mut self, lab: &Lab) -> Result<()> {
        let (writes, now) = (meter::writes(lab)?.ours, Instant::now());
        let seconds = (now - self.last.0).as_secs_f64();
        self.most = self.most.max(writes.saturating_sub(self.last.1) as f64 / seconds);
        self.last = (now, writes);
        Ok(())
    }
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
