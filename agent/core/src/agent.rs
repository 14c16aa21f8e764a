//! The agent's decisions: what the API, the kernel and the peers say goes in; what to bring the kernel to, what to
//! announce, which pings to send and what to report comes out.
//!
//! A shell hands events to [`Agent::handle_event`], and does what the `poll_*` functions ask for until
//! [`Agent::poll_timeout`]. It reads the clock after what it hands in.

mod notices;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use rand_core::TryCryptoRng;
use secureoverlay_keyring::{
    acknowledgement::{Acknowledgement, EnforcementBlocker},
    address::NodeAddress,
    keyring::{Enforcement, KeyRing},
    peer::{EncryptionPeerSpec, MAX_SENDERS},
    phase::Phase,
    uid::Uid,
};

use crate::{
    Time,
    ack::{AckFacts, acknowledge},
    announcer::{Announcer, DrawCause, Facts, Request, WriteResult, collides, draw},
    exclusion::{Excluded, Exclusion, ExclusionTracker},
    identity::{Identity, LocalIdentity},
    network::LocalNetwork,
    peers::{NodeLookup, PeerObject, PeerTable, Peers},
    persisted::{Applied, PersistedState},
    plan::{DesiredInput, ReconcileTarget},
    proof::{PINGS_PER_SECOND, Ping, ProofTracker, Received},
    reconcile::ReconcileReport,
    ring_cache::{Installation, RingCache, RingInput, RingProblem},
    teardown::{Teardown, TeardownPhase},
    xfrm::SaId,
};

pub use self::notices::{GATEWAY_UNKNOWN, Notice};

/// Our own changes of policies are notified as well; and other IPsec software may change many at once.
const KERNEL_PAUSE: Duration = Duration::from_secs(1);
/// Answers come in bursts.
const PROOF_PAUSE: Duration = Duration::from_millis(50);
/// Until the first attempt after a failed one; doubles.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest pause between attempts.
const RETRY_LAST: Duration = Duration::from_secs(30);
/// How long an address that the kernel lost is received at, and stays announced.
const ADDRESS_GRACE: Duration = Duration::from_secs(600);
/// The first acknowledgement of a staged generation waits for pings so long, and for as long as pinging all peers takes.
const SETTLE: Duration = Duration::from_secs(30);

/// Times and choices that an operator may set.
#[derive(Clone, Copy, Debug)]
pub struct AgentSettings {
    /// How long changes are collected before the kernel is changed.
    pub debounce: Duration,
    /// How often the kernel is looked at though nothing is known to have changed.
    pub resync: Duration,
    /// By how much nodes may differ in noticing a teardown.
    pub skew: Duration,
    /// Whether a tunnel without room for ESP blocks enforcing, and a ping of its size has to pass.
    pub needs_room: bool,
}

/// Something that happened.
pub enum Event {
    /// The source of the ring shows this.
    Ring(RingInput),
    /// A full list of the objects that announce nodes.
    PeerList(Vec<PeerObject>),
    /// One came or changed.
    PeerApplied(PeerObject),
    /// One was deleted.
    PeerDeleted(String),
    /// What a GET of this node's Node said.
    OwnNode(NodeLookup),
    /// The ring was read by quorum, or was not; what it shows has come as another event.
    RingRead(bool),
    /// What the GET of a peer's Node said.
    PeerNode(String, NodeLookup),
    /// What became of the write of this node's object.
    Announced(WriteResult),
    /// What is excluded by labels, under MKE's manifest.
    Excluded(Excluded),
    /// What is known of our DaemonSet.
    Installation(Installation),
    /// The product is being removed.
    Uninstall,
    /// What the kernel says of this node's network.
    Network(LocalNetwork),
    /// Reasons of one kind why this node cannot guarantee encryption; replaces those of before.
    Blockers(&'static str, BTreeSet<EnforcementBlocker>),
    /// Whether the tunnel's MTU leaves no room for ESP.
    TunnelMtuTooLarge(bool),
    /// Another program changed policies, or an SA reached a limit.
    Kernel,
    /// There are more or fewer SAs or policies than there should be.
    KernelLost,
    /// Another program flushed the policies, and they were put back.
    PoliciesFlushed,
    /// The virtual machine was copied or put back.
    NewVmGeneration,
}

/// Where identity and state are kept.
pub trait IdentityStore {
    /// Keeps the identity.
    ///
    /// # Errors
    /// What to say of it, and what helps.
    fn save_identity(&mut self, identity: &Identity) -> Result<(), String>;

