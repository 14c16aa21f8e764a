//! strongSwan's IKE daemon: another user of the kernel's IPsec, which the nodes' root file system does without.

use std::path::PathBuf;

use anyhow::Result;

use super::packages::Suite;
use crate::progress::stage;

const PACKAGES: &[&str] = &[
    "libstrongswan",
    "libstrongswan-standard-plugins",
    "strongswan-charon",
    "strongswan-libcharon",
    "strongswan-swanctl",
];

/// The directory in the cache with the unpacked packages of the suite that the nodes' root is of, fetched if there is
/// none.
pub fn get(suite: &str) -> Result<PathBuf> {
    let entry = super::entry(&format!("strongswan-{suite}"), |dir| {
        let step = stage("fetching strongSwan", "10 s");
        Suite::open(suite)?.unpack(PACKAGES, &dir.join("packages"), &dir.join("root"))?;
        step.done();
        Ok(())
    })?;
    Ok(entry.join("root"))
}
