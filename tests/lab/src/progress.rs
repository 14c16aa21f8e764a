//! Messages about long steps, on standard error: when, what, how long it usually takes, how long it took.

use std::cell::Cell;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// How long a step says nothing where it has something to say.
const SILENCE: Duration = Duration::from_secs(30);

/// A step under way; says how long it took when it is finished.
#[derive(Debug)]
pub struct Stage {
    what: String,
    started: Instant,
    spoke: Cell<Instant>,
}

/// Announces a step; `estimate` is for a person, such as "7 min".
pub fn stage(what: impl Into<String>, estimate: &str) -> Stage {
    let what = what.into();
    note(format!("{what} … (about {estimate})"));
    let now = Instant::now();
    Stage { what, started: now, spoke: Cell::new(now) }
}

impl Stage {
    /// Says how far the step has come, and for how long it has been under way, unless it has just done so.
    pub fn so_far(&self, done: impl FnOnce() -> String) {
        if self.spoke.get().elapsed() >= SILENCE {
            self.spoke.set(Instant::now());
            let seconds = self.started.elapsed().as_secs();
            note(format!("  {}: {} after {}:{:02}", self.what, done(), seconds / 60, seconds % 60));
        }
    }

    /// Says that the step is done.
    pub fn done(self) {
        self.tell();
    }

    /// The same, of a step that is still needed.
    pub fn tell(&self) {
        note(format!("{}: done in {:.1} s", self.what, self.started.elapsed().as_secs_f64()));
    }
}

/// An estimate in words.
pub fn seconds(count: u32) -> String {
    if count.is_multiple_of(60) { format!("{} min", count / 60) } else { format!("{count} s") }
}

/// Tells something worth knowing in one line, and how long after the first one.
pub fn note(what: impl AsRef<str>) {
    eprintln!("lab: {:5.0} s  {}", BEGUN.elapsed().as_secs_f64(), what.as_ref());
}
