//! The first signal drains, the second aborts.

use std::{io, process};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// Exit status after a second signal: 128 + SIGINT, as shells have it.
const ABORTED: i32 = 130;

/// Tells tasks that the process was asked to end. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// The other end of a [`Shutdown`] that no signal is tied to.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

impl Trigger {
    /// Asks for the end.
    pub fn request(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Listens for SIGTERM and SIGINT. From then on the first of them resolves [`Shutdown::requested`], and the
    /// second ends the process at once with status 130.
    ///
    /// # Errors
    /// Where signal handlers can't be installed.
    pub fn listen() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (trigger, shutdown) = Self::manual();
        tokio::spawn(async move {
            let mut received = 0;
            loop {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                received += 1;
                if received > 1 {
                    tracing::warn!(signal = name, "second signal, ending at once");
                    process::exit(ABORTED);
                }
                tracing::info!(signal = name, "asked to end");
                trigger.request();
            }
        });
        Ok(shutdown)
    }

    /// One that is triggered by hand.
    #[must_use]
    pub fn manual() -> (Trigger, Self) {
        let (sender, receiver) = watch::channel(false);
        (Trigger(sender), Self(receiver))
    }

    /// Resolves when the end was asked for, at once if that is past.
    pub async fn requested(&self) {
        // An error means that the process can't be asked any more, which never counts as having been asked.
        if self.0.clone().wait_for(|requested| *requested).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether the end was asked for.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_reaches_every_clone_and_stays() {
        let (trigger, shutdown) = Shutdown::manual();
        assert!(timeout(Duration::from_secs(1), shutdown.requested()).await.is_err());
        let clone = shutdown.clone();
        trigger.request();
        clone.requested().await;
        shutdown.requested().await;
        assert!(shutdown.is_requested());
        drop(trigger);
        shutdown.requested().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_trigger_is_no_request() {
        let (trigger, shutdown) = Shutdown::manual();
        drop(trigger);
        assert!(timeout(Duration::from_secs(1), shutdown.requested()).await.is_err());
    }
}
