//! What managers do: the product's `observe`, `decide` and `apply` in a shell as small as `manager/src/turn.rs` leaves
//! it. Between any two steps of a turn it may be killed or stopped, and others may act.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use secureoverlay_common::{
    acknowledgement::Acknowledgement,
    node::NodeFacts,
    phase::Phase,
    ring::{Ring, RingError},
    rotation::{
        AckTracker, Action, ClusterSnapshot, Evidence, Installation, RotationSchedule, Settings, apply,
        decide,
    },
    suite::Suite,
    uid::Uid,
};

use crate::{
    Time,
    api::{Change, Secret, What, Who},
    variant::Variant,
    world::{Break, Event, World},
};

/// How often a manager looks though nothing has changed.
const POLL: Duration = Duration::from_secs(30);

/// A manager's process.
pub struct Manager {
    /// It has not been killed.
    pub alive: bool,
    /// Tells its present steps from those of a former life.
    pub pid: u64,
    /// Stopped until then.
    pub stopped_until: Time,
    nodes: Option<BTreeMap<String, NodeFacts>>,
    said: Option<BTreeMap<String, Acknowledgement>>,
    acknowledged: AckTracker,
    remembered: Option<(Uid, Ring)>,
    step: Step,
    /// When it takes its next step.
    next: Time,
}

/// Where it is in a turn.
#[derive(Clone)]
enum Step {
    Read,
    Decide(Held),
    LookAgain(Held),
    Write(Held, Box<Ring>, Action, Vec<NodeFacts>),
}

/// The Secret as it was read.
#[derive(Clone)]
struct Held {
    secret: Uid,
    version: u64,
    ring: Option<Ring>,
}

impl World {
    /// A manager starts.
    pub fn start_manager(&mut self) {
        let (at, pid) = (self.managers.len(), self.pid());
        self.managers.push(Manager {
            alive: true,
            pid,
            stopped_until: Time::ZERO,
            nodes: None,
            said: None,
            acknowledged: AckTracker::new(self.scenario.limit),
            remembered: None,
            step: Step::Read,
            next: self.now,
        });
        self.tell(|| format!("manager {at} starts"));
        for what in [What::Nodes, What::Said] {
            let pause = self.rng.millis(10, 500);
            self.after(pause, Event::Connect(Who::Manager(at), what));
        }
        self.after(Duration::from_millis(600), Event::Manage(at, pid));
    }

    /// A manager is killed.
    pub fn end_manager(&mut self, at: usize) {
        if std::mem::take(&mut self.managers[at].alive) {
            self.tell(|| format!("manager {at} ends"));
        }
        for what in [What::Nodes, What::Said] {
            self.streams.remove(&(Who::Manager(at), what));
        }
    }

    /// Something came on one of a manager's watches.
    pub fn manager_hears(&mut self, at: usize, change: Change) {
        let manager = &mut self.managers[at];
        match (change, &mut manager.nodes, &mut manager.said) {
            (Change::Nodes(list), ..) => {
                manager.nodes = Some(list.into_iter().map(|node| (node.name.clone(), node)).collect());
            }
            (Change::AllSaid(all), ..) => manager.said = Some(all),
            (Change::Node(node), Some(nodes), _) => drop(nodes.insert(node.name.clone(), node)),
            (Change::NodeGone(name), Some(nodes), _) => drop(nodes.remove(&name)),
            (Change::Said(name, Some(said)), _, Some(all)) => drop(all.insert(name, said)),
            (Change::Said(name, None), _, Some(all)) => drop(all.remove(&name)),
            _ => {}
        }
        // It wakes at once, unless it is in the middle of a turn.
        if matches!(manager.step, Step::Read) {
            self.manage_after(at, Duration::from_millis(100));
        }
    }

    fn manage_after(&mut self, at: usize, pause: Duration) {
        let next = self.now + pause;
        let manager = &mut self.managers[at];
        if manager.next <= self.now || next < manager.next {
            manager.next = next;
            let pid = manager.pid;
            self.at(next, Event::Manage(at, pid));
        }
    }

