//! What agents do: the product's `Agent` and `Reconciler` in a shell as small as `agent/src/run.rs` leaves it.

use std::{sync::Arc, time::Duration};

use secureoverlay_agent::{
    agent::{Agent, Event as Input, Question, Settings},
    held::Content,
    journal::Journal,
    plan::Stage,
    reach::Reach,
    reconcile::{Limits, Reconciler},
    removal::Verdict,
    worker::make_plan,
};
use secureoverlay_common::{node::NodeFacts, ring::Enforcement, uid::Uid};
use zeroize::Zeroizing;

use crate::{
    api::{Change, What, Who},
    faults::Heal,
    kernel::Socket,
    machine::{Known, Process},
    variant::Variant,
    world::{Event, Luck, World},
};

/// What a DaemonSet's pods are given to end.
const GRACE: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(600);

impl World {
    /// An agent's process starts.
    pub fn start_agent(&mut self, at: usize) {
        let machine = &self.machines[at];
        if !machine.live || !machine.pod || machine.process.is_some() {
            return;
        }
        let pid = self.pid();
        let settings = Settings {
            debounce: Duration::from_millis(200),
            resync: self.scenario.resync,
            removal_skew: Duration::from_secs(4),
            probe_port: 9468,
            needs_room: true,
        };
        let policies_first = self.variant == Some(Variant::PoliciesFirst);
        let forgetful = self.variant == Some(Variant::RecreateLost);
        let (name, boot) = (self.machines[at].name.clone(), self.boot_of(self.machines[at].boot));
        let machine = &mut self.machines[at];
        // Nothing is left from which a new process could know what was insisted on beside a former ring.
        machine.insists &= !machine.flushed;
        let socket = Socket { tables: machine.tables.clone(), policies_first, late: Vec::new() };
        let journal = if forgetful { Journal::default() } else { Journal::open(&machine.journal, boot) };
        machine.process = Some(Process {
            pid,
            agent: Agent::new(name, boot, settings),
            reconciler: Reconciler::with(socket, journal, Limits::default()),
            plan: None,
            under_way: None,
            outcome: None,
            wake: None,
            rings: Vec::new(),
            delivered: 0,
            wants: None,
            said: None,
            sending: false,
        });
        self.tell(|| format!("agent {} starts", at + 1));
        for what in [What::Ring, What::Nodes, What::DaemonSet] {
            self.streams.entry((Who::Agent(at), what)).or_default().cut();
            let pause = self.machines[at].delay(self.now, 10, 500);
            self.after(pause, Event::Connect(Who::Agent(at), what));
        }
        self.after(HEARTBEAT, Event::Heartbeat(at, pid));
    }

    /// An agent's process ends, however.
    pub fn end_agent(&mut self, at: usize) {
        if self.machines[at].process.take().is_some() {
            self.tell(|| format!("agent {} ends", at + 1));
            for what in [What::Ring, What::Nodes, What::DaemonSet] {
                self.streams.entry((Who::Agent(at), what)).or_default().cut();
            }
        }
    }

    /// A boot ID as this world's variant knows it.
    fn boot_of(&self, boot: Uid) -> Uid {
        if self.variant == Some(Variant::IgnoreBoot) { Uid::from_random([1; 16]) } else { boot }
    }

    /// A Node as this world's variant knows it.
    pub fn node_of(&self, node: NodeFacts) -> NodeFacts {
        NodeFacts { boot: node.boot.map(|boot| self.boot_of(boot)), ..node }
    }

