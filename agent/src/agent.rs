//! The agent's decisions, without I/O or clock: what the ring, the Nodes and the DaemonSet say goes in, what to bring
//! the kernel to and when comes out.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use secureoverlay_common::{
    acknowledgement::Acknowledgement,
    node::NodeFacts,
    ring::{Enforcement, Ring},
    uid::Uid,
    wire::End,
};

use crate::{
    acknowledging::{acknowledge, obstacles},
    descent::Descent,
    held::{Content, Held, Installation},
    mtu,
    mtu_setting::MtuSetting,
    plan::Stage,
    probing::{Probes, Verdicts},
    reach::{Reach, Trial},
    reconcile::Outcome,
    removal::{Sighting, Verdict, Watched},
    roster::{Peers, Roster, View},
};

/// Our own changes of policies are notified as well; and other IPsec software may change many at once.
const KERNEL_PAUSE: Duration = Duration::from_secs(1);
/// Until the first attempt after a failed one; doubles.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest pause between attempts.
const RETRY_LAST: Duration = Duration::from_secs(30);

/// Times that an operator may set.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long changes are collected before the kernel is changed.
    pub debounce: Duration,
    /// How often the kernel is looked at though nothing is known to have changed.
    pub resync: Duration,
    /// By how much nodes may differ in noticing a removal.
    pub removal_skew: Duration,
    /// UDP port for probes of whether ESP passes; 0 for none.
    pub probe_port: u16,
    /// Whether to wait with encryption for room in the tunnel's MTU.
    pub needs_room: bool,
}

/// Something that happened.
pub enum Event {
    /// The source of the ring shows this.
    Ring(Content),
    /// The full list of Nodes.
    Nodes(Vec<NodeFacts>),
    /// A Node came or changed.
    NodeApplied(NodeFacts),
    /// The Node of this name was deleted.
    NodeDeleted(String),
    /// What the API shows of our DaemonSet; `None` where this agent may not read it.
    DaemonSet(Option<Sighting>),
    /// Somebody changed policies, or an SA reached a limit.
    Kernel,
    /// Whether probes reached peers, or why there are no probes.
    Probed(Result<Verdicts, String>),
    /// What lets traffic past the policies, in sentences for people.
    Surroundings(BTreeSet<String>),
    /// The MTUs of this node.
    Mtu(mtu::Facts),
    /// What sets the MTU of its tunnels.
    MtuSetting(MtuSetting),
    /// The process is asked to end, and this was found to be the reason.
    Ending(Verdict),
}

/// What the kernel is to be brought to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// How far a removal has gone.
    pub stage: Stage,
    /// What to program; `None` where that is not known, or nothing.
    pub content: Option<Program>,
}

/// What a plan is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The ring.
    pub ring: Arc<Ring>,
    /// This node.
    pub local: End,
    /// The other nodes.
    pub peers: Arc<Peers>,
    /// UDP port for probes of whether ESP passes; 0 for none.
    pub probe_port: u16,
}

/// What to find out when the process is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Nothing: it is known already.
    None,
    /// Whether the DaemonSet is still there.
    DaemonSet,
    /// Whether this agent may still read its own Node.
    Node,
}

/// The state behind the decisions.
pub struct Agent {
    settings: Settings,
    held: Held,
    roster: Roster,
    listed: bool,
    view: View,
    peers: Arc<Peers>,
    watched: Watched,
    installation: Installation,
    /// The DaemonSet goes, and with it everything of ours.
    removing: bool,
    /// A DaemonSet took this agent's pod over after the removal had begun.
    adopted: bool,
    /// On the way down from `on`, because of a removal or a ring that is off.
    descent: Option<Descent>,
    /// The last that was programmed with encryption on.
    on: Option<Program>,
    ending: Option<Verdict>,
    changed_at: Option<Instant>,
    look_at: Option<Instant>,
    under_way: Option<Target>,
    reached: Option<Target>,
    retry: Duration,
    said: Option<Acknowledgement>,
    /// What speaks against insisting: around the tunnel, and among the kernel's policies.
    obstacles: [BTreeSet<String>; 2],
    applied: Option<Target>,
    /// The highest id of a generation in this installation's rings.
    newest: (Option<Uid>, u64),
    trial: Trial,
    mtu: mtu::Facts,
    mtu_setting: MtuSetting,
}

