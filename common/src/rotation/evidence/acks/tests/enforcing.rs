//! When nodes can enforce, when they are left behind, and the way down to off.

use super::*;

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
    assert_eq!((pending_of(&evidence), evidence.can_enforce), (vec![uid(2)], Readiness::Ready));
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
    assert_eq!(pending_of(&case.observe()), []);
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
