//! Kubernetes' own programs, built from Debian's source package, and etcd and kubectl beside them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::packages::{Suite, find, install_missing};
use crate::progress::{note, stage};
use crate::run::{output, quiet};

/// Where everything for the control plane comes from: the last suite with the whole of Kubernetes.
const SUITE: &str = "bookworm";
const VERSION: &str = "1.20.2";
/// Version and patches: a change of either is another build.
const ENTRY: &str = "kubernetes-1.20.2-reflect2-1.0.2-quick-kubelet";
const BUILT: &[&str] = &["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet"];

/// The programs of a cluster.
#[derive(Debug, Clone)]
pub struct Programs {
    /// kube-controller-manager, kube-scheduler and kubelet.
    pub kubernetes: PathBuf,
    /// kube-apiserver.
    pub api_server: PathBuf,
    /// etcd.
    pub etcd: PathBuf,
    /// kubectl of the same version.
    pub kubectl: PathBuf,
}

/// Whether the long build has been done.
pub fn is_built() -> Result<bool> {
    Ok(super::directory()?.join(ENTRY).is_dir())
}

impl Programs {
    /// The programs in the cache, made if they are not there.
    ///
    /// A control plane without nodes is served by the programs in `$KUBEBUILDER_ASSETS`, where that is set;
    /// nodes want an API server of their own version.
    pub fn get(with_nodes: bool) -> Result<Self> {
        let tools = tools()?;
        let kubectl = tools.join("root/usr/bin/kubectl");
        if let (false, Some(assets)) = (with_nodes, kubebuilder_assets()) {
            note(format!("using the API server and etcd in {}", assets.display()));
            let (api_server, etcd) = (assets.join("kube-apiserver"), assets.join("etcd"));
            return Ok(Self { kubernetes: assets, api_server, etcd, kubectl });
        }
        let bin = build()?.join("bin");
        Ok(Self {
            api_server: bin.join("kube-apiserver"),
            kubernetes: bin,
            etcd: tools.join("root/usr/bin/etcd"),
            kubectl,
        })
    }
}

fn kubebuilder_assets() -> Option<PathBuf> {
    let dir = PathBuf::from(std::env::var_os("KUBEBUILDER_ASSETS")?);
    (dir.join("kube-apiserver").is_file() && dir.join("etcd").is_file()).then_some(dir)
}

fn tools() -> Result<PathBuf> {
    super::entry("control-plane-tools-1", |dir| {
        let step = stage("fetching etcd and kubectl", "10 s");
        Suite::open(SUITE)?.unpack(
            &["etcd-server", "kubernetes-client"],
            &dir.join("packages"),
            &dir.join("root"),
        )?;
        fs::remove_dir_all(dir.join("packages")).context("removing the packages")?;
        step.done();
        Ok(())
    })
}

fn build() -> Result<PathBuf> {
    super::entry(ENTRY, |dir| {
        let step = stage(format!("building Kubernetes {VERSION}, once"), "7 min on 2 cores");
        install_missing(&[
            ("make", "make"),
            ("rsync", "rsync"),
            ("dpkg-source", "dpkg-dev"),
            ("patch", "patch"),
            ("xz", "xz-utils"),
        ])?;
        let work = dir.join("work");
        let tree = work.join("src");
        let go = work.join("go");
        let suite = Suite::open(SUITE)?;
        suite.unpack(
            &["golang-1.19-go", "golang-1.19-src", "golang-github-modern-go-reflect2-dev"],
            &work.join("packages"),
            &go,
        )?;
        suite.source("kubernetes", &work.join("packages"), &tree)?;
        find(&work.join("packages"), &format!("kubernetes_1.20.5+really{VERSION}"), ".dsc")
            .with_context(|| format!("the mirror no longer has Kubernetes {VERSION}"))?;
        replace_reflect2(&tree, &go)?;
        hurry_kubelet(&tree)?;
        make(&work, &tree, &go)?;
        fs::create_dir(dir.join("bin")).context("creating bin")?;
        for program in BUILT {
            let from = tree.join("_output/bin").join(program);
            fs::copy(&from, dir.join("bin").join(program))
                .with_context(|| format!("copying {}", from.display()))?;
        }
        let says = output(Command::new(dir.join("bin/kube-apiserver")).arg("--version"))?;
        ensure!(
            says.trim() == format!("Kubernetes v{VERSION}"),
            "the built API server calls itself {says:?}"
        );
        fs::remove_dir_all(&work).context("removing the build tree")?;
        step.done();
        Ok(())
    })
}

/// The vendored 1.0.1 breaks under Go 1.18 and later: the API server would die on the first custom resource.
fn replace_reflect2(tree: &Path, go: &Path) -> Result<()> {
    let vendored = tree.join("vendor/github.com/modern-go/reflect2");
    let newer = go.join("usr/share/gocode/src/github.com/modern-go/reflect2");
    fs::remove_dir_all(&vendored).context("removing the vendored reflect2")?;
    quiet(Command::new("cp").arg("-r").arg(newer).arg(vendored))
}

/// A kubelet of 1.20 tells of a pod's end only when its garbage collector has passed, once a minute: half a minute for
/// each pod that a scenario replaces.
fn hurry_kubelet(tree: &Path) -> Result<()> {
    for (file, from, to) in [
        ("pkg/kubelet/kubelet.go", "ContainerGCPeriod = time.Minute", "ContainerGCPeriod = time.Second"),
        (
            "pkg/kubelet/status/status_manager.go",
            "const syncPeriod = 10 * time.Second",
            "const syncPeriod = 1 * time.Second",
        ),
    ] {
        let path = tree.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        ensure!(text.contains(from), "{file} does not say {from:?}");
        fs::write(&path, text.replace(from, to)).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn make(work: &Path, tree: &Path, go: &Path) -> Result<()> {
    let version = work.join("version");
    fs::write(
        &version,
        format!(
            "KUBE_GIT_COMMIT=unknown\nKUBE_GIT_TREE_STATE=clean\nKUBE_GIT_VERSION=v{VERSION}\n\
             KUBE_GIT_MAJOR=1\nKUBE_GIT_MINOR=20\n"
        ),
    )
    .context("writing the version file")?;
    let root = go.join("usr/lib/go-1.19");
    let what: Vec<String> = BUILT.iter().map(|program| format!("cmd/{program}")).collect();
    quiet(
        Command::new("make")
            .current_dir(tree)
            .arg(format!("WHAT={}", what.join(" ")))
            .env_clear()
            .env("HOME", work)
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", root.join("bin").display()))
            .env("GOROOT", &root)
            .env("GOCACHE", work.join("gocache"))
            .env("CGO_ENABLED", "0")
            .env("KUBE_GIT_VERSION_FILE", &version),
    )
    .context("building Kubernetes")
}
