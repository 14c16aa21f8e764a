use super::{
    rekey::{PAUSE, REKEYED},
    steps::FORCED,
    *,
};
use crate::{
    acknowledgement::Acknowledgement,
    node::NodeFacts,
    ring::{Generation, Role},
    rotation::NodeCounts,
    secret::SecretBytes,
    suite::Suite,
};

const LIMIT: Duration = Duration::from_secs(3600);

fn uid(number: u8) -> Uid {
    Uid::from_random([number; 16])
}

fn here() -> Uid {
    uid(90)
}

fn generation(id: u64, role: Role) -> Generation {
    let at = "2026-11-20T03:00:00Z".parse().unwrap();
    let suite = Suite::Aes128Gcm8;
    Generation {
        id,
        uid: gen_uid(id),
        role,
        suite,
        key: SecretBytes::copy_from(&[id as u8; 16]),
        spi_seed: SecretBytes::copy_from(&[id as u8; 16]),
        created_at: at,
        role_since: at,
        incarnations: BTreeMap::new(),
    }
}

fn gen_uid(id: u64) -> Uid {
    uid(200 + id as u8)
}

fn ring(roles: &[Role]) -> Ring {
    let mut ring = Ring::off(1, Some(here()));
    ring.enforcement = Enforcement::Permissive;
    ring.generations = (1..).zip(roles).map(|(id, role)| generation(id, *role)).collect();
    ring
}

/// A cluster of three nodes that have all said everything about the ring.
struct Case {
    ring: Ring,
    nodes: Vec<NodeFacts>,
    said: BTreeMap<String, Acknowledgement>,
    forced: bool,
    probing: bool,
    acknowledged: AckTracker,
    now: Instant,
}

impl Case {
    fn new(roles: &[Role]) -> Self {
        let ring = ring(roles);
        let nodes: Vec<NodeFacts> = (1..=3)
            .map(|n| NodeFacts {
                name: format!("node-{n}"),
                uid: Some(uid(n)),
                created: None,
                addr: Some([192, 0, 2, n].into()),
                boot: Some(uid(100 + n)),
                ready: true,
                excluded: false,
            })
            .collect();
        let say = |node: &NodeFacts| Acknowledgement {
            node: node.uid.unwrap(),
            boot: node.boot.unwrap(),
            installation: Some(here()),
            receives: ring.generations.iter().map(|g| (g.uid, g.incarnations.clone())).collect(),
            sends: ring.active().map(|active| active.uid),
            silent: false,
            revision: ring.revision,
            encrypts: ring.active().is_some(),
            burnt: BTreeMap::new(),
            spent: BTreeSet::new(),
            newest: ring.newest(),
            enforcement: ring.enforcement,
            obstacles: BTreeSet::new(),
            unreachable: Some(BTreeSet::new()),
            oversized: false,
        };
        let said = nodes.iter().map(|node| (node.name.clone(), say(node))).collect();
        let acknowledged = AckTracker::new(LIMIT);
        Self { ring, nodes, said, forced: false, probing: false, acknowledged, now: Instant::now() }
    }

    fn observe(&mut self) -> Evidence {
        let Self { ring, nodes, said, forced, probing, acknowledged, now } = self;
        acknowledged.observe(
            ClusterSnapshot { ring: Some(ring), nodes, acks: said, forced: *forced, probing: *probing },
            *now,
        )
    }

    fn second(&mut self) -> &mut Acknowledgement {
        self.said.get_mut("node-2").unwrap()
    }
}

fn awaits(answer: &Readiness) -> Vec<&str> {
    match answer {
        Readiness::Waiting { nodes, .. } => nodes.iter().map(String::as_str).collect(),
        _ => vec![],
    }
}

const STAGED: [Role; 2] = [Role::Active, Role::Staged];
const RETIRING: [Role; 2] = [Role::Retiring, Role::Active];