    /// A step of a turn.
    pub fn manage(&mut self, at: usize, pid: u64) {
        let manager = &self.managers[at];
        if !manager.alive || manager.pid != pid {
            return;
        }
        if manager.stopped_until > self.now {
            return self.at(manager.stopped_until, Event::Manage(at, pid));
        }
        if manager.next > self.now {
            return;
        }
        let step = std::mem::replace(&mut self.managers[at].step, Step::Read);
        let pause = match step {
            Step::Read => self.read(at),
            Step::Decide(held) => self.decide(at, held, false),
            Step::LookAgain(held) => self.decide(at, held, true),
            Step::Write(held, next, action, nodes) => self.write(at, &held, &next, action, &nodes),
        };
        // Who does not care what was written meanwhile is given a meanwhile.
        let slow = self.variant == Some(Variant::WriteUnconditionally);
        let more = if slow { self.rng.millis(0, 15_000) } else { Duration::ZERO };
        self.manage_after(at, pause + more);
    }

    fn read(&mut self, at: usize) -> Duration {
        let Some((secret, version)) = &self.objects.secret else { return POLL };
        let ring = match secret.document.as_deref().map(Ring::parse) {
            None | Some(Err(RingError::Empty)) => None,
            Some(Ok(ring)) => Some(ring),
            Some(Err(_)) => return POLL,
        };
        let held = Held { secret: secret.uid, version: *version, ring };
        self.managers[at].step = Step::Decide(held);
        self.rng.millis(1, 50)
    }

    fn installation(&self) -> Installation {
        self.objects.daemon_set.map_or(Installation::Absent, |set| Installation::Present(set.uid))
    }

    fn decide(&mut self, at: usize, held: Held, fresh: bool) -> Duration {
        let (now, wall, installation) = (self.instant(), self.wall(), self.installation());
        let manager = &self.managers[at];
        let (nodes, mut said) = match (&manager.nodes, &manager.said) {
            _ if fresh => (self.objects.nodes.values().cloned().collect(), self.objects.said()),
            (Some(nodes), Some(said)) => (nodes.values().cloned().collect(), said.clone()),
            _ => return Duration::from_secs(1),
        };
        let nodes: Vec<NodeFacts> = nodes;
        let nodes: Vec<NodeFacts> = nodes.into_iter().map(|node| self.node_of(node)).collect();
        let ring = held.ring.as_ref();
        if let Some(variant) = self.variant {
            variant.mishear(&mut said, &nodes, ring, &self.numbers);
        }
        let manager = &mut self.managers[at];
        let snapshot = ClusterSnapshot { ring, nodes: &nodes, acks: &said, forced: false, probing: true };
        let mut evidence = manager.acknowledged.observe(snapshot, now);
        if let Some(variant) = self.variant {
            variant.misjudge(&mut evidence, ring);
        }
        match ring {
            Some(ring) => manager.remembered = Some((held.secret, ring.clone())),
            None => {
                let remembered = manager.remembered.take();
                if let Some((_, lost)) = remembered.filter(|(secret, lost)| {
                    let same = match installation {
                        Installation::Unknown => true,
                        Installation::Absent => false,
                        Installation::Present(uid) => lost.installation.is_none_or(|other| other == uid),
                    };
                    same && *secret == held.secret
                }) {
                    manager.remembered = Some((held.secret, lost.clone()));
                    let next = self.next_ring(Some(&lost), Action::Wait, installation, &evidence);
                    self.managers[at].step = Step::Write(held, Box::new(next), Action::Wait, nodes);
                    return self.rng.millis(1, 50);
                }
            }
        }
        let decision = decide(ring, installation, &evidence, wall, &self.settings());
        match decision.action {
            Action::Wait => decision.wake_in.min(POLL).max(Duration::from_millis(50)),
            action if action.requires_fresh_list() && !fresh => {
                self.managers[at].step = Step::LookAgain(held);
                self.rng.millis(1, 200)
            }
            action => {
                let next = self.next_ring(ring, action, installation, &evidence);
                self.managers[at].step = Step::Write(held, Box::new(next), action, nodes);
                self.rng.millis(1, 50)
            }
        }
    }

    fn settings(&self) -> Settings {
        let schedule = RotationSchedule::Every(self.scenario.interval);
        Settings { schedule, suite: Suite::Aes128Gcm8, goal: self.goal }
    }

