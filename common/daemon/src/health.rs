//! What the process says of itself: which tasks are ready, and which still live.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The health of all tasks of the process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    tasks: BTreeMap<&'static str, Readiness>,
    beats: BTreeMap<&'static str, Heartbeat>,
}

#[derive(Debug)]
enum Readiness {
    Ready(Option<String>),
    NotReady(String),
}

#[derive(Debug)]
struct Heartbeat {
    max_age: Duration,
    last: Instant,
}

/// One task's word on whether it is ready. A task that drops it has ended, and is not ready.
#[derive(Debug)]
pub struct Guard {
    health: Health,
    name: &'static str,
}

/// One task's sign of life.
#[derive(Debug)]
pub struct Beat {
    health: Health,
    name: &'static str,
}

/// A verdict and its text, a line a task.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub good: bool,
    pub text: String,
}

impl Health {
    /// Registers a task, which is not ready until its guard says so.
    #[must_use = "dropping the guard says that the task has ended"]
    pub fn task(&self, name: &'static str) -> Guard {
        self.state().tasks.insert(name, Readiness::NotReady("starting".to_owned()));
        Guard { health: self.clone(), name }
    }

    /// Registers a loop that promises a [`Beat::beat`] at least every `max_age`; where it fails to, the process counts
    /// as hung.
    #[must_use = "without beats the process will count as hung"]
    pub fn heartbeat(&self, name: &'static str, max_age: Duration) -> Beat {
        self.state().beats.insert(name, Heartbeat { max_age, last: Instant::now() });
        Beat { health: self.clone(), name }
    }

    pub(crate) fn ready(&self) -> Verdict {
        let state = self.state();
        let mut verdict = Verdict { good: true, text: String::new() };
        for (name, readiness) in &state.tasks {
            let line = match readiness {
                Readiness::Ready(None) => format!("{name}: ready"),
                Readiness::Ready(Some(note)) => format!("{name}: ready, but {note}"),
                Readiness::NotReady(reason) => {
                    verdict.good = false;
                    format!("{name}: not ready: {reason}")
                }
            };
            verdict.text.push_str(&line);
            verdict.text.push('\n');
        }
        verdict
    }

    pub(crate) fn alive(&self, now: Instant) -> Verdict {
        let state = self.state();
        let mut verdict = Verdict { good: true, text: "alive\n".to_owned() };
        for (name, beat) in &state.beats {
            let age = now.saturating_duration_since(beat.last);
            if age > beat.max_age {
                verdict.good = false;
                let _ = writeln!(
                    verdict.text,
                    "{name}: no sign of life for {} s (limit {} s)",
                    age.as_secs(),
                    beat.max_age.as_secs()
                );
            }
        }
        verdict
    }

    /// A panic elsewhere leaves plain data behind, which still tells the truth.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guard {
    /// The task does its work.
    pub fn ready(&self) {
        self.set(Readiness::Ready(None));
    }

    /// The task does its work, and there is something to know about it. Nothing secret: it is served in the clear.
    pub fn ready_but(&self, note: impl Into<String>) {
        self.set(Readiness::Ready(Some(note.into())));
    }

    /// The task can't do its work. Nothing secret: it is served in the clear.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.set(Readiness::NotReady(reason.into()));
    }

    fn set(&self, readiness: Readiness) {
        self.health.state().tasks.insert(self.name, readiness);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.not_ready("has ended");
    }
}

impl Beat {
    /// Still here.
    pub fn beat(&self) {
        if let Some(beat) = self.health.state().beats.get_mut(self.name) {
            beat.last = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_task_is() {
        let health = Health::default();
        let (ring, nodes) = (health.task("ring"), health.task("nodes"));
        ring.ready();
        nodes.not_ready("no list yet");
        assert_eq!(
            health.ready(),
            Verdict { good: false, text: "nodes: not ready: no list yet\nring: ready\n".to_owned() }
        );
        nodes.ready_but("one is odd");
        assert_eq!(
            health.ready(),
            Verdict { good: true, text: "nodes: ready, but one is odd\nring: ready\n".to_owned() }
        );
        drop(ring);
        assert!(!health.ready().good);
    }

    #[test]
    fn a_late_heartbeat_is_named() {
        let health = Health::default();
        let beat = health.heartbeat("loop", Duration::from_secs(10));
        let now = Instant::now();
        assert!(health.alive(now).good);
        let verdict = health.alive(now + Duration::from_secs(12));
        assert!(!verdict.good && verdict.text.contains("loop: no sign of life for 1"), "{verdict:?}");
        beat.beat();
        assert!(health.alive(Instant::now()).good);
    }
}