#[test]
fn a_rotation_waits_for_every_node_by_its_name() {
    let mut case = Case::new(&STAGED);
    assert_eq!(case.observe().staged_acked, Readiness::Ready);
    case.second().receives.remove(&gen_uid(2));
    assert_eq!(awaits(&case.observe().staged_acked), ["node-2"]);
    case.now += 100 * LIMIT;
    assert_eq!(awaits(&case.observe().staged_acked), ["node-2"], "a Ready node is waited for without end");
    case.said.remove("node-3");
    assert_eq!(awaits(&case.observe().staged_acked), ["node-2", "node-3"]);
}

#[test]
fn what_another_boot_node_or_installation_said_does_not_count() {
    let other = uid(77);
    let wrong: [fn(&mut Acknowledgement, Uid); 4] = [
        |said, other| said.node = other,
        |said, other| said.boot = other,
        |said, other| said.installation = Some(other),
        |said, _| said.installation = None,
    ];
    for change in wrong {
        let mut case = Case::new(&STAGED);
        change(case.second(), other);
        assert_eq!(awaits(&case.observe().staged_acked), ["node-2"]);
        let snapshot = ClusterSnapshot {
            ring: Some(&case.ring),
            nodes: &case.nodes,
            acks: &case.said,
            forced: false,
            probing: false,
        };
        assert_eq!(snapshot.counts(), NodeCounts { expected: 3, heard: 2 });
    }
    let mut case = Case::new(&STAGED);
    case.nodes[1].boot = None;
    assert_eq!(awaits(&case.observe().staged_acked), ["node-2"], "nobody knows which boot it is");
}

#[test]
fn a_generation_is_known_by_its_uid_and_incarnations() {
    let mut case = Case::new(&STAGED);
    case.ring.generations[1].uid = uid(55);
    assert_eq!(awaits(&case.observe().staged_acked).len(), 3);
    let mut case = Case::new(&STAGED);
    case.ring.generations[1].incarnations.insert(uid(1), 1);
    assert_eq!(awaits(&case.observe().staged_acked).len(), 3, "node-1's pairs have other keys now");
}

#[test]
fn a_node_that_is_not_ready_is_left_behind_in_the_end() {
    let mut case = Case::new(&STAGED);
    case.said.remove("node-2");
    case.nodes[1].ready = false;
    assert_eq!(awaits(&case.observe().staged_acked), ["node-2"]);
    case.now += LIMIT - Duration::from_secs(1);
    let look_in = Duration::from_secs(1);
    let nodes = BTreeSet::from(["node-2".to_owned()]);
    assert_eq!(case.observe().staged_acked, Readiness::Waiting { nodes, look_in });
    case.now += look_in;
    assert_eq!(case.observe().staged_acked, Readiness::Ready);
    // A manager that has just started knows nothing of the time before.
    case.acknowledged = AckTracker::new(LIMIT);
    assert_eq!(awaits(&case.observe().staged_acked), ["node-2"]);
}

#[test]
fn somebody_may_press_on() {
    let mut case = Case::new(&STAGED);
    case.said.remove("node-2");
    case.forced = true;
    assert_eq!(awaits(&case.observe().staged_acked), ["node-2"]);
    case.now += FORCED;
    assert_eq!(case.observe().staged_acked, Readiness::Ready);
}

#[test]
fn excluded_nodes_are_not_waited_for_and_an_empty_list_is_not_believed() {
    let mut case = Case::new(&STAGED);
    case.said.remove("node-2");
    case.nodes[1].excluded = true;
    assert_eq!(case.observe().staged_acked, Readiness::Ready);
    case.nodes.clear();
    assert_eq!(case.observe().staged_acked, Readiness::After(LOOK_AGAIN));
}

