//! Builds the components of the agent and runs its main loop: sources on one side, the kernel's thread on the other,
//! the decisions between them.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc as blocking,
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use jiff::Timestamp;
use kube::Client;
use rand::rngs::SysRng;
use secureoverlay_agent_core::{
    agent::{Agent, Event, IdentityStore},
    announcer::Request,
    coverage::PodNetworks,
    identity::LocalIdentity,
    journal::Journal,
    network::LocalNetwork,
    peers::NodeLookup,
    proof::Received,
    reconcile::SaLimits,
};
use secureoverlay_daemon::{client, health::Health, http, signal::Shutdown};
use secureoverlay_k8s::names::GROUP;
use secureoverlay_keyring::{
    acknowledgement::EnforcementBlocker, address::NodeAddress, settings::DeletionPolicy, uid::Uid,
};
use tokio::{
    sync::{
        Notify,
        mpsc::{self, UnboundedReceiver, UnboundedSender},
        watch,
    },
    time::{Instant, sleep, sleep_until},
};

use crate::{
    api,
    clock::{self, now},
    config::Config,
    daemon_set,
    heard::Heard,
    inputs::Input,
    io::vm_generation::{VmEvent, VmGenerationEvents},
    kernel::{self, Events, NetworkEvents, XfrmSocket},
    lifecycle::{Lifecycle, ShutdownQuery},
    mark::Mark,
    metrics::Metrics,
    mtu_lookup,
    probe_sockets::{Packet, ProbeSockets},
    removal::{Sighting, Verdict},
    report::Reporter,
    rights, source, sources,
    startup::{self, Lines, Opened},
    state_directory::StateError,
    status::DesiredStatus,
    watching::Watching,
    worker::{self, Job, News},
    writer,
};

/// The boot ID of the running kernel.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How long another agent may take to end before this one says so.
const LOCK_WAIT: Duration = Duration::from_secs(60);
/// The loop shows itself alive at least this often, unless the kernel's thread hangs.
const BEAT: Duration = Duration::from_secs(10);
/// Without a sign of life for this long, the process counts as hung.
const HUNG: Duration = Duration::from_secs(120);
/// Before another attempt to hear of changes in the kernel, or to open sockets.
const AGAIN: Duration = Duration::from_secs(5);
/// Between two looks at what there is to say: each one goes through all pairs.
const TELL_PAUSE: Duration = Duration::from_millis(100);
/// Changes of addresses and routes are collected for so long.
const NETWORK_PAUSE: Duration = Duration::from_millis(500);
/// Inputs that may wait.
const QUEUE: usize = 1024;
/// Pings and answers that one turn of the loop sends at most.
const PINGS: usize = 16;

/// Runs the agent until it is asked to end.
///
/// # Errors
/// It can't start, or a part of it died.
pub async fn run(config: Config) -> Result<()> {
    let settings = config.settings();
    // MKE's manifest sets a variable of another name.
    let by_mke = || std::env::var("MY_NODE_NAME").ok();
    let Some(name) = config.node.node_name.or_else(by_mke).filter(|name| !name.is_empty()) else {
        bail!(
            "the name of this node is not known: set NODE_NAME from spec.nodeName in the pod, or use --node-name"
        );
    };
    let shutdown = Shutdown::listen().context("listening for signals")?;
    let health = Health::default();
    let (metrics, registry) = Metrics::new();
    let server = http::bind(config.node.metrics_bind_address, health.clone(), registry).await?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = name, listen = %server.addr, "agent started");
    let heard = Heard::default();
    let reporter = Reporter::new(&health, metrics.clone(), heard.clone());
    tokio::spawn(server.serve());

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
    tokio::spawn(writer::write(client.clone(), name.clone(), to_write, metrics));
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

