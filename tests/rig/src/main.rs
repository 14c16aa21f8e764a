//! Many agents on one machine: the product's core and client code over a kernel that only counts.
//!
//! What is real: the watches, lists and writes at a real API server, the decisions, key derivation, plan, diff, the state
//! directory, and the probes, which are UDP packets between local addresses. What is not: SAs and policies are kept in
//! maps, and nothing is encrypted.
//!
//! | module | does |
//! |---|---|
//! | [`number`] | names and addresses of nodes |
//! | [`objects`] | the Node and the Pod of each, as large as those of a cluster, and their heartbeats |
//! | [`machine`] | the machine under an agent |
//! | [`sources`] | what an agent hears of the API: counted, and of light agents filtered |
//! | [`agents`] | runs one agent, or many light ones |
//! | [`core`] | one agent's decisions and plans alone |

mod agents;
mod core;
mod machine;
mod number;
mod objects;
mod sources;

use std::{ops::Range, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use secureoverlay_daemon::log::{self, LogFormat};

/// Many agents on one machine. KUBECONFIG names the credentials.
#[derive(Debug, Parser)]
#[command(name = "secureoverlay-rig")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What is logged
    #[arg(long, global = true, default_value = "warn")]
    log: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the Nodes and the agents' Pods, and send the heartbeats of the Nodes until the end
    Objects {
        #[command(flatten)]
        nodes: Nodes,
        /// Written when all are made
        #[arg(long)]
        stats: PathBuf,
    },
    /// Run light agents: they hear of all peers, and hold SAs with the measured agents only
    Light {
        #[command(flatten)]
        nodes: Nodes,
        /// The measured agents are the nodes from 1 to this one
        #[arg(long)]
        measured: u32,
        #[command(flatten)]
        shared: Shared,
    },
    /// Run one measured agent, as its pod would: it holds SAs with every node
    Measured {
        /// Its node
        #[arg(long)]
        number: u32,
        /// Port of its metrics, on the loopback
        #[arg(long)]
        port: u16,
        #[command(flatten)]
        shared: Shared,
    },
    /// Measure the decisions and plans of one agent alone: needs no API server
    Core {
        /// How many
        #[arg(long)]
        peers: u32,
    },
}

/// Nodes by their numbers.
#[derive(Clone, Copy, Debug, Args)]
struct Nodes {
    /// Number of the first
    #[arg(long)]
    first: u32,
    /// How many
    #[arg(long)]
    count: u32,
}

impl Nodes {
    const fn range(self) -> Range<u32> {
        self.first..self.first + self.count
    }
}

/// What every agent needs.
#[derive(Clone, Debug, Args)]
struct Shared {
    /// In a tmpfs: each agent has its state directory below
    #[arg(long)]
    states: PathBuf,
    /// Written every second: what the agents have heard
    #[arg(long)]
    stats: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = log::init(LogFormat::Text, &cli.log).map_err(Into::into).and_then(|()| match cli.command {
        Command::Objects { nodes, stats } => objects::run(nodes.range(), &stats),
        Command::Light { nodes, measured, shared } => agents::light(nodes.range(), measured, &shared),
        Command::Core { peers } => core::run(peers),
        Command::Measured { number, port, shared } => agents::measured(number, port, shared),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