#[test]
fn an_old_generation_goes_when_nobody_sends_with_it_and_its_packets_have_arrived() {
    let mut case = Case::new(&RETIRING);
    case.second().sends = Some(gen_uid(1));
    assert_eq!(awaits(&case.observe().drained), ["node-2"]);
    case.second().sends = None;
    assert_eq!(awaits(&case.observe().drained), ["node-2"], "it may send with several");
    case.second().sends = Some(gen_uid(2));
    assert_eq!(case.observe().drained, Readiness::After(DRAIN));
    case.now += DRAIN / 2;
    assert_eq!(case.observe().drained, Readiness::After(DRAIN / 2));
    case.second().sends = Some(gen_uid(1));
    assert_eq!(awaits(&case.observe().drained), ["node-2"]);
    case.second().sends = Some(gen_uid(2));
    assert_eq!(case.observe().drained, Readiness::After(DRAIN), "from the start");
    case.now += DRAIN;
    assert_eq!(case.observe().drained, Readiness::Ready);
    case.ring.generations[0].role_since = "2026-11-20T03:00:01Z".parse().unwrap();
    assert_eq!(case.observe().drained, Readiness::After(DRAIN), "it was sent with again in between");
}

#[test]
fn burnt_incarnations_are_replaced_once_and_not_too_often() {
    let mut case = Case::new(&[Role::Retiring, Role::Active, Role::Staged]);
    let burnt = [(gen_uid(1), 0), (gen_uid(2), 0), (gen_uid(3), 6), (uid(3), 1)];
    case.second().burnt = burnt.into();
    let needed = BTreeMap::from([(gen_uid(2), 1), (gen_uid(3), 7)]);
    let node = uid(2);
    assert_eq!(case.observe().rekey, BTreeMap::from([(node, needed)]));
    case.acknowledged.rekeyed(case.now);
    case.ring.generations[1].incarnations.insert(node, 1);
    assert_eq!(case.observe().rekey, BTreeMap::new());
    case.now += PAUSE;
    assert_eq!(case.observe().rekey, BTreeMap::from([(node, BTreeMap::from([(gen_uid(3), 7)]))]));
    case.ring.generations[2].incarnations.insert(node, 7);
    assert_eq!(case.observe().rekey, BTreeMap::new());
    case.second().burnt = [(gen_uid(2), u32::MAX)].into();
    assert_eq!(case.observe().rekey, BTreeMap::new(), "there is nothing after it");
}

#[test]
fn where_many_nodes_need_new_keys_a_rotation_gives_them() {
    let mut case = many_lost(&[Role::Active]);
    let evidence = case.observe();
    assert!(evidence.rekey.is_empty() && evidence.requested.unwrap().starts_with("101 nodes lost SAs"));
    case.nodes.pop();
    let evidence = case.observe();
    assert_eq!((evidence.rekey.len(), evidence.requested), (REKEYED, None));
    // One after the other they would fill the ring as well.
    case.ring.generations[0].incarnations.insert(uid(150), 1);
    let evidence = case.observe();
    assert!(evidence.rekey.is_empty() && evidence.requested.unwrap().contains("after 1 that have new ones"));
}

#[test]
fn one_that_is_under_way_does_not_wait_for_many_nodes_without_keys() {
    for roles in [&STAGED[..], &RETIRING, &FIRST] {
        let evidence = many_lost(roles).observe();
        assert_eq!((evidence.rekey.len(), evidence.requested), (REKEYED + 1, None), "{roles:?}");
    }
}

/// A cluster of 101 nodes that have all lost SAs of every generation.
fn many_lost(roles: &[Role]) -> Case {
    let mut case = Case::new(roles);
    let (node, word) = (case.nodes[0].clone(), case.said["node-1"].clone());
    for n in 0..=REKEYED as u8 {
        let (name, uid, boot) = (format!("node-{n}"), Some(uid(n)), uid(n));
        case.nodes.push(NodeFacts { name: name.clone(), uid, boot: Some(boot), ..node.clone() });
        let burnt = (1..=roles.len() as u64).map(|n| (gen_uid(n), 0)).collect();
        case.said.insert(name, Acknowledgement { node: boot, boot, burnt, ..word.clone() });
    }
    case.nodes.drain(..3);
    case
}

