//! The main loop: takes what happens, lets the agent decide, and does what it asks for.
//!
//! | module | does |
//! |---|---|
//! | `events` | what sources and the kernel's thread tell, handed to the decisions |
//! | `paths` | answers to operators who ask for the pairs with a peer |
//! | `requests` | what the decisions want from the API |
//! | `probes` | pings and their answers |

mod events;
mod paths;
mod probes;
mod requests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc as blocking,
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use jiff::Timestamp;
use rand::rngs::SysRng;
use secureoverlay_agent_core::{
    agent::{Agent, Event, IdentityStore},
    coverage::PodNetworks,
    identity::LocalIdentity,
    network::LocalNetwork,
};
use secureoverlay_daemon::signal::Shutdown;
use secureoverlay_keyring::address::NodeAddress;
use tokio::{
    sync::{
        Notify,
        mpsc::{self, UnboundedReceiver},
        watch,
    },
    time::{Instant, sleep_until},
};

use super::shutdown::Api;
use crate::{
    clock::{self, now},
    io::input::Input,
    kernel::{Job, News, machine::Counters},
    network::probe_sockets::{Packet, ProbeSockets},
    telemetry::{report::Reporter, status::DesiredStatus},
    uninstall::{lifecycle::Lifecycle, mark::Mark},
};

/// The loop shows itself alive at least this often, unless the kernel's thread hangs.
const BEAT: Duration = Duration::from_secs(10);
/// Before another attempt to open sockets, or to get this node's Node.
const AGAIN: Duration = Duration::from_secs(5);
/// Between two looks at what there is to say: each one goes through all pairs.
const TELL_PAUSE: Duration = Duration::from_millis(100);

/// What turns inputs into decisions, and those into changes.
pub(super) struct Shell<S> {
    pub(super) agent: Agent<S>,
    /// What was passed on last of the peers' pod networks.
    pub(super) networks: Option<Arc<PodNetworks>>,
    pub(super) lifecycle: Lifecycle,
    /// For the next process.
    pub(super) mark: Mark,
    pub(super) reporter: Reporter,
    pub(super) jobs: blocking::Sender<Job>,
    pub(super) kernel_changed: Arc<Notify>,
    pub(super) status: watch::Sender<Option<DesiredStatus>>,
    pub(super) needs_mtu_advice: watch::Sender<bool>,
    pub(super) sockets: ProbeSockets,
    /// When to try to open probe sockets again.
    pub(super) sockets_due: Option<Instant>,
    /// When to look again at what there is to say.
    pub(super) tell_at: Instant,
    /// Something has happened since that was looked at.
    pub(super) untold: bool,
    /// Reads counters of SAs.
    pub(super) counters: Counters,
    /// The address that the Node object shows.
    pub(super) fallback: Option<NodeAddress>,
    /// What the cluster gave to this node's pods, once that is known.
    pub(super) pod_cidrs: Option<Vec<IpNet>>,
    /// What the kernel shows.
    pub(super) network: Option<LocalNetwork>,
    pub(super) replaced: Arc<AtomicBool>,
    pub(super) api: Api,
    pub(super) inputs: mpsc::Sender<Input>,
}

impl<S: IdentityStore> Shell<S> {
    pub(super) async fn run(
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
            self.look_up_node(peer);
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

    fn tell(&mut self) {
        self.reporter.proofs(&self.agent);
        pass_on(&self.status, self.reporter.status(&self.agent));
        pass_on(&self.needs_mtu_advice, self.reporter.needs_mtu_advice());
    }
}

/// Shows `now` to the reader, if it is new.
fn pass_on<T: PartialEq>(to: &watch::Sender<T>, now: T) {
    to.send_if_modified(|known| {
        let modified = *known != now;
        *known = now;
        modified
    });
}
