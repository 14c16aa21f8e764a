use jiff::Timestamp;
use secureoverlay_common::{
    ring::{Generation, Role, SPI_SEED_LEN},
    secret::SecretBytes,
    suite::Suite,
};
use zeroize::Zeroizing;

use super::*;
use crate::{
    model_kernel::ModelKernel,
    mtu::{Measured, MtuSource, Tunnel},
    reconcile::Reconciler,
    worker::make_plan,
    xfrm::{Action, Direction, Net, PolicyId},
};

const SKEW: Duration = Duration::from_secs(4);
const SECOND: Duration = Duration::from_secs(1);

fn uid(n: u8) -> Uid {
    Uid::from_random([n; 16])
}

/// Our DaemonSet.
const SET: u8 = 77;

fn settings() -> Settings {
    let (debounce, resync) = (Duration::from_millis(100), Duration::from_secs(60));
    Settings { debounce, resync, removal_skew: SKEW, probe_port: 0, needs_room: true }
}

fn document(revision: u64, enforcement: Enforcement, generations: &[u8]) -> Vec<u8> {
    let generation = |(at, &n): (usize, &u8)| Generation {
        id: n.into(),
        uid: uid(200 + n),
        role: [Role::Active, Role::Staged][at],
        suite: Suite::Aes128Gcm8,
        key: SecretBytes::copy_from(&[n; 16]),
        spi_seed: SecretBytes::copy_from(&[n; SPI_SEED_LEN]),
        created_at: Timestamp::UNIX_EPOCH,
        role_since: Timestamp::UNIX_EPOCH,
        incarnations: [].into(),
    };
    let generations = generations.iter().enumerate().map(generation).collect();
    Ring { enforcement, generations, ..Ring::off(revision, None) }.to_yaml().as_bytes().to_vec()
}

fn shown(document: Vec<u8>) -> Event {
    Event::Ring(Content::Document(Zeroizing::new(document)))
}

fn permissive() -> Event {
    shown(document(1, Enforcement::Permissive, &[1]))
}

fn node(n: u8) -> NodeFacts {
    NodeFacts {
        name: format!("node-{n}"),
        uid: Some(uid(n)),
        created: Some(Timestamp::UNIX_EPOCH),
        addr: Some([192, 0, 2, n].into()),
        boot: Some(uid(100 + n)),
        ready: true,
        excluded: false,
    }
}

fn nodes() -> Event {
    Event::Nodes(vec![node(1), node(2), node(3)])
}

fn present() -> Event {
    Event::DaemonSet(Some(Sighting::Present { uid: Some(uid(SET)), deleting: false, orphaning: false }))
}

/// An agent, a kernel and a clock that only goes as far as a test lets it.
struct Run<'a> {
    agent: Agent,
    reconciler: Reconciler<&'a mut ModelKernel>,
    now: Instant,
    begun: Instant,
    /// Operations of each attempt, with its stage and the seconds since the start.
    log: Vec<(Stage, u64, usize)>,
}

impl<'a> Run<'a> {
    fn new(kernel: &'a mut ModelKernel) -> Self {
        kernel.local = node(1).addr;
        let now = Instant::now();
        let agent = Agent::new("node-1".into(), uid(101), settings());
        Self { agent, reconciler: Reconciler::new(kernel), now, begun: now, log: Vec::new() }
    }

    /// With encryption on.
    fn encrypting(kernel: &'a mut ModelKernel, ring: Event) -> Self {
        let mut run = Self::new(kernel);
        for event in [present(), nodes(), ring] {
            run.agent.take(event, run.now);
        }
        run.pass(SECOND);
        assert_eq!(run.agent.reached.as_ref().map(|target| target.stage), Some(Stage::Normal));
        run.log.clear();
        run.begun = run.now;
        run
    }

    fn tell(&mut self, event: Event) {
        self.agent.take(event, self.now);
    }