#[test]
fn limits_and_lost_rings_are_heard_of() {
    let mut case = Case::new(&STAGED);
    let evidence = case.observe();
    assert_eq!((evidence.requested, evidence.newest, evidence.senders.len()), (None, 2, 3));
    case.second().spent = [gen_uid(2), uid(9)].into();
    assert_eq!(case.observe().requested, None, "that generation is not in use");
    case.second().spent.insert(gen_uid(1));
    assert!(case.observe().requested.unwrap().contains("node-2"));
    case.second().newest = 9;
    assert_eq!(case.observe().newest, 9);
    case.second().newest = u64::MAX;
    assert_eq!(case.observe().newest, 2);
}

fn pending(evidence: &Evidence) -> Vec<Uid> {
    evidence.pending.iter().copied().collect()
}

const ACTIVE: [Role; 1] = [Role::Active];
const FIRST: [Role; 1] = [Role::Staged];
const SILENCED: [Role; 1] = [Role::Retiring];

#[test]
fn who_does_not_receive_is_pending_at_once_while_plaintext_is_accepted() {
    let mut case = Case::new(&ACTIVE);
    assert_eq!(pending(&case.observe()), []);
    // New keys for one node make nobody pending.
    case.ring.generations[0].incarnations.insert(uid(1), 1);
    assert_eq!(pending(&case.observe()), []);
    case.second().receives.clear();
    assert_eq!(pending(&case.observe()), [uid(2)]);
    case.nodes[2].boot = Some(uid(55));
    assert_eq!(pending(&case.observe()), [uid(2), uid(3)], "it has booted, and its agent has not spoken yet");
    case.nodes[2].excluded = true;
    assert_eq!(pending(&case.observe()), [uid(2)]);
    case.ring.enforcement = Enforcement::Enforcing;
    assert_eq!(pending(&case.observe()), []);
}

#[test]
fn a_word_that_is_missing_for_a_while_makes_nobody_pending() {
    let mut case = Case::new(&ACTIVE);
    case.observe();
    case.said.clear();
    case.nodes[1].boot = None;
    assert_eq!(pending(&case.observe()), [], "somebody deleted all of them; the kernels go on");
    case.now += MISSED - Duration::from_secs(1);
    assert_eq!(pending(&case.observe()), []);
    case.nodes[2].boot = Some(uid(55));
    assert_eq!(pending(&case.observe()), [uid(3)], "what it held is gone");
    case.now += Duration::from_secs(1);
    assert_eq!(pending(&case.observe()), [uid(1), uid(2), uid(3)]);
    // Who was never heard is not waited for.
    case.acknowledged = AckTracker::new(LIMIT);
    assert_eq!(pending(&case.observe()), [uid(1), uid(2), uid(3)]);
}

#[test]
fn who_has_no_room_in_its_tunnel_does_not_begin() {
    let mut case = Case::new(&FIRST);
    (case.second().oversized, case.second().silent) = (true, true);
    let evidence = case.observe();
    assert_eq!(pending(&evidence), [uid(2)]);
    assert!(evidence.blocker.unwrap().to_string().contains("node-2 leaves no room"));
    case.ring.pending = evidence.pending;
    assert_eq!(case.observe().staged_acked, Readiness::Ready);
    case.ring.generations[0].role = Role::Active;
    assert_eq!(pending(&case.observe()), [uid(2)]);
    case.second().oversized = false;
    case.now += Duration::from_secs(10);
    assert_eq!(pending(&case.observe()), []);
    // Who has begun does not stop.
    case.ring.pending.clear();
    case.second().oversized = true;
    assert_eq!(pending(&case.observe()), []);
    // Nor does who sends or insists, beside a ring begun anew.
    case.ring.generations[0].role = Role::Staged;
    assert_eq!(pending(&case.observe()), [uid(2)]);
    case.second().silent = false;
    assert_eq!(pending(&case.observe()), []);
    case.second().silent = true;
    case.second().enforcement = Enforcement::Enforcing;
    assert_eq!(pending(&case.observe()), []);
    case.second().unreachable = Some([uid(1), uid(3)].into());
    assert_eq!(pending(&case.observe()), []);
}