impl Agent {
    /// `name`: this node's; `boot`: the boot ID of the running kernel.
    #[must_use]
    pub fn new(name: String, boot: Uid, settings: Settings) -> Self {
        Self {
            settings,
            held: Held::default(),
            roster: Roster::new(name, boot),
            listed: false,
            view: View::default(),
            peers: Arc::default(),
            watched: Watched::default(),
            installation: Installation::Pending,
            removing: false,
            adopted: false,
            descent: None,
            on: None,
            ending: None,
            changed_at: None,
            look_at: None,
            under_way: None,
            reached: None,
            retry: RETRY_FIRST,
            said: None,
            obstacles: Default::default(),
            applied: None,
            newest: (None, 0),
            trial: Trial::default(),
            mtu: mtu::Facts::default(),
            mtu_setting: MtuSetting::default(),
        }
    }

    /// Takes what happened.
    pub fn take(&mut self, event: Event, now: Instant) {
        match event {
            Event::Ring(content) => self.held.show(content),
            Event::Nodes(list) => {
                self.listed = true;
                self.roster.reset(list, now);
            }
            Event::NodeApplied(facts) => {
                if !self.roster.apply(facts, now) {
                    return;
                }
            }
            Event::NodeDeleted(name) => self.roster.delete(&name, now),
            Event::DaemonSet(sighting) => self.see_daemon_set(sighting),
            Event::Kernel => {
                self.look_at = earliest(self.look_at, Some(now + KERNEL_PAUSE));
                return;
            }
            Event::Probed(verdicts) => {
                self.trial.take(verdicts);
                let unreachable = self.reach().told();
                if let Some(said) = &mut self.said {
                    said.unreachable = unreachable;
                }
                return;
            }
            Event::Surroundings(obstacles) => {
                self.obstacles[0] = obstacles;
                self.say_obstacles();
                return;
            }
            Event::Mtu(facts) => {
                self.mtu = facts;
                self.say_room();
                return;
            }
            Event::MtuSetting(setting) => {
                self.mtu_setting = setting;
                return;
            }
            Event::Ending(verdict) => {
                if verdict == Verdict::Removal {
                    self.remove();
                }
                self.ending = Some(verdict);
            }
        }
        self.changed_at = earliest(self.changed_at, Some(now + self.settings.debounce));
    }

    fn see_daemon_set(&mut self, sighting: Option<Sighting>) {
        match sighting {
            None => self.installation = Installation::Unreadable,
            Some(Sighting::Present { uid: Some(uid), .. }) => self.installation = Installation::Known(uid),
            Some(Sighting::Present { uid: None, .. }) => {}
            // Nothing to compare a ring with: this agent was started by hand, or is being removed.
            Some(Sighting::Absent) if self.installation == Installation::Pending => {
                self.installation = Installation::Unreadable;
            }
            Some(Sighting::Absent) => {}
        }
        self.held.installed(self.installation);
        if sighting.and_then(|sighting| self.watched.sight(sighting)).is_some() {
            self.remove();
        }
        self.adopted = self.removing && matches!(sighting, Some(Sighting::Present { deleting: false, .. }));
    }

    fn remove(&mut self) {
        self.removing = true;
        self.descend();
    }

    /// Begins the way down, unless this node is on it already. An agent that has programmed nothing itself walks it
    /// too, with what its predecessor left in the kernel. It can't know whether that was insisted on, nor with a ring
    /// that was just begun, beside which what was before it goes on; it never is where DaemonSets can't be read.
    fn descend(&mut self) -> &mut Descent {
        let insists = match &self.on {
            Some(Program { ring, .. }) if ring.enforcement == Enforcement::Enforcing => true,
            Some(Program { ring, .. }) if !ring.phase().is_bootstrapping() => false,
            _ => matches!(self.installation, Installation::Known(_)),
        };
        let skew = self.settings.removal_skew;
        self.descent.get_or_insert_with(|| Descent::new(insists, skew))
    }

