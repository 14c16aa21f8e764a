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
    config::Config,
    metrics::Metrics,
    turn::{Manager, Now, Outcome},
};

const USER_AGENT: &str = concat!("ucp-secureoverlay-mgr/", env!("CARGO_PKG_VERSION"));
/// More than its requests take together, each of which is bounded too.
const TURN_LIMIT: Duration = Duration::from_secs(120);

/// Runs the manager until it is asked to end.
///
/// # Errors
/// Where it can't start: port taken, no credentials.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    let shutdown = Shutdown::listen().context("listening for signals")?;
    let health = Health::default();
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let bound = http::bind(config.listen, health.clone(), registry).await?;
    let client = client::connect(USER_AGENT).await?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = %bound.addr,
        suite = %config.rotation.suite,
        "managing the key ring: rotation every {}, {} for nodes to follow",
        Human(config.rotation.rotation_interval),
        Human(config.rotation.propagation_delay),
    );
    let manager = Manager::new(
        client,
        (&config.rotation).into(),
        config.rotation.propagation_delay,
        metrics.clone(),
        |bytes| SysRng.try_fill_bytes(bytes),
    );
    tokio::select! {
        () = shutdown.requested() => {}
        served = bound.serve() => served.context("serving health and metrics")?,
        never = rotate(manager, config.poll_interval, &health, &metrics) => match never {},
    }
    tracing::info!("ended; the ring stays as it is, and traffic goes on");
    Ok(())
}

/// Turn after turn. Dropping it between any two of its steps is safe.
async fn rotate(mut manager: Manager, poll: Duration, health: &Health, metrics: &Metrics) -> Infallible {
    let beat = health.heartbeat("rotation", poll + 2 * TURN_LIMIT);
    let mut state = Reporter { guard: health.task("ring"), last: None };
    let mut pauses = pauses();
    loop {
        beat.beat();
        let pause = match timeout(TURN_LIMIT, manager.turn(now)).await {
            Ok(Ok(Outcome::Written)) => {
                pauses = self::pauses();
                Duration::ZERO
            }
            Ok(Ok(Outcome::Waiting { wake_in, reason })) => {
                pauses = self::pauses();
                state.good(&reason);
                wake_in.min(poll)
            }
            Ok(Ok(Outcome::Conflict)) => next(&mut pauses),
            Ok(Err(error)) => {
                metrics.failed_turns.inc();
                state.bad(error.to_string());
                next(&mut pauses).min(poll)
            }
            Err(_) => {
                metrics.failed_turns.inc();
                state.bad(format!("the API server left us without an answer for {}", Human(TURN_LIMIT)));
                Duration::ZERO
            }
        };
        sleep(pause).await;
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
