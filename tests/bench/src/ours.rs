//! The agent's code, from an empty kernel through a rotation.

use std::mem;

use anyhow::{Context, ensure};
use secureoverlay_agent::run::startup;
use secureoverlay_agent_core::{
    journal::JournalStore,
    plan::{Planner, ReconcileTarget},
    reconcile::{ReconcileReport, Reconciler, SaLimits},
};
use secureoverlay_agent_kernel::XfrmSocket;
use secureoverlay_k8s::node_encryption::Durability;
use serde_json::{Value, json};

use crate::{
    LOADS,
    cluster::Cluster,
    meter::{Measured, Meter},
    reconciler, remove,
};

/// A tmpfs, as the agent's directory has to be in.
const MEMORY: &str = "/dev/shm";

/// What happens to a cluster.
type Change = fn(&mut Cluster);

/// Everything that the agent does with this many peers, step by step.
pub fn measure(cluster: &Cluster) -> anyhow::Result<Value> {
    let mut cluster = cluster.clone();
    let mut line = json!({"way": "ours"});

    // The first time pays for fresh memory too. In a guest of User Mode Linux a page fault costs a hundred times what
    // it does on hardware, so what is compared are the times after it, in memory that the process has already.
    let mut planner = Planner::default();
    let first = load(&cluster, &mut planner)?;
    line["first_load"] = json!(first);
    // The key agreements are there from now on: one for each peer and boot, as peers appear, they are no part of what the
    // kernel costs.
    let mut least: Option<Measured> = None;
    for _ in 0..LOADS {
        remove()?;
        let load = load(&cluster, &mut planner)?;
        least = Some(least.map_or(load, |least| least.least(load)));
    }
    line["load"] = json!(least);
    line["agreements"] = json!(agreements(&cluster)?);

    // The same with the journal in a file, as the agent has it where it has a place for one.
    remove()?;
    let directory = tempfile::tempdir_in(MEMORY).context("making a directory for the journal")?;
    let target = cluster.target();
    let meter = Meter::start();
    let opened = startup::from_directory("node0", directory.path())?;
    ensure!(
        opened.durability == Durability::Boot,
        "{MEMORY} is no place for a journal: {:?}",
        opened.durability
    );
    let mut lasting = Reconciler::new(XfrmSocket::open()?, opened.journal, SaLimits::default());
    let outcome = run(&mut lasting, &target)?;
    line["journal_load"] = step(meter.stop(), &outcome);

    let meter = Meter::start();
    let outcome = run(&mut lasting, &target)?;
    line["noop"] = step(meter.stop(), &outcome);

    let meter = Meter::start();
    let outcome = run(&mut reconciler()?, &cluster.target())?;
    line["adopt"] = step(meter.stop(), &outcome);

    let steps: [(&str, Change); 3] =
        [("stage", Cluster::stage), ("activate", Cluster::activate), ("retire", Cluster::retire)];
    for (name, change) in steps {
        change(&mut cluster);
        let target = cluster.target();
        let meter = Meter::start();
        let outcome = run(&mut lasting, &target)?;
        line[name] = step(meter.stop(), &outcome);
        ensure!(outcome.changed >= cluster.peers(), "{name} changed next to nothing: {outcome:?}");
    }
    Ok(line)
}

/// From nothing to a kernel that holds everything.
fn load(cluster: &Cluster, planner: &mut Planner) -> anyhow::Result<Measured> {
    let target = cluster.target();
    let meter = Meter::start();
    let mut reconciler = reconciler()?.with_planner(mem::take(planner));
    let outcome = run(&mut reconciler, &target)?;
    let measured = meter.stop();
    *planner = reconciler.into_planner();
    let plan = cluster.plan();
    let wanted = plan.sas.len() + plan.policies.len();
    ensure!(outcome.changed == wanted, "{} of {wanted} objects made: {outcome:?}", outcome.changed);
    Ok(measured)
}

/// The least of several times for the key agreements with all peers.
fn agreements(cluster: &Cluster) -> anyhow::Result<f64> {
    let mut least = f64::INFINITY;
    for _ in 0..LOADS {
        let meter = Meter::start();
        cluster.agree()?;
        least = least.min(meter.stop().seconds);
    }
    Ok(least)
}

fn run<S: JournalStore>(
    reconciler: &mut Reconciler<XfrmSocket, S>,
    target: &ReconcileTarget,
) -> anyhow::Result<ReconcileReport> {
    let outcome = reconciler.run(target)?;
    ensure!(outcome.is_complete() && outcome.findings.is_empty(), "not all was done: {outcome:?}");
    Ok(outcome)
}

fn step(measured: Measured, outcome: &ReconcileReport) -> Value {
    let mut step = json!(measured);
    step["writes"] = json!(outcome.changed);
    step
}
