//! Where a lab is on this machine. Several stand beside each other, each with a name.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Result, ensure};

/// Name of the lab that commands mean which name no other.
const DEFAULT: &str = "main";
/// Names the lab of commands that have no `--lab`.
pub const LAB_VARIABLE: &str = "SECUREOVERLAY_LAB";
/// The name of every directory and namespace of a lab begins with this.
const PREFIX: &str = "secureoverlay-lab-";
/// Longest name: the guests' sockets are below the lab's directory, and their paths may not be long.
const LONGEST: usize = 16;

static HERE: OnceLock<Place> = OnceLock::new();

/// The files, the network namespace and the lock of one lab.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    name: String,
}

impl Place {
    /// The lab of this name, whether it runs or not.
    pub fn new(name: &str) -> Result<Self> {
        let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        ensure!(
            plain && (1..=LONGEST).contains(&name.len()),
            "a lab's name is 1 to {LONGEST} lower-case letters and digits, and {name:?} is not"
        );
        Ok(Self { name: name.to_owned() })
    }

    /// Makes this the lab that the process works with; to be called once, at its start.
    pub fn choose(self) {
        HERE.get_or_init(|| self);
    }

    /// The lab that this process works with.
    pub fn here() -> &'static Self {
        HERE.get_or_init(|| Self { name: DEFAULT.to_owned() })
    }

    /// All labs of which this machine has something, running or crashed.
    pub fn all() -> BTreeSet<Self> {
        let named_in = |directory: &str| -> Vec<Self> {
            let names = fs::read_dir(directory).into_iter().flatten().flatten();
            let names = names.filter_map(|entry| entry.file_name().into_string().ok());
            names.filter_map(|name| Self::new(name.strip_prefix(PREFIX)?).ok()).collect()
        };
        let mut all = named_in("/run");
        // A lab writes its state before it makes anything else, and it is removed last.
        all.retain(|place| place.state().is_file());
        all.extend(named_in("/run/netns"));
        all.into_iter().collect()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Everything of a running lab is below this directory.
    pub fn directory(&self) -> PathBuf {
        Path::new("/run").join(self.namespace_name())
    }

    /// The file with what is known about the lab between two commands.
    pub fn state(&self) -> PathBuf {
        self.directory().join("state.json")
    }

    /// Data that need not survive anything and should not wait for a disk.
    pub fn memory(&self) -> PathBuf {
        Path::new("/dev/shm").join(self.namespace_name())
    }

    /// The file that is locked by the command that changes the lab.
    pub fn lock(&self) -> PathBuf {
        Path::new("/run").join(format!("{}.lock", self.namespace_name()))
    }

    /// Name of the network namespace.
    pub fn namespace_name(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    /// The file that names the network namespace.
    pub fn namespace(&self) -> PathBuf {
        Path::new("/run/netns").join(self.namespace_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_labs_share_no_path() {
        let [one, two] = ["main", "lane2"].map(|name| Place::new(name).unwrap());
        let paths = |it: &Place| [it.directory(), it.memory(), it.lock(), it.namespace()];
        let all: BTreeSet<PathBuf> = paths(&one).into_iter().chain(paths(&two)).collect();
        assert_eq!(all.len(), 8);
        assert!(all.iter().all(|a| all.iter().all(|b| a == b || !a.starts_with(b))), "{all:?}");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for name in ["", "a/b", "..", "UPPER", "main.lock", "longer-than-it-may", "abcdefghijklmnopq"] {
            assert!(Place::new(name).is_err(), "{name}");
        }
    }
}
