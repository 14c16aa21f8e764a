//! Which nodes are pending.

use super::*;

#[test]
fn who_does_not_receive_is_pending_at_once_while_plaintext_is_accepted() {
    let mut case = Case::new(&ACTIVE);
    assert_eq!(pending_of(&case.observe()), []);
    // New keys for one node make nobody pending.
    case.ring.generations[0].incarnations.insert(uid(1), 1);
    assert_eq!(pending_of(&case.observe()), []);
    case.second().receives.clear();
    assert_eq!(pending_of(&case.observe()), [uid(2)]);
    case.nodes[2].boot = Some(uid(55));
    assert_eq!(
        pending_of(&case.observe()),
        [uid(2), uid(3)],
        "it has booted, and its agent has not spoken yet"
    );
    case.nodes[2].excluded = true;
    assert_eq!(pending_of(&case.observe()), [uid(2)]);
    case.ring.enforcement = Enforcement::Enforcing;
    assert_eq!(pending_of(&case.observe()), []);
}

#[test]
fn a_word_that_is_missing_for_a_while_makes_nobody_pending() {
    let mut case = Case::new(&ACTIVE);
    case.observe();
    case.said.clear();
    case.nodes[1].boot = None;
    assert_eq!(pending_of(&case.observe()), [], "somebody deleted all of them; the kernels go on");
    case.now += MISSED - Duration::from_secs(1);
    assert_eq!(pending_of(&case.observe()), []);
    case.nodes[2].boot = Some(uid(55));
    assert_eq!(pending_of(&case.observe()), [uid(3)], "what it held is gone");
    case.now += Duration::from_secs(1);
    assert_eq!(pending_of(&case.observe()), [uid(1), uid(2), uid(3)]);
    // Who was never heard is not waited for.
    case.acknowledged = AckTracker::new(LIMIT);
    assert_eq!(pending_of(&case.observe()), [uid(1), uid(2), uid(3)]);
}

#[test]
fn who_has_no_room_in_its_tunnel_does_not_begin() {
    let mut case = Case::new(&FIRST);
    (case.second().oversized, case.second().silent) = (true, true);
    let evidence = case.observe();
    assert_eq!(pending_of(&evidence), [uid(2)]);
    assert!(evidence.blocker.unwrap().to_string().contains("node-2 leaves no room"));
    case.ring.pending = evidence.pending;
    assert_eq!(case.observe().staged_acked, Readiness::Ready);
    case.ring.generations[0].role = Role::Active;
    assert_eq!(pending_of(&case.observe()), [uid(2)]);
    case.second().oversized = false;
    case.now += Duration::from_secs(10);
    assert_eq!(pending_of(&case.observe()), []);
    // Who has begun does not stop.
    case.ring.pending.clear();
    case.second().oversized = true;
    assert_eq!(pending_of(&case.observe()), []);
    // Nor does who sends or insists, beside a ring begun anew.
    case.ring.generations[0].role = Role::Staged;
    assert_eq!(pending_of(&case.observe()), [uid(2)]);
    case.second().silent = false;
    assert_eq!(pending_of(&case.observe()), []);
    case.second().silent = true;
    case.second().enforcement = Enforcement::Enforcing;
    assert_eq!(pending_of(&case.observe()), []);
    case.second().unreachable = Some([uid(1), uid(3)].into());
    assert_eq!(pending_of(&case.observe()), []);
}