    /// Keeps the state.
    ///
    /// # Errors
    /// What to say of it, and what helps.
    fn save_state(&mut self, state: &PersistedState) -> Result<(), String>;
}

impl IdentityStore for crate::journal::NoStore {
    fn save_identity(&mut self, _: &Identity) -> Result<(), String> {
        Ok(())
    }

    fn save_state(&mut self, _: &PersistedState) -> Result<(), String> {
        Ok(())
    }
}

/// What a process begins with.
#[derive(Clone, Debug)]
pub struct Start {
    /// This node's name.
    pub name: String,
    /// Its identity, which is persisted already where it is announced.
    pub identity: LocalIdentity,
    /// What the process before remembered.
    pub state: PersistedState,
    /// Generations that left ring and kernel in this boot, by the journal.
    pub gone: BTreeSet<Uid>,
    /// The identity was drawn by this process: there was none, or the journal did not vouch for it.
    pub drawn: bool,
}

/// The state behind the decisions.
pub struct Agent<S> {
    settings: AgentSettings,
    store: S,
    state: PersistedState,
    store_problem: Option<String>,
    identity: Arc<LocalIdentity>,
    announces: bool,
    announcer: Announcer,
    sent: Option<EncryptionPeerSpec>,
    draw_causes: BTreeSet<DrawCause>,
    /// Why the identity was drawn anew last.
    last_draw: Option<DrawCause>,
    /// The identity was drawn at the start, and the kernel was not looked at since.
    drawn_at_start: bool,
    /// SAs of an identity that was lost, as many as there were.
    lost_identity: Option<usize>,
    ring_cache: RingCache,
    gone: BTreeSet<Uid>,
    table: PeerTable,
    peers: Arc<Peers>,
    exclusions: ExclusionTracker,
    exclusion: Arc<Exclusion>,
    excluded_by_label: Option<Excluded>,
    excluded_names: BTreeSet<String>,
    network: Arc<LocalNetwork>,
    former_addresses: BTreeMap<NodeAddress, Time>,
    network_known: bool,
    proofs: ProofTracker,
    uninstalling: bool,
    teardown: Option<Teardown>,
    /// The last that was programmed with encryption on.
    on: Option<DesiredInput>,
    changed_at: Option<Time>,
    look_at: Option<Time>,
    under_way: Option<ReconcileTarget>,
    reached: Option<ReconcileTarget>,
    applied: Option<ReconcileTarget>,
    report: Option<ReconcileReport>,
    retry: Duration,
    blockers: BTreeMap<&'static str, BTreeSet<EnforcementBlocker>>,
    tunnel_mtu_too_large: bool,
    /// How often policies were flushed, and when last.
    flushes: Option<(u64, Time)>,
    /// The staged generation that is being proven, and until when the acknowledgement waits for that.
    settling: (Option<Uid>, Time),
    /// The acknowledgement waits for pings until then.
    ack_at: Option<Time>,
    ack: Option<Acknowledgement>,
}

impl<S: IdentityStore> Agent<S> {
    /// Goes on with what the process before left.
    #[must_use]
    pub fn new(start: Start, store: S, settings: AgentSettings) -> Self {
        let announces = matches!(start.identity, LocalIdentity::Announced(_));
        Self {
            settings,
            store,
            state: start.state,
            store_problem: None,
            identity: Arc::new(start.identity),
            announces,
            announcer: Announcer::default(),
            sent: None,
            draw_causes: BTreeSet::new(),
            last_draw: None,
            drawn_at_start: start.drawn,
            lost_identity: None,
            ring_cache: RingCache::default(),
            gone: start.gone,
            table: PeerTable::new(start.name, announces),
            peers: Arc::default(),
            exclusions: ExclusionTracker::default(),
            exclusion: Arc::default(),
            excluded_by_label: None,
            excluded_names: BTreeSet::new(),
            network: Arc::default(),
            former_addresses: BTreeMap::new(),
            network_known: false,
            proofs: ProofTracker::default(),
            uninstalling: false,
            teardown: None,
            on: None,
            changed_at: None,
            look_at: None,
            under_way: None,
            reached: None,
            applied: None,
            report: None,
            retry: RETRY_FIRST,
            blockers: BTreeMap::new(),
            tunnel_mtu_too_large: false,
            flushes: None,
            settling: (None, Time::ZERO),
            ack_at: None,
            ack: None,
        }
    }

