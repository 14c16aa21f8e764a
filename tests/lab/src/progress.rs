//! Messages about long steps, on standard error: what, how long it usually takes, how long it took.

use std::time::Instant;

/// A step under way; says how long it took when it is finished.
#[derive(Debug)]
pub struct Stage {
    what: String,
    started: Instant,
}

/// Announces a step; `estimate` is for a person, such as "7 min".
pub fn stage(what: impl Into<String>, estimate: &str) -> Stage {
    let what = what.into();
    eprintln!("lab: {what} … (about {estimate})");
    Stage { what, started: Instant::now() }
}

impl Stage {
    /// Says that the step is done.
    pub fn done(self) {
        eprintln!("lab: {}: done in {:.1} s", self.what, self.started.elapsed().as_secs_f64());
    }
}

/// Tells something worth knowing in one line.
pub fn note(what: impl AsRef<str>) {
    eprintln!("lab: {}", what.as_ref());
}