#[test]
fn the_first_generation_gives_everybody_a_minute() {
    let mut case = Case::new(&FIRST);
    case.said.remove("node-2");
    assert_eq!(pending_of(&case.observe()), []);
    case.now += PENDING_AFTER;
    let evidence = case.observe();
    assert_eq!(
        (pending_of(&evidence), awaits(&evidence.staged_acked)),
        (vec![uid(2)], vec!["node-2"]),
        "not written yet"
    );
    case.ring.pending = evidence.pending;
    assert_eq!(case.observe().staged_acked, Readiness::Ready);
    // A manager that has just started does not begin anew.
    case.acknowledged = AckTracker::new(LIMIT);
    let evidence = case.observe();
    assert_eq!((pending_of(&evidence), evidence.staged_acked), (vec![uid(2)], Readiness::Ready));
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
    assert_eq!(pending_of(&evidence), [uid(3)]);
    assert_eq!(evidence.blocker.unwrap().to_string(), "ESP does not pass between node-1 and node-3");

    let mut case = blocked(&ACTIVE);
    case.ring.pending = [uid(3)].into();
    let evidence = case.observe();
    assert_eq!(pending_of(&evidence), [uid(3)], "as long as it is so");
    assert_eq!(awaits(&evidence.can_enforce), ["node-1", "node-2", "node-3"]);

    let mut case = blocked(&ACTIVE);
    let evidence = case.observe();
    assert_eq!(
        pending_of(&evidence),
        [],
        "ESP has passed: an agent that does not answer is no reason for plaintext"
    );
    assert_eq!(awaits(&evidence.can_enforce), ["node-1", "node-2"], "but one not to insist yet");
    case.ring.enforcement = Enforcement::Enforcing;
    assert_eq!(pending_of(&case.observe()), [], "nothing is lowered by itself");
}

#[test]
fn nodes_become_pending_at_once_and_leave_together() {
    let mut case = Case::new(&ACTIVE);
    assert_eq!(pending_of(&case.observe()), []);
    case.second().receives.clear();
    assert_eq!(pending_of(&case.observe()), [uid(2)]);
    case.ring.pending = [uid(2)].into();
    let word = case.said["node-1"].receives.clone();
    case.second().receives = word.clone();
    assert_eq!(pending_of(&case.observe()), [uid(2)], "the ring was written just now");
    case.now += Duration::from_secs(4);
    assert_eq!(pending_of(&case.observe()), [uid(2)]);
    case.said.get_mut("node-3").unwrap().receives.clear();
    assert_eq!(pending_of(&case.observe()), [uid(3)], "who is to become pending does not wait");
    case.said.get_mut("node-3").unwrap().receives = word;
    case.now += Duration::from_secs(1);
    assert_eq!(pending_of(&case.observe()), []);
    case.acknowledged = AckTracker::new(LIMIT);
    assert_eq!(pending_of(&case.observe()), [], "a new manager does not know since when");
}

#[test]
fn a_pending_node_stays_so_until_it_has_tried_whom_esp_reaches() {
    let mut case = Case::new(&ACTIVE);
    case.probing = true;
    case.ring.pending = [uid(2)].into();
    // All agents were started anew at the same time: nobody knows of a pair any more.
    case.said.values_mut().for_each(|said| said.unreachable = None);
    let evidence = case.observe();
    assert_eq!(pending_of(&evidence), [uid(2)]);
    assert_eq!(awaits(&evidence.can_enforce).len(), 3, "not tried is not reached");
    case.second().unreachable = Some(BTreeSet::new());
    assert_eq!(pending_of(&case.observe()), []);
    case.second().unreachable = Some([uid(1)].into());
    assert_eq!(pending_of(&case.observe()), [uid(2)]);
    case.probing = false;
    case.second().unreachable = None;
    assert_eq!(pending_of(&case.observe()), [], "nobody tries");
}

#[test]
fn an_empty_list_makes_nobody_pending_and_nobody_ready() {
    let mut case = Case::new(&ACTIVE);
    case.ring.pending = [uid(2)].into();
    case.nodes.clear();
    let evidence = case.observe();
    assert_eq!(
        (pending_of(&evidence), evidence.none_enforcing),
        (vec![uid(2)], Readiness::After(LOOK_AGAIN))
    );
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
    assert_eq!(pending_of(&case.observe()), [uid(2)]);
    case.second().enforcement = Enforcement::Enforcing;
    let evidence = case.observe();
    assert_eq!((pending_of(&evidence), awaits(&evidence.staged_acked)), (vec![], vec!["node-2"]));
}
