//! Drives the controller with a Kubernetes API server: does what it asks for, and hands in what came of it.

use std::time::Instant;

use jiff::Timestamp;
use kube::Client;
use rand::rngs::SysError;
use secureoverlay_k8s::client::describe;
use secureoverlay_keyring::keyring::KeyRingError;
use secureoverlay_manager_core::{
    controller::{Controller, ControllerOptions, Now, Outcome, Request, Write, WriteResult},
    snapshot::SecretSnapshot,
};
use secureoverlay_rotation::{ApplyError, History, Installation};

use crate::{
    io::{
        access::{self, AccessError},
        cluster_cache::ClusterCache,
        installation::{InstallationError, Observer},
        objects,
        outbox::Outbox,
        snapshot::{self, SnapshotError},
        store::{SecretRead, Store, StoreError, Written},
    },
    telemetry::{
        metrics::{self, Metrics},
        reporter::Reporter,
    },
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
    /// The ClusterEncryption.
    #[error("failed to make the ClusterEncryption: {}. No key is made without it", describe(.0))]
    Settings(#[source] kube::Error),
    /// What we may know of them.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The ring is not one.
    #[error(
        "{0}. Nodes go on with the keys they hold; the Secret is left as it is until this is mended: write a good ring, or empty `data.keys`: the last good one is put back then, or a new one made"
    )]
    InvalidRing(KeyRingError),
    /// No keys can be made.
    #[error("failed to draw random bytes for a key: {0}")]
    Random(SysError),
    /// The next ring would be refused.
    #[error(transparent)]
    NextRing(ApplyError<SysError>),
}

impl From<ApplyError<SysError>> for ReconcileError {
    fn from(error: ApplyError<SysError>) -> Self {
        match error {
            ApplyError::Random(error) => Self::Random(error),
            error @ ApplyError::Invalid(_) => Self::NextRing(error),
        }
    }
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
    read: Option<SecretRead>,
    /// Version of the Secret that was read or written last, and its UID.
    seen: Option<(Option<String>, u64)>,
    installation: Installation,
}

impl Driver {
    /// `cluster` is kept up to date by [`crate::io::cluster_cache::follow`]; `startup_taint` is the key of the taint that
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
            read: None,
            seen: None,
            installation: Installation::Unknown,
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
        if self.cluster.take_went_back() {
            self.controller.handle_history_went_back();
        }
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
            Request::ReadObjects => {
                let objects = self.cluster.objects()?;
                self.reporter.objects(objects.encryption.as_ref());
                self.controller.handle_objects(objects);
            }
            Request::CreateEncryption => {
                objects::create_encryption(&self.client).await.map_err(ReconcileError::Settings)?;
                tracing::info!("made the ClusterEncryption default, with the default settings");
                self.controller.handle_encryption_created(clock());
            }
            Request::CreateRotation { name } => {
                let made = objects::create_rotation(&self.client, &name).await;
                if let Err(error) = &made {
                    let error = describe(error);
                    tracing::warn!(
                        error,
                        name,
                        "cannot make a KeyRotation; the rotation goes on without one"
                    );
                }
                self.controller.handle_rotation_created(made.ok());
            }
            Request::ReadSecret => {
                let (ring, read) = match self.store.read().await {
                    // It can be made anew; whether it is to be is decided when that is tried.
                    Err(StoreError::Missing) => (Err(KeyRingError::Empty), SecretRead::missing()),
                    read => read?,
                };
                self.compare(&read, clock().monotonic).await?;
                self.reporter.read(&ring, &read);
                let secret = SecretSnapshot {
                    uid: read.uid.clone(),
                    resource_version: read.resource_version().map(str::to_owned),
                    ring,
                    rotate: read.rotate,
                };
                self.read = Some(read);
                self.controller.handle_secret(secret, clock()).map_err(ReconcileError::InvalidRing)?;
            }
            Request::ReadDaemonSet => {
                self.installation = self.observer.observe(clock().monotonic).await?;
                self.controller.handle_daemon_set(self.installation, clock());
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
                let taint = self.startup_taint.as_deref();
                let cached = self.cluster.snapshot(taint)?;
                let cluster = snapshot::list(&self.client, taint, cached).await?;
                self.controller.handle_cluster(cluster, clock());
            }
            Request::Write(write) => {
                let result = self.write(*write).await?;
                self.controller.handle_written(result, clock());
            }
        }
        Ok(())
    }

    async fn write(&mut self, write: Write) -> Result<WriteResult, StoreError> {
        let read =
            self.read.take().filter(|read| read.resource_version() == write.resource_version.as_deref());
        let read = read.expect("a write is made against the Secret that this evaluation has read");
        // Where the DaemonSet can't be seen, a Secret that is gone may mean that all of it is being removed.
        if write.resource_version.is_none() && self.installation == Installation::Unknown {
            return Err(StoreError::Missing);
        }
        match self.store.replace(read, &write.ring, write.answers).await {
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

    /// Whether the Secret is older than what was seen of it: then a backup was restored.
    async fn compare(&mut self, read: &SecretRead, now: Instant) -> Result<(), StoreError> {
        let version = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok());
        let Some(found) = version(read.resource_version()) else { return Ok(()) };
        let older = self.seen.as_ref().is_some_and(|(uid, seen)| *uid == read.uid && found < *seen);
        if !older {
            self.reporter.history_is_consistent();
            self.seen = Some((read.uid.clone(), found));
            self.controller.handle_history(History::Consistent, now);
            return Ok(());
        }
        let cached = self.store.cached_version().await?;
        if version(cached.as_deref()).is_some_and(|cached| cached > found) {
            // Agents see what the cache has, until the API server is restarted.
            self.reporter.history_went_back();
            self.controller.handle_history(History::WentBack, now);
        } else {
            self.seen = Some((read.uid.clone(), found));
            self.controller.handle_history_went_back();
            self.controller.handle_history(History::Consistent, now);
        }
        Ok(())
    }

    fn report(&mut self) {
        while let Some(notification) = self.controller.poll_notification() {
            self.reporter.tell(notification);
        }
        while let Some(node) = self.controller.poll_taint_removal() {
            self.reporter.remove_taint(node);
        }
        while let Some(deletion) = self.controller.poll_deletion() {
            self.reporter.delete(deletion);
        }
        while let Some(write) = self.controller.poll_object_write() {
            self.reporter.write(write);
        }
    }
}

/// The clocks of this machine.
#[must_use]
pub fn now() -> Now {
    Now { wall: Timestamp::now(), monotonic: Instant::now() }
}
