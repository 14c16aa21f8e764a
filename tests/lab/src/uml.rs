//! Starting a guest: User Mode Linux on a directory of the host, with this program as its process 1.

use std::path::{Path, PathBuf};

use crate::cache::kernel::Kernel;

/// Everything that describes one guest.
#[derive(Debug)]
pub struct Uml<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Host directory that is the guest's root, seen read-only.
    pub root: &'a Path,
    /// This program as a path inside that root.
    pub init: &'a Path,
    /// Memory, as the kernel takes it: `1G`.
    pub memory: &'a str,
    /// The tap, in the caller's network namespace.
    pub tap: &'a str,
    /// The interface's hardware address; it outlives a reboot, as a real one's does, so that neighbours need
    /// not find out.
    pub mac: &'a str,
    /// Arguments of [`crate::guest::GuestArgs`].
    pub arguments: Vec<String>,
    /// Directory for the console's log and the kernel's own files.
    pub directory: &'a Path,
}

impl Uml<'_> {
    /// Where the guest's kernel messages go, by convention of those who start it.
    pub fn console(directory: &Path) -> PathBuf {
        directory.join("console.log")
    }

    /// The words that start the guest; it is up when its exec server answers.
    pub fn words(&self) -> Vec<String> {
        // The guest's memory is a file in TMPDIR; on a disk, its pages would be written out.
        let mut words = vec!["env".to_owned(), "TMPDIR=/dev/shm".to_owned()];
        words.push(self.kernel.program.display().to_string());
        // UML appends a root and a console of its own after our arguments unless they are given.
        words
            .extend(["root=98:0", "console=tty0", "rootfstype=hostfs", "ro", "loglevel=4"].map(String::from));
        words.extend(["con=null", "ssl=null", "con0=null,fd:1"].map(String::from));
        words.push(format!("rootflags={}", self.root.display()));
        words.push(format!("mem={}", self.memory));
        // System calls take a third of the time that they take with ptrace. Its warning is about programs that mean harm.
        words.push("seccomp=auto".to_owned());
        words.push(format!("uml_dir={}", self.directory.display()));
        words.push(format!("vec0:transport=tap,ifname={},mac={},depth=128,gro=1", self.tap, self.mac));
        words.push(format!("init={}", self.init.display()));
        words.extend(["--", "guest"].map(String::from));
        words.extend(self.arguments.iter().cloned());
        words
    }
}