    /// Lets time pass, and the agent do what it wants.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..1000 {
            if let Some(target) = self.agent.next(self.now) {
                let outcome = self.reconciler.run(&make_plan(&target), self.now).unwrap();
                let seconds = (self.now - self.begun).as_secs();
                self.log.push((target.stage, seconds, outcome.changed + outcome.failed.len()));
                self.agent.attempted(Some(&outcome), self.now);
            } else {
                match self.agent.wake_at().filter(|&at| at <= end) {
                    // What is due without there being something to do would keep the loop busy for ever.
                    Some(at) => {
                        assert!(at > self.now, "due, but nothing to do");
                        self.now = at;
                    }
                    None => break,
                }
            }
        }
        self.now = end;
    }

    /// Stages that changed something, with their time.
    fn steps(&self) -> Vec<(Stage, u64)> {
        self.log.iter().filter(|(.., ops)| *ops > 0).map(|&(stage, at, _)| (stage, at)).collect()
    }

    fn changes(&self) -> usize {
        self.log.iter().map(|(.., ops)| ops).sum()
    }
}

fn count(kernel: &ModelKernel) -> (usize, usize) {
    (kernel.states.len(), kernel.policies.len())
}

#[test]
fn nothing_is_programmed_before_ring_and_nodes_are_known() {
    for missing in 0..3 {
        let mut kernel = ModelKernel::default();
        let mut run = Run::new(&mut kernel);
        let mut document = document(1, Enforcement::Permissive, &[1]);
        document.extend_from_slice(format!("installation: {}\n", uid(SET)).as_bytes());
        let events = [nodes(), shown(document), present()];
        for event in events.into_iter().enumerate().filter(|(at, _)| *at != missing).map(|(_, event)| event) {
            run.tell(event);
        }
        run.pass(100 * SECOND);
        assert_eq!(run.log, [], "without {missing}");
    }
    let mut kernel = ModelKernel::default();
    Run::encrypting(&mut kernel, permissive());
    assert_eq!(count(&kernel), (4, 2));
}

#[test]
fn a_restart_writes_nothing() {
    let mut kernel = ModelKernel::default();
    Run::encrypting(&mut kernel, permissive());
    let done = kernel.done;
    // In whatever order the sources answer.
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let mut run = Run::new(&mut kernel);
        for which in order {
            run.tell([nodes(), permissive(), present()].into_iter().nth(which).unwrap());
            run.pass(10 * SECOND);
        }
        run.pass(1000 * SECOND);
        assert!(run.log.len() > 10 && run.changes() == 0, "{:?}", run.log);
    }
    assert_eq!(kernel.done, done);
}

#[test]
fn a_bad_ring_changes_nothing_and_a_good_one_goes_on() {
    let mut kernel = ModelKernel::default();
    let mut run = Run::encrypting(&mut kernel, permissive());
    let two_actives = String::from_utf8(document(2, Enforcement::Permissive, &[1, 2])).unwrap();
    let two_actives = two_actives.replace("staged", "active").into_bytes();
    for noise in [two_actives, b"{[".to_vec(), vec![0xff; 1 << 20], vec![]] {
        run.tell(shown(noise));
        run.pass(100 * SECOND);
        assert!(run.agent.held().problem().is_some());
    }
    run.tell(Event::Ring(Content::Absent("gone".into())));
    run.pass(1000 * SECOND);
    assert_eq!(run.changes(), 0);
    run.tell(shown(document(3, Enforcement::Permissive, &[1, 2])));
    run.pass(SECOND);
    assert_eq!(run.changes(), 4);
    assert_eq!(count(&kernel), (8, 2));
}

