//! What this node announces, and when it draws a new identity.
//!
//! Drawing and announcing too early or too late take no traffic away: a pair moves when its new SA has answered.

mod content;
mod drawing;

use std::{collections::BTreeSet, time::Duration};

use rand_core::TryCryptoRng;
use secureoverlay_keyring::{
    derivation::EndpointKey,
    keyring::KeyRing,
    peer::{EncryptionPeerSpec, MAX_SENDERS, Sender},
    uid::Uid,
};

pub use self::drawing::{DrawCause, collides, draw};

use crate::{
    Time,
    entry::Entry,
    identity::Identity,
    network::LocalNetwork,
    peers::{Content, NodeLookup, PeerObject, PeerTable, Peers},
    persisted::PersistedState,
    xfrm::SaId,
};

/// What peers must know soon is written within this time.
const URGENT: Duration = Duration::from_secs(2);
/// In smaller clusters within less.
const CROWD: f64 = 200.0;
/// What no longer matters is taken out after this time, if nothing is written before.
const GRACE: Duration = Duration::from_secs(600);
/// Until a Node that was not there is asked for again.
const NODE_PAUSE: Duration = Duration::from_secs(10);
/// Between two writes of two machines that have one name.
const CONFLICT_PAUSE: Duration = Duration::from_secs(60);
/// Another machine of this name that has not written for so long has stopped.
const CONFLICT_OVER: Duration = Duration::from_secs(300);
/// A strange entry within this time after another one means two machines with one name.
const STRANGE_AGAIN: Duration = Duration::from_secs(3600);
/// Announcements of the whole cluster in a second, times nodes: each is an event for every node.
const EVENTS_PER_SECOND: u64 = 100_000;
/// New entries are announced beside a ring that was read by quorum within this time: one that was read long ago may list
/// generations that are being removed, which nothing waits for.
const RING_AGE: Duration = Duration::from_secs(30);
/// GETs of their own Nodes that all nodes make in a second, when each has to answer a new `ackId`.
const NODES_PER_SECOND: u32 = 500;
/// Pauses after writes that failed.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LAST: Duration = Duration::from_secs(60);

/// A write of this node's EncryptionPeer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The object to replace; `None` to create it.
    pub replaces: Option<Version>,
    /// Its new content. `nodeUid` is also the owner's UID.
    pub spec: EncryptionPeerSpec,
}

/// What a write is conditional on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// `metadata.uid`.
    pub uid: Uid,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteResult {
    /// The API server's reply.
    Written(PeerObject),
    /// The object is another one by now, or was made meanwhile.
    Conflict,
    /// It is gone, belongs to another Node, or may not be written; what the server said.
    Refused(String),
    /// There was no answer.
    Failed(String),
}

/// Something that the shell must ask or write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A GET of this node's Node, from the cache.
    GetOwnNode,
    /// A read of the ring, past every cache.
    GetRing,
    /// A write.
    Write(Announcement),
}

/// The state behind it.
#[derive(Debug)]
pub struct Announcer {
    node_uid: Option<Uid>,
    ask_node: Time,
    /// The `ackId` that the Node is asked for before it is answered, and when.
    to_confirm: Option<(Uid, Time)>,
    /// The one that may be answered: the Node was asked for since it is known.
    confirmed: Option<Uid>,
    /// When the ring was read by quorum last.
    ring_read: Option<Time>,
    in_flight: bool,
    /// When the next write may be: drawn when it became needed.
    planned: Option<Time>,
    not_before: Time,
    retry: Duration,
    /// Entries that were seen in the API: outbound SAs of theirs may be made.
    published: BTreeSet<Sender>,
    /// Since when entries that nothing needs are listed.
    stale: Option<Time>,
    conflict: bool,
    /// What the server keeps otherwise than it was sent.
    schema_too_old: bool,
    refused: Option<String>,
}

impl Default for Announcer {
    fn default() -> Self {
        Self {
            node_uid: None,
            ask_node: Time::ZERO,
            to_confirm: None,
            confirmed: None,
            ring_read: None,
            in_flight: false,
            planned: None,
            not_before: Time::ZERO,
            retry: RETRY_FIRST,
            published: BTreeSet::new(),
            stale: None,
            conflict: false,
            schema_too_old: false,
            refused: None,
        }
    }
}

/// What an announcement is made of.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'f> {
    /// This node's identity.
    pub identity: &'f Identity,
    /// Its network.
    pub network: &'f LocalNetwork,
    /// The objects.
    pub table: &'f PeerTable,
    /// The peers.
    pub peers: &'f Peers,
    /// The ring, where there is one.
    pub ring: Option<&'f KeyRing>,
    /// The `ackId` to answer.
    pub ack_id: Option<Uid>,
    /// Our SAs in the kernel, once it was looked at.
    pub sas: Option<&'f BTreeSet<SaId>>,
}

impl Announcer {
    /// The UID of this node's Node.
    #[must_use]
    pub const fn node_uid(&self) -> Option<Uid> {
        self.node_uid
    }

    /// Two machines have this node's name.
    #[must_use]
    pub const fn has_name_conflict(&self) -> bool {
        self.conflict
    }

