//! The command line.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use crate::cache::kubernetes::Kubernetes;
use crate::cache::tools::Tool;
use crate::capture::Capture;
use crate::demo;
use crate::guest::{self, GuestArgs};
use crate::host;
use crate::interrupt;
use crate::kernel_command::{self, KernelArgs};
use crate::lab::Lab;
use crate::largest;
use crate::lifecycle;
use crate::place::{LAB_VARIABLE, Place};
use crate::product;
use crate::progress::{note, seconds};
use crate::run_command::{self, RunArgs};
use crate::scenario::{Profile, Tier};
use crate::scenarios;
use crate::state::Lock;

/// Nodes of a lab for which no other number is asked.
pub const NODES: u8 = 3;

/// A real Kubernetes cluster with a kernel per node, on one small machine.
#[derive(Debug, Parser)]
#[command(name = "cargo lab", version, max_term_width = 110)]
struct Cli {
    /// Which lab is meant: several may run beside each other.
    #[arg(long, global = true, env = LAB_VARIABLE, value_name = "NAME", value_parser = Place::new)]
    lab: Option<Place>,
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Debug, Subcommand)]
enum Cmd {
    /// Bring the cluster up.
    Up {
        /// Number of nodes; 0 is a bare API server, for tests that need no more.
        #[arg(long, default_value_t = NODES, value_parser = clap::value_parser!(u8).range(0..=8))]
        nodes: u8,
        /// Version of Kubernetes.
        #[arg(long, default_value = "1.37")]
        kubernetes: Kubernetes,
    },
    /// Remove every lab of this machine, or the one that is named, and everything that belongs to it, also after a crash.
    Down,
    /// Show what runs.
    Status,
    /// kubectl as the cluster's administrator.
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run a command on this machine, in the lab's network and with KUBECONFIG set.
    Inside {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Run a command on a node, without the help of Kubernetes.
    Exec {
        node: String,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Print a log (`kube-apiserver`, `node1/kubelet`, `node1/console`, …), or name those that there are.
    Logs { what: Option<String> },
    /// Pull a node's plug and boot it again.
    Reboot {
        node: String,
        /// Let its containers end first.
        #[arg(long)]
        graceful: bool,
    },
    /// Build the images under test and import them on all nodes.
    LoadImages,
    /// Record what is on the wire, and count it by protocol.
    Capture {
        /// How long.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// Where to write the packets.
        #[arg(long, value_name = "FILE")]
        pcap: Option<PathBuf>,
    },
    /// Run scenarios, in this lab or in labs made for it; prints one line of JSON for each.
    Run(RunArgs),
    /// What `run` starts for each lane.
    #[command(hide = true)]
    Lane {
        scenarios: Vec<String>,
        #[command(flatten)]
        profile: Profile,
        #[arg(long)]
        kubernetes: Option<Kubernetes>,
    },
    /// Name the scenarios, and say which the gate runs, how long each takes, and which need the machine for themselves.
    List,
    /// Tell the whole story, for a first-time reader: `make demo`.
    Demo {
        /// Keep a lab that was made for this.
        #[arg(long)]
        keep: bool,
    },
    /// Print where a program is that checks or installs packages; it is fetched or built if it is not there.
    Tool { tool: Tool },
    /// Print the directory of the static programs that the images hold, built if they are not there
    Programs,
    /// Run a command under the guests' kernel, which has all of IPsec, on this machine's own files.
    Kernel(KernelArgs),
    /// What the scenario `mtu` runs in a guest.
    #[command(hide = true)]
    MeasureMtu,
    /// What runs inside a guest.
    #[command(hide = true)]
    Guest {
        #[command(flatten)]
        args: GuestArgs,
        #[arg(long)]
        server: bool,
    },
}

/// Parses the command line, does what it says, and turns errors into messages.
pub fn main() -> ExitCode {
    let mut cli = Cli::parse();
    let named = cli.lab.take();
    if let Some(place) = named.clone() {
        place.choose();
    }
    let result = dispatch(cli.command, named);
    interrupt::let_it_finish();
    match result {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(1)),
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Cmd, named: Option<Place>) -> Result<i32> {
    if !matches!(command, Cmd::List) {
        host::must_be_root()?;
    }
    let place = Place::here();
    match command {
        Cmd::Up { nodes, kubernetes } => {
            let lock = Lock::take(place)?;
            interrupt::remove_on_interrupt(vec![place.clone()])?;
            let lab = Lab::up(&lock, nodes, kubernetes)?;
            eprintln!("{}", lab.status());
        }
        Cmd::Down => {
            for place in named.map_or_else(Place::all, |place| [place].into()) {
                let _lock = Lock::take(&place)?;
                lifecycle::remove(&place)?;
            }
        }
        Cmd::Status => println!("{}", Lab::running()?.status()),
        Cmd::Kubectl { arguments } => return here(Lab::running()?.kubectl_command().args(arguments)),
        Cmd::Inside { command } => {
            return here(Lab::running()?.inside_command(&command[0]).args(&command[1..]));
        }
        Cmd::Exec { node, command } => return Lab::running()?.node(&node)?.exec_here(&command),
        Cmd::Logs { what } => logs(what.as_deref())?,
        Cmd::Reboot { node, graceful } => {
            let _lock = Lock::take(place)?;
            Lab::running()?.reboot(&node, graceful)?;
        }
        Cmd::LoadImages => {
            let _lock = Lock::take(place)?;
            Lab::running()?.load_images()?;
        }
        Cmd::Capture { seconds, pcap } => {
            Lab::running()?;
            let capture = Capture::start("capture", pcap.as_deref())?;
            thread::sleep(Duration::from_secs(seconds));
            let captured = capture.stop()?;
            println!("{}", serde_json::to_string(&captured.counts()).context("encoding the counts")?);
            note(captured.path.display().to_string());
        }
        Cmd::Run(args) => return run_command::run(&args),
        Cmd::Lane { scenarios, profile, kubernetes } => {
            return run_command::lane(&scenarios, profile, kubernetes);
        }
        Cmd::Demo { keep } => return tell(keep),
        Cmd::List => {
            for scenario in scenarios::ALL {
                let tier = if scenario.tier == Tier::Gate { "gate" } else { "full" };
                let place = if scenario.alone { "alone" } else { "lane" };
                let time = seconds(scenario.estimate);
                print!("{:14} {tier} {place:5} {time:>6}  {}", scenario.name, scenario.about);
                match scenario.tier {
                    Tier::Gate => println!(),
                    Tier::FullOnly { reason } => println!(" (not in the gate: {reason})"),
                }
            }
        }
        Cmd::Programs => println!("{}", product::programs()?.display()),
        Cmd::Tool { tool } => println!("{}", tool.get()?.display()),
        Cmd::Kernel(args) => return kernel_command::run(&args),
        Cmd::MeasureMtu => largest::main()?,
        Cmd::Guest { args, server } => guest::main(&args, server)?,
    }
    Ok(0)
}

/// The story, on the lab that runs or on one made for it.
fn tell(keep: bool) -> Result<i32> {
    let lock = Lock::take(Place::here())?;
    let running = Lab::attach()?;
    let kept = keep || running.is_some();
    interrupt::remove_on_interrupt(if kept { Vec::new() } else { vec![Place::here().clone()] })?;
    let lab = running.map_or_else(|| Lab::up_with_programs(&lock, NODES, Kubernetes::default()), Ok)?;
    let told = lab.load_images().and_then(|()| demo::run(&lab));
    if !kept {
        lab.down(&lock)?;
    }
    Ok(i32::from(!told?))
}

/// Runs a command with this process's streams and takes over its exit status.
fn here(command: &mut Command) -> Result<i32> {
    let status = command.status().with_context(|| format!("starting {:?}", command.get_program()))?;
    Ok(status.code().unwrap_or(1))
}

fn logs(what: Option<&str>) -> Result<()> {
    let mut names = Vec::new();
    for (directory, prefix) in log_directories() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            let Some(name) = file.strip_suffix(".log") else { continue };
            let name = format!("{prefix}{name}");
            if what == Some(name.as_str()) {
                let mut file = fs::File::open(entry.path()).with_context(|| format!("opening {name}"))?;
                std::io::copy(&mut file, &mut std::io::stdout())
                    .with_context(|| format!("printing {name}"))?;
                return Ok(());
            }
            names.push(name);
        }
    }
    names.sort();
    match what {
        None => println!("{}", names.join("\n")),
        Some(what) => bail!("no log {what}; there are: {}", names.join(", ")),
    }
    Ok(())
}

fn log_directories() -> Vec<(PathBuf, String)> {
    let directory = Place::here().directory();
    let mut all = vec![(directory.join("logs"), String::new())];
    for node in fs::read_dir(directory.join("nodes")).into_iter().flatten().flatten() {
        all.push((node.path(), format!("{}/", node.file_name().to_string_lossy())));
    }
    all
}