    /// Takes what happened.
    pub fn handle_event(&mut self, event: Event, now: Time) {
        match event {
            Event::Ring(input) => {
                self.ring_cache.update(input);
                self.reevaluate_ring(now);
            }
            Event::Installation(installation) => {
                self.ring_cache.set_installation(installation);
                self.reevaluate_ring(now);
            }
            Event::PeerList(list) => {
                self.table.handle_list(list, now);
                self.announcer.handle_own_object(self.table.own(), now);
                self.take_peers(now);
            }
            Event::PeerApplied(object) => {
                if !self.table.handle_applied(object, now) {
                    return;
                }
                self.announcer.handle_own_object(self.table.own(), now);
                self.take_peers(now);
            }
            Event::PeerDeleted(name) => {
                let own = self.table.own().is_some();
                self.table.handle_deleted(&name, now);
                if own && self.table.own().is_none() {
                    self.announcer.handle_own_object(None, now);
                }
                self.take_peers(now);
            }
            Event::OwnNode(lookup) => {
                self.announcer.handle_own_node(lookup, now);
                self.renew_ack(now);
                return;
            }
            Event::RingRead(read) => {
                self.announcer.handle_ring_read(read, now);
                return;
            }
            Event::PeerNode(name, lookup) => {
                self.table.handle_node(&name, lookup, now);
                self.take_peers(now);
            }
            Event::Announced(result) => self.take_announced(result, now),
            Event::Excluded(excluded) => {
                self.excluded_by_label = Some(excluded.clone());
                self.exclusions.update(excluded, now);
            }
            Event::Uninstall => {
                self.uninstalling = true;
                self.begin_teardown();
            }
            Event::Network(network) => self.take_network(network, now),
            Event::Blockers(kind, blockers) => {
                if self.blockers.get(kind) != Some(&blockers) {
                    self.blockers.insert(kind, blockers);
                    self.renew_ack(now);
                }
                return;
            }
            Event::TunnelMtuTooLarge(too_large) => {
                self.proofs.set_room(!too_large);
                if self.tunnel_mtu_too_large != too_large {
                    self.tunnel_mtu_too_large = too_large;
                    self.renew_ack(now);
                }
                return;
            }
            Event::KernelLost => {
                self.look_at = Some(now);
                return;
            }
            Event::PoliciesFlushed => {
                self.flushes = Some((self.flushes.map_or(0, |(count, _)| count) + 1, now));
                self.look_at = Some(now);
                return;
            }
            Event::Kernel => {
                self.look_at = earliest(self.look_at, Some(now + KERNEL_PAUSE));
                return;
            }
            Event::NewVmGeneration => self.needs_draw(DrawCause::NewVmGeneration),
        }
        self.changed_at = earliest(self.changed_at, Some(now + self.settings.debounce));
    }

    fn reevaluate_ring(&mut self, now: Time) {
        if self.ring_cache.reevaluate(self.state.applied.as_ref(), &self.gone)
            && let Some(ring) = self.ring_cache.ring().cloned()
        {
            // Remembered before anything of it is applied.
            self.state.applied = Some(Applied::after(self.state.applied.as_ref(), &ring));
            self.save_state();
            self.excluded_names.clone_from(&ring.excluded.nodes);
            if self.excluded_by_label.is_none() {
                let local = ring.excluded.nodes.contains(self.table.name());
                self.exclusions.update(Excluded { local, addresses: ring.excluded.addresses.clone() }, now);
            }
            let staged = ring.phase().staged().map(|staged| staged.uid);
            if (staged.is_some() && staged != self.settling.0) || self.report.is_none() {
                let peers = u32::try_from(self.table.len()).unwrap_or(u32::MAX);
                let all = Duration::from_secs(2).saturating_mul(peers) / PINGS_PER_SECOND;
                self.settling = (staged, now + SETTLE + all);
            }
            self.check_spis(self.peers.clone().entries().keys());
        }
        self.renew_ack(now);
    }

