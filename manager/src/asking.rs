//! What the commands share that ask the manager for something by way of the Secret, and follow what becomes of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, bail};
use kube::Client;
use secureoverlay_common::{
    ring::{Ring, RingError},
    rotation::Names,
};
use tokio::time::{Instant, sleep};

use crate::{
    encryptions::WatchedEncryption,
    snapshot::{ENCRYPTIONS, pages},
    store::{Held, Store, StoreError, Written},
};

/// Somebody else keeps writing.
const ATTEMPTS: usize = 20;
/// Between two looks at the ring.
pub(crate) const LOOK: Duration = Duration::from_secs(1);
/// The nodes are many, and not awaited before 15 s.
const LOOKS: u32 = 5;
/// A manager that is alive has taken a request up by then.
pub(crate) const TAKEN_UP: Duration = Duration::from_secs(30);
/// An API server that is away for longer is somebody's concern.
const AWAY: Duration = Duration::from_secs(60);
/// What to say when it has not.
pub(crate) const NOT_TAKEN_UP: &str =
    "the manager has not taken it up yet: is ucp-secureoverlay-mgr running, and ready?";

/// Reads the Secret and lets `write` write a request into it, again where somebody else was faster.
pub(crate) async fn ask<T>(
    store: &Store,
    write: impl AsyncFn(Option<Ring>, Held) -> anyhow::Result<(Written, T)>,
) -> anyhow::Result<T> {
    for _ in 0..ATTEMPTS {
        let (ring, held) = store.read().await?;
        match write(readable(ring)?, held).await? {
            (Written::Done, asked) => return Ok(asked),
            (Written::Conflict, _) => sleep(Duration::from_millis(100)).await,
        }
    }
    bail!("somebody else keeps writing the Secret: try again")
}

/// The ring, where the manager can do anything with it.
pub(crate) fn readable(ring: Result<Ring, RingError>) -> anyhow::Result<Option<Ring>> {
    match ring {
        Ok(ring) => Ok(Some(ring)),
        Err(RingError::Empty) => Ok(None),
        Err(error) => Err(error).context("nothing is done until the ring in the Secret is mended"),
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
    pub(crate) async fn read(&mut self) -> anyhow::Result<(Option<Ring>, Held)> {
        loop {
            match self.store.read().await {
                Ok((ring, held)) => {
                    self.failing = None;
                    return Ok((readable(ring)?, held));
                }
                Err(error @ StoreError::Read(_)) => {
                    if self.failing.is_none() {
                        eprintln!("{error}; trying on for {} s", AWAY.as_secs());
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

/// Whom the manager waits for.
#[derive(Default)]
pub(crate) struct Awaited {
    said: String,
    looks: u32,
}

impl Awaited {
    /// Prints it where it has changed, as far as we may see it.
    pub(crate) async fn tell(&mut self, client: &Client) {
        if self.looks.is_multiple_of(LOOKS) {
            let awaited = who(client).await;
            if awaited != self.said && !awaited.is_empty() {
                println!("{awaited}");
            }
            self.said = awaited;
        }
        self.looks = self.looks.wrapping_add(1);
    }
}

async fn who(client: &Client) -> String {
    let Ok(list) = pages(client, ENCRYPTIONS, WatchedEncryption::into_parts).await else {
        return String::new();
    };
    let mut nodes = BTreeMap::<String, BTreeSet<String>>::new();
    for (node, said) in list {
        if let Some(what) = said.awaited {
            nodes.entry(what).or_default().insert(node);
        }
    }
    let lines: Vec<String> =
        nodes.iter().map(|(what, nodes)| format!("waiting for {}: {what}", Names(nodes))).collect();
    lines.join("\n")
}
