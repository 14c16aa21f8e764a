//! Programs the SAs and policies of many peers into the kernel that this runs on, in several ways, and measures each.
//!
//! Needs root and a kernel with IPsec; works in network namespaces of its own.

mod cluster;
mod ip;
mod limit;
mod meter;
mod ours;

use std::{
    env,
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use nix::sched::{CloneFlags, unshare};
use secureoverlay_agent_core::{
    journal::{Journal, NoStore, Record},
    plan::ReconcileTarget,
    reconcile::{Reconciler, SaLimits},
    teardown::TeardownPhase,
};
use secureoverlay_agent_kernel::XfrmSocket;
use serde_json::{Value, json};

use crate::{cluster::Cluster, meter::Meter};

/// Measures how fast SAs and policies get into this kernel; prints a line of JSON for each measurement.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// All ways in turn, for each number of peers.
    All {
        /// Numbers of peers.
        #[arg(long, value_delimiter = ',', default_value = "100,1000,5000")]
        peers: Vec<u16>,
        /// How often each is measured; `ip -batch` every fourth time.
        #[arg(long, default_value_t = 3)]
        rounds: u32,
        /// Leave `ip -batch` out: it takes longer than everything else.
        #[arg(long)]
        without_ip: bool,
    },
    /// One way, in a process and a network namespace of its own.
    One {
        /// Which.
        way: Way,
        /// Number of peers.
        peers: u16,
    },
}

/// After the first, how often one process programs everything; the quickest counts.
const LOADS: usize = 8;

/// How the kernel is programmed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// Batched netlink with messages built beforehand: nothing can be faster.
    Limit,
    /// The agent's code.
    Ours,
    /// `ip -batch`.
    Ip,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Cmd::All { peers, rounds, without_ip } => all(&peers, rounds, without_ip),
        Cmd::One { way, peers } => {
            println!("{}", one(way, peers)?);
            Ok(())
        }
    }
}

fn all(peers: &[u16], rounds: u32, without_ip: bool) -> anyhow::Result<()> {
    // The first use of a cipher and of a table costs the kernel more than the others.
    for way in [Way::Limit, Way::Ours, Way::Ip] {
        apart(way, 10)?;
    }
    for peers in peers {
        for round in 0..rounds {
            for way in [Way::Limit, Way::Ours, Way::Ip] {
                if way != Way::Ip || (round % 4 == 0 && !without_ip) {
                    print!("{}", apart(way, *peers)?);
                }
            }
        }
    }
    Ok(())
}

/// [`one`] in a process of its own, so that its memory is its own.
fn apart(way: Way, peers: u16) -> anyhow::Result<String> {
    let value = way.to_possible_value().context("a way without a name")?;
    let exe = env::current_exe().context("finding this program")?;
    let output = Command::new(exe)
        .args(["one", value.get_name(), &peers.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .context("starting this program again")?;
    ensure!(output.status.success(), "measuring {} with {peers} peers failed", value.get_name());
    String::from_utf8(output.stdout).context("reading a measurement")
}

fn one(way: Way, peers: u16) -> anyhow::Result<Value> {
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
    let cluster = Cluster::of(peers)?;
    let plan = cluster.plan();
    let objects = plan.sas.len() + plan.policies.len();
    let mut line = match way {
        Way::Ours => ours::measure(&cluster)?,
        Way::Limit => {
            let batches = limit::batches(&plan);
            let load = || {
                let meter = Meter::start();
                limit::send(&batches)?;
                anyhow::Ok(meter.stop())
            };
            let mut least = load()?;
            for _ in 0..LOADS {
                remove()?;
                least = least.least(load()?);
            }
            json!({"way": "limit", "load": least})
        }
        Way::Ip => {
            let script = ip::script(&plan)?;
            let meter = Meter::start_for_children();
            ip::run(&script)?;
            json!({"way": "ip", "load": meter.stop()})
        }
    };
    if way != Way::Ours {
        // Only if our own code finds nothing to change are the objects the same.
        let found = reconciler()?.run(&cluster.target())?;
        ensure!(
            found.is_complete() && found.changed == 0,
            "the objects are not those of the plan: {found:?}"
        );
    }
    remove()?;
    line["peers"] = json!(peers);
    line["objects"] = json!(objects);
    Ok(line)
}

/// Leaves nothing to be cleaned up behind the next measurement's back.
fn remove() -> anyhow::Result<()> {
    let nothing = ReconcileTarget { teardown: TeardownPhase::Removed, input: None };
    let outcome = reconciler()?.run(&nothing)?;
    ensure!(outcome.is_complete(), "removing failed: {outcome:?}");
    Ok(())
}

/// The agent's code at this kernel, with a journal in memory that knows nothing.
fn reconciler() -> anyhow::Result<Reconciler<XfrmSocket, NoStore>> {
    let journal = Journal::new(Record::default(), NoStore);
    Ok(Reconciler::new(XfrmSocket::open()?, journal, SaLimits::default()))
}
