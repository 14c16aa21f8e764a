//! Messages about long steps, on standard error: when, what, how long it usually takes, how long it took.

use std::sync::LazyLock;
use std::time::Instant;

static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A step under way; says how long it took when it is finished.
#[derive(Debug)]
pub struct Stage {
    what: String,
    started: Instant,
}

/// Announces a step; `estimate` is for a person, such as "7 min".
pub fn stage(what: impl Into<String>, estimate: &str) -> Stage {
    let what = what.into();
    note(format!("{what} … (about {estimate})"));
    Stage { what, started: Instant::now() }
}

impl Stage {
    /// Says that the step is done.
    pub fn done(self) {
        note(format!("{}: done in {:.1} s", self.what, self.started.elapsed().as_secs_f64()));
    }
}

/// Tells something worth knowing in one line, and how long after the first one.
pub fn note(what: impl AsRef<str>) {
    eprintln!("lab: {:5.0} s  {}", BEGUN.elapsed().as_secs_f64(), what.as_ref());
}
