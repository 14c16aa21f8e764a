//! `cleanup`: takes everything of ours out of this node's kernel.

use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{
    agent::Target,
    kernel::{Kernel, XfrmSocket},
    lock::Lock,
    plan::Stage,
    reconcile::Reconciler,
    worker::make_plan,
};

/// Runs the command; says what it did.
///
/// # Errors
/// An agent runs, the kernel can't be asked, or something is left.
pub fn cleanup(force: bool) -> Result<String> {
    let lock = Lock::take().context("looking for a running agent")?;
    if lock.is_none() && !force {
        bail!("an agent runs on this node: delete its DaemonSet first, or use --force");
    }
    clean(XfrmSocket::open()?)
}

fn clean(kernel: impl Kernel) -> Result<String> {
    let nothing = make_plan(&Target { stage: Stage::Gone, content: None });
    let outcome = Reconciler::new(kernel).run(&nothing, Instant::now())?;
    if outcome.failed.is_empty() {
        return Ok(match outcome.changed {
            0 => "nothing of ours was in this node's kernel".to_owned(),
            count => format!("removed {count} SAs and policies of ours from this node's kernel"),
        });
    }
    let failures: Vec<String> = outcome.failed.iter().map(ToString::to_string).collect();
    bail!("removed {}, but {} are left: {}", outcome.changed, failures.len(), failures.join("; "));
}