    /// The verdict once the API answered the [`Self::question`] about the DaemonSet; `None` where it did not.
    pub fn judge(&mut self, answer: Option<Sighting>) -> Verdict {
        self.watched.at_the_end(answer)
    }

    /// The DaemonSet was deleted without its pods: the next process on this node should know.
    #[must_use]
    pub const fn orphaned(&self) -> bool {
        self.watched.orphaned()
    }

    /// The process before this one has seen that.
    pub const fn remember_orphaned(&mut self) {
        self.watched.remember_orphaned();
    }

    /// What to find out now that the process is asked to end.
    #[must_use]
    pub fn question(&self) -> Question {
        match self.installation {
            _ if self.removing => Question::None,
            Installation::Known(_) => Question::DaemonSet,
            Installation::Unreadable if self.listed => Question::Node,
            Installation::Pending | Installation::Unreadable => Question::None,
        }
    }

    /// A target for the kernel, if it is time for one. The caller answers with [`Self::attempted`] before it gets
    /// another.
    pub fn next(&mut self, now: Instant) -> Option<Target> {
        if self.wake_at().is_none_or(|at| now < at) {
            return None;
        }
        let look = self.look_at.is_some_and(|at| at <= now);
        if look {
            self.look_at = None;
        }
        self.changed_at = None;
        let Some(target) = self.target(now) else {
            // Until then nobody knows what this node is.
            self.look_at = look.then(|| now + self.settings.resync).or(self.look_at);
            return None;
        };
        if !look && self.reached.as_ref() == Some(&target) {
            return None;
        }
        self.under_way = Some(target.clone());
        Some(target)
    }

    /// Takes how the attempt at the last target went; `None` where the kernel could not be read.
    pub fn attempted(&mut self, outcome: Option<&Outcome>, now: Instant) {
        let Some(target) = self.under_way.take() else { return };
        let complete = outcome.is_some_and(Outcome::is_complete);
        if let Some(descent) = &mut self.descent {
            descent.applied(target.stage, complete, now);
        }
        if let Some(outcome) = outcome {
            self.trial.plan(target.content.as_ref(), &outcome.probes);
            self.applied = Some(target.clone());
            self.acknowledge(&target, outcome);
        }
        let again = if complete {
            self.retry = RETRY_FIRST;
            self.settings.resync
        } else {
            let pause = self.retry;
            self.retry = (2 * self.retry).min(RETRY_LAST);
            pause
        };
        let wake_at = outcome.and_then(|outcome| outcome.wake_at);
        self.look_at = earliest(earliest(self.look_at, wake_at), Some(now + again));
        self.reached = complete.then_some(target);
    }

    /// What was reached is said, not what is held: a newer ring may be waiting.
    fn acknowledge(&mut self, target: &Target, outcome: &Outcome) {
        let installation = match self.installation {
            Installation::Known(uid) => Some(uid),
            Installation::Pending | Installation::Unreadable => None,
        };
        let ring = target.content.as_ref().map(|program| program.ring.as_ref());
        let local = target.content.as_ref().map(|program| program.local).or(self.view.local);
        let newest = ring.map_or(0, Ring::newest);
        let (of, seen) = self.newest;
        self.newest = (installation, if of == installation { newest.max(seen) } else { newest });
        let unreachable = self.reach().told();
        self.said =
            local.map(|local| acknowledge(ring, &local, installation, self.newest.1, unreachable, outcome));
        self.obstacles[1].clone_from(&outcome.overruled);
        if target.content.is_none() {
            // Nobody looks around while there is nothing to insist on.
            self.obstacles[0].clear();
        }
        self.say_obstacles();
        self.say_room();
    }

    fn say_room(&mut self) {
        let content = self.applied.as_ref().and_then(|target| target.content.as_ref());
        let finding = content.and_then(|program| mtu::Finding::new(&self.mtu, &program.ring));
        if let Some(said) = &mut self.said {
            said.oversized = self.settings.needs_room && finding.is_some_and(|finding| !finding.valid());
        }
    }

