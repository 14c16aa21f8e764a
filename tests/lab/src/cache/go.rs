//! The Go toolchain: the machine's own where it is new enough, otherwise Debian's, unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::packages::Suite;
use crate::progress::{note, stage};
use crate::run::output;

/// What today's Kubernetes asks for.
const OLDEST: (u32, u32) = (1, 26);
const SUITE: &str = "forky";
const PACKAGES: [&str; 2] = ["golang-1.26-go", "golang-1.26-src"];

/// A toolchain, with modules and builds below the lab's cache: an interrupted build goes on where it was.
#[derive(Debug)]
pub struct Go {
    program: PathBuf,
    work: PathBuf,
}

impl Go {
    /// Finds one, or fetches it.
    pub fn get() -> Result<Self> {
        let work = super::directory()?.join("go");
        for program in ["go", "/usr/local/go/bin/go"] {
            let found = output(Command::new(program).arg("version").env("GOTOOLCHAIN", "local"));
            if let Some(version) = found.ok().filter(|said| version(said).is_some_and(|v| v >= OLDEST)) {
                note(format!("using this machine's Go: {}", version.trim()));
                return Ok(Self { program: program.into(), work });
            }
        }
        let entry = super::entry(&format!("go-{}.{}-{SUITE}", OLDEST.0, OLDEST.1), |dir| {
            let step = stage("fetching Go", "20 s");
            Suite::open(SUITE)?.unpack(&PACKAGES, &dir.join("packages"), &dir.join("root"))?;
            fs::remove_dir_all(dir.join("packages")).context("removing the packages")?;
            step.done();
            Ok(())
        })?;
        let program = entry.join(format!("root/usr/lib/go-{}.{}/bin/go", OLDEST.0, OLDEST.1));
        Ok(Self { program, work })
    }

    /// A go command in the directory of a module. What the machine has set for proxies holds, nothing else.
    pub fn command(&self, module: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(module).env_remove("GOROOT").env_remove("GOEXPERIMENT").env("CGO_ENABLED", "0");
        command.envs([("GOTOOLCHAIN", "local"), ("GOWORK", "off"), ("GO111MODULE", "on")]);
        command.env("GOFLAGS", "-mod=readonly -modcacherw -buildvcs=false");
        command.env("GOCACHE", self.work.join("build")).env("GOMODCACHE", self.work.join("mod"));
        command
    }

    /// Removes modules and builds, gigabytes of which nothing is needed when a program is made.
    pub fn forget_builds(&self) -> Result<()> {
        fs::remove_dir_all(&self.work).with_context(|| format!("removing {}", self.work.display()))
    }
}

/// `go version go1.26.8 linux/amd64` → (1, 26)
fn version(said: &str) -> Option<(u32, u32)> {
    let name = said.split_whitespace().nth(2)?.strip_prefix("go")?;
    let mut numbers = name.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(version("go version go1.26.8 linux/amd64\n") >= Some(OLDEST));
        assert!(version("go version go1.27rc1 linux/amd64") > Some(OLDEST));
        assert!(version("go version go1.9 linux/amd64") < Some(OLDEST));
        assert_eq!(version("no such program"), None);
    }
}