    /// Something came on one of an agent's watches.
    pub fn agent_hears(&mut self, at: usize, change: Change) {
        let input = match change {
            Change::Ring(document, version) => {
                if let Some(process) = &mut self.machines[at].process {
                    process.delivered = version;
                }
                Input::Ring(match document {
                    Some(document) => Content::Document(Zeroizing::new(document)),
                    None => Content::Absent("the Secret has no ring".into()),
                })
            }
            Change::Nodes(list) => Input::Nodes(list.into_iter().map(|node| self.node_of(node)).collect()),
            Change::Node(node) => Input::NodeApplied(self.node_of(node)),
            Change::NodeGone(name) => Input::NodeDeleted(name),
            Change::DaemonSet(sighting) => Input::DaemonSet(Some(sighting)),
            Change::AllSaid(_) | Change::Said(..) => return,
        };
        self.input(at, input);
    }

    fn input(&mut self, at: usize, input: Input) {
        let now = self.instant();
        let Some(process) = &mut self.machines[at].process else { return };
        process.agent.take(input, now);
        process.note_ring();
        self.poke(at);
    }

    /// Plans the agent's next look, and lets it end if it may.
    fn poke(&mut self, at: usize) {
        let now = self.instant();
        let Some(process) = &mut self.machines[at].process else { return };
        if process.agent.may_end() {
            self.end_agent(at);
            self.machines[at].pod = false;
            return self.replace_pod(at);
        }
        let pid = process.pid;
        let Some(wake) = process.agent.wake_at() else { return };
        let wake = self.now + wake.saturating_duration_since(now);
        let process = self.machines[at].process.as_mut();
        if let Some(process) = process.filter(|process| process.wake.is_none_or(|planned| wake < planned)) {
            process.wake = Some(wake);
            self.at(wake, Event::Wake(at, pid));
        }
    }

    /// The pod belongs to a DaemonSet that is gone: whatever runs in it is asked to end.
    pub fn end_pod(&mut self, at: usize) {
        let machine = &self.machines[at];
        let set = self.objects.daemon_set.map(|set| set.uid);
        if machine.partitioned || machine.set.is_none() || machine.set == set {
            return;
        }
        if let Some(process) = &machine.process {
            let pid = process.pid;
            return self.after(Duration::ZERO, Event::Terminate(at, pid));
        }
        self.machines[at].pod = false;
        self.replace_pod(at);
    }

    /// The DaemonSet's controller puts a pod where one ended.
    pub fn replace_pod(&mut self, at: usize) {
        if self.objects.daemon_set.is_some_and(|set| !set.orphaning) && !self.machines[at].partitioned {
            self.machines[at].pod = true;
            self.machines[at].set = self.objects.daemon_set.map(|set| set.uid);
            let pause = self.luck(Luck::Machine(at)).millis(500, 5000);
            self.after(pause, Event::Heal(Heal::Agent(at)));
        }
    }

    /// Something about an agent's process that may be dead, or stopped, by now.
    pub fn agent(&mut self, at: usize, pid: u64, event: &Event) {
        let machine = &self.machines[at];
        if machine.process.as_ref().is_none_or(|process| process.pid != pid) {
            return;
        }
        if matches!(event, Event::Kill(..)) {
            self.end_agent(at);
            self.machines[at].pod = false;
            return self.replace_pod(at);
        }
        if machine.stopped_until > self.now {
            return self.at(machine.stopped_until, event.clone());
        }
        match event {
            Event::Wake(..) => self.wake(at, pid),
            Event::Attempt(..) => self.attempt(at, pid),
            Event::Attempted(..) => self.attempted(at, pid),
            Event::KernelChanged(..) => self.input(at, Input::Kernel),
            Event::Probed(..) => self.probed(at),
            Event::Send(..) => self.send(at, pid),
            Event::Sent(..) => {
                if let Some(process) = &mut self.machines[at].process {
                    process.sending = false;
                }
                self.say(at);
            }
            Event::Heartbeat(..) => {
                if let Some(process) = &mut self.machines[at].process {
                    process.said = None;
                }
                self.say(at);
                self.after(HEARTBEAT, Event::Heartbeat(at, pid));
            }
            Event::Terminate(..) => self.terminate(at, pid),
            _ => {}
        }
    }