    fn say_obstacles(&mut self) {
        if let Some(said) = &mut self.said {
            said.obstacles = obstacles(self.obstacles.iter().flatten());
        }
    }

    /// Whether the tunnels have room with the suites of `ring`, by the MTUs that were read last.
    #[must_use]
    pub fn mtu(&self, ring: &Ring) -> Option<mtu::Finding> {
        Some(mtu::Finding::new(&self.mtu, ring)?.advised(&self.mtu_setting))
    }

    /// Whom to probe now.
    #[must_use]
    pub const fn probes(&self) -> Option<&Probes> {
        self.trial.probes()
    }

    /// Whom ESP reaches.
    #[must_use]
    pub fn reach(&self) -> Reach {
        self.trial.reach()
    }

    /// What the kernel was last brought to, or as near to it as was possible.
    #[must_use]
    pub const fn applied(&self) -> Option<&Target> {
        self.applied.as_ref()
    }

    /// What this node has to say, once it knows its Node and has looked at its kernel.
    #[must_use]
    pub const fn acknowledgement(&self) -> Option<&Acknowledgement> {
        self.said.as_ref()
    }

    /// When [`Self::next`] may have something; `None` while an attempt is under way.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        if self.under_way.is_some() {
            return None;
        }
        let descent = self.descent.as_ref().and_then(Descent::wake_at);
        [self.changed_at, self.look_at, self.view.wake_at, descent].into_iter().flatten().min()
    }

    /// A target is being worked at.
    #[must_use]
    pub const fn under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Nothing is left to do before the process may end: everything of ours is gone, or nothing of it is to go.
    #[must_use]
    pub fn may_end(&self) -> bool {
        match self.ending {
            // The next process begins anew.
            None => self.removed() && self.adopted,
            // An attempt that breaks off leaves keys that count as used and never were.
            Some(Verdict::Restart) => !self.under_way() && (!self.removing || self.removed()),
            Some(Verdict::Removal) => self.removed(),
        }
    }

    /// Encryption is being taken off this node because its DaemonSet is.
    #[must_use]
    pub const fn removing(&self) -> bool {
        self.removing
    }

    /// The removal is over.
    #[must_use]
    pub fn removed(&self) -> bool {
        self.removing && self.descent.as_ref().is_some_and(Descent::done)
    }

    /// Which ring counts, and what is wrong with the source.
    #[must_use]
    pub const fn held(&self) -> &Held {
        &self.held
    }

    /// The nodes, as of the last [`Self::next`]; `None` before the first full list.
    #[must_use]
    pub fn view(&self) -> Option<&View> {
        self.listed.then_some(&self.view)
    }

    fn target(&mut self, now: Instant) -> Option<Target> {
        self.look_at_nodes(now);
        let ring = self.held.ring().cloned();
        let off = ring.as_ref().is_some_and(|ring| ring.enforcement == Enforcement::Off);
        if self.removing || off {
            let descent = self.descend();
            descent.advance(now);
            let stage = descent.stage();
            let content = if stage == Stage::Gone { None } else { self.on.clone() };
            return Some(Target { stage, content });
        }
        self.descent = None;
        if !self.listed {
            return None;
        }
        if self.view.excluded {
            // The peers do the same at this moment; they wait for nothing either.
            return Some(Target { stage: Stage::Gone, content: None });
        }
        let (local, peers, probe_port) = (self.view.local?, self.peers.clone(), self.settings.probe_port);
        let program = Program { ring: ring?, local, peers, probe_port };
        self.on = Some(program.clone());
        Some(Target { stage: Stage::Normal, content: Some(program) })
    }

    fn look_at_nodes(&mut self, now: Instant) {
        if self.listed {
            self.view = self.roster.view(now);
            if self.view.peers != *self.peers {
                self.peers = Arc::new(self.view.peers.clone());
            }
        }
    }
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}

#[cfg(test)]
mod tests;
