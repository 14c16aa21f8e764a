//! What the lab brings from elsewhere or builds, kept between runs and between checkouts.
//!
//! One directory per thing, named by version and patches, written under a temporary name and renamed when
//! it is complete: an interrupted step never looks finished.

pub mod go;
pub mod kernel;
pub mod kubernetes;
mod mirror;
pub mod packages;
pub mod rootfs;
pub mod strongswan;
pub mod tools;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::progress::note;

/// The cache's directory: `$SECUREOVERLAY_LAB_CACHE`, or `~/.cache/secureoverlay-lab`.
pub fn directory() -> Result<PathBuf> {
    let dir = match std::env::var_os("SECUREOVERLAY_LAB_CACHE") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into()))
            .join(".cache/secureoverlay-lab"),
    };
    fs::create_dir_all(&dir).with_context(|| format!("creating the cache directory {}", dir.display()))?;
    dir.canonicalize().with_context(|| format!("resolving {}", dir.display()))
}

/// Returns `name` in the cache, making it with `fill` (which gets an empty directory) if it is not there.
///
/// Where another process makes the same, its work is awaited instead of done twice.
pub fn entry(name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = directory()?;
    let complete = cache.join(name);
    if complete.is_dir() {
        return Ok(complete);
    }
    let _lock = lock(&cache, name)?;
    if complete.is_dir() {
        return Ok(complete);
    }
    let partial = cache.join(format!(".{name}.partial"));
    drop(fs::remove_dir_all(&partial));
    fs::create_dir_all(&partial).with_context(|| format!("creating {}", partial.display()))?;
    fill(&partial).with_context(|| format!("preparing {name}"))?;
    fs::rename(&partial, &complete).with_context(|| format!("moving {} into place", complete.display()))?;
    Ok(complete)
}

/// Held while an entry is made.
fn lock(cache: &Path, name: &str) -> Result<Flock<File>> {
    let path = cache.join(format!(".{name}.lock"));
    let failed = |errno: Errno| anyhow!("locking {}: {errno}", path.display());
    let open = || File::create(&path).with_context(|| format!("opening {}", path.display()));
    match Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
        Err((file, Errno::EAGAIN)) => {
            note(format!("another process is preparing {name}; waiting for it"));
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno))
        }
        locked => locked.map_err(|(_, errno)| failed(errno)),
    }
}
