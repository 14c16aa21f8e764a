//! Debian packages: of the machine's own suite by its apt, of other suites through a private apt
//! configuration that leaves the machine's own lists and settings alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::mirror::Mirror;
use crate::progress::stage;
use crate::run::{installed, quiet};

/// Package lists older than this are fetched again before something is downloaded.
const LISTS_GOOD_FOR: Duration = Duration::from_secs(24 * 3600);

/// apt's own lock is not waited for by everything that takes it, and threads prepare several things at once.
static APT: Mutex<()> = Mutex::new(());

fn apt() -> MutexGuard<'static, ()> {
    APT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Installs the packages whose program is missing on this machine; pairs of program and package.
pub fn install_missing(wanted: &[(&str, &str)]) -> Result<()> {
    let _apt = apt();
    let missing: Vec<&str> =
        wanted.iter().filter(|(program, _)| !installed(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    ensure!(installed("apt-get"), "this machine lacks {}, and apt-get to install it", missing.join(", "));
    let step = stage(format!("installing {}", missing.join(", ")), "20 s");
    let install = || {
        quiet(
            Command::new("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["install", "-y", "-q", "--no-install-recommends"])
                .args(&missing),
        )
    };
    if install().is_err() {
        quiet(Command::new("apt-get").args(["update", "-q"])).context("refreshing the package lists")?;
        install()?;
    }
    step.done();
    Ok(())
}

/// Another suite of the Debian mirror that this machine uses.
#[derive(Debug)]
pub struct Suite {
    directory: PathBuf,
}

impl Suite {
    /// Prepares the private apt configuration of one suite, such as `trixie`, and fetches its lists.
    pub fn open(suite: &str) -> Result<Self> {
        let _apt = apt();
        ensure!(installed("apt-get"), "packages come from Debian: this machine has no apt-get");
        let directory = super::directory()?.join("apt").join(suite);
        for sub in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(sub))
                .with_context(|| format!("creating {}", directory.join(sub).display()))?;
        }
        let mirror = Mirror::of_this_machine()?;
        fs::write(directory.join("lab.sources"), mirror.source(suite)).context("writing the sources file")?;
        // What is installed here, perhaps from another archive under the same name, has no say. And a mirror's file of a
        // moving suite may be a few days old.
        let config = format!(
            "Dir::Etc::SourceList \"{dir}/lab.sources\";\nDir::Etc::SourceParts \"/dev/null\";\n\
             Dir::State::Lists \"{dir}/lists\";\nDir::Cache \"{dir}/cache\";\nAPT::Sandbox::User \"root\";\n\
             Dir::State::Status \"/dev/null\";\nAcquire::Check-Valid-Until \"false\";\n",
            dir = directory.display()
        );
        fs::write(directory.join("apt.conf"), config).context("writing the apt configuration")?;
        let this = Self { directory };
        if !this.lists_are_fresh() {
            let step = stage(format!("fetching the package lists of {suite}"), "5 s");
            quiet(this.apt_get().args(["update", "-q"]))
                .with_context(|| format!("fetching the package lists of {suite}"))?;
            fs::write(this.directory.join("updated"), "").context("noting the update")?;
            step.done();
        }
        Ok(this)
    }

    /// The sources file, for tools that take one (mmdebstrap).
    pub fn sources_file(&self) -> PathBuf {
        self.directory.join("lab.sources")
    }

    /// Downloads packages into `directory`, and unpacks them into `root`, without installing.
    pub fn unpack(&self, packages: &[&str], directory: &Path, root: &Path) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
        quiet(self.apt_get().current_dir(directory).args(["download", "-q"]).args(packages))?;
        for package in packages {
            let file = find(directory, &format!("{package}_"), ".deb")?;
            quiet(Command::new("dpkg-deb").arg("-x").arg(&file).arg(root))
                .with_context(|| format!("unpacking {}", file.display()))?;
        }
        Ok(())
    }

    /// Downloads a source package and unpacks it, patches applied, into `tree`.
    pub fn source(&self, package: &str, directory: &Path, tree: &Path) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
        quiet(self.apt_get().current_dir(directory).args(["source", "--download-only", "-q", package]))?;
        let dsc = find(directory, &format!("{package}_"), ".dsc")?;
        // apt has already checked the hashes against the signed lists.
        quiet(Command::new("dpkg-source").args(["--no-check", "-x"]).arg(&dsc).arg(tree))
    }

    fn apt_get(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.env("APT_CONFIG", self.directory.join("apt.conf"));
        command
    }

    fn lists_are_fresh(&self) -> bool {
        fs::metadata(self.directory.join("updated"))
            .and_then(|m| m.modified())
            .is_ok_and(|at| at.elapsed().is_ok_and(|age| age < LISTS_GOOD_FOR))
    }
}

/// The one file in `directory` with this start and end of name.
pub fn find(directory: &Path, start: &str, end: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(start) && name.ends_with(end) {
            return Ok(entry.path());
        }
    }
    bail!("no {start}*{end} in {}", directory.display())
}
