//! Kubernetes' own programs, and etcd and kubectl beside them.

mod modules;
mod release;
mod source_package;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

pub use release::{Kubernetes, Release};

use super::packages::Suite;
use crate::progress::{note, stage};
use crate::run::output;

/// The programs that are built.
const BUILT: [&str; 4] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet"];

/// The programs of a cluster.
#[derive(Debug, Clone)]
pub struct Programs {
    /// kube-controller-manager, kube-scheduler and kubelet.
    pub kubernetes: PathBuf,
    /// kube-apiserver.
    pub api_server: PathBuf,
    /// etcd.
    pub etcd: PathBuf,
    /// kubectl.
    pub kubectl: PathBuf,
    /// Of which version they are.
    pub release: &'static Release,
}

impl Programs {
    /// The programs in the cache, made if they are not there.
    ///
    /// A control plane without nodes is served by the programs in `$KUBEBUILDER_ASSETS`, where that is set;
    /// nodes want an API server of their own version.
    pub fn get(release: &'static Release, with_nodes: bool) -> Result<Self> {
        let (tools, kubectl) = (tools(release)?, kubectl(release)?);
        if let (false, Some(assets)) = (with_nodes, kubebuilder_assets()) {
            note(format!("using the API server and etcd in {}", assets.display()));
            let (api_server, etcd) = (assets.join("kube-apiserver"), assets.join("etcd"));
            return Ok(Self { kubernetes: assets, api_server, etcd, kubectl, release });
        }
        let bin = build(release)?.join("bin");
        Ok(Self {
            api_server: bin.join("kube-apiserver"),
            kubernetes: bin,
            etcd: tools.join("root/usr/bin/etcd"),
            kubectl,
            release,
        })
    }
}

fn kubebuilder_assets() -> Option<PathBuf> {
    let dir = PathBuf::from(std::env::var_os("KUBEBUILDER_ASSETS")?);
    (dir.join("kube-apiserver").is_file() && dir.join("etcd").is_file()).then_some(dir)
}

/// kubectl alone, which takes seconds.
pub fn kubectl(release: &Release) -> Result<PathBuf> {
    Ok(tools(release)?.join("root/usr/bin/kubectl"))
}

fn tools(release: &Release) -> Result<PathBuf> {
    super::entry(release.tools_entry, |dir| {
        let step = stage("fetching etcd and kubectl", "10 s");
        Suite::open(release.tools_suite)?.unpack(
            &["etcd-server", release.kubectl],
            &dir.join("packages"),
            &dir.join("root"),
        )?;
        std::fs::remove_dir_all(dir.join("packages")).context("removing the packages")?;
        step.done();
        Ok(())
    })
}

fn build(release: &Release) -> Result<PathBuf> {
    super::entry(&release.entry(), |dir| {
        std::fs::create_dir(dir.join("bin")).context("creating bin")?;
        (release.build)(release, dir)?;
        for program in BUILT {
            let says = version_of(&dir.join("bin").join(program))?;
            ensure!(
                says == format!("Kubernetes v{}", release.version),
                "the {program} that was built calls itself {says:?}"
            );
        }
        Ok(())
    })
}

fn version_of(program: &Path) -> Result<String> {
    output(std::process::Command::new(program).arg("--version")).map(|says| says.trim().to_owned())
}