    fn take_peers(&mut self, now: Time) {
        let peers = self.table.snapshot(now);
        if peers != *self.peers {
            let before = std::mem::replace(&mut self.peers, Arc::new(peers));
            let known = before.entries();
            let peers = self.peers.clone();
            self.check_spis(peers.entries().keys().filter(|entry| !known.contains_key(*entry)));
        }
        self.judge_objects(now);
    }

    /// An SPI belongs to the sender that has it; of two, the owner of the younger object draws anew.
    fn check_spis<'e>(&mut self, others: impl Iterator<Item = &'e crate::entry::Entry>) {
        let (LocalIdentity::Announced(identity), Some(ring)) = (&*self.identity, self.ring_cache.ring())
        else {
            return;
        };
        let clashing: Vec<&crate::entry::Entry> = others
            .filter(|other| {
                collides(ring, identity.instance, &self.network.tunnel_addresses, std::iter::once(*other))
            })
            .collect();
        let own = self.table.own().map(|own| (own.created, own.uid));
        let yields = clashing.iter().any(|other| {
            let holders = self.table.listing(|entry| entry == *other);
            holders.map(|(uid, created)| (created, uid)).any(|holder| own.is_none_or(|own| holder < own))
        });
        if yields {
            self.needs_draw(DrawCause::SpiCollision);
        }
    }

    fn judge_objects(&mut self, now: Time) {
        let LocalIdentity::Announced(identity) = &*self.identity.clone() else { return };
        let mut state = self.state.clone();
        let facts = Facts {
            identity,
            network: &self.network,
            table: &self.table,
            peers: &self.peers,
            ring: self.ring_cache.ring().map(Arc::as_ref),
            ack_id: self.ring_cache.ack_id(),
            sas: self.report.as_ref().map(|report| &report.sas),
        };
        let cause = self.announcer.judge(&facts, &mut state, now);
        if state != self.state {
            self.state = state;
            self.save_state();
        }
        if let Some(cause) = cause {
            self.needs_draw(cause);
        }
    }

    fn needs_draw(&mut self, cause: DrawCause) {
        if self.announces {
            self.draw_causes.insert(cause);
        }
    }

    fn take_announced(&mut self, result: WriteResult, now: Time) {
        let Some(sent) = self.sent.take() else { return };
        let before = self.state.clone();
        self.announcer.handle_written(&result, &sent, &mut self.state, now);
        if self.state != before {
            self.save_state();
        }
        if let WriteResult::Written(object) = result {
            self.table.handle_applied(object, now);
        }
    }

    fn take_network(&mut self, network: LocalNetwork, now: Time) {
        self.network_known = true;
        for lost in self.network.tunnel_addresses.iter().filter(|own| !network.tunnel_addresses.contains(own))
        {
            self.former_addresses.insert(*lost, now);
        }
        self.former_addresses.retain(|own, _| !network.tunnel_addresses.contains(own));
        self.expire_addresses(now);
        let former_addresses = self.former_addresses.keys().copied().collect();
        self.proofs.set_tunnel_mtu(network.tunnel_mtu.filter(|_| self.settings.needs_room));
        self.network = Arc::new(LocalNetwork { former_addresses, ..network });
    }

    /// An address that was lost for long is neither received at nor announced.
    fn expire_addresses(&mut self, now: Time) {
        self.former_addresses.retain(|_, since| *since + ADDRESS_GRACE > now);
        if self.network.former_addresses.iter().any(|own| !self.former_addresses.contains_key(own)) {
            let former_addresses = self.former_addresses.keys().copied().collect();
            self.network = Arc::new(LocalNetwork { former_addresses, ..(*self.network).clone() });
        }
    }

