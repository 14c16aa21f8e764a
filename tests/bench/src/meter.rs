//! Time, CPU and memory of a piece of work.

use std::time::Instant;

use nix::sys::{
    resource::{Usage, UsageWho, getrusage},
    time::TimeValLike,
};
use serde::Serialize;

/// A measurement under way.
pub struct Meter {
    who: UsageWho,
    begun: Instant,
    cpu: f64,
    faults: i64,
}

/// What it took.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measured {
    /// Wall-clock time.
    pub seconds: f64,
    /// CPU time, in the kernel too.
    pub cpu_seconds: f64,
    /// The most memory that was ever resident.
    pub rss_mib: f64,
    /// Pages that had to be made resident.
    pub page_faults: i64,
}

impl Meter {
    /// Measures this process.
    pub fn start() -> Self {
        Self::of(UsageWho::RUSAGE_SELF)
    }

    /// Measures processes that are started and waited for from now on.
    pub fn start_for_children() -> Self {
        Self::of(UsageWho::RUSAGE_CHILDREN)
    }

    fn of(who: UsageWho) -> Self {
        let usage = usage(who);
        Self { who, cpu: cpu(&usage), faults: usage.minor_page_faults(), begun: Instant::now() }
    }

    /// The end.
    pub fn stop(self) -> Measured {
        let seconds = self.begun.elapsed().as_secs_f64();
        let usage = usage(self.who);
        Measured {
            seconds,
            cpu_seconds: cpu(&usage) - self.cpu,
            // The kernel counts in KiB.
            rss_mib: usage.max_rss() as f64 / 1024.0,
            page_faults: usage.minor_page_faults() - self.faults,
        }
    }
}

impl Measured {
    /// The quicker one: other work on the machine only ever adds time.
    pub fn least(self, other: Self) -> Self {
        if other.seconds < self.seconds { other } else { self }
    }
}

fn usage(who: UsageWho) -> Usage {
    getrusage(who).expect("getrusage fails for unknown arguments only")
}

fn cpu(usage: &Usage) -> f64 {
    (usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6
}