    /// Ends the report of another machine once that has written nothing for several of its turns. Returns whether it
    /// was over.
    pub fn end_conflict(&mut self, state: &PersistedState, now: Time) -> bool {
        let last = Time::from_millis(state.strange_ms.unwrap_or_default());
        let over = self.conflict && last + CONFLICT_OVER <= now;
        self.conflict &= !over;
        over
    }

    /// What keeps this node from announcing: a reason and what to say.
    #[must_use]
    pub fn problem(&self) -> Option<(&'static str, String)> {
        if self.schema_too_old {
            let text =
                "the API server dropped fields of this node's EncryptionPeer: apply the CRDs of this version";
            return Some(("SchemaTooOld", text.to_owned()));
        }
        Some(("AnnouncementRefused", self.refused.clone()?))
    }

    /// Whether peers know what this node sends with from each of its addresses.
    #[must_use]
    pub fn is_announced(&self, identity: &Identity, network: &LocalNetwork) -> bool {
        let mut own =
            network.tunnel_addresses.iter().take(MAX_SENDERS).map(|address| identity.sender(*address));
        own.all(|sender| self.published.contains(&sender))
    }

    /// Takes what a GET of the own Node said.
    pub fn handle_own_node(&mut self, lookup: NodeLookup, now: Time) {
        self.in_flight = false;
        match lookup {
            NodeLookup::Found(uid) => {
                self.node_uid = Some(uid);
                if let Some((ack_id, _)) = self.to_confirm.take_if(|(_, at)| *at <= now) {
                    self.confirmed = Some(ack_id);
                }
            }
            // Nothing is written for a Node that is not there.
            NodeLookup::NotFound => (self.node_uid, self.ask_node) = (None, now + NODE_PAUSE),
            NodeLookup::Failed => self.ask_node = now + self.back_off(),
        }
    }

    /// Whether the Node was asked for since this `ackId` is known: it may have been made anew under a living agent.
    #[must_use]
    pub fn may_answer(&self, ack_id: Uid) -> bool {
        self.confirmed == Some(ack_id)
    }

    /// Takes that the ring was read by quorum, or was not.
    pub fn handle_ring_read(&mut self, read: bool, now: Time) {
        self.in_flight = false;
        if read {
            self.ring_read = Some(now);
        } else {
            self.not_before = now + self.back_off();
        }
    }

    /// Its own object came, changed, or went: the Node is asked for before anything is written.
    pub fn handle_own_object(&mut self, object: Option<&PeerObject>, now: Time) {
        match object {
            Some(object) => {
                if let Ok(Content::Announced(spec)) = &object.content {
                    self.published.extend(&spec.senders);
                }
            }
            None => (self.node_uid, self.ask_node) = (None, self.ask_node.max(now)),
        }
    }

    /// Takes what became of a write.
    pub fn handle_written(
        &mut self,
        result: &WriteResult,
        sent: &EncryptionPeerSpec,
        state: &mut PersistedState,
        now: Time,
    ) {
        self.in_flight = false;
        self.planned = None;
        match result {
            WriteResult::Written(object) => {
                self.retry = RETRY_FIRST;
                self.refused = None;
                self.schema_too_old = object.content != Ok(Content::Announced(sent.clone()));
                if self.schema_too_old {
                    self.not_before = now + CONFLICT_PAUSE;
                } else {
                    state.announced.object_uid = Some(object.uid);
                    state.announced.generation = object.generation;
                    self.published.extend(&sent.senders);
                }
                if self.conflict {
                    self.not_before = now + CONFLICT_PAUSE;
                }
            }
            WriteResult::Conflict => self.not_before = now + self.back_off(),
            WriteResult::Refused(why) => {
                self.refused = Some(why.clone());
                (self.node_uid, self.ask_node) = (None, now + self.back_off());
            }
            WriteResult::Failed(_) => self.not_before = now + self.back_off(),
        }
    }

    fn back_off(&mut self) -> Duration {
        let pause = self.retry;
        self.retry = (2 * self.retry).min(RETRY_LAST);
        pause
    }

    /// Why another identity is needed, judging by the objects in the API.
    pub fn judge(&mut self, facts: &Facts<'_>, state: &mut PersistedState, now: Time) -> Option<DrawCause> {
        if let Some(cause) = self.judge_own(facts, state, now) {
            return Some(cause);
        }
        let own = facts.table.own()?;
        let listed = |entry: &Entry| lists(entry, facts.identity);
        let older = |(uid, created): &(Uid, i64)| (*created, *uid) < (own.created, own.uid);
        let found =
            facts.table.listing(listed).filter(older).find(|(uid, _)| !state.duplicates.contains(uid));
        let (uid, _) = found?;
        state.duplicates.push(uid);
        Some(DrawCause::Duplicate)
    }