/// Whether this node announces itself, by its rights: where it may neither watch EncryptionPeers nor Nodes, the rights
/// are not there for the moment, and it asks on.
async fn may_announce(client: &Client) -> bool {
    let all = |group, resource| rights::Object { group, resource, namespace: "", name: "" };
    let mut patience = rights::Patience::default();
    loop {
        if rights::may_watch(client, all(GROUP, "encryptionpeers")).await {
            return true;
        }
        if rights::may_watch(client, all("", "nodes")).await {
            return false;
        }
        tracing::warn!("this agent may watch neither EncryptionPeers nor Nodes; asking on");
        sleep(patience.pause()).await;
    }
}

/// Finds out whether this node may announce itself, and opens what it goes on with.
async fn open(client: &Client, name: &str, directory: &std::path::Path) -> Result<Opened> {
    if !may_announce(client).await {
        tracing::info!(
            "this agent may not watch EncryptionPeers: nodes are known by the boot IDs in their Node objects"
        );
        let boot_id = std::fs::read_to_string(BOOT_ID).with_context(|| format!("reading {BOOT_ID}"))?;
        let boot_id: Uid =
            boot_id.trim().parse().with_context(|| format!("the kernel's boot ID in {BOOT_ID}"))?;
        return Ok(startup::by_boot_id(name.to_owned(), boot_id));
    }
    let (begun, mut pause, mut told) = (Instant::now(), Duration::from_millis(200), None);
    loop {
        let error = match startup::from_directory(name, directory) {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        let text = format!("{error:#}");
        match error.downcast_ref::<StateError>() {
            // A rolling upgrade may have left the agent before this one in its last moments.
            Some(StateError::AnotherAgentRuns { .. }) if begun.elapsed() < LOCK_WAIT => {}
            Some(StateError::AnotherAgentRuns { .. }) => pause = Duration::from_secs(1),
            Some(_) => pause = (2 * pause).min(Duration::from_secs(60)),
            None => return Err(error),
        }
        if told.as_ref() != Some(&text) && !(text.contains("another agent") && begun.elapsed() < LOCK_WAIT) {
            tracing::warn!(
                error = text,
                "cannot use the state directory yet; nothing is changed in the kernel"
            );
            told = Some(text);
        }
        sleep(pause).await;
    }
}

fn follow_sources(
    client: &Client,
    file: PathBuf,
    name: &str,
    announces: bool,
    inputs: &mpsc::Sender<Input>,
    told: &(Metrics, Heard),
) {
    tokio::spawn(source::follow(client.clone(), file, inputs.clone(), told.clone()));
    if announces {
        tokio::spawn(sources::follow_peers(client.clone(), inputs.clone(), told.clone()));
    } else {
        tokio::spawn(sources::follow_nodes(client.clone(), name.to_owned(), inputs.clone(), told.clone()));
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
        .spawn(move || worker::work(XfrmSocket::open, worker::measure, (journal, limits), &to_do, &reports))
        .context("starting the kernel's thread")?;
    Ok((jobs, news))
}

/// Starts the thread that hears of changes in the kernel made by other programs. Where it can't, the slow timer remains.
/// A flush of policies goes to the kernel's thread without a detour.
fn listen_to_kernel(jobs: blocking::Sender<Job>) -> Result<Arc<Notify>> {
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    let flushed = Arc::new(AtomicBool::new(false));
    let listen = move || {
        let mut failing = false;
        loop {
            let heard = Events::open().and_then(|mut events| {
                failing = false;
                loop {
                    match events.wait(None)? {
                        Some(kernel::Event::Flush) if !flushed.swap(true, Ordering::Relaxed) => {
                            // Without the thread this process ends.
                            let _ = jobs.send(Job::PutPoliciesBack(flushed.clone()));
                        }
                        Some(_) => notify.notify_one(),
                        None => {}
                    }
                }
            });
            if let (Err::<(), _>(error), false) = (heard, failing) {
                tracing::warn!(%error, "cannot hear of changes in the kernel; looking at it on the timer only");
                failing = true;
            }
            thread::sleep(AGAIN);
        }
    };
    thread::Builder::new()
        .name("kernel-events".into())
        .spawn(listen)
        .context("starting the thread for events")?;
    Ok(changed)
}

/// Starts the thread that hears of changes of addresses and routes. Where it can't, the slow timer remains.
fn listen_to_network(jobs: blocking::Sender<Job>) -> Result<()> {
    let listen = move || {
        let mut failing = false;
        loop {
            let heard = NetworkEvents::open().and_then(|mut events| {
                failing = false;
                loop {
                    events.wait(None)?;
                    // Changes come in bursts, and a look goes through all routes.
                    let looked = std::time::Instant::now() + NETWORK_PAUSE;
                    while let Some(rest) = looked.checked_duration_since(std::time::Instant::now()) {
                        events.wait(Some(rest))?;
                    }
                    if jobs.send(Job::LookAtNetwork).is_err() {
                        return Ok(());
                    }
                }
            });
            match heard {
                Ok(()) => return,
                Err(error) if !failing => {
                    tracing::warn!(%error, "cannot hear of changes of routes; looking at them on the timer only");
                    failing = true;
                }
                Err(_) => {}
            }
            thread::sleep(AGAIN);
        }
    };
    thread::Builder::new()
        .name("network-events".into())
        .spawn(listen)
        .context("starting the thread for changes of routes")?;
    Ok(())
}

/// What only the API can say when the process is asked to end.
#[derive(Clone, Copy, Debug)]
enum Answer {
    DaemonSet(Option<Sighting>),
    Verdict(Verdict),
}

#[derive(Clone)]
struct Api {
    client: Client,
    anonymous: Option<Client>,
    node: String,
}

impl Api {
    async fn ask(self, query: ShutdownQuery) -> Answer {
        match query {
            ShutdownQuery::None => Answer::Verdict(Verdict::Restart),
            ShutdownQuery::DaemonSet => Answer::DaemonSet(daemon_set::ask(self.client).await),
            // It may be readable by now.
            ShutdownQuery::Node => match daemon_set::ask(self.client.clone()).await {
                Some(sighting) => Answer::DaemonSet(Some(sighting)),
                None => {
                    Answer::Verdict(daemon_set::ask_for_rights(self.client, self.anonymous, &self.node).await)
                }
            },
        }
    }
}

/// What turns inputs into decisions, and those into changes.
struct Shell<S> {
    agent: Agent<S>,
    /// What was passed on last of the peers' pod networks.
    networks: Option<Arc<PodNetworks>>,
    lifecycle: Lifecycle,
    /// For the next process.
    mark: Mark,
    reporter: Reporter,
    jobs: blocking::Sender<Job>,
    kernel_changed: Arc<Notify>,
    status: watch::Sender<Option<DesiredStatus>>,
    needs_mtu_advice: watch::Sender<bool>,
    sockets: ProbeSockets,
    /// When to try to open probe sockets again.
    sockets_due: Option<Instant>,
    /// When to look again at what there is to say.
    tell_at: Instant,
    /// Something has happened since that was looked at.
    untold: bool,
    /// Reads counters of SAs.
    counters: Option<XfrmSocket>,
    /// The address that the Node object shows.
    fallback: Option<NodeAddress>,
    /// What the cluster gave to this node's pods, once that is known.
    pod_cidrs: Option<Vec<IpNet>>,
    /// What the kernel shows.
    network: Option<LocalNetwork>,
    replaced: Arc<AtomicBool>,
    api: Api,
    inputs: mpsc::Sender<Input>,
}

impl<S: IdentityStore> Shell<S> {
    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Input>,
        mut news: UnboundedReceiver<News>,
        mut packets: mpsc::Receiver<Packet>,
        shutdown: &Shutdown,
        alive: impl Fn(),
    ) -> Result<()> {
        let (answers, mut answered) = mpsc::channel(1);
        let mut asked = false;
        self.look_up_own_node();
        while !self.may_end() {
            if self.replaced.load(Ordering::Relaxed) {
                bail!(
                    "the state directory was removed or replaced: ending, so that the next process begins with what is there"
                );
            }
            if !self.agent.is_under_way() {
                alive();
            }
            self.decide()?;
            self.open_sockets().await;
            let tick = Instant::now() + BEAT;
            let wake = self.agent.poll_timeout().map_or(tick, |at| tick.min(clock::instant(at)));
            let wake = self.sockets_due.map_or(wake, |at| wake.min(at));
            let wake = if self.untold { wake.min(self.tell_at) } else { wake };
            tokio::select! {
                input = inbox.recv() => match input {
                    Some(input) => self.take(input),
                    None => bail!("all sources have ended"),
                },
                message = news.recv() => match message {
                    Some(message) => self.hear(message),
                    None => bail!("the thread that talks to the kernel has ended"),
                },
                Some(packet) = packets.recv() => self.receive(&packet),
                () = self.kernel_changed.notified() => self.agent.handle_event(Event::Kernel, now()),
                () = shutdown.requested(), if !asked => {
                    asked = true;
                    let query = self.lifecycle.query(self.agent.is_uninstalling(), self.agent.table().is_listed());
                    let (answers, api) = (answers.clone(), self.api.clone());
                    tokio::spawn(async move { answers.send(api.ask(query).await).await });
                }
                Some(answer) = answered.recv() => self.end(answer),
                () = sleep_until(wake) => {}
            }
        }
        if !self.agent.is_uninstalling() {
            tracing::info!("ending; this node's kernel is left as it is and goes on encrypting");
        }
        Ok(())
    }

    fn may_end(&self) -> bool {
        let agent = &self.agent;
        self.lifecycle.may_end(agent.is_under_way(), agent.is_uninstalling(), agent.is_removed())
    }

    /// Does what the decisions ask for.
    fn decide(&mut self) -> Result<()> {
        self.agent.handle_timeout(now());
        while let Some(request) =
            self.agent.poll_request(now(), &mut SysRng).context("drawing random numbers")?
        {
            self.request(request);
        }
        while let Some(peer) = self.agent.poll_peer_node(now()) {
            let (client, inputs) = (self.api.client.clone(), self.inputs.clone());
            tokio::spawn(async move {
                let (lookup, _) = api::look_up_node(&client, &peer).await;
                let _ = inputs.send(Event::PeerNode(peer, lookup).into()).await;
            });
        }
        self.pass_on_networks()?;
        let target = self.agent.poll_target(now());
        self.reporter.inputs(&self.agent);
        if let Some(target) = target {
            self.reporter.attempt_begins(&target);
            let job = Job::Reconcile(Box::new(target));
            self.jobs.send(job).context("the thread that talks to the kernel has ended")?;
        }
        self.ping()?;
        self.untold = Instant::now() < self.tell_at;
        if !self.untold {
            self.reporter.look_at_clock(Timestamp::now());
            self.reporter.look_at_api();
            self.tell();
            self.tell_at = Instant::now() + TELL_PAUSE;
        }
        Ok(())
    }

    /// The kernel's thread judges by them how pods are reached.
    fn pass_on_networks(&mut self) -> Result<()> {
        let networks = self.agent.table().networks();
        let announced = matches!(**self.agent.identity(), LocalIdentity::Announced(_));
        if !announced || self.networks.as_ref().is_some_and(|known| Arc::ptr_eq(known, networks)) {
            return Ok(());
        }
        let job = Job::PodNetworks(networks.clone());
        self.networks = Some(networks.clone());
        self.jobs.send(job).context("the thread that talks to the kernel has ended")
    }

    fn request(&self, request: Request) {
        let (client, inputs, node) = (self.api.client.clone(), self.inputs.clone(), self.api.node.clone());
        tokio::spawn(async move {
            let answers: Vec<Input> = match request {
                Request::GetOwnNode => {
                    let (lookup, facts) = api::look_up_node(&client, &node).await;
                    vec![Input::OwnNode(lookup, facts)]
                }
                Request::GetRing => api::read_ring(&client).await.into_iter().map(Input::Agent).collect(),
                Request::Write(announcement) => {
                    let events = api::announce(&client, &node, &announcement).await;
                    events.into_iter().map(Input::Agent).collect()
                }
            };
            for answer in answers {
                let _ = inputs.send(answer).await;
            }
        });
    }

    /// What the Node shows is needed before the kernel has routes of tunnels.
    fn look_up_own_node(&self) {
        let (client, inputs, node) = (self.api.client.clone(), self.inputs.clone(), self.api.node.clone());
        tokio::spawn(async move {
            loop {
                let (lookup, facts) = api::look_up_node(&client, &node).await;
                let found = lookup != NodeLookup::Failed;
                if inputs.send(Input::OwnNode(lookup, facts)).await.is_err() || found {
                    return;
                }
                sleep(AGAIN).await;
            }
        });
    }

    fn ping(&mut self) -> Result<()> {
        for _ in 0..PINGS {
            let counters = &mut self.counters;
            let ping = self.agent.poll_ping(now(), &mut SysRng, |sa| packets(counters, sa));
            match ping.context("drawing random numbers")? {
                Some(ping) => self.sockets.ping(&ping),
                None => return Ok(()),
            }
        }
        Ok(())
    }

    fn receive(&mut self, packet: &Packet) {
        let counters = &mut self.counters;
        let received = self
            .agent
            .handle_packet(packet.from, packet.port, &packet.payload, now(), |sa| packets(counters, sa));
        match received {
            Received::Answer(payload) => self.sockets.answer(packet, &payload),
            Received::Taken => {}
            Received::Ignored => self.reporter.probe_ignored(),
        }
    }

    async fn open_sockets(&mut self) {
        if self.sockets_due.is_none_or(|due| Instant::now() < due) {
            return;
        }
        let addresses = self.network().map(|network| network.tunnel_addresses).unwrap_or_default();
        let opened = self.sockets.listen_at(&addresses).await;
        let blocker = |detail: String| EnforcementBlocker { reason: "ProbePortTaken".to_owned(), detail };
        self.sockets_due = opened.is_err().then(|| Instant::now() + AGAIN);
        let blockers = opened.err().map(blocker).into_iter().collect();
        self.agent.handle_event(Event::Blockers("probes", blockers), now());
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Agent(event) => self.agent.handle_event(event, now()),
            Input::OwnNode(lookup, facts) => {
                self.agent.handle_event(Event::OwnNode(lookup), now());
                if let Some(facts) = facts {
                    self.fallback = facts.address().or(self.fallback);
                    self.pod_cidrs = Some(facts.pod_cidrs);
                    self.take_network();
                }
            }
            Input::DaemonSet(sighting) => {
                let removal =
                    self.lifecycle.see(sighting, self.agent.is_uninstalling()) && !self.keeps_kernel();
                self.agent.handle_event(Event::Installation(self.lifecycle.installation()), now());
                if removal {
                    self.uninstall();
                }
                self.mark.set(self.lifecycle.orphaned());
            }
            Input::HistoryWentBack => self.reporter.history_went_back(),
            Input::MtuSetting(setting) => self.reporter.mtu_setting(&self.agent, setting),
        }
    }

    /// Whether a removal leaves the kernel as it is, by the settings of the ring that was applied last.
    fn keeps_kernel(&self) -> bool {
        let ring = self.agent.applied_ring();
        ring.is_some_and(|ring| ring.settings.deletion_policy == DeletionPolicy::KeepKernelState)
    }

    fn uninstall(&mut self) {
        if !self.agent.is_uninstalling() {
            self.reporter.removal_begins();
        }
        self.agent.handle_event(Event::Uninstall, now());
    }

    fn end(&mut self, answer: Answer) {
        let judged = match answer {
            Answer::DaemonSet(sighting) => self.lifecycle.judge(sighting),
            Answer::Verdict(verdict) => verdict,
        };
        let verdict = if self.keeps_kernel() { Verdict::Restart } else { judged };
        let reason = match verdict {
            _ if self.agent.is_uninstalling() => "the removal goes on first",
            _ if verdict != judged => "this is a removal, and deletionPolicy is KeepKernelState",
            Verdict::Removal => "this is a removal",
            Verdict::Restart => "nothing shows that this is a removal",
        };
        tracing::info!(reason, "asked to end");
        if verdict == Verdict::Removal {
            self.uninstall();
        }
        self.lifecycle.end(verdict);
    }

    /// What the kernel shows of the network; before it has routes of tunnels, with the address of the Node object.
    fn network(&self) -> Option<LocalNetwork> {
        let mut network = self.network.clone()?;
        if network.tunnel_addresses.is_empty() {
            network.tunnel_addresses.extend(self.fallback);
        }
        if let Some(pod_cidrs) = &self.pod_cidrs {
            network.adopt_bridges(pod_cidrs);
        }
        network.tunnel_mtu = self.reporter.tunnel_mtu();
        (!network.tunnel_addresses.is_empty()).then_some(network)
    }

    fn take_network(&mut self) {
        if let Some(network) = self.network() {
            self.agent.handle_event(Event::Network(network), now());
            self.sockets_due = Some(Instant::now());
        }
    }

    fn tell(&mut self) {
        self.reporter.proofs(&self.agent);
        pass_on(&self.status, self.reporter.status(&self.agent));
        pass_on(&self.needs_mtu_advice, self.reporter.needs_mtu_advice());
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Network(network) => match *network {
                Ok(network) => {
                    self.network = Some(network);
                    self.take_network();
                }
                Err(error) => tracing::warn!(error, "cannot read this node's addresses and routes"),
            },
            News::Mtu(facts) => {
                self.reporter.look_at_swap();
                self.reporter.mtu(&self.agent, facts);
                self.agent
                    .handle_event(Event::TunnelMtuTooLarge(self.reporter.tunnel_mtu_too_large()), now());
                self.take_network();
            }
            News::Surroundings(surroundings) => {
                let blockers = surroundings.blockers();
                self.reporter.surroundings(*surroundings);
                self.agent.handle_event(Event::Blockers("surroundings", blockers), now());
            }
            News::PoliciesFlushed(count, took) => {
                self.reporter.policies_flushed(count, took);
                self.agent.handle_event(Event::PoliciesFlushed, now());
            }
            News::Counts => self.agent.handle_event(Event::KernelLost, now()),
            News::Attempt(attempt) => {
                let blockers = self.reporter.attempt_ended(&attempt);
                let report = attempt.run.ok();
                self.agent.handle_event(Event::Blockers("policies", blockers), now());
                self.agent.handle_reconciled(report, now());
                self.reporter.attempt_taken(&self.agent);
            }
        }
    }
}

/// How many packets an SA has carried.
fn packets(counters: &mut Option<XfrmSocket>, sa: secureoverlay_agent_core::xfrm::SaId) -> Option<u64> {
    if counters.is_none() {
        *counters = XfrmSocket::open().ok();
    }
    let read = counters.as_mut()?.packets(sa);
    if read.is_err() {
        *counters = None;
    }
    read.ok().flatten()
}

/// Shows `now` to the reader, if it is new.
fn pass_on<T: PartialEq>(to: &watch::Sender<T>, now: T) {
    to.send_if_modified(|known| {
        let modified = *known != now;
        *known = now;
        modified
    });
}