    fn save_state(&mut self) {
        self.store_problem = self.store.save_state(&self.state).err();
    }

    fn begin_teardown(&mut self) -> &mut Teardown {
        let enforcing = match &self.on {
            Some(on) if on.ring.enforcement == Enforcement::Enforcing => true,
            Some(on) if !on.ring.phase().is_bootstrapping() => false,
            // An agent that has programmed nothing can't know what its predecessor left.
            _ => true,
        };
        let skew = self.settings.skew;
        self.teardown.get_or_insert_with(|| Teardown::new(enforcing, skew))
    }

    /// What to ask the API for, or to write there.
    ///
    /// # Errors
    /// The random number generator's.
    pub fn poll_request<R: TryCryptoRng>(
        &mut self,
        now: Time,
        rng: &mut R,
    ) -> Result<Option<Request>, R::Error> {
        if !self.announces || self.uninstalling || !self.table.is_listed() {
            return Ok(None);
        }
        self.draw(now, rng)?;
        let identity = self.identity.clone();
        let LocalIdentity::Announced(identity) = &*identity else { return Ok(None) };
        let facts = Facts {
            identity,
            network: &self.network,
            table: &self.table,
            peers: &self.peers,
            ring: self.ring_cache.ring().map(Arc::as_ref),
            ack_id: self.ring_cache.ack_id(),
            sas: self.report.as_ref().map(|report| &report.sas),
        };
        // Inbound SAs come before the announcement of what they are for.
        if !self.receives() {
            return Ok(None);
        }
        let request = self.announcer.poll_request(&facts, now, rng)?;
        if let Some(Request::Write(announcement)) = &request {
            self.sent = Some(announcement.spec.clone());
            // Its own write must not be taken for another machine's.
            if self.state.announced.remember(&announcement.spec.senders) {
                self.save_state();
            }
        }
        Ok(request)
    }

    /// Whether the last run programmed this identity at these addresses, as far as there is a ring.
    fn receives(&self) -> bool {
        let encrypting = self.ring_cache.ring().is_some_and(|ring| !matches!(ring.phase(), Phase::Off));
        !encrypting
            || self.applied.as_ref().and_then(|target| target.input.as_ref()).is_some_and(|input| {
                *input.identity == *self.identity
                    && input.network.tunnel_addresses == self.network.tunnel_addresses
            })
    }

    fn draw<R: TryCryptoRng>(&mut self, now: Time, rng: &mut R) -> Result<(), R::Error> {
        let Some(cause) = self.draw_causes.first().copied() else { return Ok(()) };
        if self.state.draws.next() > now {
            return Ok(());
        }
        let LocalIdentity::Announced(identity) = &*self.identity.clone() else { return Ok(()) };
        let facts = Facts {
            identity,
            network: &self.network,
            table: &self.table,
            peers: &self.peers,
            ring: self.ring_cache.ring().map(Arc::as_ref),
            ack_id: self.ring_cache.ack_id(),
            sas: None,
        };
        let drawn = draw(identity, cause, &facts, rng)?;
        self.state.draws.note(now);
        self.save_state();
        // Persisted before anything is derived from it.
        match self.store.save_identity(&drawn) {
            Ok(()) => {
                self.draw_causes.clear();
                self.last_draw = Some(cause);
                self.identity = Arc::new(LocalIdentity::Announced(drawn));
                self.changed_at = Some(now);
            }
            Err(problem) => self.store_problem = Some(problem),
        }
        Ok(())
    }

    /// The Node of a peer whose object vanished, to be asked for.
    pub fn poll_peer_node(&mut self, now: Time) -> Option<String> {
        self.table.poll_query(now)
    }

