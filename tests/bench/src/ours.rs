//! The agent's code, from an empty kernel through a rotation.

use std::time::Instant;

use anyhow::{Context, ensure};
use secureoverlay_agent::{
    journal::Journal,
    kernel::XfrmSocket,
    plan::Plan,
    reconcile::{Limits, Outcome, Reconciler},
};
use serde_json::{Value, json};

use crate::{
    LOADS,
    cluster::Cluster,
    meter::{Measured, Meter},
    remove,
};

/// What happens to a cluster.
type Change = fn(&mut Cluster);

/// Everything that the agent does with this many peers, step by step.
pub fn measure(cluster: &Cluster) -> anyhow::Result<Value> {
    let mut cluster =
        Cluster { ring: cluster.ring.clone(), peers: cluster.peers.clone(), local: cluster.local };
    let mut line = json!({"way": "ours"});

    // The first time pays for fresh memory too. In a guest of User Mode Linux a page fault costs a hundred times what
    // it does on hardware, so what is compared are the times after it, in memory that the process has already.
    let first = load(&cluster)?;
    line["first_load"] = json!(first);
    let mut least = first;
    for _ in 0..LOADS {
        remove()?;
        least = least.least(load(&cluster)?);
    }
    line["load"] = json!(least);

    // The same with the journal in a file, as the agent has it where it has a place for one.
    remove()?;
    let directory = tempfile::tempdir().context("making a directory for the journal")?;
    let plan = cluster.plan();
    let meter = Meter::start();
    let journal = Journal::open(directory.path(), cluster.local.boot);
    let mut reconciler = Reconciler::with(XfrmSocket::open()?, journal, Limits::default());
    let outcome = run(&mut reconciler, &plan)?;
    line["journal_load"] = step(meter.stop(), &outcome);

    let meter = Meter::start();
    let outcome = run(&mut reconciler, &plan)?;
    line["noop"] = step(meter.stop(), &outcome);

    let meter = Meter::start();
    let outcome = run(&mut Reconciler::new(XfrmSocket::open()?), &cluster.plan())?;
    line["adopt"] = step(meter.stop(), &outcome);

    let steps: [(&str, Change); 3] =
        [("stage", Cluster::stage), ("activate", Cluster::activate), ("retire", Cluster::retire)];
    for (name, change) in steps {
        change(&mut cluster);
        let meter = Meter::start();
        let outcome = run(&mut reconciler, &cluster.plan())?;
        line[name] = step(meter.stop(), &outcome);
        ensure!(outcome.changed >= cluster.peers.len(), "{name} changed next to nothing: {outcome:?}");
    }
    Ok(line)
}

/// From nothing to a kernel that holds everything.
fn load(cluster: &Cluster) -> anyhow::Result<Measured> {
    let meter = Meter::start();
    let plan = cluster.plan();
    let mut reconciler = Reconciler::new(XfrmSocket::open()?);
    let outcome = run(&mut reconciler, &plan)?;
    let measured = meter.stop();
    let wanted = plan.states.len() + plan.policies.len();
    ensure!(outcome.changed == wanted, "{} of {wanted} objects made: {outcome:?}", outcome.changed);
    Ok(measured)
}

fn run(reconciler: &mut Reconciler<XfrmSocket>, plan: &Plan) -> anyhow::Result<Outcome> {
    let outcome = reconciler.run(plan, Instant::now())?;
    ensure!(outcome.is_complete() && outcome.findings.is_empty(), "not all was done: {outcome:?}");
    Ok(outcome)
}

fn step(measured: Measured, outcome: &Outcome) -> Value {
    let mut step = json!(measured);
    step["writes"] = json!(outcome.changed);
    step
}