    fn wake(&mut self, at: usize, pid: u64) {
        let (now, early) = (self.instant(), self.variant == Some(Variant::AcknowledgeEarly));
        let Some(process) = &mut self.machines[at].process else { return };
        // A later one is planned already if this is not the one.
        if process.wake.is_none_or(|wake| wake > self.now) {
            return;
        }
        process.wake = None;
        if process.under_way.is_none()
            && let Some(target) = process.agent.next(now)
        {
            if early && let (Some(said), Some(program)) = (process.wants.as_mut(), &target.content) {
                said.receives =
                    program.ring.generations.iter().map(|g| (g.uid, g.incarnations.clone())).collect();
                said.sends = program.ring.active().map(|active| active.uid);
            }
            process.under_way = Some(target);
            let pause = self.machines[at].delay(self.now, 1, 30);
            self.after(pause, Event::Attempt(at, pid));
            if early {
                self.say(at);
            }
        }
        self.poke(at);
    }

    fn attempt(&mut self, at: usize, pid: u64) {
        let (now, instant) = (self.now, self.instant());
        let machine = &mut self.machines[at];
        let Some(process) = &mut machine.process else { return };
        let Some(mut target) = process.under_way.clone() else { return };
        let version = target.content.as_ref().map_or(0, |program| process.version(&program.ring));
        if let (Some(variant), Some(program)) = (self.variant, &mut target.content)
            && let Some(ring) = variant.misread(&program.ring)
        {
            program.ring = Arc::new(ring);
        }
        if self.variant == Some(Variant::RecreateLost) {
            let socket = process.reconciler.kernel().clone();
            process.reconciler = Reconciler::with(socket, Journal::default(), Limits::default());
        }
        if process.plan.as_ref().is_none_or(|(known, _)| *known != target) {
            process.plan = Some((target.clone(), make_plan(&target)));
        }
        let Some((_, plan)) = &process.plan else { return };
        let known = Known { program: target.content.clone(), stage: target.stage, version };
        machine.tables.borrow_mut().now = now;
        // Its kernel does not fail to be read.
        let Ok(outcome) = process.reconciler.run(plan, instant) else { return };
        let died = machine.tables.borrow().dies_after == Some(0);
        let complete = outcome.is_complete();
        let line = format!(
            "agent {} programs revision {:?} at {:?}: {} done, {} failed, {}{}",
            at + 1,
            target.content.as_ref().map(|program| program.ring.revision),
            target.stage,
            outcome.changed,
            outcome.failed.len(),
            if complete { "complete" } else { "incomplete" },
            outcome.findings.iter().map(|finding| format!("; {finding}")).collect::<String>(),
        );
        let generations = known.program.iter().flat_map(|program| &program.ring.generations);
        let received = generations.filter(|generation| outcome.receives.contains(&generation.uid));
        machine.burnt = outcome.burnt.keys().copied().collect();
        machine.claims.extend(received.map(|generation| (generation.uid, generation.incarnations.clone())));
        machine.receives.clone_from(&outcome.receives);
        let enforcing = known.stage == Stage::Normal
            && known
                .program
                .as_ref()
                .is_some_and(|program| program.ring.enforcement == Enforcement::Enforcing);
        // Beside a ring that was begun anew, what was insisted on goes on.
        let begun = known.stage == Stage::Normal
            && known.program.as_ref().is_some_and(|program| program.ring.phase().is_bootstrapping());
        machine.insists = (enforcing && complete) || (machine.insists && (enforcing || begun));
        if complete {
            machine.let_through.clear();
        }
        let peers = known.program.iter().flat_map(|program| program.peers.values());
        machine.let_through.extend(peers.filter(|peer| peer.excluded).map(|peer| peer.end.addr));
        let quiet = complete && outcome.changed == 0;
        process.outcome = Some(outcome);
        machine.attempted = Some(known.clone());
        machine.first = machine.first.or((version > 0).then_some(version));
        if target.stage != Stage::Normal {
            // What others send it after its removal is no concern of its keys.
            self.understood.retain(|(_, to), _| *to != at);
        }
        let active = known.program.as_ref().is_some_and(|program| program.ring.active().is_some());
        if active {
            for version in self.breaks.range(..=version).map(|(version, _)| *version) {
                machine.sends_since.entry(version).or_insert(now);
            }
        }
        if complete && !died {
            machine.flushed = false;
            if machine.left_behind.is_some_and(|since| since <= version) {
                machine.left_behind = None;
            }
            machine.applied = (target.stage == Stage::Normal && target.content.is_some()).then_some(known);
        }
        self.dirty.insert(at);
        if !quiet {
            self.tell(|| line);
        }
        if died {
            self.machines[at].tables.borrow_mut().dies_after = None;
            self.end_agent(at);
            let pause = self.luck(Luck::Machine(at)).millis(1000, 20_000);
            return self.after(pause, Event::Heal(Heal::Agent(at)));
        }
        let pause = self.machines[at].delay(self.now, 1, 30);
        self.after(pause, Event::Attempted(at, pid));
    }

