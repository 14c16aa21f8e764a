//! Wires the agent: sources on one side, the kernel's thread on the other, the decisions between them.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, mpsc as blocking},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use kube::Client;
use secureoverlay_common::uid::Uid;
use secureoverlay_daemon::{client, health::Health, http, signal::Shutdown};
use tokio::{
    sync::{
        Notify,
        mpsc::{self, UnboundedReceiver, UnboundedSender},
        watch,
    },
    time::{Instant, sleep, sleep_until},
};

use crate::{
    agent::{Agent, Event, Question, Target},
    config::Config,
    daemon_set,
    journal::Journal,
    kernel::{Events, XfrmSocket},
    lock::Lock,
    mark::Mark,
    metrics::Metrics,
    mtu_lookup, nodes, probe_socket,
    probing::Probes,
    reconcile::Limits,
    removal::Verdict,
    report::Reporter,
    source,
    status::Wanted,
    watching::Watching,
    worker::{self, News},
    writer,
};

/// The boot ID of the running kernel.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How long another agent may take to end before this one gives up.
const LOCK_WAIT: Duration = Duration::from_secs(60);
/// The loop shows itself alive at least this often, unless the kernel's thread hangs.
const BEAT: Duration = Duration::from_secs(10);
/// Without a sign of life for this long, the process counts as hung.
const HUNG: Duration = Duration::from_secs(120);
/// Before another attempt to hear of changes in the kernel.
const LISTEN_AGAIN: Duration = Duration::from_secs(10);
/// Events that may wait.
const QUEUE: usize = 1024;

/// Runs the agent until it is asked to end.
///
/// # Errors
/// It can't start, or a part of it died.
pub async fn run(config: Config) -> Result<()> {
    let settings = config.settings();
    let Some(name) = config.node.node_name.filter(|name| !name.is_empty()) else {
        bail!(
            "the name of this node is not known: set MY_NODE_NAME from spec.nodeName in the pod, or use --node-name"
        );
    };
    let shutdown = Shutdown::listen().context("listening for signals")?;
    let _lock = tokio::select! {
        lock = lock() => lock?,
        () = shutdown.requested() => return Ok(()),
    };
    let boot = std::fs::read_to_string(BOOT_ID).with_context(|| format!("reading {BOOT_ID}"))?;
    let boot: Uid = boot.trim().parse().with_context(|| format!("the kernel's boot ID in {BOOT_ID}"))?;

    let health = Health::default();
    let (metrics, registry) = Metrics::new();
    let server = http::bind(config.node.listen, health.clone(), registry).await?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = name, listen = %server.addr, "agent started");
    tokio::spawn(server.serve());

    let client = client::connect(concat!("ucp-secureoverlay-agent/", env!("CARGO_PKG_VERSION"))).await?;
    let (events, inbox) = mpsc::channel(QUEUE);
    follow_sources(&client, config.node.ring_file, &events, &metrics);
    let journal = open_journal(&config.node.journal_dir, boot);
    let (targets, news) = start_worker(journal, config.limits.into())?;
    let (wanted, to_write) = watch::channel(None);
    let (probes, to_probe) = watch::channel(None);
    tokio::spawn(probe_socket::probe(to_probe, events.clone(), metrics.clone()));
    let (needs_mtu_advice, mtu_advice_needed) = watch::channel(false);
    tokio::spawn(mtu_lookup::follow(client.clone(), mtu_advice_needed, events.clone()));
    tokio::spawn(writer::write(client.clone(), name.clone(), to_write, metrics.clone()));
    let mark = Mark::find(&config.node.journal_dir);
    let mut agent = Agent::new(name.clone(), boot, settings);
    if mark.is_set() {
        tracing::info!("the DaemonSet was deleted without its pods: its absence is no removal");
        agent.remember_orphaned();
    }
    let shell = Shell {
        agent,
        mark,
        reporter: Reporter::new(&health, metrics),
        targets,
        kernel_changed: listen_to_kernel()?,
        wanted,
        probes,
        needs_mtu_advice,
    };
    let beat = health.heartbeat("loop", HUNG);
    let asker = Api { client, anonymous: daemon_set::anonymous(), node: name };
    shell.run(inbox, news, &shutdown, asker, || beat.beat()).await
}