#[test]
fn the_first_generation_gives_everybody_a_minute() {
    let mut case = Case::new(&FIRST);
    case.said.remove("node-2");
    assert_eq!(pending(&case.observe()), []);
    case.now += PENDING_AFTER;
    let evidence = case.observe();
    assert_eq!(
        (pending(&evidence), awaits(&evidence.staged_acked)),
        (vec![uid(2)], vec!["node-2"]),
        "not written yet"
    );
    case.ring.pending = evidence.pending;
    assert_eq!(case.observe().staged_acked, Readiness::Ready);
    // A manager that has just started does not begin anew.
    case.acknowledged = AckTracker::new(LIMIT);
    let evidence = case.observe();
    assert_eq!((pending(&evidence), evidence.staged_acked), (vec![uid(2)], Readiness::Ready));
}

#[test]
fn two_must_receive_before_anybody_sends() {
    let mut case = Case::new(&FIRST);
    for node in ["node-2", "node-3"] {
        case.said.remove(node);
    }
    case.ring.pending = [uid(2), uid(3)].into();
    assert_eq!(awaits(&case.observe().staged_acked), ["node-2", "node-3"]);
    case.nodes.truncate(1);
    assert_eq!(case.observe().staged_acked, Readiness::Ready, "nobody to wait for");
    // Later ones are for those who can.
    let mut case = Case::new(&STAGED);
    case.said.clear();
    case.ring.pending = [uid(1), uid(2), uid(3)].into();
    assert_eq!(case.observe().staged_acked, Readiness::Ready);
}

#[test]
fn the_first_activation_waits_for_probes_where_there_are_any() {
    let mut case = Case::new(&FIRST);
    case.second().unreachable = None;
    assert_eq!(case.observe().staged_acked, Readiness::Ready);
    case.probing = true;
    assert_eq!(awaits(&case.observe().staged_acked), ["node-2"]);
    case.ring.pending = [uid(2)].into();
    assert_eq!(awaits(&case.observe().staged_acked), ["node-2"], "it answers, so it will know");
    case.said.remove("node-2");
    assert_eq!(case.observe().staged_acked, Readiness::Ready);
    let mut case = Case::new(&STAGED);
    case.probing = true;
    case.second().unreachable = None;
    assert_eq!(case.observe().staged_acked, Readiness::Ready, "that was before the first one");
}

#[test]
fn where_esp_does_not_pass_nobody_begins_to_encrypt() {
    let blocked = |roles: &[Role]| {
        let mut case = Case::new(roles);
        // Node-3 may be anybody: whichever of a pair says it.
        case.second().unreachable = Some([uid(3), uid(2), uid(77)].into());
        case.said.get_mut("node-1").unwrap().unreachable = Some([uid(3)].into());
        case
    };
    let evidence = blocked(&FIRST).observe();
    assert_eq!(pending(&evidence), [uid(3)]);
    assert_eq!(evidence.blocker.unwrap().to_string(), "ESP does not pass between node-1 and node-3");

    let mut case = blocked(&ACTIVE);
    case.ring.pending = [uid(3)].into();
    let evidence = case.observe();
    assert_eq!(pending(&evidence), [uid(3)], "as long as it is so");
    assert_eq!(awaits(&evidence.can_enforce), ["node-1", "node-2", "node-3"]);

    let mut case = blocked(&ACTIVE);
    let evidence = case.observe();
    assert_eq!(
        pending(&evidence),
        [],
        "ESP has passed: an agent that does not answer is no reason for plaintext"
    );
    assert_eq!(awaits(&evidence.can_enforce), ["node-1", "node-2"], "but one not to insist yet");
    case.ring.enforcement = Enforcement::Enforcing;
    assert_eq!(pending(&case.observe()), [], "nothing is lowered by itself");
}

