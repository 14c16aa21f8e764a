//! The agent's clock: time since the node booted, which means the same to every process of this boot.

use std::{fs, sync::OnceLock, time::Duration};

use secureoverlay_agent_core::Time;
use tokio::time::Instant;

/// Seconds since boot, with two decimals.
const UPTIME: &str = "/proc/uptime";

/// Now.
#[must_use]
pub fn now() -> Time {
    // Not by clock_gettime(CLOCK_BOOTTIME): rustix asks the vDSO for it, which User Mode Linux does not have.
    static START: OnceLock<(Duration, Instant)> = OnceLock::new();
    let (uptime, at) = START.get_or_init(|| {
        let text = fs::read_to_string(UPTIME).unwrap_or_default();
        let seconds = text.split_whitespace().next().and_then(|text| text.parse::<f64>().ok());
        let uptime = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        (uptime.unwrap_or_default(), Instant::now())
    });
    *uptime + at.elapsed()
}

/// When the runtime's clock shows this time.
#[must_use]
pub fn instant(at: Time) -> Instant {
    Instant::now() + at.saturating_sub(now())
}