/// Waits for the agent before this one, which a rolling upgrade may have left in its last moments.
async fn lock() -> Result<Lock> {
    let begun = Instant::now();
    loop {
        if let Some(lock) = Lock::take().context("taking the lock of this node's agent")? {
            return Ok(lock);
        }
        if begun.elapsed() > LOCK_WAIT {
            bail!("another agent runs on this node and does not end: is there a second DaemonSet?");
        }
        sleep(Duration::from_millis(200)).await;
    }
}

fn follow_sources(client: &Client, file: PathBuf, events: &mpsc::Sender<Event>, metrics: &Metrics) {
    let watching = |what| Watching::new(what, metrics.clone());
    tokio::spawn(source::follow(client.clone(), file, events.clone(), watching("secrets")));
    tokio::spawn(nodes::follow(client.clone(), events.clone(), watching("nodes")));
    tokio::spawn(daemon_set::follow(client.clone(), events.clone(), watching("daemonsets")));
}

/// Opens the journal, and says once what it is good for.
fn open_journal(directory: &Path, boot: Uid) -> Journal {
    let journal = Journal::open(directory, boot);
    let directory = directory.display();
    if let Some(why) = journal.doubt() {
        tracing::warn!(
            why,
            "the journal of used keys can't be read; every key of the ring's generations counts as used"
        );
    } else if let Some(why) = journal.homeless() {
        tracing::info!(
            why,
            "used keys are remembered only until this process ends: mount a directory of the host there"
        );
    } else {
        tracing::info!(%directory, entries = journal.record().len(), "journal of used keys opened");
    }
    journal
}

/// Starts the thread that changes the kernel.
fn start_worker(
    journal: Journal,
    limits: Limits,
) -> Result<(blocking::Sender<Target>, UnboundedReceiver<News>)> {
    let (targets, jobs) = blocking::channel();
    let (reports, news): (UnboundedSender<News>, _) = mpsc::unbounded_channel();
    thread::Builder::new()
        .name("kernel".into())
        .spawn(move || worker::work(XfrmSocket::open, worker::measure, (journal, limits), &jobs, &reports))
        .context("starting the kernel's thread")?;
    Ok((targets, news))
}

/// Starts the thread that hears of changes in the kernel made by others. Where it can't, the slow timer remains.
fn listen_to_kernel() -> Result<Arc<Notify>> {
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    let listen = move || {
        let mut failing = false;
        loop {
            let heard = Events::open().and_then(|mut events| {
                failing = false;
                loop {
                    if events.wait(None)?.is_some() {
                        notify.notify_one();
                    }
                }
            });
            if let (Err::<(), _>(error), false) = (heard, failing) {
                tracing::warn!(%error, "cannot hear of changes in the kernel; looking at it on the timer only");
                failing = true;
            }
            thread::sleep(LISTEN_AGAIN);
        }
    };
    thread::Builder::new()
        .name("kernel-events".into())
        .spawn(listen)
        .context("starting the thread for events")?;
    Ok(changed)
}

/// Finds out what only the API can say when the process is asked to end.
pub trait Ask {
    /// The answer, ready to be judged.
    fn ask(&self, question: Question) -> impl Future<Output = Answer> + Send + 'static;
}

/// What [`Ask::ask`] found out.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// About the DaemonSet.
    DaemonSet(Option<crate::removal::Sighting>),
    /// The question was the verdict's.
    Verdict(Verdict),
}

struct Api {
    client: Client,
    anonymous: Option<Client>,
    node: String,
}

impl Ask for Api {
    fn ask(&self, question: Question) -> impl Future<Output = Answer> + Send + 'static {
        let (client, anonymous, node) = (self.client.clone(), self.anonymous.clone(), self.node.clone());
        async move {
            match question {
                Question::None => Answer::Verdict(Verdict::Restart),
                Question::DaemonSet => Answer::DaemonSet(daemon_set::ask(client).await),
                // It may be readable by now.
                Question::Node => match daemon_set::ask(client.clone()).await {
                    Some(sighting) => Answer::DaemonSet(Some(sighting)),
                    None => Answer::Verdict(daemon_set::ask_for_rights(client, anonymous, &node).await),
                },
            }
        }
    }
}

