//! `lab kernel`: one command under a kernel that has everything, on the host's own files.

use std::env;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use nix::sched::{CloneFlags, unshare};

use crate::cache::kernel::Kernel;
use crate::exec::{self, Request};
use crate::host;
use crate::run::{last_lines, quiet};
use crate::uml::Uml;

const RUNS: &str = "/run/secureoverlay-lab-kernel";
const HOST: &str = "169.254.77.1";
/// Directories that are the guest's own.
const SCRATCH: [&str; 3] = ["/run", "/tmp", "/var/tmp"];
const GUEST: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 2);

/// Arguments of `lab kernel`.
#[derive(Debug, Args)]
pub struct KernelArgs {
    /// Memory of the guest.
    #[arg(long, default_value = "1G")]
    mem: String,
    /// A directory in which the command may write host files (they are read-only otherwise, and /tmp and /run
    /// are the guest's own, but for what the command needs of them); may be repeated.
    #[arg(long, value_name = "DIR")]
    writable: Vec<PathBuf>,
    /// The command, run as root in the current directory with the current environment.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Boots a guest, runs the command in it, and returns its exit status.
pub fn run(args: &KernelArgs) -> Result<i32> {
    host::must_be_able_to_run_guests()?;
    let kernel = Kernel::get()?;
    remove_leftovers();
    let directory = Path::new(RUNS).join(std::process::id().to_string());
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let result = in_guest(args, &kernel, &directory);
    drop(fs::remove_dir_all(&directory));
    result
}

fn in_guest(args: &KernelArgs, kernel: &Kernel, directory: &Path) -> Result<i32> {
    // A network of its own, gone with this process: several runs do not see each other.
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
    quiet(Command::new("ip").args(["tuntap", "add", "dev", "tap0", "mode", "tap"]))?;
    quiet(Command::new("ip").args(["addr", "add", &format!("{HOST}/30"), "dev", "tap0"]))?;
    quiet(Command::new("ip").args(["link", "set", "tap0", "up"]))?;
    let init = env::current_exe().context("finding this program")?;
    let mut arguments = ["--hostname", "kernel", "--prefix", "30", "--address"].map(String::from).to_vec();
    arguments.extend([GUEST.to_string(), "--modules".into(), kernel.modules.display().to_string()]);
    for dir in SCRATCH {
        arguments.extend(["--scratch".into(), dir.into()]);
    }
    let mut seen = needed(args)?;
    for dir in &args.writable {
        let dir = dir.canonicalize().with_context(|| format!("--writable {}", dir.display()))?;
        arguments.extend(["--share".into(), format!("{0}:{0}", dir.display())]);
        seen.push(dir);
    }
    for dir in seen.iter().filter(|dir| SCRATCH.iter().any(|scratch| dir.starts_with(scratch))) {
        arguments.extend(["--kept".into(), dir.display().to_string()]);
    }
    let words = Uml {
        kernel,
        root: Path::new("/"),
        init: &init,
        memory: &args.mem,
        tap: "tap0",
        mac: "52:54:00:c8:00:00",
        arguments,
        directory,
    }
    .words();
    let log = File::create(Uml::console(directory)).context("opening the guest's console")?;
    // The guest must not outlive this process, however that ends.
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "SIGKILL", "setsid"])
        .args(words)
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("sharing the console")?)
        .stderr(log)
        .spawn()
        .context("starting the guest's kernel")?;
    let result = run_command(args, &mut child);
    // Nothing in the guest outlives its command, so there is nothing to shut down in order.
    drop(child.kill());
    drop(child.wait());
    result.with_context(|| {
        let console = fs::read_to_string(Uml::console(directory)).unwrap_or_default();
        format!("the guest's console ended with:\n{}\n", last_lines(&console, 30))
    })
}

/// The directories without which the command can't be started: the current one, and the program's.
fn needed(args: &KernelArgs) -> Result<Vec<PathBuf>> {
    let program = args.command.first().map(Path::new).filter(|program| program.is_absolute());
    let cwd = env::current_dir().context("finding the current directory")?;
    Ok(program.and_then(Path::parent).map(Path::to_path_buf).into_iter().chain([cwd]).collect())
}

fn run_command(args: &KernelArgs, guest: &mut Child) -> Result<i32> {
    let patience = Duration::from_secs(30);
    let stream = exec::connect(GUEST, patience, || matches!(guest.try_wait(), Ok(None)))?;
    let cwd = env::current_dir().context("finding the current directory")?;
    let request = Request {
        argv: args.command.clone(),
        env: Some(
            env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
                .collect(),
        ),
        cwd: Some(cwd.display().to_string()),
    };
    exec::run(&stream, &request, Some(Box::new(io::stdin())), &mut io::stdout(), &mut io::stderr())
}

/// Removes the directories of runs that did not end by themselves; their guests ended with them.
fn remove_leftovers() {
    for entry in fs::read_dir(RUNS).into_iter().flatten().flatten() {
        let alive = entry.file_name().to_str().is_some_and(|pid| Path::new("/proc").join(pid).exists());
        if !alive {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}
