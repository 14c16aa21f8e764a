//! What agents do: the product's `Agent` and `Reconciler` in a shell as small as it can be.

use std::{cell::Cell, collections::BTreeSet, net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use secureoverlay_agent_core::{
    agent::{Agent, AgentSettings, Event as Input, Start},
    announcer::{Announcement, Request, WriteResult},
    identity::LocalIdentity,
    journal::Journal,
    kernel::Kernel,
    network::LocalNetwork,
    peers::NodeLookup,
    plan::ReconcileTarget,
    proof::{Ping, Received},
    reconcile::{Reconciler, SaLimits},
    ring_cache::{Installation, RingInput, RingProblem},
    teardown::TeardownPhase,
    xfrm::{Op, Owner, SaId, Traffic},
};
use secureoverlay_keyring::{
    acknowledgement::Acknowledgement,
    derivation::Derivation,
    keyring::Enforcement,
    phase::Phase as RingPhase,
    probe::{LEN, PINNED_PORT, Probe, ProbeKind},
};
use zeroize::Zeroizing;

use crate::{
    Time,
    api::{Change, Refusal},
    disk::{Store, load},
    faults::Heal,
    kernel::{Egress, Socket},
    machine::Process,
    variant::Variant,
    watch::{Stream, What},
    world::{Event, World},
};

/// Something that happens to an agent's process.
#[derive(Clone, Debug)]
pub enum AgentEvent {
    /// It looks at the time.
    Wake,
    /// It changes its kernel.
    Attempt,
    /// It hears how that went.
    Attempted,
    /// A watch is connected: it lists.
    Connect(What, u64),
    /// A watch delivers.
    Deliver(What, u64),
    /// A request arrives at the API server.
    Ask(Box<Ask>),
    /// An answer comes.
    Answer(Box<Answer>),
    /// Another program changed the kernel.
    Kernel,
    /// Its network changed.
    Network,
    /// It is killed, if it is still there.
    Kill,
}

/// What it asks the API server for.
#[derive(Clone, Debug)]
pub enum Ask {
    /// A GET of its Node.
    OwnNode,
    /// A quorum read of the ring.
    Ring,
    /// A GET of a peer's Node.
    PeerNode(String),
    /// A write of its EncryptionPeer.
    Announce(Announcement),
    /// A write of its NodeEncryption.
    Say(Acknowledgement),
}

/// What comes back.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "few of them are alive at once")]
pub enum Answer {
    /// Its Node.
    OwnNode(NodeLookup),
    /// The ring's document; `None` where there was no answer.
    Ring(Option<Option<Rc<[u8]>>>),
    /// A peer's Node.
    PeerNode(String, NodeLookup),
    /// What became of the EncryptionPeer, and what is there after a conflict.
    Announced(WriteResult, Option<Option<secureoverlay_agent_core::peers::PeerObject>>),
    /// What became of the NodeEncryption.
    Said(bool),
}

/// A probe under way.
#[derive(Clone, Debug)]
pub struct Packet {
    /// From there.
    pub src: IpAddr,
    /// To there.
    pub dst: IpAddr,
    /// At both ends.
    pub port: u16,
    /// UDP payload.
    pub payload: Vec<u8>,
    /// How it left.
    pub egress: Egress,
}

impl World {
    /// An agent's process starts.
    pub fn start_agent(&mut self, at: usize) {
        let pid = self.pid();
        let machine = &mut self.machines[at];
        if !machine.live || !machine.pod || machine.process.is_some() || self.now < machine.booted {
            return;
        }
        let mut store = Store {
            directory: machine.directory.clone(),
            emptied: machine.directory.borrow().emptied,
            ended: Rc::new(Cell::new(false)),
            fuse: Rc::default(),
            no_identity: self.variant == Some(Variant::RedrawAtRestart),
            no_journal: self.variant == Some(Variant::InstallBeforeJournal),
            generations: self.generations.clone(),
        };
        let believes = self.variant == Some(Variant::InstallBeforeJournal);
        let Ok((identity, state, record)) = load(&mut store, &mut machine.rng, believes) else {
            let pause = Time::from_secs(5);
            return self.after(pause, Event::Heal(Heal::Agent(at)));
        };
        let settings = AgentSettings {
            debounce: Duration::from_millis(200),
            resync: self.scenario.resync,
            skew: Duration::from_secs(4),
            needs_room: true,
        };
        let mut record = record;
        let mut start = Start {
            name: machine.name.clone(),
            identity: LocalIdentity::Announced(identity),
            state,
            gone: record.gone().clone(),
            drawn: false,
        };
        if let Some(variant) = self.variant {
            variant.forget(&mut start, &mut record);
        }
        let limits = SaLimits { packets: self.scenario.sa_packets, ..SaLimits::default() };
        let socket = Socket { tables: machine.tables.clone(), fuse: store.fuse.clone() };
        let up = Stream::default();
        machine.process = Some(Process {
            pid,
            started: self.now,
            agent: Agent::new(start, store.clone(), settings),
            reconciler: Reconciler::new(socket, Journal::new(record, store.clone()), limits),
            store,
            under_way: None,
            outcome: None,
            wake: None,
            secret: up,
            peers: up,
            // What differs from what is there is written.
            said: self.api.store.acks.get(&machine.name).map(|there| there.ack.clone()),
            saying: false,
            spinning: (Time::ZERO, 0),
        });
        self.tell(|| format!("agent {} starts", at + 1));
        let now = self.now;
        for what in [What::Secret, What::Peers] {
            let pause = self.machines[at].delay(now, 5, 300);
            self.agent_after(at, pause, AgentEvent::Connect(what, 0));
        }
        self.agent_after(at, Duration::ZERO, AgentEvent::Network);
    }

    /// An agent's process ends, however.
    pub fn end_agent(&mut self, at: usize) {
        if self.machines[at].process.take().is_some() {
            self.tell(|| format!("agent {} ends", at + 1));
        }
    }

    /// It ends, and the kubelet starts another one.
    pub fn replace_agent(&mut self, at: usize, down: Time) {
        self.end_agent(at);
        self.after(down, Event::Heal(Heal::Agent(at)));
    }

    /// An event for the process that runs now.
    pub fn agent_after(&mut self, at: usize, pause: Time, event: AgentEvent) {
        if let Some(process) = &self.machines[at].process {
            let pid = process.pid;
            self.after(pause, Event::Agent(at, pid, event));
        }
    }

    /// Something about an agent's process that may be dead, or stopped, by now.
    pub fn agent(&mut self, at: usize, pid: u64, event: AgentEvent) {
        let machine = &self.machines[at];
        if machine.process.as_ref().is_none_or(|process| process.pid != pid) {
            return;
        }
        if let AgentEvent::Ask(ask) = event {
            // The request has left the process already.
            return self.serve(at, pid, *ask);
        }
        if let AgentEvent::Kill = event {
            let down = self.rng.millis(500, 5000);
            return self.replace_agent(at, down);
        }
        if machine.stopped_until > self.now {
            return self.at(machine.stopped_until, Event::Agent(at, pid, event));
        }
        match event {
            AgentEvent::Wake => {
                let process = self.machines[at].process.as_mut();
                if let Some(process) =
                    process.filter(|process| process.wake.is_some_and(|wake| wake <= self.now))
                {
                    process.wake = None;
                }
                self.poke(at);
            }
            AgentEvent::Attempt => self.attempt(at),
            AgentEvent::Attempted => self.attempted(at),
            AgentEvent::Connect(what, connection) => self.connect(at, what, connection),
            AgentEvent::Deliver(what, connection) => self.deliver(at, what, connection),
            AgentEvent::Answer(answer) => self.answered(at, *answer),
            AgentEvent::Kernel => self.input(at, Input::Kernel),
            AgentEvent::Network => {
                let network = self.local_network(at);
                self.machines[at].tables.borrow_mut().large = network.tunnel_mtu.is_some();
                self.input(at, Input::Network(network));
                self.input(at, Input::Installation(Installation::Unreadable));
            }
            AgentEvent::Ask(_) | AgentEvent::Kill => {}
        }
    }

    /// Time since the machine booted.
    fn uptime(&self, at: usize) -> Time {
        self.now.saturating_sub(self.machines[at].booted)
    }

    fn input(&mut self, at: usize, input: Input) {
        let now = self.uptime(at);
        if let Some(process) = &mut self.machines[at].process {
            process.agent.handle_event(input, now);
        }
        self.poke(at);
    }

    fn local_network(&self, at: usize) -> LocalNetwork {
        let own = self.machines[at].address;
        let peers = self.machines.iter().filter(|peer| peer.live && peer.address != own);
        LocalNetwork {
            tunnel_addresses: vec![own],
            sources: peers.map(|peer| (peer.address, own)).collect(),
            former_addresses: BTreeSet::new(),
            all_addresses: [own].into(),
            pod_networks: BTreeSet::new(),
            bridge_networks: BTreeSet::new(),
            tunnel_mtu: self.scenario.tunnel_mtu,
        }
    }

    /// Calico's routes follow the Nodes.
    pub fn routes_changed(&mut self) {
        for at in 0..self.machines.len() {
            let pause = self.machines[at].rng.millis(50, 2000);
            self.agent_after(at, pause, AgentEvent::Network);
        }
    }

    fn stream(&mut self, at: usize, what: What) -> Option<&mut Stream> {
        let process = self.machines[at].process.as_mut()?;
        Some(match what {
            What::Secret => &mut process.secret,
            What::Peers => &mut process.peers,
        })
    }

    fn connect(&mut self, at: usize, what: What, connection: u64) {
        let partitioned = self.machines[at].partitioned;
        let length = match what {
            What::Secret => self.api.secrets.len(),
            What::Peers => self.api.peers.len(),
        };
        let now = self.now;
        let Some(stream) = self.stream(at, what).filter(|stream| stream.connection == connection) else {
            return;
        };
        if partitioned {
            let pause = self.rng.millis(1000, 5000);
            return self.agent_after(at, pause, AgentEvent::Connect(what, connection));
        }
        *stream = Stream { up: true, position: length, scheduled: false, silent_until: now, ..*stream };
        match what {
            What::Secret => {
                let document = self.api.cache().secret.as_ref().and_then(|secret| secret.document.clone());
                self.ring_came(at, document.as_deref());
            }
            What::Peers => {
                let list = self.api.list_peers();
                self.input(at, Input::PeerList(list));
            }
        }
    }

    /// The wrong variant: SAs of entries that are not listed go.
    fn drop_withdrawn(&mut self, at: usize, target: &ReconcileTarget) {
        let Some(input) = &target.input else { return };
        let machine = &self.machines[at];
        let own = input.identity.entry(machine.address).endpoint();
        let mut kept = BTreeSet::new();
        for generation in &input.ring.generations {
            let derivation = Derivation::new(generation);
            let entries = input.peers.by_name.values().flat_map(|peer| &peer.entries);
            kept.extend(entries.map(|entry| derivation.spi(&entry.path_to(own))));
        }
        let Some(process) = &mut self.machines[at].process else { return };
        let kernel = process.reconciler.kernel();
        let gone: Vec<Op> = kernel
            .tables
            .borrow()
            .sas
            .values()
            .filter(|sa| sa.actual.owner == Owner::Ours && sa.actual.id.dst == own.address.ip())
            .filter(|sa| !kept.contains(&sa.actual.id.spi))
            .map(|sa| Op::DeleteSa(sa.actual.id))
            .collect();
        kernel.apply(&gone);
    }

    fn ring_came(&mut self, at: usize, document: Option<&[u8]>) {
        let input = document.map_or_else(
            || RingInput::Absent("the Secret has no ring".into()),
            |document| RingInput::Document(Zeroizing::new(document.to_vec())),
        );
        self.input(at, Input::Ring(input));
        // The wrong variants begin anew rather than refuse.
        let forgets = matches!(self.variant, Some(Variant::FollowOlderRing | Variant::FollowGoneGeneration));
        let refuses = self.machines[at].process.as_ref().is_some_and(|process| {
            matches!(process.agent.ring_cache().problem(), Some(RingProblem::OlderThanApplied(_)))
        });
        if forgets && refuses {
            self.replace_agent(at, Duration::from_secs(1));
        }
    }

    /// The logs have grown: watches deliver.
    pub fn wake_watches(&mut self) {
        self.wake_managers();
        let lengths = [(What::Secret, self.api.secrets.len()), (What::Peers, self.api.peers.len())];
        for at in 0..self.machines.len() {
            for (what, length) in lengths {
                let now = self.now;
                let Some(stream) = self.stream(at, what) else { continue };
                if !stream.up || stream.scheduled || stream.position >= length {
                    continue;
                }
                stream.scheduled = true;
                let (connection, silent) = (stream.connection, stream.silent_until);
                let pause = self.machines[at].delay(now, 5, 400).max(silent.saturating_sub(now));
                self.agent_after(at, pause, AgentEvent::Deliver(what, connection));
            }
        }
    }

    fn deliver(&mut self, at: usize, what: What, connection: u64) {
        let (duplicated, broken) = (self.scenario.duplicated, self.scenario.broken);
        let (twice, breaks) = (self.rng.permille(duplicated), self.rng.permille(broken));
        let partitioned = self.machines[at].partitioned;
        let Some(stream) = self.stream(at, what).filter(|stream| stream.connection == connection) else {
            return;
        };
        stream.scheduled = false;
        if breaks || partitioned {
            return self.cut(at, what);
        }
        let from = match (what, twice) {
            (_, false) => stream.position,
            (What::Secret, true) => stream.position.saturating_sub(1),
            (What::Peers, true) => stream.position.saturating_sub(2),
        };
        let log = match what {
            What::Secret => &self.api.secrets,
            What::Peers => &self.api.peers,
        };
        let changes = log[from..].to_vec();
        let length = log.len();
        if let Some(stream) = self.stream(at, what) {
            stream.position = length;
        }
        for change in changes {
            match change {
                Change::Secret(document) => self.ring_came(at, document.as_deref()),
                Change::Peer(name, Some(peer)) => self.input(at, Input::PeerApplied(peer.object(&name))),
                Change::Peer(name, None) => {
                    self.input(at, Input::PeerDeleted(name.clone()));
                    if self.variant == Some(Variant::TakeVanishedAway) {
                        self.input(at, Input::PeerNode(name, NodeLookup::NotFound));
                    }
                }
            }
        }
    }

    /// A watch breaks, and is connected again after a while.
    pub fn cut(&mut self, at: usize, what: What) {
        let Some(stream) = self.stream(at, what) else { return };
        stream.cut();
        let connection = stream.connection;
        let pause = self.rng.millis(200, 5000);
        self.agent_after(at, pause, AgentEvent::Connect(what, connection));
    }

    /// The process does all that is due, and plans its next look.
    pub fn poke(&mut self, at: usize) {
        let (now, uptime) = (self.now, self.uptime(at));
        let mut asks = Vec::new();
        let mut pings: Vec<Ping> = Vec::new();
        let machine = &mut self.machines[at];
        let Some(process) = &mut machine.process else { return };
        process.agent.handle_timeout(uptime);
        let mut attempt = false;
        if process.under_way.is_none()
            && let Some(target) = process.agent.poll_target(uptime)
        {
            process.under_way = Some(target);
            attempt = true;
        }
        let Ok(request) = process.agent.poll_request(uptime, &mut machine.rng);
        match request {
            Some(Request::GetOwnNode) => asks.push(Ask::OwnNode),
            Some(Request::GetRing) => asks.push(Ask::Ring),
            Some(Request::Write(announcement)) => asks.push(Ask::Announce(announcement)),
            None => {}
        }
        asks.extend(process.agent.poll_peer_node(uptime).map(Ask::PeerNode));
        loop {
            let packets = |id: SaId| machine.tables.borrow().sas.get(&id).map(|sa| sa.actual.packets);
            let Ok(ping) = process.agent.poll_ping(uptime, &mut machine.rng, packets);
            let Some(ping) = ping else { break };
            pings.push(ping);
        }
        if !process.saying
            && let Some(ack) = process.agent.acknowledgement()
            && process.said.as_ref() != Some(ack)
        {
            process.saying = true;
            process.said = Some(ack.clone());
            asks.push(Ask::Say(ack.clone()));
        }
        let wake = process.agent.poll_timeout();
        let (dead, pid) = (process.store.ended.get() || process.fuse().get() == Some(0), process.pid);
        if dead {
            let down = self.rng.millis(500, 5000);
            return self.replace_agent(at, down);
        }
        if attempt {
            let pause = self.machines[at].delay(now, 1, 30);
            self.agent_after(at, pause, AgentEvent::Attempt);
        }
        for ask in asks {
            let from = if matches!(ask, Ask::Say(_)) { 200 } else { 1 };
            let pause = self.machines[at].delay(now, from, 1000);
            self.agent_after(at, pause, AgentEvent::Ask(Box::new(ask)));
        }
        for ping in pings {
            let (src, dst) = (ping.pair.src.ip(), ping.pair.dst.ip());
            self.send_probe(at, src, dst, ping.port, ping.payload);
        }
        if let Some(late) = wake.filter(|wake| *wake <= uptime) {
            self.spins(at, late);
        }
        let Some(wake) = wake.map(|wake| (self.machines[at].booted + wake).max(now + Time::from_millis(1)))
        else {
            return;
        };
        let process = self.machines[at].process.as_mut();
        if let Some(process) = process.filter(|process| process.wake.is_none_or(|planned| wake < planned)) {
            process.wake = Some(wake);
            self.at(wake, Event::Agent(at, pid, AgentEvent::Wake));
        }
    }

    /// An agent that wants to be woken at once, again and again, spins.
    fn spins(&mut self, at: usize, late: Time) {
        let now = self.now;
        let Some(process) = &mut self.machines[at].process else { return };
        if process.spinning.0 + Time::from_millis(200) < now {
            process.spinning = (now, 0);
        }
        process.spinning.1 += 1;
        if process.spinning.1 > 100 {
            self.violate(8, format!("agent {} spins: it wants to be woken at {late:?} of its time", at + 1));
        }
    }

    fn attempt(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        let Some(process) = &mut machine.process else { return };
        let Some(target) = process.under_way.clone() else { return };
        let ring = target.input.as_ref().map(|input| input.ring.clone());
        let enforcing = target.teardown == TeardownPhase::Inactive
            && target.input.as_ref().is_some_and(|input| {
                input.ring.enforcement == Enforcement::Enforcing && !input.exclusion.accepts.local
            });
        let keeps = target.teardown == TeardownPhase::Inactive
            && ring.as_ref().is_none_or(|ring| ring.phase().is_bootstrapping());
        if !enforcing && !keeps {
            machine.enforces = false;
        }
        let mut target = target;
        if let Some(variant) = self.variant {
            let there = |id: SaId| machine.tables.borrow().sas.contains_key(&id);
            let none = std::collections::BTreeMap::new();
            let pairs = process.agent.report().map_or(&none, |report| &report.pairs);
            variant.misread(&mut target, pairs, there);
        }
        let Ok(report) = process.reconciler.run(&target) else { return };
        let complete = report.is_complete();
        let own = machine.address;
        machine.sends = target.teardown == TeardownPhase::Inactive
            && ring.as_ref().is_some_and(|ring| ring.active().is_some());
        if let Some(input) = &target.input {
            machine.exclusion.clone_from(&input.exclusion);
        }
        // An address that it does not know of yet is not blocked.
        if complete && target.input.as_ref().is_none_or(|input| input.network.tunnel_addresses == [own]) {
            machine.flushed = false;
        }
        if complete {
            machine.enforces |= enforcing;
        }
        let line = format!(
            "agent {} programs revision {:?} ({}) at {:?}: {} done, {} failed, {}{}{}",
            at + 1,
            ring.as_ref().map(|ring| ring.revision),
            ring.as_ref().map_or("nothing", |ring| RingPhase::of(Some(ring)).name()),
            target.teardown,
            report.changed,
            report.failed.len(),
            if complete { "complete" } else { "incomplete" },
            if report.needs_new_instance { ", outbound SAs lost" } else { "" },
            report.findings.iter().map(|finding| format!("; {finding}")).collect::<String>(),
        );
        process.outcome = Some(report);
        let changed =
            process.outcome.as_ref().is_some_and(|report| report.changed > 0 || !report.failed.is_empty());
        if changed {
            self.tell(|| line);
        }
        if self.variant == Some(Variant::DropWithdrawn) {
            self.drop_withdrawn(at, &target);
        }
        self.dirty.insert(at);
        let now = self.now;
        let pause = self.machines[at].delay(now, 1, 30);
        self.agent_after(at, pause, AgentEvent::Attempted);
        self.poke(at);
    }

    fn attempted(&mut self, at: usize) {
        let uptime = self.uptime(at);
        if let Some(process) = &mut self.machines[at].process {
            process.under_way = None;
            let report = process.outcome.take();
            process.agent.handle_reconciled(report, uptime);
        }
        self.dirty.insert(at);
        self.poke(at);
    }

    /// The API server does what it is asked for.
    fn serve(&mut self, at: usize, pid: u64, ask: Ask) {
        let reachable = !self.machines[at].partitioned;
        let name = self.machines[at].name.clone();
        let answer = match ask {
            Ask::OwnNode => {
                Answer::OwnNode(if reachable { self.api.node(&name) } else { NodeLookup::Failed })
            }
            Ask::Ring => {
                let secret = self.api.store.secret.as_ref();
                Answer::Ring(reachable.then(|| secret.and_then(|secret| secret.document.clone())))
            }
            Ask::PeerNode(peer) => {
                let lookup = if reachable { self.api.node(&peer) } else { NodeLookup::Failed };
                Answer::PeerNode(peer, lookup)
            }
            Ask::Announce(_) if !reachable => {
                Answer::Announced(WriteResult::Failed("no answer".to_owned()), None)
            }
            Ask::Announce(announcement) => self.announce(at, &name, &announcement),
            Ask::Say(_) if !reachable => Answer::Said(false),
            Ask::Say(ack) => {
                self.check_ack(at, &ack);
                let fresh = self.rng.uid();
                self.tell(|| format!("agent {} acknowledges {}", at + 1, brief(&ack)));
                self.api.write_ack(&name, ack, fresh);
                self.wake_managers();
                Answer::Said(true)
            }
        };
        let now = self.now;
        let pause = self.machines[at].delay(now, 1, 100);
        self.at(now + pause, Event::Agent(at, pid, AgentEvent::Answer(Box::new(answer))));
    }

    fn announce(&mut self, at: usize, name: &str, announcement: &Announcement) -> Answer {
        let replaces = announcement
            .replaces
            .as_ref()
            .map(|version| (version.uid, version.resource_version.parse().unwrap_or(0)));
        let fresh = (self.rng.uid(), i64::try_from(self.now.as_secs()).unwrap_or(0));
        let result = self.api.write_peer(name, replaces, &announcement.spec, fresh);
        let line = format!(
            "agent {} announces {:?}: {}",
            at + 1,
            announcement
                .spec
                .senders
                .iter()
                .map(|sender| sender.instance.to_string()[..4].to_owned())
                .collect::<Vec<_>>(),
            match &result {
                Ok(_) => "written".to_owned(),
                Err(refusal) => format!("{refusal:?}"),
            }
        );
        self.tell(|| line);
        self.wake_watches();
        match result {
            Ok(object) => Answer::Announced(WriteResult::Written(object), None),
            Err(refusal) => {
                let there = self.api.store.peers.get(name).map(|peer| peer.object(name));
                let result = match refusal {
                    Refusal::NotFound => WriteResult::Refused("404".to_owned()),
                    Refusal::Conflict => WriteResult::Conflict,
                };
                Answer::Announced(result, Some(there))
            }
        }
    }

    fn answered(&mut self, at: usize, answer: Answer) {
        match answer {
            Answer::OwnNode(lookup) => self.input(at, Input::OwnNode(lookup)),
            Answer::Ring(document) => {
                if let Some(Some(shown)) = &document {
                    self.ring_came(at, Some(&shown[..]));
                }
                self.input(at, Input::RingRead(document.is_some()));
            }
            Answer::PeerNode(peer, lookup) => self.input(at, Input::PeerNode(peer, lookup)),
            Answer::Announced(result, there) => {
                match there {
                    Some(Some(object)) => self.input(at, Input::PeerApplied(object)),
                    Some(None) => {
                        let name = self.machines[at].name.clone();
                        self.input(at, Input::PeerDeleted(name));
                    }
                    None => {}
                }
                self.input(at, Input::Announced(result));
            }
            Answer::Said(written) => {
                if let Some(process) = &mut self.machines[at].process {
                    process.saying = false;
                    if !written {
                        process.said = None;
                    }
                }
                self.poke(at);
            }
        }
    }

    /// A probe leaves a machine.
    fn send_probe(&mut self, at: usize, src: IpAddr, dst: IpAddr, port: u16, payload: Vec<u8>) {
        let through = if self.variant == Some(Variant::CountAnswerForAnother) { PINNED_PORT } else { port };
        let egress = self.machines[at].tables.borrow_mut().egress(src, dst, Traffic::Probe(through));
        let Some(to) = self.network.owners.get(&dst).copied().filter(|_| egress != Egress::Dropped) else {
            return;
        };
        let large = payload.len() > LEN;
        if !self.network.passes(at, to, large) {
            return;
        }
        let pause = self.rng.millis(1, 20);
        self.after(pause, Event::Probe(Box::new(Packet { src, dst, port, payload, egress })));
    }

    /// It arrives at another.
    pub fn probe_arrives(&mut self, packet: Packet) {
        let Packet { src, dst, port, payload, egress } = packet;
        let Some(at) = self.network.owners.get(&dst).copied() else { return };
        let uptime = self.uptime(at);
        let now = self.now;
        let machine = &mut self.machines[at];
        let in_time = machine.live && now >= machine.booted;
        if !in_time || !machine.tables.borrow_mut().ingress(src, dst, Traffic::Probe(port), egress) {
            return;
        }
        if machine.process.is_none() || machine.stopped_until > now {
            return;
        }
        let Some(probe) = Probe::parse(&payload) else { return };
        match probe.kind {
            ProbeKind::Ping => {
                if let Egress::Esp(_, key, _) = egress {
                    self.arrived.insert(probe.nonce, (key, payload.len() > LEN));
                }
            }
            ProbeKind::Answer => {
                if let Some((key, large)) = self.arrived.remove(&probe.nonce) {
                    machine.tables.borrow_mut().answered.entry(key).or_default()[usize::from(large)] = true;
                }
            }
        }
        let Some(process) = &mut machine.process else { return };
        // Whichever SA it took: it counts.
        let more = if self.variant == Some(Variant::CountAnswerForAnother) { 1 << 40 } else { 0 };
        let packets = |id: SaId| machine.tables.borrow().sas.get(&id).map(|sa| sa.actual.packets + more);
        let received = process.agent.handle_packet(src, port, &payload, uptime, packets);
        if let Received::Answer(answer) = received {
            self.send_probe(at, dst, src, port, answer);
        }
        self.poke(at);
    }

    /// The ring that an agent programs.
    #[must_use]
    pub fn ring_of(&self, at: usize) -> Option<Arc<secureoverlay_keyring::keyring::KeyRing>> {
        let process = self.machines[at].process.as_ref()?;
        Some(process.agent.applied()?.input.as_ref()?.ring.clone())
    }
}

/// An acknowledgement in a line.
fn brief(ack: &Acknowledgement) -> String {
    let short = |uid: &secureoverlay_keyring::uid::Uid| uid.as_str()[..4].to_owned();
    format!(
        "{}: active {:?}, receivable {:?}, unproven {:?}, {:?}{}{}",
        short(&ack.ack_id),
        ack.active_generation.as_ref().map(short),
        ack.receivable.iter().map(short).collect::<Vec<_>>(),
        ack.unproven_pairs
            .iter()
            .map(|pairs| format!("{} {:?}", short(&pairs.generation), pairs.nodes))
            .collect::<Vec<_>>(),
        ack.enforcement,
        if ack.sends_none { ", sends none" } else { "" },
        ack.enforcement_blockers.iter().map(|blocker| format!(", {}", blocker.reason)).collect::<String>(),
    )
}
