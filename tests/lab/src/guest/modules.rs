//! Loading kernel modules without kmod, which a small system may lack.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

/// What the nodes and the kernel tests use. Not `esp4_offload`: with it, IPIP in ESP slows to a crawl in this
/// kernel.
const MODULES: &[&str] = &[
    "xfrm_user",
    "esp4",
    "esp6",
    "xfrm4_tunnel",
    "ipip",
    "gcm",
    "ctr",
    "seqiv",
    "echainiv",
    "authenc",
    "authencesn",
    "veth",
    "dummy",
    "tun",
    "bridge",
    "overlay",
    "vxlan",
    "macvlan",
    "sch_netem",
    "sch_tbf",
    "ah4",
    "cmac",
    "ccm",
];

/// Loads every module of the list that this kernel has, dependencies first.
pub fn load_all(directory: &Path) -> Result<()> {
    let table = fs::read_to_string(directory.join("modules.dep"))
        .with_context(|| format!("reading {}/modules.dep", directory.display()))?;
    let mut loaded = HashSet::new();
    for name in MODULES {
        let file = format!("/{name}.ko");
        let line = table.lines().find(|l| l.split(':').next().is_some_and(|path| path.ends_with(&file)));
        // Not in the table: built in, or one that this kernel does without.
        let Some((path, dependencies)) = line.and_then(|l| l.split_once(':')) else { continue };
        for module in dependencies.split_whitespace().rev().chain([path]) {
            if loaded.insert(module) {
                load(&directory.join(module))?;
            }
        }
    }
    Ok(())
}

fn load(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => bail!("loading {}: {errno}", path.display()),
    }
}
