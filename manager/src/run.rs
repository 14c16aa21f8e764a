//! Wires the parts together and turns the wheel.

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
    client,
    duration::Human,
    health::{Guard, Health},
    http,
    signal::Shutdown,
};
use tokio::time::{sleep, timeout};

use crate::{
    USER_AGENT,
    cluster::{self, Cluster},
    config::Config,
    metrics::Metrics,
    notices,
    source::Acknowledgements,
    turn::{Manager, Now, Options, Outcome, TurnError},
    view::ViewError,
};

/// More than its requests take together, each of which is bounded too.
const TURN_LIMIT: Duration = Duration::from_secs(120);

/// Changes come in bursts, and a turn asks the API server for the ring.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Runs the manager until it is asked to end.
///
/// # Errors
/// Where it can't start: port taken, no credentials.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    let schedule = config.rotation.schedule(Timestamp::now()).map_err(anyhow::Error::msg)?;
    let shutdown = Shutdown::listen().context("listening for signals")?;
    let health = Health::default();
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let bound = http::bind(config.listen, health.clone(), registry).await?;
    let client = client::connect(USER_AGENT).await?;
    let follow = match config.rotation.acknowledgements {
        Acknowledgements::Required => "every node's word".to_owned(),
        Acknowledgements::Auto => "every node's word, or time where that is not to be had".to_owned(),
        Acknowledgements::Timed => {
            format!("{} for nodes to follow", Human(config.rotation.propagation_delay))
        }
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = %bound.addr,
        suite = %config.rotation.suite,
        enforcement = %config.rotation.enforcement,
        "managing the key ring: rotation {schedule}, each step after {follow}"
    );
    if let Some(taint) = &config.startup_taint
        && config.rotation.acknowledgements == Acknowledgements::Timed
    {
        tracing::warn!(
            taint,
            "the start-up taint stays on nodes: without acknowledgements nobody says that they encrypt"
        );
    }
    let options = Options {
        schedule,
        suite: config.rotation.suite,
        goal: config.rotation.enforcement.into(),
        acknowledgements: config.rotation.acknowledgements,
        delay: config.rotation.propagation_delay,
        limit: config.rotation.unreachable_limit,
        startup_taint: config.startup_taint.clone(),
        random: |bytes| SysRng.try_fill_bytes(bytes),
    };
    let cluster = Cluster::default();
    let (outbox, notices) = notices::queue();
    let manager = Manager::new(client.clone(), options, metrics.clone(), cluster.clone(), outbox);
    let turns = Turns { poll: config.poll_interval, cluster: cluster.clone(), health, metrics };
    let aside = async {
        tokio::join!(cluster::follow(client.clone(), cluster), notices::deliver(client, notices));
    };
    tokio::select! {
        () = shutdown.requested() => {}
        served = bound.serve() => served.context("serving health and metrics")?,
        never = turns.run(manager) => match never {},
        // Neither of them ends while there are turns.
        () = aside => anyhow::bail!("the watches of the nodes have ended"),
    }
    tracing::info!("ended; the ring stays as it is, and traffic goes on");
    Ok(())
}

/// Turn after turn.
struct Turns {
    poll: Duration,
    cluster: Cluster,
    health: Health,
    metrics: Metrics,
}

impl Turns {
    /// Dropping it between any two of its steps is safe.
    async fn run(self, mut manager: Manager) -> Infallible {
        let beat = self.health.heartbeat("rotation", self.poll + 2 * TURN_LIMIT);
        let mut state = Reporter { guard: self.health.task("ring"), last: None };
        let mut pauses = pauses();
        loop {
            beat.beat();
            match timeout(TURN_LIMIT, manager.turn(now)).await {
                Ok(Ok(Outcome::Written)) => pauses = self::pauses(),
                Ok(Ok(Outcome::Waiting { wake_in, reason })) => {
                    pauses = self::pauses();
                    state.good(&reason);
                    self.rest(wake_in.min(self.poll)).await;
                }
                Ok(Ok(Outcome::Conflict)) => sleep(next(&mut pauses)).await,
                // The watches have just begun; they tell.
                Ok(Err(TurnError::View(ViewError::Unknown { what, error: None }))) => {
                    state.starting(what);
                    self.rest(self.poll).await;
                }
                Ok(Err(error)) => {
                    self.metrics.failed_turns.inc();
                    state.bad(error.to_string());
                    sleep(next(&mut pauses).min(self.poll)).await;
                }
                Err(_) => {
                    self.metrics.failed_turns.inc();
                    state.bad(format!("the API server left us without an answer for {}", Human(TURN_LIMIT)));
                }
            }
        }
    }

    /// Until then, or until something changes.
    async fn rest(&self, pause: Duration) {
        if timeout(pause, self.cluster.changed()).await.is_ok() {
            sleep(DEBOUNCE).await;
        }
    }
}

fn now() -> Now {
    Now { wall: Timestamp::now(), monotonic: Instant::now() }
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
struct Reporter {
    guard: Guard,
    last: Option<Result<(), String>>,
}

impl Reporter {
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