#[test]
fn a_burst_of_changes_is_one_attempt() {
    let mut kernel = ModelKernel::default();
    let mut run = Run::encrypting(&mut kernel, permissive());
    for n in 4..50 {
        run.tell(Event::NodeApplied(node(n)));
    }
    run.pass(SECOND);
    assert_eq!(run.log.len(), 1);
    // And what changes nothing of the plan is none at all.
    for n in 4..50 {
        run.tell(Event::NodeApplied(NodeFacts { ready: false, ..node(n) }));
    }
    run.pass(SECOND);
    assert_eq!(run.log.len(), 1);
}

#[test]
fn what_others_change_in_the_kernel_is_mended() {
    let mut kernel = ModelKernel::default();
    Run::encrypting(&mut kernel, permissive());
    let mut run = Run::encrypting(&mut kernel, permissive());
    run.tell(Event::Kernel);
    run.pass(2 * SECOND);
    assert_eq!((run.log.len(), run.changes()), (1, 0));
    drop(run);
    kernel.policies.clear();
    let mut run = Run::encrypting(&mut kernel, permissive());
    run.tell(Event::Kernel);
    run.pass(2 * SECOND);
    assert_eq!(count(&kernel), (4, 2));
}

#[test]
fn a_failed_change_is_tried_again_later_and_later() {
    let mut kernel = ModelKernel { refuse: (0..6).collect(), ..ModelKernel::default() };
    let mut run = Run::new(&mut kernel);
    for event in [present(), nodes(), permissive()] {
        run.tell(event);
    }
    run.pass(40 * SECOND);
    let attempts: Vec<u64> = run.log.iter().map(|(_, at, _)| *at).collect();
    assert!(attempts.len() > 1 && run.agent.reached.is_some(), "{:?}", run.log);
    assert_eq!(count(&kernel), (4, 2));

    let mut kernel = ModelKernel { dies_after: Some(0), ..ModelKernel::default() };
    let mut run = Run::new(&mut kernel);
    for event in [present(), nodes(), permissive()] {
        run.tell(event);
    }
    run.pass(100 * SECOND);
    let attempts: Vec<u64> = run.log.iter().map(|(_, at, _)| *at).collect();
    assert_eq!(attempts, [0, 1, 3, 7, 15, 31, 61, 91]);
}

#[test]
fn sigterm_without_a_removal_leaves_the_kernel_alone() {
    let mut kernel = ModelKernel::default();
    let mut run = Run::encrypting(&mut kernel, permissive());
    assert_eq!(run.agent.question(), Question::DaemonSet);
    let there = Sighting::Present { uid: Some(uid(SET)), deleting: false, orphaning: false };
    for answer in [None, Some(there)] {
        assert_eq!(run.agent.judge(answer), Verdict::Restart);
    }
    assert!(!run.agent.may_end());
    run.tell(Event::Ending(Verdict::Restart));
    assert!(run.agent.may_end());
    assert_eq!(run.log, []);
    assert_eq!(count(&kernel), (4, 2));
}

#[test]
fn without_the_api_ending_is_a_restart() {
    let mut agent = Agent::new("node-1".into(), uid(101), settings());
    assert_eq!(agent.question(), Question::None);
    agent.take(Event::DaemonSet(None), Instant::now());
    assert_eq!(agent.question(), Question::None, "its rights were never seen to work");
    agent.take(nodes(), Instant::now());
    assert_eq!(agent.question(), Question::Node);
}

#[test]
fn a_deleted_daemon_set_is_a_removal_in_steps() {
    let mut kernel = ModelKernel::default();
    let mut run = Run::encrypting(&mut kernel, permissive());
    run.tell(Event::DaemonSet(Some(Sighting::Absent)));
    assert_eq!(run.agent.question(), Question::None);
    run.pass(3 * SECOND);
    assert_eq!(run.steps(), [(Stage::Silent, 0)]);
    assert!(run.agent.removing() && !run.agent.removed() && !run.agent.may_end());
    run.tell(Event::Ending(Verdict::Restart));
    assert!(!run.agent.may_end(), "it goes on though the pod is asked to end");
    run.pass(2 * SECOND);
    assert_eq!(run.steps(), [(Stage::Silent, 0), (Stage::Gone, 4)]);
    assert!(run.agent.removed() && run.agent.may_end());
    // Nothing brings it back.
    for event in [permissive(), nodes(), present()] {
        run.tell(event);
        run.pass(100 * SECOND);
    }
    assert_eq!(count(&kernel), (0, 0));
}

