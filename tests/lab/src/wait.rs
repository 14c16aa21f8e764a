//! Waiting for a condition, with a deadline and without guessing how long it takes.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks `condition` until it has a value, and fails after `patience`; an error of the condition ends it at
/// once.
pub fn wait_until<T>(
    what: &str,
    patience: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {} s in vain for {what}", patience.as_secs());
        }
        thread::sleep(Duration::from_millis(250));
    }
}
