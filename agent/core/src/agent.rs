//! The agent's decisions: what the API, the kernel and the peers say goes in; what to bring the kernel to, what to
//! announce, which pings to send and what to report comes out.
//!
//! A shell hands events to [`Agent::handle_event`], and does what the `poll_*` functions ask for until
//! [`Agent::poll_timeout`]. It reads the clock after what it hands in.
//!
//! | module | does |
//! |---|---|
//! | `input` | what goes in |
//! | `target` | what to bring the kernel to |
//! | `addresses` | the addresses of this node's tunnels |
//! | `announcement` | identity and EncryptionPeer |
//! | `answer` | the acknowledgement |
//! | `notices` | what is unusual, and blocks nothing |
//! | `shown` | what can be read of it |

mod addresses;
mod announcement;
mod answer;
mod input;
mod notices;
mod paths;
mod shown;
mod target;

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
    peer::EncryptionPeerSpec,
    uid::Uid,
};

use crate::{
    Time,
    announcer::{Announcer, DrawCause},
    exclusion::{Excluded, Exclusion, ExclusionTracker},
    identity::LocalIdentity,
    network::LocalNetwork,
    peers::{PeerTable, Peers},
    persisted::{Applied, PersistedState},
    plan::{DesiredInput, ReconcileTarget},
    proof::{PINGS_PER_SECOND, Ping, ProofTracker, Received},
    reconcile::ReconcileReport,
    ring_cache::RingCache,
    teardown::Teardown,
    xfrm::SaId,
};

pub use self::{
    input::{AgentSettings, Event, IdentityStore, Start},
    notices::{GATEWAY_UNKNOWN, Notice},
    paths::{PathIn, PathOut},
};

/// Our own changes of policies are notified as well; and other IPsec software may change many at once.
const KERNEL_PAUSE: Duration = Duration::from_secs(1);
/// Answers come in bursts.
const PROOF_PAUSE: Duration = Duration::from_millis(50);
/// Until the first attempt after a failed one; doubles.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// How long an address that the kernel lost is received at, and stays announced.
const ADDRESS_GRACE: Duration = Duration::from_secs(600);
/// The first acknowledgement of a staged generation waits for pings so long, and for as long as pinging all peers takes.
const SETTLE: Duration = Duration::from_secs(30);

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
                let name = object.name.clone();
                if !self.table.handle_applied(object, now) {
                    return;
                }
                self.announcer.handle_own_object(self.table.own(), now);
                self.take_peer(name, now);
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
        self.refresh_peers(now);
        self.judge_objects(now);
    }

    /// The peers as they are now, each of whose new entries is checked.
    fn refresh_peers(&mut self, now: Time) {
        let peers = self.table.snapshot(now);
        if peers == *self.peers {
            return;
        }
        let before = std::mem::replace(&mut self.peers, Arc::new(peers));
        let peers = self.peers.clone();
        let changed = peers.by_name.iter().filter(|(name, peer)| before.by_name.get(*name) != Some(*peer));
        self.check_spis(changed.flat_map(|(_, peer)| &peer.entries));
    }

    /// The object of one peer came or changed. One that joins costs no look at the others.
    fn take_peer(&mut self, name: String, now: Time) {
        match self.table.joined(&name).filter(|_| !self.peers.by_name.contains_key(&name)) {
            Some(peer) => {
                self.check_spis(peer.entries.iter());
                Arc::make_mut(&mut self.peers).by_name.insert(name, peer);
            }
            None => self.refresh_peers(now),
        }
        self.judge_objects(now);
    }

    fn save_state(&mut self) {
        self.store_problem = self.store.save_state(&self.state).err();
    }

    /// The Node of a peer whose object vanished, to be asked for.
    pub fn poll_peer_node(&mut self, now: Time) -> Option<String> {
        self.table.poll_query(now)
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
}

fn earliest(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    a.into_iter().chain(b).min()
}

#[cfg(test)]
mod tests;