#[test]
fn insisting_takes_everybody_and_nothing_against_it() {
    let mut case = Case::new(&ACTIVE);
    assert_eq!(case.observe().can_enforce, Readiness::Ready);
    let changes: [fn(&mut Acknowledgement); 6] = [
        |said| said.revision -= 1,
        |said| said.encrypts = false,
        |said| said.receives.clear(),
        |said| said.receives.values_mut().next().unwrap().extend([(uid(1), 1)]),
        |said| said.sends = None,
        |said| said.obstacles.extend(["a policy of somebody else comes first".to_owned()]),
    ];
    for change in changes {
        let mut case = Case::new(&ACTIVE);
        change(case.second());
        assert_eq!(awaits(&case.observe().can_enforce), ["node-2"]);
    }
    let mut case = Case::new(&ACTIVE);
    case.second().obstacles.extend(["a policy of somebody else comes first".to_owned()]);
    assert_eq!(case.observe().blocker.unwrap().to_string(), "node-2: a policy of somebody else comes first");
    case.second().obstacles = ["ö".repeat(10_000)].into();
    assert_eq!(case.observe().blocker.unwrap().to_string().chars().count(), 300, "whatever a node says");
    case.nodes[1].ready = false;
    case.now += LIMIT;
    assert_eq!(awaits(&case.observe().can_enforce), ["node-2"], "that does not go away by waiting");
    case.ring.pending = [uid(3)].into();
    assert_eq!(awaits(&case.observe().can_enforce), ["node-2", "node-3"]);
    case.nodes.clear();
    assert_eq!(case.observe().can_enforce, Readiness::After(LOOK_AGAIN));
}

#[test]
fn pods_may_come_to_who_encrypts_and_insists_where_the_ring_does() {
    fn free(case: &Case) -> Vec<String> {
        let Case { ring, nodes, said, .. } = case;
        let snapshot = ClusterSnapshot { ring: Some(ring), nodes, acks: said, forced: false, probing: false };
        snapshot.encrypting().into_iter().collect()
    }
    let all = ["node-1", "node-2", "node-3"];
    let others = ["node-1", "node-3"];
    assert_eq!(free(&Case::new(&[Role::Staged])), [""; 0], "nobody encrypts");
    assert_eq!(free(&Case::new(&[Role::Active])), all);
    assert_eq!(free(&Case::new(&RETIRING)), all);
    let wrong: [fn(&mut Acknowledgement); 4] = [
        |said| said.boot = uid(77),
        |said| said.encrypts = false,
        |said| said.sends = Some(gen_uid(9)),
        |said| said.receives = BTreeMap::new(),
    ];
    for change in wrong {
        let mut case = Case::new(&[Role::Active]);
        change(case.second());
        assert_eq!(free(&case), others);
        case.nodes[1].excluded = true;
        assert_eq!(free(&case), all, "it takes no part");
        case.ring = ring(&[Role::Staged]);
        assert_eq!(free(&case), ["node-2"], "whatever the others do");
    }
    // Nobody encrypts to a pending node, which is no reason to keep pods from the others.
    let mut case = Case::new(&[Role::Active]);
    case.said.values_mut().for_each(|said| said.encrypts = false);
    assert_eq!(free(&case), [""; 0]);
    case.ring.pending = [uid(2)].into();
    assert_eq!(free(&case), others);
    case.ring.revision += 1;
    assert_eq!(free(&case), [""; 0], "by an older ring, they may not encrypt to others");
    let mut case = Case::new(&[Role::Active]);
    case.ring.enforcement = Enforcement::Enforcing;
    assert_eq!(free(&case), [""; 0], "nobody has insisted yet");
    case.second().enforcement = Enforcement::Enforcing;
    assert_eq!(free(&case), ["node-2"]);
    // A later revision changes nothing about that.
    case.ring.revision += 1;
    assert_eq!(free(&case), ["node-2"]);
}

