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
use secureoverlay_agent_kernel::{VmEvent, VmGenerationEvents, XfrmSocket};
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
        mtu_lookup, status_writer,
        watches::{daemon_set, failures::Watching, peers, ring_source},
    },
    kernel::{
        Job, News,
        listeners::{listen_to_kernel, listen_to_network},
        worker,
    },
    network::{measure::measure, probe_sockets::ProbeSockets},
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
    let settings = config.settings();
    let Some(name) = config.node.name() else {
        bail!(
            "the name of this node is not known: set NODE_NAME from spec.nodeName in the pod, or use --node-name"
        );
    };
    let shutdown = Shutdown::listen().context("listening for signals")?;
    let health = Health::default();
    let (metrics, registry) = Metrics::new();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = name, "agent started");
    tokio::spawn(serving::serve(config.node.metrics_bind_address, health.clone(), registry.into()));
    let heard = Heard::default();
    let reporter = Reporter::new(&health, metrics.clone(), heard.clone());

    let client = client::connect(concat!("ucp-secureoverlay-agent/", env!("CARGO_PKG_VERSION"))).await?;
    let opened = tokio::select! {
        opened = open(&client, &name, &config.node.state_directory) => opened?,
        () = shutdown.requested() => return Ok(()),
    };
    let announces = matches!(opened.start.identity, LocalIdentity::Announced(_));
    let Opened { start, store, journal, durability, replaced } = opened;
    let (inputs, inbox) = mpsc::channel(QUEUE);
    follow_sources(&client, config.node.ring_file, &name, announces, &inputs, &(metrics.clone(), heard));
    if announces {
        follow_vm_generation(inputs.clone())?;
    }
    let (jobs, news) = start_worker(journal, config.limits.into())?;
    listen_to_network(jobs.clone())?;
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
        jobs: jobs.clone(),
        kernel_changed: listen_to_kernel(jobs.clone())?,
        status,
        needs_mtu_advice,
        sockets: ProbeSockets::new(packets),
        sockets_due: Some(Instant::now()),
        tell_at: Instant::now(),
        untold: false,
        counters: None,
        fallback: None,
        pod_cidrs: None,
        network: None,
        replaced,
        api: Api { client, anonymous: daemon_set::anonymous(), node: name },
        inputs,
    };
    let beat = health.heartbeat("loop", HUNG);
    shell.run(inbox, news, received, &shutdown, || beat.beat()).await
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

/// Hears that this virtual machine was copied or put back. Where that can't be heard, it is not noticed.
fn follow_vm_generation(inputs: mpsc::Sender<Input>) -> Result<()> {
    let follow = move || {
        let mut events = match VmGenerationEvents::open() {
            Ok(events) => events,
            Err(error) => return tracing::debug!(%error, "cannot hear whether this machine is copied"),
        };
        while let Ok(VmEvent::NewGeneration | VmEvent::Lost) = events.next_event() {
            tracing::warn!("this machine was put back to a snapshot, or is a copy: drawing a new identity");
            if inputs.blocking_send(Event::NewVmGeneration.into()).is_err() {
                return;
            }
        }
    };
    thread::Builder::new()
        .name("vm-generation".into())
        .spawn(follow)
        .context("starting the thread for VM events")?;
    Ok(())
}

/// Starts the thread that changes the kernel.
fn start_worker(
    journal: Journal<Lines>,
    limits: SaLimits,
) -> Result<(blocking::Sender<Job>, UnboundedReceiver<News>)> {
    let (jobs, to_do) = blocking::channel();
    let (reports, news): (UnboundedSender<News>, _) = mpsc::unbounded_channel();
    thread::Builder::new()
        .name("kernel".into())
        .spawn(move || worker::work(XfrmSocket::open, measure, (journal, limits), &to_do, &reports))
        .context("starting the kernel's thread")?;
    Ok((jobs, news))
}