/// What turns events into decisions, and those into changes.
pub struct Shell {
    /// The decisions.
    pub agent: Agent,
    /// For the next process.
    pub mark: Mark,
    /// What tells people.
    pub reporter: Reporter,
    /// To the thread that changes the kernel.
    pub targets: blocking::Sender<Target>,
    /// Somebody else changed the kernel.
    pub kernel_changed: Arc<Notify>,
    /// To the task that writes this node's NodeEncryption.
    pub wanted: watch::Sender<Option<Wanted>>,
    /// To the task that probes whether ESP passes.
    pub probes: watch::Sender<Option<Probes>>,
    /// To the task that finds out what sets the tunnels' MTU.
    pub needs_mtu_advice: watch::Sender<bool>,
}

impl Shell {
    /// Runs until the process was asked to end and nothing is left to do.
    ///
    /// # Errors
    /// The kernel's thread or all sources died.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut news: UnboundedReceiver<News>,
        shutdown: &Shutdown,
        asker: impl Ask,
        alive: impl Fn(),
    ) -> Result<()> {
        let (answers, mut answered) = mpsc::channel(1);
        let mut asked = false;
        while !self.agent.may_end() {
            if !self.agent.under_way() {
                alive();
            }
            self.start_attempt()?;
            self.reporter.look_at_clock(Timestamp::now());
            self.tell();
            let tick = Instant::now() + BEAT;
            let wake = self.agent.wake_at().map_or(tick, |at| tick.min(at.into()));
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.take(event),
                    None => bail!("all sources of events have ended"),
                },
                message = news.recv() => match message {
                    Some(message) => self.hear(message),
                    None => bail!("the thread that talks to the kernel has ended"),
                },
                () = self.kernel_changed.notified() => self.take(Event::Kernel),
                () = shutdown.requested(), if !asked => {
                    asked = true;
                    let (answers, answer) = (answers.clone(), asker.ask(self.agent.question()));
                    tokio::spawn(async move { answers.send(answer.await).await });
                }
                Some(answer) = answered.recv() => self.end(answer),
                () = sleep_until(wake) => {}
            }
        }
        if !self.agent.removing() {
            tracing::info!("ending; this node's kernel is left as it is and goes on encrypting");
        }
        Ok(())
    }

    fn take(&mut self, event: Event) {
        let removing = self.agent.removing();
        self.agent.take(event, Instant::now().into_std());
        self.mark.set(self.agent.orphaned());
        if self.agent.removing() && !removing {
            self.reporter.removal_begins();
        }
    }

    fn end(&mut self, answer: Answer) {
        let verdict = match answer {
            Answer::DaemonSet(sighting) => self.agent.judge(sighting),
            Answer::Verdict(verdict) => verdict,
        };
        let reason = match verdict {
            _ if self.agent.removing() => "the removal goes on first",
            Verdict::Removal => "this is a removal",
            Verdict::Restart => "nothing shows that this is a removal",
        };
        tracing::info!(reason, "asked to end");
        self.take(Event::Ending(verdict));
    }

    fn start_attempt(&mut self) -> Result<()> {
        let now = Instant::now().into_std();
        if self.agent.wake_at().is_none_or(|at| now < at) {
            return Ok(());
        }
        let target = self.agent.next(now);
        self.reporter.inputs(&self.agent);
        if let Some(target) = target {
            self.reporter.attempt_begins(&target);
            self.targets.send(target).context("the thread that talks to the kernel has ended")?;
        }
        Ok(())
    }

    fn tell(&mut self) {
        self.reporter.reach(&self.agent);
        pass_on(&self.wanted, self.reporter.wanted(&self.agent));
        pass_on(&self.probes, self.agent.probes().cloned());
        pass_on(&self.needs_mtu_advice, self.reporter.needs_mtu_advice());
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Mtu(facts) => {
                let failure = facts.map(|facts| self.take(Event::Mtu(facts))).err();
                self.reporter.mtu(&self.agent, failure);
            }
            News::Surroundings(surroundings) => {
                self.take(Event::Surroundings(surroundings.obstacles()));
                self.reporter.surroundings(&self.agent, *surroundings);
            }
            News::Counts => self.take(Event::Kernel),
            News::Attempt(attempted) => {
                self.agent.attempted(attempted.run.as_ref().ok(), Instant::now().into_std());
                self.reporter.attempt_ended(&self.agent, &attempted);
            }
        }
    }
}

/// Shows `now` to whoever listens, if it is new.
fn pass_on<T: PartialEq>(to: &watch::Sender<T>, now: T) {
    to.send_if_modified(|known| {
        let modified = *known != now;
        *known = now;
        modified
    });
}

#[cfg(test)]
mod tests;
