//! The cluster's store, put back to what it was: a backup of etcd, restored.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::control_plane::{self, API_SERVER, ETCD};
use crate::lab::Lab;
use crate::place::Place;
use crate::run::quiet;

/// etcd ends as soon as it has written what it holds.
const GRACE: Duration = Duration::from_secs(10);

/// etcd's data at some time.
#[derive(Debug)]
pub struct Backup(PathBuf);

impl Lab {
    /// Copies the store. etcd is stopped for a moment: a copy of what is being written is none.
    pub fn back_up_store(&self) -> Result<Backup> {
        let backup = Backup(Place::here().memory().join("etcd-backup"));
        self.process(ETCD)?.stop(GRACE)?;
        replace(&control_plane::etcd_data(), &backup.0)?;
        self.start_etcd()?;
        control_plane::wait_for_api_server(&self.parts.programs, &self.process(API_SERVER)?)?;
        Ok(backup)
    }

    /// Puts the store back. An API server that goes on has caches that do not know.
    pub fn put_store_back(&self, backup: &Backup) -> Result<()> {
        self.process(ETCD)?.stop(GRACE)?;
        replace(&backup.0, &control_plane::etcd_data())?;
        self.start_etcd()
    }

    fn start_etcd(&self) -> Result<()> {
        self.record(ETCD, control_plane::start_etcd(&self.parts.programs)?)
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        // It is memory. The lab's removal takes what is left.
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Makes `to` a copy of `from`.
fn replace(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("removing {}", to.display()))?;
    }
    quiet(Command::new("cp").arg("-a").args([from, to]))
        .with_context(|| format!("copying {}", from.display()))
}
