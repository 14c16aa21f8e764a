//! Whether this machine can run the lab, said before anything is begun.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::statvfs::statvfs;
use nix::unistd::Uid;

use crate::cache;
use crate::cache::kubernetes::Release;
use crate::cache::packages::install_missing;

/// Refuses machines on which no guest can be started; installs what guests need on the host.
pub fn must_be_able_to_run_guests() -> Result<()> {
    ensure!(cfg!(all(target_os = "linux", target_arch = "x86_64")), "the lab runs on Linux on x86-64 only");
    must_be_root()?;
    ensure!(
        Path::new("/dev/net/tun").exists(),
        "this machine has no /dev/net/tun (module tun), which guests need"
    );
    ensure!(Path::new("/proc/self/ns/net").exists(), "this kernel has no network namespaces");
    must_hold_guests(512)?;
    install_missing(&[("ip", "iproute2"), ("setpriv", "util-linux"), ("setsid", "util-linux")])
}

/// The lab makes namespaces and taps, and its state is root's.
pub fn must_be_root() -> Result<()> {
    ensure!(Uid::effective().is_root(), "the lab makes namespaces and taps: run it as root");
    Ok(())
}

/// Installs what a cluster needs on the host beyond that.
pub fn install_tools() -> Result<()> {
    install_missing(&[("nft", "nftables"), ("nsenter", "util-linux"), ("tcpdump", "tcpdump")])
}

/// Refuses machines that are too small for so many labs, with clusters of so many nodes.
pub fn must_be_large_enough(nodes: u8, labs: u8, release: &Release) -> Result<()> {
    // Measured: a node 0.6 GiB, the control plane 0.7 GiB; and room to breathe.
    let needed_mib = u64::from(labs) * (1024 + 800 * u64::from(nodes));
    let available = available_mib()?;
    ensure!(
        available >= needed_mib,
        "{nodes} nodes in {labs} labs need about {needed_mib} MiB of memory, and {available} MiB are available"
    );
    let dir = cache::directory()?;
    must_hold_guests(needed_mib)?;
    let free_mib = free_mib(&dir)?;
    // An almost full cache needs little; an empty one the sources and build of Kubernetes.
    let wanted = if release.is_built()? { 1024 } else { 8 * 1024 };
    ensure!(
        free_mib >= wanted,
        "{} has {free_mib} MiB free, and the lab needs {wanted} (another place: SECUREOVERLAY_LAB_CACHE)",
        dir.display()
    );
    Ok(())
}

/// The guests' memory is a file there; containers often have but a small one.
fn must_hold_guests(mib: u64) -> Result<()> {
    let free = free_mib(Path::new("/dev/shm"))?;
    ensure!(free >= mib, "/dev/shm has {free} MiB free, and the guests' memory, kept there, needs {mib}");
    Ok(())
}

fn free_mib(dir: &Path) -> Result<u64> {
    let disk = statvfs(dir).with_context(|| format!("looking at the space in {}", dir.display()))?;
    Ok((disk.blocks_available() * disk.fragment_size()) >> 20)
}

fn available_mib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    text.lines()
        .find_map(|l| l.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
        .map(|kib| kib >> 10)
        .context("no MemAvailable in /proc/meminfo")
}
