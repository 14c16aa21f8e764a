//! The guests' kernel: Debian's User Mode Linux, with the C library that it wants beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::packages::{Suite, find, install_missing};
use crate::progress::stage;
use crate::run::quiet;

/// Earlier builds panic on recent CPUs ("ptrace set fp regs failed").
const OLDEST: (u32, u32) = (7, 2);

/// A kernel that can be started.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The executable.
    pub program: PathBuf,
    /// The directory that holds `modules.dep`.
    pub modules: PathBuf,
}

impl Kernel {
    /// The kernel in the cache, fetched if there is none.
    ///
    /// It comes from Debian's moving suite, so one that is in the cache is kept: a new version there must
    /// not change what yesterday's tests ran on.
    pub fn get() -> Result<Self> {
        let entry = super::entry("kernel", |dir| {
            let step = stage("fetching the guests' kernel", "10 s");
            fetch(dir)?;
            step.done();
            Ok(())
        })?;
        Self::at(&entry)
    }

    fn at(entry: &Path) -> Result<Self> {
        let modules = fs::read_dir(entry.join("root/usr/lib/uml/modules"))
            .context("reading the kernel's modules")?
            .flatten()
            .map(|e| e.path())
            .find(|p| p.join("modules.dep").is_file())
            .context("the kernel package holds no modules")?;
        Ok(Self { program: entry.join("linux"), modules })
    }
}

fn fetch(dir: &Path) -> Result<()> {
    install_missing(&[("patchelf", "patchelf")])?;
    let root = dir.join("root");
    let libc = dir.join("libc");
    let suite = Suite::open("sid")?;
    suite.unpack(&["user-mode-linux"], &dir.join("packages"), &root)?;
    suite.unpack(&["libc6"], &dir.join("packages"), &libc)?;
    let package = find(&dir.join("packages"), "user-mode-linux_", ".deb")?;
    ensure!(
        version(&package).is_some_and(|v| v >= OLDEST),
        "the mirror's User Mode Linux is {}, and the lab needs {}.{} or later",
        package.display(),
        OLDEST.0,
        OLDEST.1
    );
    let kernel = Kernel::at(dir)?;
    for module in ["esp4", "ipip", "gcm", "seqiv", "xfrm_user", "veth", "overlay", "bridge"] {
        ensure!(
            has_module(&kernel.modules, module)?,
            "this kernel has no module {module}: {}",
            package.display()
        );
    }
    // The kernel re-executes itself, so it cannot be started through another loader: it must name it. The
    // path is the final one, in the cache, not the temporary one of this step.
    let lib = super::directory()?.join("kernel/libc/usr/lib/x86_64-linux-gnu");
    let program = dir.join("linux");
    fs::copy(root.join("usr/bin/linux.uml"), &program).context("copying the kernel")?;
    quiet(
        Command::new("patchelf")
            .arg("--set-interpreter")
            .arg(lib.join("ld-linux-x86-64.so.2"))
            .arg("--set-rpath")
            .arg(&lib)
            .arg(&program),
    )?;
    if !libc.join("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2").exists() {
        bail!("the C library's package is laid out differently from what the lab knows");
    }
    Ok(())
}

fn has_module(modules: &Path, name: &str) -> Result<bool> {
    let file = format!("/{name}.ko");
    for list in ["modules.dep", "modules.builtin"] {
        let text = fs::read_to_string(modules.join(list)).with_context(|| format!("reading {list}"))?;
        if text.lines().any(|l| l.split(':').next().is_some_and(|path| path.ends_with(&file))) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `user-mode-linux_7.2um1_amd64.deb` → (7, 2)
fn version(package: &Path) -> Option<(u32, u32)> {
    let name = package.file_name()?.to_str()?.split('_').nth(1)?;
    let mut numbers = name.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let of = |name: &str| version(Path::new(name));
        assert_eq!(of("/x/user-mode-linux_7.2um1_amd64.deb"), Some((7, 2)));
        assert!(of("user-mode-linux_7.10um1+b1_amd64.deb") > Some(OLDEST));
        assert!(of("user-mode-linux_6.12um1_amd64.deb") < Some(OLDEST));
        assert_eq!(of("nonsense"), None);
    }
}