    /// An entry that this boot never put into a write, in the object that it wrote last, after that write.
    fn judge_own(&mut self, facts: &Facts<'_>, state: &mut PersistedState, now: Time) -> Option<DrawCause> {
        let own = facts.table.own()?;
        let Ok(Content::Announced(spec)) = &own.content else { return None };
        let ours = state.announced.object_uid == Some(own.uid) && own.generation > state.announced.generation;
        if !ours || spec.senders.iter().all(|sender| state.announced.wrote(sender)) {
            return None;
        }
        // Judged once for each write of the other machine.
        state.announced.generation = own.generation;
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let again = state.strange_ms.is_some_and(|at| Time::from_millis(at) + STRANGE_AGAIN > now);
        state.strange_ms = Some(now_ms);
        self.conflict = again;
        (!again).then_some(DrawCause::StrangeEntry)
    }

    /// What to ask or write now.
    ///
    /// # Errors
    /// The random number generator's.
    pub fn poll_request<R: TryCryptoRng>(
        &mut self,
        facts: &Facts<'_>,
        now: Time,
        rng: &mut R,
    ) -> Result<Option<Request>, R::Error> {
        if self.in_flight {
            return Ok(None);
        }
        self.plan_confirmation(facts, now, rng)?;
        if self.node_due().is_some_and(|due| due <= now) {
            self.in_flight = true;
            self.to_confirm = self.to_confirm.map(|(ack_id, _)| (ack_id, now));
            return Ok(Some(Request::GetOwnNode));
        }
        let Some(node_uid) = self.node_uid else { return Ok(None) };
        let Some(spec) = self.wanted(facts, node_uid, now) else { return Ok(None) };
        let own = facts.table.own();
        let there = own.and_then(|own| match &own.content {
            Ok(Content::Announced(there)) => Some(there),
            _ => None,
        });
        if there == Some(&spec) {
            self.planned = None;
            return Ok(None);
        }
        if self.planned.is_none() {
            self.planned = Some(now + self.delay(there, &spec, facts.table.len(), rng)?);
        }
        if self.planned.is_some_and(|at| at.max(self.not_before) > now) {
            return Ok(None);
        }
        self.in_flight = true;
        let news = |sender| !there.is_some_and(|there| there.senders.contains(sender));
        if spec.senders.iter().any(news) && self.ring_read.is_none_or(|at| at + RING_AGE <= now) {
            return Ok(Some(Request::GetRing));
        }
        let replaces =
            own.map(|own| Version { uid: own.uid, resource_version: own.resource_version.clone() });
        Ok(Some(Request::Write(Announcement { replaces, spec })))
    }

    /// When [`Self::poll_request`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.in_flight {
            return None;
        }
        let node = self.node_due();
        if self.node_uid.is_none() {
            return node;
        }
        let stale = self.stale.map(|since| since + GRACE);
        [self.planned.map(|at| at.max(self.not_before)), stale, node].into_iter().flatten().min()
    }

    /// When to ask for the Node.
    fn node_due(&self) -> Option<Time> {
        match (self.node_uid, self.to_confirm) {
            (None, _) => Some(self.ask_node),
            (Some(_), Some((_, at))) => Some(at.max(self.ask_node)),
            (Some(_), None) => None,
        }
    }

    /// A new `ackId` is answered once the Node was asked for: not by all nodes at once.
    fn plan_confirmation<R: TryCryptoRng>(
        &mut self,
        facts: &Facts<'_>,
        now: Time,
        rng: &mut R,
    ) -> Result<(), R::Error> {
        let Some(ack_id) = facts.ack_id.filter(|id| self.confirmed != Some(*id)) else {
            self.to_confirm = None;
            return Ok(());
        };
        if self.to_confirm.is_none_or(|(planned, _)| planned != ack_id) {
            let nodes = u32::try_from(facts.table.len()).unwrap_or(u32::MAX);
            let most = Duration::from_secs(1).saturating_mul(nodes) / NODES_PER_SECOND;
            let drawn = f64::from(rng.try_next_u32()?) / f64::from(u32::MAX);
            self.to_confirm = Some((ack_id, now + most.mul_f64(drawn)));
        }
        Ok(())
    }

    /// What peers must do something about is written soon, anything else at a pace that the whole cluster can bear.
    fn delay<R: TryCryptoRng>(
        &self,
        there: Option<&EncryptionPeerSpec>,
        spec: &EncryptionPeerSpec,
        peers: usize,
        rng: &mut R,
    ) -> Result<Duration, R::Error> {
        let urgent = there.is_none_or(|there| {
            there.node_uid != spec.node_uid
                || spec.senders.iter().any(|sender| !there.senders.contains(sender))
        });
        let peers = u64::try_from(peers).unwrap_or(u64::MAX);
        // All nodes of a small cluster may write at once.
        let most = if urgent {
            URGENT.mul_f64((peers as f64 / CROWD).min(1.0))
        } else {
            Duration::from_secs(1).saturating_mul(
                u32::try_from(peers.saturating_mul(peers) / EVENTS_PER_SECOND).unwrap_or(u32::MAX),
            )
        };
        Ok(most.mul_f64(f64::from(rng.try_next_u32()?) / f64::from(u32::MAX)))
    }
}

fn lists(entry: &Entry, identity: &Identity) -> bool {
    entry.instance == identity.instance || entry.key == EndpointKey::Public(*identity.key_pair.public())
}
