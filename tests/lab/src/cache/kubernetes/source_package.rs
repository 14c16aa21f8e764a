//! Kubernetes 1.20.2, built from Debian's source package.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{BUILT, Release};
use crate::cache::packages::{Suite, find, install_missing};
use crate::progress::stage;
use crate::run::quiet;

/// The last version of which Debian has all of the source.
pub const VERSION: &str = "1.20.2";
const SUITE: &str = "bookworm";

/// What is changed in it.
pub fn patches() -> String {
    "reflect2-1.0.2-quick-kubelet".into()
}

/// Fetches the source, changes it and builds.
pub fn build(release: &Release, dir: &Path) -> Result<()> {
    let step = stage(format!("building Kubernetes {VERSION}, once"), release.estimate);
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
    for program in BUILT {
        let from = tree.join("_output/bin").join(program);
        fs::copy(&from, dir.join("bin").join(program))
            .with_context(|| format!("copying {}", from.display()))?;
    }
    fs::remove_dir_all(&work).context("removing the build tree")?;
    step.done();
    Ok(())
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