    fn next_ring(
        &mut self,
        ring: Option<&Ring>,
        action: Action,
        installation: Installation,
        evidence: &Evidence,
    ) -> Ring {
        let (wall, settings) = (self.wall(), self.settings());
        let fill = |bytes: &mut [u8]| {
            self.manager_rng.fill(bytes);
            Ok::<_, Infallible>(())
        };
        let Ok(next) = apply(ring, action, installation, evidence, wall, &settings, fill);
        next
    }

    fn write(
        &mut self,
        at: usize,
        held: &Held,
        next: &Ring,
        action: Action,
        nodes: &[NodeFacts],
    ) -> Duration {
        let again = self.rng.millis(200, 1000);
        let Some((secret, version)) = &self.objects.secret else { return again };
        let unconditional = self.variant == Some(Variant::WriteUnconditionally);
        if (*version != held.version || secret.uid != held.secret) && !unconditional {
            self.tell(|| format!("manager {at}: conflict"));
            return again;
        }
        let document = next.to_yaml().as_bytes().to_vec();
        let uid = secret.uid;
        let behind = self.left_behind(held.ring.as_ref(), action, nodes);
        // Both may leave a ring behind that was made for another installation.
        if !matches!(action, Action::Reset | Action::Bootstrap) {
            self.check_drop(next, nodes, &behind);
        }
        if action == Action::ENFORCE {
            self.check_insist(nodes);
        }
        let before = self.history.last().cloned();
        let version = self.write_secret(Some(Secret { uid, document: Some(document) }));
        for machine in behind {
            self.machines[machine].left_behind = Some(version);
        }
        match action {
            Action::Bootstrap => self.note_break(version, Break::Lost, before.as_deref()),
            Action::Reset => self.note_break(version, Break::Reset, before.as_deref()),
            Action::RemoveRetired => self.tally.rotations += 1,
            Action::Rekey => {
                self.tally.rekeys += 1;
                let now = self.instant();
                self.managers[at].acknowledged.rekeyed(now);
            }
            Action::Activate => {
                let active = next.active().map(|active| (active.uid, (active.incarnations.clone(), version)));
                self.activated.extend(active);
            }
            Action::ENFORCE => self.tally.insisted += 1,
            Action::Wait
            | Action::Stage
            | Action::Pend
            | Action::SetEnforcement(_)
            | Action::StopSending
            | Action::Disable => {}
        }
        self.tell(|| format!("manager {at}: {action:?}, revision {} is {}", next.revision, roles(next)));
        Duration::from_millis(50)
    }

    /// Machines that a write goes on without, and may: excluded, or not ready for as long as the limit says.
    fn left_behind(&self, ring: Option<&Ring>, action: Action, nodes: &[NodeFacts]) -> Vec<usize> {
        let phase = Phase::of(ring);
        let awaited = match action {
            Action::Activate => phase.staged(),
            Action::RemoveRetired => phase.retiring(),
            _ => return Vec::new(),
        };
        let waited = awaited.is_some_and(|generation| {
            let since = self.roles.get(&(generation.uid, generation.role)).copied().unwrap_or(self.now);
            self.now - since >= self.scenario.limit
        });
        // One to which nobody encrypts, and that nobody hears.
        let mute = |node: &NodeFacts| {
            let pending = ring.zip(node.uid).is_some_and(|(ring, uid)| ring.pending.contains(&uid));
            let said = self.objects.said();
            let heard = said.get(&node.name);
            pending && heard.is_none_or(|said| node.uid != Some(said.node) || node.boot != Some(said.boot))
        };
        // One that takes no part, and may again before it has heard of this.
        let behind = |node: &NodeFacts| node.excluded || (waited && (!node.ready || mute(node)));
        let machines = self.machines.iter().enumerate();
        let behind = machines
            .filter(|(_, machine)| nodes.iter().any(|node| node.name == machine.name && behind(node)));
        behind.map(|(at, _)| at).collect()
    }
}

/// The generations and their roles, for the story.
#[must_use]
pub fn roles(ring: &Ring) -> String {
    let text: Vec<String> = ring
        .generations
        .iter()
        .map(|generation| {
            let incarnations: Vec<u32> = generation.incarnations.values().copied().collect();
            format!("{} {:?} {incarnations:?}", generation.id, generation.role)
        })
        .collect();
    format!("[{}]", text.join(", "))
}