#[test]
fn an_agent_that_is_adopted_after_its_removal_begins_anew() {
    let mut kernel = ModelKernel::default();
    let mut run = Run::encrypting(&mut kernel, permissive());
    run.tell(Event::DaemonSet(Some(Sighting::Absent)));
    run.tell(present());
    assert!(!run.agent.may_end(), "the removal goes on first");
    run.pass(10 * SECOND);
    assert!(run.agent.removed());
    assert!(run.agent.may_end(), "its kubelet starts another, which knows nothing of the removal");
}

#[test]
fn while_insisting_the_first_step_is_to_stop_that() {
    let mut kernel = ModelKernel::default();
    let mut run = Run::encrypting(&mut kernel, shown(document(1, Enforcement::Enforcing, &[1])));
    assert_eq!(run.agent.question(), Question::DaemonSet);
    run.tell(Event::Ending(Verdict::Removal));
    run.pass(SECOND);
    let inbound = |run: &Run<'_>| {
        let plan = make_plan(run.agent.reached.as_ref().unwrap());
        plan.policies
            .iter()
            .filter(|(id, action)| id.direction == Direction::In || **action == Action::Block)
            .count()
    };
    assert_eq!(inbound(&run), 0);
    run.pass(20 * SECOND);
    assert_eq!(run.steps(), [(Stage::Optional, 0), (Stage::Silent, 4), (Stage::Gone, 8)]);
    assert!(run.agent.may_end());
    assert_eq!(count(&kernel), (0, 0));
}

#[test]
fn an_orphaned_agent_goes_on() {
    let mut kernel = ModelKernel::default();
    let mut run = Run::encrypting(&mut kernel, permissive());
    let orphaning = Sighting::Present { uid: Some(uid(SET)), deleting: true, orphaning: true };
    run.tell(Event::DaemonSet(Some(orphaning)));
    run.tell(Event::DaemonSet(Some(Sighting::Absent)));
    run.pass(100 * SECOND);
    assert!(!run.agent.removing());
    assert_eq!(run.agent.judge(Some(Sighting::Absent)), Verdict::Restart);
    assert_eq!(run.changes(), 0);
    assert!(run.agent.orphaned());
    // Nor does the next process on this node take it for a removal, which never saw the DaemonSet.
    let mut kernel = ModelKernel::default();
    for (remembers, verdict) in [(true, Verdict::Restart), (false, Verdict::Removal)] {
        let mut run = Run::encrypting(&mut kernel, permissive());
        if remembers {
            run.agent.remember_orphaned();
        }
        run.tell(Event::DaemonSet(Some(Sighting::Absent)));
        assert!(remembers != run.agent.removing(), "this one has seen it");
        assert_eq!(run.agent.judge(Some(Sighting::Absent)), verdict);
    }
    let there = Sighting::Present { uid: Some(uid(SET)), deleting: false, orphaning: false };
    run.tell(Event::DaemonSet(Some(there)));
    assert!(!run.agent.orphaned(), "another one has adopted it");
}