    /// A target for the kernel, if it is time for one. The caller answers with [`Self::handle_reconciled`] before it
    /// gets another.
    pub fn poll_target(&mut self, now: Time) -> Option<ReconcileTarget> {
        if self.under_way.is_some() {
            return None;
        }
        let look = self.look_at.is_some_and(|at| at <= now);
        if !look && self.wake_target().is_none_or(|at| at > now) {
            return None;
        }
        self.changed_at = None;
        let target = self.target(now);
        if look {
            self.look_at = target.is_none().then(|| now + self.settings.resync);
        }
        let target = target.filter(|target| look || self.reached.as_ref() != Some(target))?;
        self.under_way = Some(target.clone());
        Some(target)
    }

    fn target(&mut self, now: Time) -> Option<ReconcileTarget> {
        self.expire_addresses(now);
        let peers = self.table.snapshot(now);
        if peers != *self.peers {
            self.peers = Arc::new(peers);
        }
        let exclusion = self.exclusions.at(now);
        if exclusion != *self.exclusion {
            self.exclusion = Arc::new(exclusion);
        }
        let ring = self.ring_cache.ring().cloned();
        let off = ring.as_ref().is_some_and(|ring| ring.phase() == Phase::Off);
        if self.uninstalling || off {
            let teardown = self.begin_teardown();
            teardown.handle_timeout(now);
            let phase = teardown.phase();
            let input = if phase == TeardownPhase::Removed { None } else { self.on.clone() };
            return Some(ReconcileTarget { teardown: phase, input });
        }
        self.teardown = None;
        if !self.table.is_listed() || !self.network_known {
            return None;
        }
        let announced = match &*self.identity {
            LocalIdentity::Announced(identity) => self.announcer.is_announced(identity, &self.network),
            LocalIdentity::BootId(_) => true,
        };
        let input = DesiredInput {
            ring: ring?,
            identity: self.identity.clone(),
            network: self.network.clone(),
            peers: self.peers.clone(),
            exclusion: self.exclusion.clone(),
            pairs: self.proofs.states(),
            announced,
        };
        self.on = Some(input.clone());
        Some(ReconcileTarget { teardown: TeardownPhase::Inactive, input: Some(input) })
    }

    /// Takes how the attempt at the last target went; `None` where the kernel could not be read.
    pub fn handle_reconciled(&mut self, report: Option<ReconcileReport>, now: Time) {
        let Some(target) = self.under_way.take() else { return };
        let complete = report.as_ref().is_some_and(ReconcileReport::is_complete);
        if let Some(teardown) = &mut self.teardown {
            teardown.handle_applied(target.teardown, complete, now);
        }
        if let Some(report) = report {
            if self.report.is_none() {
                let known = self.peers.addresses();
                for pair in report.pins.keys().filter(|pair| !known.contains(&pair.dst)) {
                    self.table.handle_pinned(pair.dst, now);
                }
                self.take_peers(now);
            }
            if self.proofs.handle_report(&report, now) {
                // The first look says what is pinned, and what is proven may be pinned at once.
                self.changed_at = earliest(self.changed_at, Some(now + PROOF_PAUSE));
            }
            if report.needs_new_instance {
                self.needs_draw(DrawCause::LostOutbound);
            }
            if std::mem::take(&mut self.drawn_at_start) && report.found > 0 {
                self.lost_identity = Some(report.found);
            }
            self.gone.clone_from(&report.gone);
            self.applied = Some(target.clone());
            self.report = Some(report);
            self.renew_ack(now);
        }
        let again = if complete {
            self.retry = RETRY_FIRST;
            self.settings.resync
        } else {
            let pause = self.retry;
            self.retry = (2 * self.retry).min(RETRY_LAST);
            pause
        };
        self.look_at = earliest(self.look_at, Some(now + again));
        self.reached = complete.then_some(target);
    }

    /// The next ping, if it is time for one. `packets` says what an SA has carried so far.
    ///
    /// # Errors
    /// The random number generator's.
    pub fn poll_ping<R: TryCryptoRng>(
        &mut self,
        now: Time,
        rng: &mut R,
        packets: impl FnOnce(SaId) -> Option<u64>,
    ) -> Result<Option<Ping>, R::Error> {
        if self.proofs.handle_timeout(now) {
            self.changed_at = earliest(self.changed_at, Some(now + PROOF_PAUSE));
        }
        if let Some(active) = self.ring_cache.ring().and_then(|ring| ring.active())
            && self.proofs.poll_dead(active.uid).is_some()
        {
            self.needs_draw(DrawCause::DeadSa);
        }
        self.proofs.poll_ping(now, rng, packets)
    }

