//! Process 1 of a guest: mounts, modules, one interface, then the exec server; and reaping.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::wait::waitpid;
use nix::unistd::sethostname;

use super::{GuestArgs, modules, serve};
use crate::network::QUEUE;
use crate::run::quiet;

/// The name under which the host's files are seen before anything is mounted over them.
const SELF: &str = "/proc/self/exe";

/// Runs as process 1, never returns normally: the kernel panics (and so the guest ends) if it does.
pub fn main(args: &GuestArgs, server: bool) -> Result<()> {
    if server {
        return serve::main();
    }
    prepare(args)?;
    // Reaping all children and waiting for one's own do not go together in one process.
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    words.push("--server".into());
    Command::new(SELF)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .args(words)
        .spawn()
        .context("starting the exec server")?;
    loop {
        if waitpid(None, None).is_err() {
            // No children left: the exec server is gone, and with it the way to this guest.
            anyhow::bail!("the exec server ended");
        }
    }
}

fn prepare(args: &GuestArgs) -> Result<()> {
    virtual_file_systems()?;
    // Before memory covers the places that the host's files may be in.
    for spec in &args.share {
        let (host, guest) = spec.split_once(':').context("a share is HOSTDIR:GUESTDIR")?;
        mount_fs("hostfs", Path::new(guest), Some(host))?;
    }
    modules::load_all(&args.modules)?;
    for dir in &args.copied {
        copied(dir)?;
    }
    let opened = |dir: &PathBuf| File::open(dir).with_context(|| format!("opening {}", dir.display()));
    let kept: Vec<File> = args.kept.iter().map(opened).collect::<Result<_>>()?;
    for dir in &args.scratch {
        scratch(dir)?;
    }
    for (dir, opened) in args.kept.iter().zip(&kept) {
        uncovered(dir, opened)?;
    }
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>)
        .context("sharing the mounts")?;
    sethostname(&args.hostname).context("setting the host name")?;
    sysctls();
    network(args)
}

fn virtual_file_systems() -> Result<()> {
    mount_fs("proc", Path::new("/proc"), None)?;
    mount_fs("sysfs", Path::new("/sys"), None)?;
    mount_fs("cgroup2", Path::new("/sys/fs/cgroup"), None)?;
    for (fs, dir) in [("devpts", "/dev/pts"), ("tmpfs", "/dev/shm"), ("mqueue", "/dev/mqueue")] {
        fs::create_dir_all(dir).with_context(|| format!("creating {dir}"))?;
        mount_fs(fs, Path::new(dir), (fs == "devpts").then_some("newinstance,ptmxmode=0666,mode=0620"))?;
    }
    drop(fs::remove_file("/dev/ptmx"));
    std::os::unix::fs::symlink("pts/ptmx", "/dev/ptmx").context("linking /dev/ptmx")?;
    for (link, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
    {
        drop(std::os::unix::fs::symlink(target, Path::new("/dev").join(link)));
    }
    Ok(())
}

fn mount_fs(kind: &str, on: &Path, data: Option<&str>) -> Result<()> {
    mount(Some(kind), on, Some(kind), MsFlags::empty(), data)
        .with_context(|| format!("mounting {kind} on {}", on.display()))
}

fn scratch(dir: &Path) -> Result<()> {
    if !dir.is_dir() {
        return Ok(());
    }
    let mode = fs::metadata(dir).map_or(0o755, |m| m.permissions().mode() & 0o7777);
    mount_fs("tmpfs", dir, Some(&format!("mode={mode:o},size=100%")))
}

/// Puts a directory of the host back, as it is mounted, where memory has covered the place that it is in.
fn uncovered(dir: &Path, opened: &File) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    mount(Some(&source), dir, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("keeping {}", dir.display()))
}

/// The host's files are not to be written by guests; what must be writable is copied into memory.
fn copied(dir: &Path) -> Result<()> {
    let staging = PathBuf::from("/dev/shm/copied");
    fs::create_dir_all(&staging).context("preparing a copy")?;
    quiet(Command::new("cp").arg("-a").arg(dir.join(".")).arg(&staging))?;
    scratch(dir)?;
    quiet(Command::new("cp").arg("-a").arg(staging.join(".")).arg(dir))?;
    fs::remove_dir_all(&staging).context("removing the first copy")
}

fn sysctls() {
    for (name, value) in [
        // Probing at a thousand packets a second overruns the default receive buffer.
        ("net/core/rmem_max", "16777216"),
        ("net/core/wmem_max", "16777216"),
        ("net/core/netdev_max_backlog", QUEUE),
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/ping_group_range", "0 2147483647"),
        ("vm/overcommit_memory", "1"),
        ("kernel/panic", "-1"),
        ("fs/inotify/max_user_instances", "1024"),
    ] {
        // A kernel without one of them is still of use.
        drop(fs::write(Path::new("/proc/sys").join(name), value));
    }
}

fn network(args: &GuestArgs) -> Result<()> {
    let ip = |words: &[&str]| quiet(Command::new("ip").args(words));
    ip(&["link", "set", "lo", "up"])?;
    ip(&["addr", "add", &format!("{}/{}", args.address, args.prefix), "dev", "vec0"])?;
    ip(&["link", "set", "vec0", "txqueuelen", QUEUE, "up"])?;
    if let Some(gateway) = args.gateway {
        ip(&["route", "add", "default", "via", &gateway.to_string()])?;
    }
    Ok(())
}