#[test]
fn a_ring_that_is_off_goes_the_same_way_and_back() {
    let mut kernel = ModelKernel::default();
    let mut run = Run::encrypting(&mut kernel, shown(document(1, Enforcement::Enforcing, &[1])));
    run.tell(shown(document(2, Enforcement::Off, &[])));
    run.pass(20 * SECOND);
    assert_eq!(run.steps(), [(Stage::Optional, 0), (Stage::Silent, 4), (Stage::Gone, 8)]);
    assert!(!run.agent.removed() && !run.agent.may_end());
    run.tell(shown(document(3, Enforcement::Permissive, &[2])));
    run.pass(SECOND);
    assert_eq!(run.steps().last(), Some(&(Stage::Normal, 20)));
    // An agent that starts and finds it off takes the same way with what it finds.
    drop(run);
    let mut run = Run::new(&mut kernel);
    for event in [nodes(), present(), shown(document(4, Enforcement::Off, &[]))] {
        run.tell(event);
    }
    run.pass(20 * SECOND);
    assert_eq!(run.steps(), [(Stage::Silent, 4), (Stage::Gone, 8)]);
    assert_eq!(count(&kernel), (0, 0));
}

#[test]
fn an_excluded_node_holds_nothing() {
    let mut kernel = ModelKernel::default();
    let mut run = Run::encrypting(&mut kernel, permissive());
    run.tell(Event::NodeApplied(NodeFacts { excluded: true, ..node(1) }));
    run.pass(SECOND);
    assert_eq!(run.steps(), [(Stage::Gone, 0)]);
    assert!(!run.agent.removing());
    assert_eq!(count(&kernel), (0, 0));
}

#[test]
fn this_nodes_missing_node_object_costs_nothing() {
    let mut kernel = ModelKernel::default();
    let mut run = Run::encrypting(&mut kernel, permissive());
    run.tell(Event::NodeDeleted("node-1".into()));
    run.pass(1000 * SECOND);
    assert!(run.agent.view().unwrap().local.is_none());
    assert_eq!(run.changes(), 0);
}

#[test]
fn a_removal_without_ring_and_nodes_goes_by_what_the_kernel_holds() {
    let mut kernel = ModelKernel::default();
    Run::encrypting(&mut kernel, shown(document(1, Enforcement::Enforcing, &[1])));
    let mut run = Run::new(&mut kernel);
    run.tell(present());
    run.tell(Event::DaemonSet(Some(Sighting::Absent)));
    run.pass(20 * SECOND);
    // 2 inbound policies and 2 blocks, 2 outbound policies, 4 SAs.
    let steps: Vec<_> = run.log.iter().filter(|(.., ops)| *ops > 0).copied().collect();
    assert_eq!(steps, [(Stage::Optional, 0, 4), (Stage::Silent, 4, 2), (Stage::Gone, 8, 4)]);
    assert!(run.agent.removed());
    assert_eq!(count(&kernel), (0, 0));

    // A ring that was just begun does not say what the kernel holds from before it.
    let mut kernel = ModelKernel::default();
    let mut run = Run::encrypting(&mut kernel, shown(document(1, Enforcement::Enforcing, &[1])));
    let begun = String::from_utf8(document(2, Enforcement::Permissive, &[2])).unwrap();
    run.tell(shown(begun.replace("role: active", "role: staged").into_bytes()));
    run.pass(SECOND);
    assert_eq!(run.agent.acknowledgement().unwrap().enforcement, Enforcement::Enforcing);
    run.log.clear();
    run.tell(Event::DaemonSet(Some(Sighting::Absent)));
    run.pass(20 * SECOND);
    let steps: Vec<_> = run.log.iter().map(|(stage, ..)| *stage).collect();
    assert_eq!(steps.first(), Some(&Stage::Optional));
    assert!(run.agent.removed());
    assert_eq!(count(&kernel), (0, 0));

    // Where DaemonSets can't be read, nobody insists, and there is less time.
    let mut kernel = ModelKernel::default();
    Run::encrypting(&mut kernel, permissive());
    let mut run = Run::new(&mut kernel);
    run.tell(Event::DaemonSet(None));
    run.tell(Event::Ending(Verdict::Removal));
    run.pass(20 * SECOND);
    assert_eq!(run.steps(), [(Stage::Silent, 0), (Stage::Gone, 4)]);
    assert_eq!(count(&kernel), (0, 0));
}

