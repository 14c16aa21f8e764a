//! A mark for the next process on this node: the DaemonSet was deleted without its pods, so that its absence is no
//! removal. It lies beside the journal, and is gone with the boot as that is.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

const NAME: &str = "orphaned";

/// The mark, and whether it is there.
#[derive(Debug)]
pub struct Mark {
    path: PathBuf,
    set: bool,
}

impl Mark {
    /// Looks for the mark in the journal's directory.
    #[must_use]
    pub fn find(directory: &Path) -> Self {
        let path = directory.join(NAME);
        let set = path.exists();
        Self { path, set }
    }

    /// It is there.
    #[must_use]
    pub const fn is_set(&self) -> bool {
        self.set
    }

    /// Makes it be there, or not. Where there is no place for it, the next process does not know.
    pub fn set(&mut self, set: bool) {
        if self.set == set {
            return;
        }
        self.set = set;
        let result = if set { fs::write(&self.path, "") } else { fs::remove_file(&self.path) };
        match result {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot leave a mark for the next agent");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_process_finds_it() {
        let directory = tempfile::tempdir().unwrap();
        let find = || Mark::find(directory.path());
        assert!(!find().is_set());
        find().set(true);
        assert!(find().is_set());
        find().set(true);
        find().set(false);
        assert!(!find().is_set());
        let mut homeless = Mark::find(&directory.path().join("nowhere"));
        homeless.set(true);
        homeless.set(false);
    }
}