#[test]
fn insisting_leaves_behind_who_is_not_ready_but_not_because_somebody_presses_on() {
    let mut case = Case::new(&ACTIVE);
    case.said.remove("node-2");
    case.forced = true;
    case.observe();
    case.now += 2 * FORCED;
    assert_eq!(awaits(&case.observe().can_enforce), ["node-2"]);
    case.now += 2 * LIMIT;
    case.nodes[1].ready = false;
    assert_eq!(awaits(&case.observe().can_enforce), ["node-2"], "it was there until now");
    case.now += LIMIT / 2;
    case.nodes[1].ready = true;
    case.observe();
    case.nodes[1].ready = false;
    case.observe();
    case.now += LIMIT / 2;
    assert_eq!(awaits(&case.observe().can_enforce), ["node-2"], "it was back in between");
    case.now += LIMIT / 2;
    let evidence = case.observe();
    assert_eq!((pending(&evidence), evidence.can_enforce), (vec![uid(2)], Readiness::Ready));
}

#[test]
fn a_word_from_before_insisting_is_none_about_accepting_plaintext() {
    let mut case = Case::new(&ACTIVE);
    case.second().revision -= 1;
    assert_eq!(awaits(&case.observe().none_enforcing), ["node-2"]);
    case.second().revision += 1;
    assert_eq!(case.observe().none_enforcing, Readiness::Ready);
}

#[test]
fn nodes_become_pending_at_once_and_leave_together() {
    let mut case = Case::new(&ACTIVE);
    assert_eq!(pending(&case.observe()), []);
    case.second().receives.clear();
    assert_eq!(pending(&case.observe()), [uid(2)]);
    case.ring.pending = [uid(2)].into();
    let word = case.said["node-1"].receives.clone();
    case.second().receives = word.clone();
    assert_eq!(pending(&case.observe()), [uid(2)], "the ring was written just now");
    case.now += Duration::from_secs(4);
    assert_eq!(pending(&case.observe()), [uid(2)]);
    case.said.get_mut("node-3").unwrap().receives.clear();
    assert_eq!(pending(&case.observe()), [uid(3)], "who is to become pending does not wait");
    case.said.get_mut("node-3").unwrap().receives = word;
    case.now += Duration::from_secs(1);
    assert_eq!(pending(&case.observe()), []);
    case.acknowledged = AckTracker::new(LIMIT);
    assert_eq!(pending(&case.observe()), [], "a new manager does not know since when");
}

#[test]
fn a_pending_node_stays_so_until_it_has_tried_whom_esp_reaches() {
    let mut case = Case::new(&ACTIVE);
    case.probing = true;
    case.ring.pending = [uid(2)].into();
    // All agents were started anew at the same time: nobody knows of a pair any more.
    case.said.values_mut().for_each(|said| said.unreachable = None);
    let evidence = case.observe();
    assert_eq!(pending(&evidence), [uid(2)]);
    assert_eq!(awaits(&evidence.can_enforce).len(), 3, "not tried is not reached");
    case.second().unreachable = Some(BTreeSet::new());
    assert_eq!(pending(&case.observe()), []);
    case.second().unreachable = Some([uid(1)].into());
    assert_eq!(pending(&case.observe()), [uid(2)]);
    case.probing = false;
    case.second().unreachable = None;
    assert_eq!(pending(&case.observe()), [], "nobody tries");
}

#[test]
fn an_empty_list_makes_nobody_pending_and_nobody_ready() {
    let mut case = Case::new(&ACTIVE);
    case.ring.pending = [uid(2)].into();
    case.nodes.clear();
    let evidence = case.observe();
    assert_eq!((pending(&evidence), evidence.none_enforcing), (vec![uid(2)], Readiness::After(LOOK_AGAIN)));
    // That is no list that went wrong: everybody was excluded on purpose.
    let mut case = Case::new(&SILENCED);
    case.nodes.iter_mut().for_each(|node| node.excluded = true);
    let evidence = case.observe();
    assert_eq!((evidence.none_enforcing, evidence.drained), (Readiness::Ready, Readiness::After(DRAIN)));
}

#[test]
fn who_insists_is_not_spoken_to_in_the_clear_beside_a_ring_begun_anew() {
    let mut case = Case::new(&[Role::Staged]);
    case.observe();
    case.second().receives.clear();
    case.now += 2 * PENDING_AFTER;
    assert_eq!(pending(&case.observe()), [uid(2)]);
    case.second().enforcement = Enforcement::Enforcing;
    let evidence = case.observe();
    assert_eq!((pending(&evidence), awaits(&evidence.staged_acked)), (vec![], vec!["node-2"]));
}

