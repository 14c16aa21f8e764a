//! Builds the components and runs the reconcile loop.

pub mod driver;

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use anyhow::Context;
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use jiff::Timestamp;
use prometheus_client::registry::Registry;
use rand::{TryRng, rngs::SysRng};
use secureoverlay_daemon::{
    duration::HumanDuration,
    health::{Guard, Health},
    http,
    signal::Shutdown,
};
use secureoverlay_k8s::client;
use secureoverlay_manager_core::controller::{ControllerOptions, Outcome};
use tokio::time::{sleep, timeout};

use crate::{
    USER_AGENT,
    config::{Config, RotationMode},
    io::{
        cluster_cache::{self, ClusterCache},
        outbox,
        snapshot::SnapshotError,
    },
    run::driver::{Driver, ReconcileError, now},
    telemetry::metrics::Metrics,
};

/// More than its requests take together, each of which is bounded too.
const EVALUATION_LIMIT: Duration = Duration::from_secs(120);

/// Runs the manager until it is asked to end.
///
/// # Errors
/// Where it can't start: port taken, no credentials.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    let settings = config.settings(Timestamp::now()).map_err(anyhow::Error::msg)?;
    let shutdown = Shutdown::listen().context("listening for signals")?;
    let health = Health::default();
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let bound = http::bind(config.metrics_bind_address, health.clone(), registry).await?;
    let client = client::connect(USER_AGENT).await?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        address = %bound.addr,
        settings = ?settings,
        mode = ?config.rotation.rotation_mode,
        delay = %HumanDuration(config.rotation.propagation_delay),
        "managing the key ring"
    );
    if let Some(taint) = &config.startup_taint
        && config.rotation.rotation_mode == RotationMode::Timed
    {
        tracing::warn!(
            taint,
            "the start-up taint stays on nodes: without acknowledgements it is not known whether they encrypt"
        );
    }
    let options = ControllerOptions {
        objects: settings.is_none(),
        settings,
        mode: config.rotation.rotation_mode.into(),
        delay: config.rotation.propagation_delay,
        limit: config.rotation.not_ready_timeout,
        poll_interval: config.poll_interval,
        startup_taint: config.startup_taint.is_some(),
    };
    let (cluster, objects) = (ClusterCache::default(), options.objects);
    let (outbox, notices) = outbox::queue();
    let driver = Driver::new(
        client.clone(),
        options,
        config.startup_taint.clone(),
        |bytes| SysRng.try_fill_bytes(bytes),
        metrics.clone(),
        cluster.clone(),
        outbox,
    );
    let reconciling = Reconciling { poll: config.poll_interval, cluster: cluster.clone(), health, metrics };
    let aside = async {
        tokio::join!(
            cluster_cache::follow(client.clone(), &cluster),
            async {
                if objects {
                    cluster_cache::follow_objects(client.clone(), &cluster).await;
                }
            },
            outbox::deliver(client.clone(), notices),
        );
    };
    tokio::select! {
        () = shutdown.requested() => {}
        served = bound.serve() => served.context("serving health and metrics")?,
        never = reconciling.run(driver) => match never {},
        // Neither of them ends before that.
        () = aside => anyhow::bail!("the watches of the nodes have ended"),
    }
    tracing::info!("ended; the ring stays as it is, and traffic goes on");
    Ok(())
}

/// Evaluation after evaluation.
struct Reconciling {
    poll: Duration,
    cluster: ClusterCache,
    health: Health,
    metrics: Metrics,
}

impl Reconciling {
    /// Dropping it anywhere is safe.
    async fn run(self, mut driver: Driver) -> Infallible {
        let beat = self.health.heartbeat("rotation", self.poll + 2 * EVALUATION_LIMIT);
        let mut state = StateLog { guard: self.health.task("ring"), last: None };
        let mut pauses = pauses();
        loop {
            beat.beat();
            match timeout(EVALUATION_LIMIT, driver.reconcile(now)).await {
                Ok(Ok(Outcome::Written)) => pauses = self::pauses(),
                Ok(Ok(Outcome::Waiting { reason, .. })) => {
                    pauses = self::pauses();
                    state.good(&reason);
                    self.rest(&mut driver).await;
                }
                Ok(Ok(Outcome::Conflict)) => sleep(next(&mut pauses)).await,
                // The watches have just begun; they tell.
                Ok(Err(ReconcileError::Snapshot(SnapshotError::Unknown { what, error: None }))) => {
                    state.starting(what);
                    let _ = timeout(self.poll, self.cluster.changed()).await;
                }
                Ok(Err(error)) => {
                    self.metrics.reconcile_errors.inc();
                    state.bad(error.to_string());
                    sleep(next(&mut pauses).min(self.poll)).await;
                }
                Err(_) => {
                    self.metrics.reconcile_errors.inc();
                    state.bad(format!(
                        "the API server has not answered for {}",
                        HumanDuration(EVALUATION_LIMIT)
                    ));
                }
            }
        }
    }

    /// Until the deadline, which comes sooner when something changes.
    async fn rest(&self, driver: &mut Driver) {
        while let Some(deadline) = driver.deadline() {
            let left = deadline.saturating_duration_since(Instant::now());
            if timeout(left, self.cluster.changed()).await.is_err() {
                return;
            }
            driver.handle_change(Instant::now());
        }
    }
}

/// Ever longer, and never alike for two managers that run into each other.
fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(200))
        .with_max_delay(Duration::from_secs(30))
        .without_max_times()
        .with_jitter()
        .build()
}

fn next(pauses: &mut ExponentialBackoff) -> Duration {
    pauses.next().expect("a backoff without a limit has no end")
}

/// Says what has changed, once.
struct StateLog {
    guard: Guard,
    last: Option<Result<(), String>>,
}

impl StateLog {
    fn good(&mut self, reason: &str) {
        self.guard.ready();
        match self.last.replace(Ok(())) {
            Some(Ok(())) => tracing::debug!(reason, "waiting"),
            None => tracing::info!(reason, "waiting"),
            Some(Err(_)) => tracing::info!(reason, "all is well again"),
        }
    }

    fn starting(&self, what: &str) {
        self.guard.not_ready(format!("waiting for the first list of {what}"));
    }

    fn bad(&mut self, text: String) {
        self.guard.not_ready(&*text);
        let known = matches!(&self.last, Some(Err(last)) if *last == text);
        if known {
            tracing::debug!("still: {text}");
        } else {
            tracing::warn!("{text}");
            self.last = Some(Err(text));
        }
    }
}
