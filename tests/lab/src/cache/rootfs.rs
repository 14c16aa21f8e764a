//! The nodes' root file system: a small Debian with containerd, shared read-only by all guests.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::packages::{Suite, install_missing};
use crate::progress::stage;
use crate::run::quiet;

const PACKAGES: &[&str] = &[
    "busybox-static",
    "containerd",
    "containernetworking-plugins",
    "curl",
    "iperf3",
    "iproute2",
    "iptables",
    "iputils-ping",
    "kmod",
    "libcap2-bin",
    "procps",
    "strongswan-starter",
    "strongswan-swanctl",
    "tcpdump",
];

/// The directory in the root file system where the host's directories are mounted.
pub const MOUNTS: &str = "lab";

/// The root file system of a Debian suite in the cache, made if it is not there.
pub fn get(suite: &str) -> Result<PathBuf> {
    let digest = Sha256::digest(PACKAGES.join(" "));
    let key: String = digest.iter().take(4).map(|b| format!("{b:02x}")).collect();
    super::entry(&format!("rootfs-{suite}-{key}"), |dir| {
        let step = stage("making the nodes' root file system, once", "60 s");
        install_missing(&[("mmdebstrap", "mmdebstrap")])?;
        let packages = Suite::open(suite)?;
        quiet(
            Command::new("mmdebstrap")
                .args(["--quiet", "--variant=minbase", "--mode=root"])
                .args(["--aptopt=APT::Install-Recommends \"false\"", "--aptopt=APT::Sandbox::User \"root\""])
                .arg("--aptopt=Acquire::Check-Valid-Until \"false\"")
                .args(["--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*"])
                .args(["--dpkgopt=path-exclude=/usr/share/locale/*"])
                .arg(format!("--include={}", PACKAGES.join(",")))
                .arg(suite)
                .arg(dir)
                .arg(packages.sources_file()),
        )?;
        for name in ["cache", "node", "images"] {
            let path = dir.join(MOUNTS).join(name);
            fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        }
        step.done();
        Ok(())
    })
}
