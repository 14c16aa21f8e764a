//! Drives the controller with a Kubernetes API server: does what it asks for, and hands in what came of it.

use std::time::Instant;

use jiff::Timestamp;
use kube::Client;
use rand::rngs::SysError;
use secureoverlay_common::ring::RingError;
use secureoverlay_manager_core::{
    controller::{Controller, ControllerOptions, Now, Outcome, Request, Write, WriteResult},
    snapshot::SecretSnapshot,
};

use crate::{
    access::{self, AccessError},
    cluster_cache::ClusterCache,
    installation::{InstallationError, Observer},
    metrics::{self, Metrics},
    outbox::Outbox,
    reporter::Reporter,
    snapshot::{self, SnapshotError},
    store::{Held, Store, StoreError, Written},
};

/// Fills a buffer with random bytes fit for keys.
pub type Random = fn(&mut [u8]) -> Result<(), SysError>;

/// Why an evaluation ended without a decision. Nothing was written, or it is not known whether it was.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The Secret.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The DaemonSet.
    #[error(transparent)]
    Installation(#[from] InstallationError),
    /// The nodes.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// What we may know of them.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The ring is not one.
    #[error(
        "{0}. Nodes go on with the keys they hold; the Secret is left as it is until this is mended: write a good ring, or empty `data.keys`: the last good one is put back then, or a new one made"
    )]
    InvalidRing(RingError),
    /// No keys can be made.
    #[error("drawing random bytes for a key: {0}")]
    Random(#[from] SysError),
}

/// The controller, and what it needs of the world.
pub struct Driver {
    controller: Controller,
    client: Client,
    store: Store,
    observer: Observer,
    cluster: ClusterCache,
    startup_taint: Option<String>,
    random: Random,
    metrics: Metrics,
    reporter: Reporter,
    /// The Secret as this evaluation has read it.
    held: Option<Held>,
}

impl Driver {
    /// `cluster` is kept up to date by [`crate::cluster_cache::follow`]; `startup_taint` is the key of the taint that
    /// nodes have until they encrypt. Sends nothing yet.
    #[must_use]
    pub fn new(
        client: Client,
        options: ControllerOptions,
        startup_taint: Option<String>,
        random: Random,
        metrics: Metrics,
        cluster: ClusterCache,
        outbox: Outbox,
    ) -> Self {
        let options = ControllerOptions { startup_taint: startup_taint.is_some(), ..options };
        Self {
            store: Store::new(client.clone()),
            observer: Observer::new(client.clone()),
            controller: Controller::new(&options),
            client,
            cluster,
            reporter: Reporter::new(metrics.clone(), outbox, startup_taint.clone()),
            startup_taint,
            random,
            metrics,
            held: None,
        }
    }

    /// When the controller wants to look again; `None`: as soon as possible.
    #[must_use]
    pub const fn deadline(&self) -> Option<Instant> {
        self.controller.poll_timeout()
    }

    /// A watch has brought something new.
    pub fn handle_change(&mut self, now: Instant) {
        self.controller.handle_change(now);
    }

    /// One evaluation. Dropping it anywhere is safe.
    ///
    /// # Errors
    /// Where the cluster can't be read or written, or holds what can't be understood.
    pub async fn reconcile(&mut self, clock: impl Fn() -> Now) -> Result<Outcome, ReconcileError> {
        self.controller.handle_timeout();
        while let Some(request) = self.controller.poll_request(self.random)? {
            let result = self.handle(request, &clock).await;
            self.report();
            if let Err(error) = result {
                self.controller.handle_failure();
                return Err(error);
            }
        }
        Ok(self.controller.outcome().cloned().expect("an evaluation without an error has an outcome"))
    }

    async fn handle(&mut self, request: Request, clock: impl Fn() -> Now) -> Result<(), ReconcileError> {
        match request {
            Request::ReadSecret => {
                let (ring, held) = self.store.read().await?;
                self.reporter.read(&ring, &held);
                let secret = SecretSnapshot {
                    uid: held.uid.clone(),
                    resource_version: held.resource_version().map(str::to_owned),
                    ring,
                    requests: held.requests,
                };
                self.held = Some(held);
                self.controller.handle_secret(secret, clock()).map_err(ReconcileError::InvalidRing)?;
            }
            Request::ReadDaemonSet => {
                let installation = self.observer.observe(clock().monotonic).await?;
                self.controller.handle_daemon_set(installation, clock());
            }
            Request::CheckAccess => {
                let granted = access::may_list_cluster(&self.client).await?;
                self.controller.handle_access(granted, clock());
            }
            Request::ReadCache => {
                self.cluster.want();
                let cluster = self.cluster.snapshot(self.startup_taint.as_deref())?;
                self.controller.handle_cluster(cluster, clock());
            }
            Request::ListCluster => {
                let cluster = snapshot::list(&self.client, self.startup_taint.as_deref()).await?;
                self.controller.handle_cluster(cluster, clock());
            }
            Request::Write(write) => {
                let result = self.write(write).await?;
                self.controller.handle_written(result, clock());
            }
        }
        Ok(())
    }

    async fn write(&mut self, write: Write) -> Result<WriteResult, StoreError> {
        let held =
            self.held.take().filter(|held| held.resource_version() == write.resource_version.as_deref());
        let held = held.expect("a write is made against the Secret that this evaluation has read");
        match self.store.replace(held, &write.ring, write.answered).await {
            Ok(Written::Done) => {
                self.metrics.wrote(metrics::WriteResult::Ok);
                self.metrics.show(Some(&write.ring));
                Ok(WriteResult::Written)
            }
            Ok(Written::Conflict) => {
                self.metrics.wrote(metrics::WriteResult::Conflict);
                tracing::info!("another writer changed the Secret first, looking again");
                Ok(WriteResult::Conflict)
            }
            Err(error) => {
                self.metrics.wrote(metrics::WriteResult::Error);
                Err(error)
            }
        }
    }

    fn report(&mut self) {
        while let Some(notification) = self.controller.poll_notification() {
            self.reporter.tell(notification);
        }
        while let Some(node) = self.controller.poll_taint_removal() {
            self.reporter.remove_taint(node);
        }
    }
}

/// The clocks of this machine.
#[must_use]
pub fn now() -> Now {
    Now { wall: Timestamp::now(), monotonic: Instant::now() }
}
