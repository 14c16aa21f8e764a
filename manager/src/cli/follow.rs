//! How a command asks the manager for something by way of the Secret, and follows what becomes of it.

use std::time::Duration;

use anyhow::{Context, bail};
use secureoverlay_keyring::keyring::{KeyRing, KeyRingError};
use tokio::time::{Instant, sleep};

use crate::io::store::{SecretRead, Store, StoreError, Written};

/// Other writers may be faster.
const ATTEMPTS: usize = 20;
/// Between two looks at the ring.
pub(crate) const LOOK: Duration = Duration::from_secs(1);
/// A manager that is alive has taken a request up by then, and says what it waits for.
pub(crate) const TAKEN_UP: Duration = Duration::from_secs(30);
/// An API server that is away for longer is an operator's concern.
pub(crate) const AWAY: Duration = Duration::from_secs(60);
/// What to say when it has not been taken up.
pub(crate) const NOT_TAKEN_UP: &str =
    "the manager has not taken it up yet: is ucp-secureoverlay-mgr running, and ready?";
/// Where to look while it takes long.
pub(crate) const WAITING: &str = "it takes long: the manager's log says what it waits for";

/// Reads the Secret and lets `write` write a request into it, again where another writer was faster.
pub(crate) async fn ask<T>(
    store: &Store,
    write: impl AsyncFn(Option<KeyRing>, SecretRead) -> anyhow::Result<(Written, T)>,
) -> anyhow::Result<T> {
    for _ in 0..ATTEMPTS {
        let (ring, read) = store.read().await?;
        match write(readable(ring)?, read).await? {
            (Written::Done, asked) => return Ok(asked),
            (Written::Conflict, _) => sleep(Duration::from_millis(100)).await,
        }
    }
    bail!("other writers keep changing the Secret: try again")
}

/// The ring, where the manager can do anything with it.
pub(crate) fn readable(ring: Result<KeyRing, KeyRingError>) -> anyhow::Result<Option<KeyRing>> {
    match ring {
        Ok(ring) => Ok(Some(ring)),
        Err(KeyRingError::Empty) => Ok(None),
        Err(error) => Err(error).context("nothing is done until the key ring in the Secret is repaired"),
    }
}

/// What is read time and again while something is followed: an API server that is away for a moment ends nothing.
pub(crate) struct Reader<'s> {
    store: &'s Store,
    failing: Option<Instant>,
}

impl<'s> Reader<'s> {
    pub(crate) const fn new(store: &'s Store) -> Self {
        Self { store, failing: None }
    }

    /// The ring and what is asked for; waits for an API server that is away.
    ///
    /// # Errors
    /// Where it stays away, or there is no Secret, or what it holds is no ring.
    pub(crate) async fn read(&mut self) -> anyhow::Result<(Option<KeyRing>, SecretRead)> {
        loop {
            match self.store.read().await {
                Ok((ring, read)) => {
                    self.failing = None;
                    return Ok((readable(ring)?, read));
                }
                Err(error @ StoreError::Read(_)) => {
                    if self.failing.is_none() {
                        eprintln!("{error}; trying again for {} s", AWAY.as_secs());
                    }
                    if self.failing.get_or_insert_with(Instant::now).elapsed() > AWAY {
                        return Err(error.into());
                    }
                    sleep(LOOK).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
