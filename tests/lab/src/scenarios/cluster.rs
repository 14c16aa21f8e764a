//! Small things that every scenario does to the cluster.

use std::time::Duration;

use anyhow::{Result, anyhow};

use crate::lab::Lab;
use crate::run::output_with_stdin;
use crate::wait::wait_until;

/// Waits until `condition` holds; its errors end the waiting.
pub fn until(what: &str, patience: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_until(what, patience, || Ok(condition()?.then_some(())))
}

/// Waits until nothing is lacking, and names what was at the end.
pub fn until_healed(what: &str, patience: Duration, mut lacks: impl FnMut() -> Option<String>) -> Result<()> {
    let mut lack = None;
    until(what, patience, || {
        lack = lacks();
        Ok(lack.is_none())
    })
    .map_err(|error| anyhow!("{error:#}: {}", lack.unwrap_or_default()))
}

/// kubectl with something on its standard input.
pub fn kubectl_with(lab: &Lab, arguments: &[&str], input: &str) -> Result<String> {
    output_with_stdin(lab.kubectl_command().args(arguments), input.as_bytes())
}
