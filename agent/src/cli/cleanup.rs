//! `cleanup`: takes everything of ours out of this node's kernel.

use std::path::Path;

use anyhow::{Result, bail};
use secureoverlay_agent_core::{
    journal::{Journal, NoStore, Record},
    kernel::Kernel,
    plan::ReconcileTarget,
    reconcile::{Reconciler, SaLimits},
    teardown::TeardownPhase,
};
use secureoverlay_agent_kernel::{KernelError, XfrmSocket};

use crate::state_directory::{StateDirectory, StateError};

/// Runs the command; says what it did.
///
/// # Errors
/// An agent runs, the kernel can't be asked, or something is left.
pub fn cleanup(force: bool, directory: &Path) -> Result<String> {
    let lock = StateDirectory::open(directory);
    if matches!(lock, Err(StateError::AnotherAgentRuns { .. })) && !force {
        bail!("an agent runs on this node: delete its DaemonSet first, or use --force");
    }
    clean(XfrmSocket::open()?)
}

fn clean(kernel: impl Kernel<Error = KernelError>) -> Result<String> {
    let nothing = ReconcileTarget { teardown: TeardownPhase::Removed, input: None };
    let journal = Journal::new(Record::default(), NoStore);
    let outcome = Reconciler::new(kernel, journal, SaLimits::default()).run(&nothing)?;
    if outcome.failed.is_empty() {
        return Ok(match outcome.changed {
            0 => "nothing of ours was in this node's kernel".to_owned(),
            count => format!("removed {count} SAs and policies of ours from this node's kernel"),
        });
    }
    let failures: Vec<String> = outcome.failed.iter().map(ToString::to_string).collect();
    bail!("removed {}, but {} are left: {}", outcome.changed, failures.len(), failures.join("; "));
}
