//! When the API server was heard last: readiness depends on it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// A watch on which nothing happens is heard at least every 165 s (`SILENCE` and `SPREAD` of the watches).
pub const HEARD_WITHIN: Duration = Duration::from_secs(180);

/// Shared by those that hear it and the one that tells. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Heard(Arc<Mutex<Option<Instant>>>);

impl Heard {
    /// It is heard now.
    pub fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether it was heard lately; `None` where it never was.
    #[must_use]
    pub fn lately(&self) -> Option<bool> {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.map(|last| last.elapsed() < HEARD_WITHIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_of_three_minutes_is_noticed_and_ends() {
        let heard = Heard::default();
        assert_eq!(heard.lately(), None);
        heard.clone().note();
        tokio::time::advance(Duration::from_secs(179)).await;
        assert_eq!(heard.lately(), Some(true));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(heard.lately(), Some(false));
        heard.note();
        assert_eq!(heard.lately(), Some(true));
    }
}
