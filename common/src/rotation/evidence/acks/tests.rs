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

mod enforcing;
mod pending;

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

fn pending_of(evidence: &Evidence) -> Vec<Uid> {
    evidence.pending.iter().copied().collect()
}

const ACTIVE: [Role; 1] = [Role::Active];
const FIRST: [Role; 1] = [Role::Staged];
const SILENCED: [Role; 1] = [Role::Retiring];

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