    fn attempted(&mut self, at: usize, pid: u64) {
        let now = self.instant();
        let Some(process) = &mut self.machines[at].process else { return };
        let (Some(_), Some(outcome)) = (process.under_way.take(), process.outcome.take()) else { return };
        process.agent.attempted(Some(&outcome), now);
        process.wants = process.agent.acknowledgement().cloned();
        if process.agent.reach() == Reach::Trying {
            let pause = self.machines[at].delay(self.now, 10, 3000);
            self.after(pause, Event::Probed(at, pid));
        }
        self.say(at);
        self.poke(at);
    }

    fn probed(&mut self, at: usize) {
        let Some(process) = &mut self.machines[at].process else { return };
        let Some(probes) = process.agent.probes() else { return };
        let verdicts = probes.peers.values().map(|node| (*node, true)).collect();
        self.input(at, Input::Probed(Ok(verdicts)));
        if let Some(process) = &mut self.machines[at].process {
            process.wants = process.agent.acknowledgement().cloned();
        }
        self.say(at);
    }

    /// Sends the acknowledgement if it is another than before.
    fn say(&mut self, at: usize) {
        let Some(process) = &mut self.machines[at].process else { return };
        if process.wants.is_none() || process.sending || process.wants == process.said {
            return;
        }
        process.sending = true;
        let pid = process.pid;
        let pause = self.machines[at].delay(self.now, 5, 400);
        self.after(pause, Event::Send(at, pid));
    }

    fn send(&mut self, at: usize, pid: u64) {
        let partitioned = self.machines[at].partitioned;
        let machine = &mut self.machines[at];
        let (name, owner) = (machine.name.clone(), machine.uid);
        let Some(process) = &mut machine.process else { return };
        let Some(said) = process.wants.clone() else { return };
        let Some(owner) = owner.filter(|_| !partitioned) else {
            let pause = self.machines[at].rng.millis(1000, 10_000);
            return self.after(pause, Event::Send(at, pid));
        };
        process.said = Some(said.clone());
        let pause = self.machines[at].delay(self.now, 5, 200);
        self.after(pause, Event::Said(name, owner, Box::new(said)));
        self.after(pause + Duration::from_millis(5), Event::Sent(at, pid));
    }

    fn terminate(&mut self, at: usize, pid: u64) {
        let answer = (!self.machines[at].partitioned).then(|| self.objects.sighting());
        let Some(process) = &mut self.machines[at].process else { return };
        let verdict = match process.agent.question() {
            Question::DaemonSet => process.agent.judge(answer),
            Question::Node | Question::None => Verdict::Restart,
        };
        self.tell(|| format!("agent {} is asked to end: {verdict:?}", at + 1));
        self.after(GRACE, Event::Kill(at, pid));
        self.input(at, Input::Ending(verdict));
    }
}