    /// Takes a packet that came to one of the probe ports.
    pub fn handle_packet(
        &mut self,
        from: IpAddr,
        port: u16,
        payload: &[u8],
        now: Time,
        packets: impl FnOnce(SaId) -> Option<u64>,
    ) -> Received {
        let (received, proven) = self.proofs.handle_packet(from, port, payload, now, packets);
        if proven {
            // The acknowledgement follows once the pair has moved.
            self.changed_at = earliest(self.changed_at, Some(now + PROOF_PAUSE));
        }
        received
    }

    fn renew_ack(&mut self, now: Time) {
        self.ack_at = None;
        let (Some(report), Some(ack_id)) = (&self.report, self.ring_cache.ack_id()) else { return };
        let Some(node_uid) = self.announcer.node_uid() else { return };
        // Asked for by `poll_request`. Under MKE's manifest the answer carries nothing that a Node made anew changes.
        if self.announces && !self.announcer.may_answer(ack_id) {
            return;
        }
        // What the answer is about has to be programmed first.
        let applied = self.applied.as_ref().and_then(|target| target.input.as_ref());
        let current = self.ring_cache.ring().filter(|_| self.ring_cache.problem().is_none());
        let waits = current.is_some_and(|ring| {
            ring.phase() != Phase::Off && applied.is_none_or(|input| !Arc::ptr_eq(&input.ring, ring))
        });
        if waits {
            return;
        }
        if self.ack_is_new(ack_id) && now < self.settling.1 && !self.proofs.is_settled(now) {
            self.ack_at = Some(self.settling.1);
            return;
        }
        let mut blockers: BTreeSet<EnforcementBlocker> = self.blockers.values().flatten().cloned().collect();
        blockers.extend(self.own_blockers());
        let ring = applied.map(|input| input.ring.as_ref());
        let gateways = applied.map(unknown_gateways).unwrap_or_default();
        self.ack = Some(acknowledge(&AckFacts {
            ack_id,
            node_uid,
            instance: self.identity.instance(),
            ring,
            network: applied.map(|input| input.network.as_ref()),
            excluded: &self.excluded_names,
            report,
            proofs: &self.proofs,
            blockers: &blockers,
            highest: self.state.applied.map_or(0, |applied| applied.id),
            tunnel_mtu_too_large: self.settings.needs_room && self.tunnel_mtu_too_large,
            unknown_gateways: &gateways,
            no_peers: applied.is_some_and(|input| input.peers.by_name.is_empty()),
            now,
        }));
    }

    fn ack_is_new(&self, ack_id: Uid) -> bool {
        self.ack.as_ref().is_none_or(|ack| ack.ack_id != ack_id)
    }

    fn own_blockers(&self) -> Vec<EnforcementBlocker> {
        let blocker = |reason: &str, detail: String| EnforcementBlocker { reason: reason.to_owned(), detail };
        let mut blockers = Vec::new();
        if let Some(problem @ RingProblem::OlderThanApplied(_)) = self.ring_cache.problem() {
            blockers.push(blocker(problem.reason(), problem.to_string()));
        }
        if self.announcer.has_name_conflict() {
            let text = "another machine announces itself under this node's name";
            blockers.push(blocker("NodeNameConflict", text.to_owned()));
        }
        if let Some((reason, text)) = self.announcer.problem() {
            blockers.push(blocker(reason, text));
        }
        let addresses = self.network.tunnel_addresses.len();
        if self.announces && addresses > MAX_SENDERS {
            let text = format!(
                "the tunnels of this node have {addresses} addresses, and {MAX_SENDERS} can be announced: give them fewer"
            );
            blockers.push(blocker("TooManyAddresses", text));
        }
        if let Some(problem) = &self.store_problem {
            blockers.push(blocker("StateDirectoryFull", problem.clone()));
        }
        if let Some(error) = self.report.iter().flat_map(|report| &report.failed).next() {
            blockers.push(blocker("KernelIncomplete", error.to_string()));
        }
        let findings = self.report.iter().flat_map(|report| &report.findings);
        for finding in findings.filter(|finding| !matches!(finding, crate::diff::Finding::Orphaned(_))) {
            blockers.push(blocker(finding.reason(), finding.to_string()));
        }
        blockers
    }