#[test]
fn a_node_is_left_behind_when_it_was_away_for_the_whole_time() {
    let mut case = Case::new(&STAGED);
    case.second().receives.remove(&gen_uid(2));
    case.observe();
    case.now += 2 * LIMIT;
    assert_eq!(awaits(&case.observe().staged_acked), ["node-2"]);
    // Its kubelet is started anew: for a moment it is not Ready.
    case.nodes[1].ready = false;
    assert_eq!(awaits(&case.observe().staged_acked), ["node-2"]);
    case.now += LIMIT - Duration::from_secs(1);
    assert_eq!(awaits(&case.observe().staged_acked), ["node-2"]);
    case.now += Duration::from_secs(1);
    assert_eq!(case.observe().staged_acked, Readiness::Ready);
}

#[test]
fn pending_nodes_hold_up_a_rotation_only_while_they_may_send() {
    let mut case = Case::new(&RETIRING);
    case.ring.pending = [uid(2)].into();
    let drained = |case: &mut Case| awaits(&case.observe().drained).len();
    case.second().sends = Some(gen_uid(1));
    assert_eq!(drained(&mut case), 1);
    case.second().sends = None;
    assert_eq!(drained(&mut case), 1, "unknown is not silent");
    case.second().silent = true;
    assert_eq!(case.observe().drained, Readiness::After(DRAIN));
    case.said.remove("node-2");
    assert_eq!(drained(&mut case), 1, "it may be sending");
    case.now += LIMIT;
    assert_eq!(case.observe().drained, Readiness::After(DRAIN), "but not for ever");
    case.ring.pending.clear();
    assert_eq!(drained(&mut case), 1, "peers send to it by this ring");
}

#[test]
fn a_silenced_ring_waits_until_everybody_says_so() {
    let mut case = Case::new(&SILENCED);
    assert_eq!(awaits(&case.observe().drained).len(), 3, "having nothing to say is not being silent");
    for said in case.said.values_mut() {
        said.silent = true;
    }
    assert_eq!(case.observe().drained, Readiness::After(DRAIN));
    case.second().sends = Some(gen_uid(1));
    case.second().silent = false;
    assert_eq!(awaits(&case.observe().drained), ["node-2"]);
    case.second().silent = true;
    case.second().revision -= 1;
    assert_eq!(awaits(&case.observe().drained), ["node-2"], "that was before");
    case.second().revision += 1;
    case.observe();
    case.now += DRAIN;
    assert_eq!(case.observe().drained, Readiness::Ready);
    assert_eq!(pending(&case.observe()), []);
}

#[test]
fn everybody_has_to_accept_plaintext_before_anybody_sends_it() {
    let mut case = Case::new(&ACTIVE);
    assert_eq!(case.observe().none_enforcing, Readiness::Ready);
    case.now += 2 * LIMIT;
    case.second().enforcement = Enforcement::Enforcing;
    case.nodes[1].ready = false;
    assert_eq!(
        awaits(&case.observe().none_enforcing),
        ["node-2"],
        "the time is that since the ring relented"
    );
    case.now += LIMIT;
    assert_eq!(case.observe().none_enforcing, Readiness::Ready, "left behind");
    case.ring.enforcement = Enforcement::Enforcing;
    case.observe();
    case.ring.enforcement = Enforcement::Permissive;
    assert_eq!(awaits(&case.observe().none_enforcing), ["node-2"], "from the start");
    case.said.remove("node-2");
    assert_eq!(awaits(&case.observe().none_enforcing), ["node-2"], "nobody knows what it does");
    case.ring.pending = [uid(2)].into();
    assert_eq!(
        case.observe().none_enforcing,
        Readiness::Ready,
        "nor does it matter: peers speak plainly to it"
    );
}
