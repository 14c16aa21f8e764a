//! Programs that check and install packages: Helm, kubectl with its kustomize, promtool.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::go::Go;
use super::kubernetes::{self, Kubernetes};
use super::packages::Suite;
use crate::progress::stage;
use crate::run::counted;

const HELM: &str = "4.3.1";
const PROMTOOL_SUITE: &str = "forky";

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tool {
    /// Installs the chart.
    Helm,
    /// Builds kustomizations.
    Kubectl,
    /// Tests alerts.
    Promtool,
}

impl Tool {
    /// Where it is in the cache, made if it is not there.
    pub fn get(self) -> Result<PathBuf> {
        match self {
            Self::Helm => {
                super::entry(&format!("helm-{HELM}"), build_helm).map(|entry| entry.join("bin/helm"))
            }
            Self::Kubectl => kubernetes::kubectl(Kubernetes::default().release()),
            Self::Promtool => super::entry(&format!("promtool-{PROMTOOL_SUITE}"), unpack_promtool)
                .map(|entry| entry.join("promtool")),
        }
    }
}

/// From its Go module. Modules and builds are its own: those of Kubernetes are removed when that is built.
fn build_helm(dir: &Path) -> Result<()> {
    let step = stage(format!("building Helm {HELM}, once"), "2 min on 2 cores");
    let (modules, builds) = (dir.join("mod"), dir.join("build"));
    let mut build = Go::get()?.command(dir);
    build.env("GOBIN", dir.join("bin")).env("GOMODCACHE", &modules).env("GOCACHE", &builds);
    build.args([
        "install",
        "-v",
        "-trimpath",
        "-ldflags=-s -w",
        &format!("helm.sh/helm/v4/cmd/helm@v{HELM}"),
    ]);
    counted(&mut build, &step, "packages", None, |line| !line.contains(' ')).context("building Helm")?;
    for leftover in [modules, builds] {
        fs::remove_dir_all(&leftover).with_context(|| format!("removing {}", leftover.display()))?;
    }
    step.done();
    Ok(())
}

fn unpack_promtool(dir: &Path) -> Result<()> {
    let step = stage("fetching promtool", "10 s");
    let (packages, root) = (dir.join("packages"), dir.join("root"));
    Suite::open(PROMTOOL_SUITE)?.unpack(&["promtool"], &packages, &root)?;
    fs::rename(root.join("usr/bin/promtool"), dir.join("promtool")).context("taking promtool")?;
    for leftover in [packages, root] {
        fs::remove_dir_all(&leftover).with_context(|| format!("removing {}", leftover.display()))?;
    }
    step.done();
    Ok(())
}