#[test]
fn what_was_applied_is_acknowledged_and_not_what_is_held() {
    let mut kernel = ModelKernel::default();
    let mut run = Run::encrypting(&mut kernel, permissive());
    let said = |run: &Run<'_>| {
        let said = run.agent.acknowledgement().unwrap().clone();
        assert_eq!((said.node, said.boot, said.installation), (uid(1), uid(101), Some(uid(SET))));
        (said.receives.into_keys().collect::<Vec<_>>(), said.sends, said.newest)
    };
    assert_eq!(said(&run), (vec![uid(201)], Some(uid(201)), 1));
    run.tell(shown(document(2, Enforcement::Permissive, &[1, 2])));
    assert_eq!(said(&run), (vec![uid(201)], Some(uid(201)), 1), "not applied yet");
    run.pass(SECOND);
    assert_eq!(said(&run), (vec![uid(201), uid(202)], Some(uid(201)), 2));
    run.tell(permissive());
    run.pass(SECOND);
    assert_eq!(said(&run), (vec![uid(201)], Some(uid(201)), 2), "a newer one was seen");
    run.tell(Event::DaemonSet(Some(Sighting::Absent)));
    run.pass(3 * SKEW);
    assert!(run.agent.removed());
    assert_eq!(said(&run), (vec![], None, 2));
    assert!(Agent::new("node-1".into(), uid(101), settings()).acknowledgement().is_none());
}

#[test]
fn an_excluded_node_says_that_it_does_nothing() {
    let mut kernel = ModelKernel::default();
    let mut run = Run::encrypting(&mut kernel, permissive());
    run.tell(Event::NodeApplied(NodeFacts { excluded: true, ..node(1) }));
    run.pass(SECOND);
    let said = run.agent.acknowledgement().unwrap();
    assert_eq!((said.node, said.receives.len(), said.sends, said.newest), (uid(1), 0, None, 1));
    // Its outbound keys are used up when it comes back.
    run.tell(Event::NodeApplied(node(1)));
    run.pass(SECOND);
    assert_eq!(run.agent.acknowledgement().unwrap().burnt, [(uid(201), 0)].into());
}

#[test]
fn whom_esp_reaches_is_told_when_all_have_been_tried_and_anew_after_a_pause() {
    let mut kernel = ModelKernel::default();
    let mut run = Run::new(&mut kernel);
    run.agent.settings.probe_port = 9468;
    let staged = |revision, enforcement| {
        let text = String::from_utf8(document(revision, enforcement, &[1])).unwrap();
        shown(text.replace("role: active", "role: staged").into_bytes())
    };
    let told = |run: &Run<'_>| run.agent.acknowledgement().unwrap().unreachable.clone();
    let verdicts = |all: &[(u8, bool)]| Event::Probed(Ok(all.iter().map(|&(n, it)| (uid(n), it)).collect()));
    for event in [present(), nodes(), shown(document(1, Enforcement::Off, &[]))] {
        run.tell(event);
    }
    run.pass(10 * SECOND);
    assert_eq!((told(&run), run.agent.probes()), (Some([].into()), None), "nothing to prove yet");

    run.tell(staged(2, Enforcement::Permissive));
    run.pass(SECOND);
    assert_eq!(told(&run), None, "what was said of no peers says nothing of these");
    let probes = run.agent.probes().unwrap();
    assert_eq!((probes.local, probes.port), ([192, 0, 2, 1].into(), 9468));
    assert_eq!(probes.peers.values().copied().collect::<Vec<_>>(), [uid(2), uid(3)]);
    run.log.clear();
    run.tell(verdicts(&[(2, true)]));
    assert_eq!(told(&run), None);
    run.tell(verdicts(&[(2, true), (3, false)]));
    assert_eq!(told(&run), Some([uid(3)].into()));
    run.pass(SECOND);
    assert_eq!(run.log, [], "that changes nothing in the kernel");
    run.tell(verdicts(&[(2, true), (3, true)]));
    assert_eq!(told(&run), Some([].into()));

    // A node that comes has to be tried as well.
    run.tell(Event::NodeApplied(node(4)));
    run.pass(SECOND);
    assert_eq!(told(&run), None);
    run.tell(Event::Probed(Err("the port is taken".into())));
    assert_eq!((told(&run), run.agent.reach()), (Some([].into()), Reach::Unable("the port is taken".into())));

    run.tell(shown(document(3, Enforcement::Enforcing, &[1])));
    run.pass(SECOND);
    assert!(run.agent.probes().is_some(), "it goes on while every node insists");
    run.tell(shown(document(4, Enforcement::Off, &[])));
    run.pass(60 * SECOND);
    assert_eq!((told(&run), run.agent.probes()), (Some([].into()), None));
    run.tell(verdicts(&[(2, true), (3, true), (4, true)]));
    run.tell(staged(5, Enforcement::Permissive));
    run.pass(SECOND);
    assert_eq!(told(&run), None, "what came late is not believed");
}