    /// What this node has to report, once it has looked at its kernel.
    #[must_use]
    pub const fn acknowledgement(&self) -> Option<&Acknowledgement> {
        self.ack.as_ref()
    }

    /// When one of the `poll_*` functions may have something.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let target = if self.under_way.is_some() { None } else { earliest(self.wake_target(), self.look_at) };
        // Before the first list nothing is asked or written, and nothing is announced that could not be received yet:
        // what ends either wait is an event.
        let announce = if self.announces && !self.uninstalling && self.table.is_listed() {
            let draw = (!self.draw_causes.is_empty()).then(|| self.state.draws.next());
            earliest(self.announcer.poll_timeout().filter(|_| self.receives()), draw)
        } else {
            None
        };
        [target, announce, self.proofs.poll_timeout(), self.ack_at].into_iter().flatten().min()
    }

    /// Time has passed: an acknowledgement that waited may be due.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.announcer.end_conflict(&self.state, now) {
            self.renew_ack(now);
        }
        if self.ack_at.is_some() {
            self.renew_ack(now);
        }
    }

    fn wake_target(&self) -> Option<Time> {
        let teardown = self.teardown.as_ref().and_then(Teardown::poll_timeout);
        let former = self.former_addresses.values().map(|since| *since + ADDRESS_GRACE).min();
        [self.changed_at, self.table.poll_timeout(), self.exclusions.poll_timeout(), teardown, former]
            .into_iter()
            .flatten()
            .min()
    }

    /// A target is being worked at.
    #[must_use]
    pub const fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// The product is being removed from this node.
    #[must_use]
    pub const fn is_uninstalling(&self) -> bool {
        self.uninstalling
    }

    /// Nothing of ours is left in the kernel.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.uninstalling && self.teardown.as_ref().is_some_and(Teardown::done)
    }

    /// Which ring counts, and what is wrong with the source.
    #[must_use]
    pub const fn ring_cache(&self) -> &RingCache {
        &self.ring_cache
    }

    /// The peers.
    #[must_use]
    pub const fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// What the peers' objects say.
    #[must_use]
    pub const fn table(&self) -> &PeerTable {
        &self.table
    }

    /// The last run.
    #[must_use]
    pub const fn report(&self) -> Option<&ReconcileReport> {
        self.report.as_ref()
    }

    /// What the kernel was last brought to, or as near to it as was possible.
    #[must_use]
    pub const fn applied(&self) -> Option<&ReconcileTarget> {
        self.applied.as_ref()
    }

    /// Why this process drew another identity last.
    #[must_use]
    pub const fn last_draw(&self) -> Option<DrawCause> {
        self.last_draw
    }

    /// This node's identity.
    #[must_use]
    pub const fn identity(&self) -> &Arc<LocalIdentity> {
        &self.identity
    }

    /// The proofs.
    #[must_use]
    pub const fn proofs(&self) -> &ProofTracker {
        &self.proofs
    }

    /// The ring that is programmed.
    #[must_use]
    pub fn applied_ring(&self) -> Option<&KeyRing> {
        self.applied.as_ref().and_then(|target| target.input.as_ref()).map(|input| input.ring.as_ref())
    }
}

/// Next hops of tunnel routes that neither a node announces nor the ring excludes.
fn unknown_gateways(input: &DesiredInput) -> BTreeSet<NodeAddress> {
    let Exclusion { accepts, sends } = &*input.exclusion;
    let mut known = input.peers.addresses();
    known.extend(accepts.addresses.iter().chain(&sends.addresses));
    input.network.unknown_gateways(&known)
}

fn earliest(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    a.into_iter().chain(b).min()
}

#[cfg(test)]
mod tests;
