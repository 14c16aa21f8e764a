//! Builds the components of the agent and runs its main loop: sources on one side, the kernel's thread on the other,
//! the decisions between them.
//!
//! | module | does |
//! |---|---|
//! | [`startup`] | identity, state and journal of this boot |
//! | `opening` | waits until they can be opened |
//! | `serving` | health and metrics, once their port can be had |
//! | `shell` | the main loop |
//! | `shutdown` | asks the API whether the end is a removal |

mod opening;
mod serving;
mod shell;
mod shutdown;
pub mod startup;

use std::{path::PathBuf, sync::mpsc as blocking, thread, time::Duration};

use anyhow::{Context, Result, bail};
use kube::Client;
use secureoverlay_agent_core::{
    agent::{Agent, Event},
    identity::LocalIdentity,
    journal::Journal,
    reconcile::SaLimits,
};
use secureoverlay_daemon::{client, health::Health, signal::Shutdown};
use tokio::{
    sync::{
        mpsc::{self, UnboundedReceiver, UnboundedSender},
        watch,
    },
    time::Instant,
};

use self::{
    opening::open,
    shell::Shell,
    shutdown::Api,
    startup::{Lines, Opened},
};
use crate::{
    config::Config,
    io::{
        input::Input,
        mtu_lookup, queries, status_writer,
        watches::{daemon_set, failures::Watching, peers, ring_source},
    },
    kernel::{
        Job, News,
        machine::{Machine, ThisMachine},
        worker,
    },
    network::probe_sockets::ProbeSockets,
    telemetry::{heard::Heard, metrics::Metrics, report::Reporter},
    uninstall::{lifecycle::Lifecycle, mark::Mark},
};

/// Without a sign of life for this long, the process counts as hung.
const HUNG: Duration = Duration::from_secs(120);
/// Inputs that may wait.
const QUEUE: usize = 1024;

/// Runs the agent until it is asked to end.
///
/// # Errors
/// It can't start, or a part of it died.
pub async fn run(config: Config) -> Result<()> {
    let shutdown = Shutdown::listen().context("listening for signals")?;
    let client = client::connect(concat!("ucp-secureoverlay-agent/", env!("CARGO_PKG_VERSION"))).await?;
    run_on(ThisMachine::default(), config, client, &shutdown, |inputs| inputs).await
}

/// Runs an agent on this machine or on a model of one. `sources` may put something between what the API tells and the
/// main loop.
///
/// # Errors
/// It can't start, or a part of it died.
pub async fn run_on<M: Machine>(
    machine: M,
    config: Config,
    client: Client,
    shutdown: &Shutdown,
    sources: impl FnOnce(mpsc::Sender<Input>) -> mpsc::Sender<Input>,
) -> Result<()> {
    let settings = config.settings();
    let Some(name) = config.node.name() else {
        bail!(
            "the name of this node is not known: set NODE_NAME from spec.nodeName in the pod, or use --node-name"
        );
    };
    let health = Health::default();
    let (metrics, registry) = Metrics::new();
    let (inputs, inbox) = mpsc::channel(QUEUE);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = name, "agent started");
    let queries = queries::router(config.node.clone(), inputs.clone());
    tokio::spawn(serving::serve(config.node.metrics_bind_address, health.clone(), registry, queries));
    let heard = Heard::default();
    let reporter = Reporter::new(&health, metrics.clone(), heard.clone());

    let opened = tokio::select! {
        opened = open(&client, &name, &config.node.state_directory) => opened?,
        () = shutdown.requested() => return Ok(()),
    };
    let announces = matches!(opened.start.identity, LocalIdentity::Announced(_));
    let Opened { start, store, journal, durability, replaced } = opened;
    let told = (metrics.clone(), heard);
    follow_sources(&client, config.node.ring_file, &name, announces, &sources(inputs.clone()), &told);
    if announces {
        follow_vm_generation(&machine, inputs.clone())?;
    }
    let (jobs, to_do) = blocking::channel();
    let (counters, kernel_changed) = (machine.counters(), machine.listen(&jobs)?);
    let news = start_worker(machine, to_do, journal, config.limits.into())?;
    let (status, to_write) = watch::channel(None);
    let (needs_mtu_advice, mtu_advice_needed) = watch::channel(false);
    tokio::spawn(mtu_lookup::follow(client.clone(), mtu_advice_needed, inputs.clone()));
    tokio::spawn(status_writer::write(client.clone(), name.clone(), to_write, metrics));
    let mark = Mark::find(&config.node.state_directory);
    let mut lifecycle = Lifecycle::default();
    if mark.is_set() {
        tracing::info!("the DaemonSet was deleted without its pods: its absence is no removal");
        lifecycle.remember_orphaned();
    }
    let (packets, received) = mpsc::channel(QUEUE);
    let shell = Shell {
        agent: Agent::new(start, store, settings),
        networks: None,
        lifecycle,
        mark,
        reporter: reporter.with_durability(durability),
        jobs,
        kernel_changed,
        status,
        needs_mtu_advice,
        sockets: ProbeSockets::new(packets),
        sockets_due: Some(Instant::now()),
        tell_at: Instant::now(),
        untold: false,
        counters,
        fallback: None,
        pod_cidrs: None,
        network: None,
        replaced,
        api: Api { client, anonymous: daemon_set::anonymous(), node: name },
        inputs,
    };
    let beat = health.heartbeat("loop", HUNG);
    shell.run(inbox, news, received, shutdown, || beat.beat()).await
}

fn follow_sources(
    client: &Client,
    file: PathBuf,
    name: &str,
    announces: bool,
    inputs: &mpsc::Sender<Input>,
    told: &(Metrics, Heard),
) {
    tokio::spawn(ring_source::follow(client.clone(), file, inputs.clone(), told.clone()));
    if announces {
        tokio::spawn(peers::follow_peers(client.clone(), inputs.clone(), told.clone()));
    } else {
        tokio::spawn(peers::follow_nodes(client.clone(), name.to_owned(), inputs.clone(), told.clone()));
    }
    tokio::spawn(daemon_set::follow(
        client.clone(),
        inputs.clone(),
        Watching::new("daemonsets", told.0.clone()),
    ));
}

/// Draws anew when this virtual machine was copied or put back.
fn follow_vm_generation(machine: &impl Machine, inputs: mpsc::Sender<Input>) -> Result<()> {
    machine.listen_to_vm(Box::new(move || {
        tracing::warn!("this machine was put back to a snapshot, or is a copy: drawing a new identity");
        inputs.blocking_send(Event::NewVmGeneration.into()).is_ok()
    }))
}

/// Starts the thread that changes the kernel.
fn start_worker(
    machine: impl Machine,
    to_do: blocking::Receiver<Job>,
    journal: Journal<Lines>,
    limits: SaLimits,
) -> Result<UnboundedReceiver<News>> {
    let (reports, news): (UnboundedSender<News>, _) = mpsc::unbounded_channel();
    thread::Builder::new()
        .name("kernel".into())
        .spawn(move || worker::work(machine, (journal, limits), &to_do, &reports))
        .context("starting the kernel's thread")?;
    Ok(news)
}