#[test]
fn a_tunnel_without_room_is_said_with_the_first_generation() {
    let external = Measured { interface: "eth0".into(), mtu: 1500 };
    let facts = |mtu| {
        let source = MtuSource::Device;
        let tunnels = vec![Tunnel { interface: "tunl0".into(), mtu, source, point_to_point: false }];
        Event::Mtu(mtu::Facts { tunnels, external: Some(external.clone()) })
    };
    for (needs_room, tunnel, wanted) in [(true, 1480, true), (true, 1452, false), (false, 1480, false)] {
        let mut kernel = ModelKernel::default();
        let mut run = Run::new(&mut kernel);
        run.agent.settings.needs_room = needs_room;
        for event in [present(), nodes(), facts(tunnel), permissive()] {
            run.tell(event);
        }
        run.pass(SECOND);
        let said = |run: &Run<'_>| run.agent.acknowledgement().unwrap().oversized;
        assert_eq!(said(&run), wanted);
        run.tell(facts(1452));
        assert!(!said(&run), "there is room");
    }
}

#[test]
fn what_speaks_against_insisting_is_said_at_once_and_until_it_is_over() {
    let mut kernel = ModelKernel::default();
    let obstacles = |run: &Run<'_>| run.agent.acknowledgement().unwrap().obstacles.clone();
    let around = |text: &str| Event::Surroundings([text.to_owned()].into());
    let mut run = Run::new(&mut kernel);
    // It was looked at before the first attempt is over.
    for event in [present(), nodes(), permissive(), around("a route")] {
        run.tell(event);
    }
    run.pass(SECOND);
    assert_eq!(obstacles(&run), ["a route".to_owned()].into());
    let before = run.log.len();
    run.tell(around("a sysctl"));
    assert_eq!(obstacles(&run), ["a sysctl".to_owned()].into());
    run.pass(SECOND);
    assert_eq!(run.log.len(), before, "the kernel has nothing to do with it");

    let net = |n: u8| Net::host([192, 0, 2, n].into());
    let taken = PolicyId::tunnel(Direction::In, net(2), net(1));
    run.reconciler.kernel().add_foreign_policy(taken);
    run.tell(Event::Kernel);
    run.pass(2 * SECOND);
    assert!(obstacles(&run).len() == 2 && obstacles(&run).contains("a sysctl"), "{:?}", obstacles(&run));
    run.tell(Event::Surroundings([].into()));
    let left = obstacles(&run);
    assert!(left.len() == 1 && left.first().unwrap().contains("comes before ours"), "{left:?}");

    run.tell(around("a route"));
    run.tell(Event::NodeApplied(NodeFacts { excluded: true, ..node(1) }));
    run.pass(SECOND);
    assert_eq!(obstacles(&run), [].into(), "an excluded node insists on nothing");
}
