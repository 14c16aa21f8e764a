//! Today's Kubernetes, from Go modules, as one program (`tests/lab/kubernetes`).

use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::{BUILT, Release};
use crate::cache::go::Go;
use crate::progress::stage;
use crate::run::{counted, output};

/// The newest that the module proxy serves; `tests/lab/kubernetes/update` moves the module to it.
pub const VERSION: &str = "1.37.2";

const MODULE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kubernetes");
const SUMS: &str = include_str!("../../../kubernetes/go.sum");
const MAIN: &str = include_str!("../../../kubernetes/main.go");

/// Nothing for debuggers, which the linker would leave out anyway: 5 to 25 % less work for a package. To compile without
/// optimisation saves no more than that on generated code, and makes the control plane slow.
const COMPILER_FLAGS: &str = "-gcflags=all=-dwarf=false";

/// What a build is of.
pub fn fingerprint() -> String {
    let digest = Sha256::digest([SUMS, MAIN].concat());
    digest.iter().take(4).map(|b| format!("{b:02x}")).collect()
}

/// Fetches the modules and builds the program.
pub fn build(release: &Release, dir: &Path) -> Result<()> {
    let go = Go::get()?;
    let module = Path::new(MODULE);
    let fetching = stage(format!("fetching the Go modules of Kubernetes {VERSION}, once"), "40 s");
    let packages = output(go.command(module).args(["list", "-deps", "."]))
        .with_context(|| format!("fetching the modules of Kubernetes {VERSION}"))?;
    fetching.done();

    let step = stage(format!("building Kubernetes {VERSION}, once"), release.estimate);
    let program = dir.join("bin/kubernetes");
    let mut build = go.command(module);
    build.args(["build", "-v", "-trimpath", COMPILER_FLAGS, "-ldflags", &link_flags()]);
    build.arg("-o").arg(&program).arg(".");
    // With -v a line for each package.
    counted(&mut build, &step, "packages", Some(packages.lines().count()), |line| !line.contains(' '))
        .context("building Kubernetes")?;
    for name in BUILT {
        symlink("kubernetes", dir.join("bin").join(name)).with_context(|| format!("linking {name}"))?;
    }
    go.forget_builds()?;
    step.done();
    Ok(())
}

/// Without symbols, and with the version, which a plain build would not know.
fn link_flags() -> String {
    let mut numbers = VERSION.split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let set = |name: &str, value: &str| format!(" -X k8s.io/component-base/version.{name}={value}");
    [
        "-s -w".to_owned(),
        set("gitVersion", &format!("v{VERSION}")),
        set("gitMajor", major),
        set("gitMinor", minor),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_is_of_this_version() {
        let module = include_str!("../../../kubernetes/go.mod");
        let libraries = VERSION.replacen("1.", "0.", 1);
        assert!(module.contains(&format!("k8s.io/kubernetes v{VERSION}\n")));
        let replaced = module.lines().filter(|line| line.contains(" => "));
        assert!(replaced.clone().count() > 20);
        assert!(replaced.clone().all(|line| line.ends_with(&format!(" v{libraries}"))), "{module}");
    }

    #[test]
    fn the_linker_is_told_the_version() {
        assert!(link_flags().ends_with(
            "version.gitVersion=v1.37.2 -X k8s.io/component-base/version.gitMajor=1 \
                                        -X k8s.io/component-base/version.gitMinor=37"
        ));
    }
}
