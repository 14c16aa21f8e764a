//! The command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};

use crate::cache::kubernetes::Kubernetes;
use crate::capture::Capture;
use crate::demo;
use crate::guest::{self, GuestArgs};
use crate::host;
use crate::interrupt;
use crate::kernel_command::{self, KernelArgs};
use crate::lab::Lab;
use crate::largest;
use crate::lifecycle;
use crate::product;
use crate::progress::note;
use crate::scenario::{self, Profile};
use crate::scenarios;
use crate::state::{DIRECTORY, Lock};

/// Nodes of a lab for which no other number is asked.
const NODES: u8 = 3;

/// A real Kubernetes cluster with a kernel per node, on one small machine.
#[derive(Debug, Parser)]
#[command(name = "cargo lab", version, max_term_width = 110)]
struct Cli {
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
    /// Remove the cluster and everything that belongs to it, also after a crash.
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
    /// Run scenarios, in this lab or in one made for it; prints one line of JSON for each.
    Run {
        #[arg(required = true)]
        scenarios: Vec<String>,
        /// The long figures.
        #[arg(long)]
        full: bool,
        /// Keep a lab that was made for this.
        #[arg(long)]
        keep: bool,
        /// Version of Kubernetes; otherwise that of the lab that runs, or today's.
        #[arg(long)]
        kubernetes: Option<Kubernetes>,
    },
    /// Name the scenarios.
    List,
    /// Tell the whole story, for somebody who has never seen it: `make demo`.
    Demo {
        /// Keep a lab that was made for this.
        #[arg(long)]
        keep: bool,
    },
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
    let result = dispatch(Cli::parse());
    interrupt::let_it_finish();
    match result {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(1)),
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: Cli) -> Result<i32> {
    if !matches!(cli.command, Cmd::List) {
        host::must_be_root()?;
    }
    match cli.command {
        Cmd::Up { nodes, kubernetes } => {
            let lock = Lock::take()?;
            interrupt::remove_lab_on_interrupt(true)?;
            let lab = Lab::up(&lock, nodes, kubernetes)?;
            eprintln!("{}", lab.status());
        }
        Cmd::Down => {
            let _lock = Lock::take()?;
            lifecycle::remove()?;
        }
        Cmd::Status => println!("{}", Lab::running()?.status()),
        Cmd::Kubectl { arguments } => return here(Lab::running()?.kubectl_command().args(arguments)),
        Cmd::Inside { command } => {
            return here(Lab::running()?.inside_command(&command[0]).args(&command[1..]));
        }
        Cmd::Exec { node, command } => return Lab::running()?.node(&node)?.exec_here(&command),
        Cmd::Logs { what } => logs(what.as_deref())?,
        Cmd::Reboot { node, graceful } => {
            let _lock = Lock::take()?;
            Lab::running()?.reboot(&node, graceful)?;
        }
        Cmd::LoadImages => {
            let _lock = Lock::take()?;
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
        Cmd::Run { scenarios, full, keep, kubernetes } => {
            let chosen = scenario::named(&scenarios)?;
            let profile = if full { Profile::Full } else { Profile::Short };
            let count = chosen.len();
            // What is measured in a guest alone comes last, when a lab that was made for the others is gone.
            let (clusters, guests): (Vec<_>, Vec<_>) =
                chosen.into_iter().partition(|scenario| scenario.needs_cluster());
            let mut failed = Vec::new();
            if !clusters.is_empty() {
                with_lab(keep, kubernetes, |lab| {
                    failed = scenario::run_all(Some(lab), &clusters, profile);
                    Ok(0)
                })?;
            }
            failed.extend(scenario::run_all(None, &guests, profile));
            return Ok(i32::from(!scenario::conclude(count, &failed)));
        }
        Cmd::Demo { keep } => return with_lab(keep, None, |lab| Ok(i32::from(!demo::run(lab)?))),
        Cmd::List => {
            for scenario in scenarios::ALL {
                println!("{:16} {}", scenario.name, scenario.about);
            }
        }
        Cmd::Kernel(args) => return kernel_command::run(&args),
        Cmd::MeasureMtu => largest::main()?,
        Cmd::Guest { args, server } => guest::main(&args, server)?,
    }
    Ok(0)
}

/// Does something with the lab that runs and the images of now, or with a lab made for it. The images are built while
/// the lab comes up, which takes minutes the first time.
fn with_lab(
    keep: bool,
    kubernetes: Option<Kubernetes>,
    action: impl FnOnce(&Lab) -> Result<i32>,
) -> Result<i32> {
    let lock = Lock::take()?;
    let (lab, ours) = match Lab::attach()? {
        Some(lab) => {
            let version = lab.release().version;
            ensure!(
                kubernetes.is_none_or(|wanted| wanted.release().version == version),
                "the lab on this machine is of Kubernetes {version}; `cargo lab down` removes it"
            );
            (lab, false)
        }
        None => {
            interrupt::remove_lab_on_interrupt(!keep)?;
            let up = thread::scope(|scope| {
                let programs =
                    scope.spawn(|| product::programs().inspect_err(|error| note(format!("{error:#}"))));
                let up = Lab::up(&lock, NODES, kubernetes.unwrap_or_default());
                drop(programs.join());
                up
            });
            (up?, true)
        }
    };
    // An image that cannot be built says so here.
    let status = lab.load_images().and_then(|()| action(&lab));
    if ours && !keep {
        lab.down(&lock)?;
    }
    status
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
    let mut all = vec![(Path::new(DIRECTORY).join("logs"), String::new())];
    for node in fs::read_dir(Path::new(DIRECTORY).join("nodes")).into_iter().flatten().flatten() {
        all.push((node.path(), format!("{}/", node.file_name().to_string_lossy())));
    }
    all
}
