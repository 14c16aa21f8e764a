//! The manager where the nodes say what they have done.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod fake;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use axum::http::{Method, StatusCode};
use fake::{
    Fake,
    bench::{Bench, DELAY, INTERVAL, LIMIT, options},
};
use futures::channel::mpsc::unbounded;
use secureoverlay_common::{
    acknowledged::{Acknowledgement, DRAIN, PENDING_AFTER},
    names::{ENFORCE, PRESS_ON, ROTATE},
    ring::{Enforcement, Ring, Role},
    rotation::Goal,
    uid::Uid,
};
use secureoverlay_manager::{
    cluster::{self, Cluster},
    enforce,
    notices::{self, Notice, Reason},
    rotate::{Phase, ask},
    source::Acknowledgements,
    store::Store,
    turn::{Options, Outcome, TurnError},
    view::{self, DISTRUST},
};
use serde_json::{Value, json};

use Role::{Active, Retiring, Staged};

const QUIET: Duration = Duration::from_secs(15);

fn uid(kind: u8, node: usize) -> Uid {
    let mut bytes = [kind; 16];
    bytes[15] = u8::try_from(node).unwrap();
    Uid::from_random(bytes)
}

fn name(node: usize) -> String {
    format!("node-{node}")
}

fn node(number: usize, ready: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name(number), "uid": uid(1, number), "resourceVersion": "1"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": format!("192.0.2.{number}")}],
            "conditions": [{"type": "Ready", "status": ready}],
            "nodeInfo": {"bootID": uid(2, number)},
        },
    })
}

/// What the agent of `node` says when it has done all that the ring wants.
fn word(node: usize, ring: &Ring) -> Acknowledgement {
    Acknowledgement {
        node: uid(1, node),
        boot: uid(2, node),
        installation: None,
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
        unreachable: Some([].into()),
    }
}

fn say(fake: &Fake, node: usize, word: &Value) {
    let object = json!({
        "apiVersion": "secureoverlay.io/v1alpha1", "kind": "NodeEncryption",
        "metadata": {"name": name(node), "resourceVersion": "1"},
        "spec": {}, "status": {"acknowledgement": word},
    });
    fake.state().encryptions.insert(name(node), object);
}

/// A cluster of `nodes` that may be watched, and whose agents are alive.
struct Case {
    bench: Bench,
    nodes: usize,
}

impl Case {
    fn new(nodes: usize) -> Self {
        Self::with(nodes, options())
    }

    fn with(nodes: usize, options: Options) -> Self {
        let fake = Fake::new();
        fake.state().may_list_nodes = true;
        for number in 1..=nodes {
            fake.state().nodes.insert(name(number), node(number, "True"));
        }
        let bench = Bench::with(&fake, options);
        bench.watch();
        Self { bench, nodes }
    }

    async fn steady(nodes: usize) -> Self {
        let mut case = Self::new(nodes);
        assert_eq!(case.settle().await, [(1, Staged)]);
        case.speak();
        assert_eq!(case.settle().await, [(1, Active)]);
        case.speak();
        case.settle().await;
        case.bench.told();
        case.fake().calls();
        case
    }

    /// Two generations, the younger one staged.
    async fn staged(nodes: usize) -> Self {
        let mut case = Self::steady(nodes).await;
        case.bench.advance(INTERVAL);
        assert_eq!(case.settle().await, [(1, Active), (2, Staged)]);
        case.fake().calls();
        case
    }

    fn fake(&self) -> &Fake {
        &self.bench.fake
    }

    /// Those agents do what the ring wants, and say so.
    fn speak_of(&self, nodes: impl IntoIterator<Item = usize>) {
        let ring = self.fake().ring();
        for node in nodes {
            say(self.fake(), node, &serde_json::to_value(word(node, &ring)).unwrap());
        }
        self.bench.watch();
    }

    fn speak(&self) {
        self.speak_of(1..=self.nodes);
    }

    async fn settle(&mut self) -> Vec<(u64, Role)> {
        self.bench.settle().await
    }

    /// What the manager waits for.
    async fn waits(&mut self) -> String {
        match self.bench.turn().await.unwrap() {
            Outcome::Waiting { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    fn annotate(&self, name: &str, value: &str) {
        self.fake().state().secret.as_mut().unwrap()["metadata"]["annotations"][name] = json!(value);
    }

    fn annotation(&self, name: &str) -> Option<String> {
        let state = self.fake().state();
        let annotations = &state.secret.as_ref().unwrap()["metadata"]["annotations"];
        annotations[name].as_str().map(str::to_owned)
    }
}

#[tokio::test]
async fn a_first_generation_waits_until_every_node_knows_whom_esp_reaches() {
    let mut case = Case::new(3);
    assert_eq!(case.settle().await, [(1, Staged)]);
    case.speak_of([1, 3]);
    let trying = Acknowledgement { unreachable: None, ..word(2, &case.fake().ring()) };
    say(case.fake(), 2, &serde_json::to_value(trying).unwrap());
    case.bench.watch();
    case.bench.advance(2 * PENDING_AFTER);
    assert!(case.waits().await.ends_with("waiting for node-2"));
    case.speak();
    assert_eq!(case.settle().await, [(1, Active)]);
}

#[tokio::test]
async fn a_rotation_goes_on_when_every_node_has_spoken() {
    let mut case = Case::staged(3).await;
    case.speak_of([1, 3]);
    assert_eq!(case.waits().await, "generation 2 is on its way to every node, waiting for node-2");
    case.bench.advance(100 * LIMIT);
    assert!(case.waits().await.ends_with("waiting for node-2"), "however long it takes");
    case.speak_of([2]);
    assert_eq!(case.settle().await, [(1, Retiring), (2, Active)]);
    case.speak_of([2, 3]);
    assert_eq!(case.waits().await, "generation 1 is draining, waiting for node-1");
    case.speak();
    assert_eq!(case.settle().await, [(1, Retiring), (2, Active)], "packets are under way");
    case.bench.advance(DRAIN);
    assert_eq!(case.settle().await, [(2, Active)]);
    let events = case.bench.events();
    let started: Vec<_> = events.iter().filter(|reason| **reason != Reason::RotationStalled).collect();
    assert_eq!(started, [&Reason::RotationStarted, &Reason::KeyActivated, &Reason::RotationCompleted]);
}

#[tokio::test]
async fn a_node_that_is_not_ready_is_left_behind_after_the_limit() {
    let mut case = Case::staged(2).await;
    case.fake().state().nodes.insert(name(2), node(2, "Unknown"));
    case.speak_of([1]);
    case.settle().await;
    case.bench.advance(LIMIT - Duration::from_secs(1));
    assert_eq!(case.settle().await, [(1, Active), (2, Staged)]);
    assert_eq!((case.bench.metric("awaited_nodes"), case.bench.metric("waited_seconds")), (1, 3599));
    case.bench.advance(Duration::from_secs(1));
    assert_eq!(case.settle().await, [(1, Retiring), (2, Active)]);
    assert_eq!((case.bench.metric("expected_nodes"), case.bench.metric("acknowledging_nodes")), (2, 2));
}

#[tokio::test]
async fn the_mode_follows_the_rights_and_never_goes_back_to_time() {
    let fake = Fake::new();
    fake.state().nodes.insert(name(1), node(1, "True"));
    let mut bench = Bench::new(&fake);
    bench.watch();
    assert_eq!(bench.settle().await, [(1, Staged)]);
    fake.state().may_list_nodes = true;
    bench.turn().await.unwrap();
    bench.advance(DELAY / 2);
    bench.settle().await;
    bench.advance(DELAY);
    assert_eq!(bench.settle().await, [(1, Staged)], "time has passed, but node-1 has not spoken");
    // Neither a right that is gone nor an API server that does not say is a reason.
    fake.state().may_list_nodes = false;
    bench.advance(INTERVAL);
    assert_eq!(bench.settle().await, [(1, Staged)]);
    let mut other = Bench::new(&fake);
    fake.state().refuse = Some((Method::POST, StatusCode::FORBIDDEN, "starting".to_owned()));
    assert!(matches!(other.turn().await, Err(TurnError::Installation(_) | TurnError::Access(_))));
    let required = Options { acknowledgements: Acknowledgements::Required, ..options() };
    fake.state().refuse = None;
    let mut other = Bench::with(&fake, required);
    assert!(matches!(other.turn().await, Err(TurnError::View(_))), "whatever the rights");
}

#[tokio::test]
async fn what_the_watches_brought_is_checked_before_it_counts() {
    let mut case = Case::staged(2).await;
    case.speak();
    // A node joined, and one took back what it said; the watches have not told yet.
    let fake = case.fake().clone();
    let mut ring = fake.ring();
    ring.generations.pop();
    for number in [1, 3] {
        fake.state().nodes.insert(name(number), node(number, "True"));
        say(&fake, number, &serde_json::to_value(word(number, &ring)).unwrap());
    }
    assert_eq!(case.waits().await, "generation 2 is on its way to every node, waiting for node-1, node-3");
    assert_eq!(fake.writes(), 0);
    case.nodes = 3;
    case.speak();
    assert_eq!(case.settle().await, [(1, Retiring), (2, Active)]);
}

#[tokio::test]
async fn without_lists_nothing_is_decided() {
    let mut case = Case::staged(2).await;
    case.speak();
    let fake = case.fake().clone();
    // A manager that was just started.
    let mut other = Bench::new(&fake);
    let error = other.turn().await.unwrap_err();
    assert!(matches!(error, TurnError::View(_)), "{error}");
    assert!(error.to_string().contains("not known yet"), "{error}");
    let refused = "/api/v1/nodes".to_owned();
    fake.state().refuse_path = Some((refused, StatusCode::INTERNAL_SERVER_ERROR));
    let error = case.bench.turn().await.unwrap_err();
    assert!(error.to_string().starts_with("listing Nodes"), "{error}");
    assert_eq!(fake.writes(), 0);
    fake.state().refuse_path = None;
    assert_eq!(case.settle().await, [(1, Retiring), (2, Active)]);
}

#[tokio::test]
async fn long_lists_are_read_to_the_end() {
    let case = Case::new(0);
    for number in 0..1_203 {
        let mut object = node(1, "True");
        object["metadata"]["name"] = json!(format!("many-{number}"));
        case.fake().state().nodes.insert(format!("many-{number}"), object);
    }
    let view = view::list(&case.fake().client()).await.unwrap();
    assert_eq!((view.nodes.len(), view.said.len()), (1_203, 0));
    assert_eq!(case.fake().calls().len(), 4, "three pages of Nodes, one of NodeEncryptions");
}

#[tokio::test]
async fn nodes_that_vanish_all_at_once_are_not_believed_to_be_gone() {
    let mut case = Case::staged(5).await;
    case.speak_of([1]);
    case.settle().await;
    let lost: Vec<_> = (2..=5).map(|node| case.fake().state().nodes.remove(&name(node)).unwrap()).collect();
    case.bench.watch();
    let reason = case.waits().await;
    assert!(reason.contains("suddenly there are 1 Nodes instead of 5"), "{reason}");
    case.bench.advance(DISTRUST / 2);
    assert_eq!(case.settle().await, [(1, Active), (2, Staged)]);
    for (number, object) in (2..=5).zip(lost.clone()) {
        case.fake().state().nodes.insert(name(number), object);
    }
    case.bench.watch();
    assert!(case.waits().await.contains("node-2"));
    case.fake().state().nodes.retain(|other, _| *other == name(1));
    case.bench.watch();
    case.waits().await;
    case.bench.advance(DISTRUST);
    assert_eq!(case.settle().await, [(1, Retiring), (2, Active)], "in the end they are");
}

#[tokio::test]
async fn a_request_is_answered_by_the_write_that_stages() {
    let mut case = Case::steady(2).await;
    case.annotate(ROTATE, "");
    assert_eq!(case.settle().await, [(1, Active), (2, Staged)]);
    assert_eq!(case.annotation(ROTATE), None);
    assert_eq!(case.annotation("note").as_deref(), Some("ours"));
    assert_eq!(case.fake().writes(), 1);
    // One that comes while a rotation is under way stays for the next.
    case.annotate(ROTATE, "again");
    case.speak();
    case.settle().await;
    case.speak();
    case.settle().await;
    assert_eq!(case.annotation(ROTATE).as_deref(), Some("again"));
    case.bench.advance(DRAIN);
    assert_eq!(case.settle().await, [(2, Active), (3, Staged)]);
    assert_eq!(case.annotation(ROTATE), None);
}

#[tokio::test]
async fn the_command_asks_beside_whatever_else_is_written() {
    let mut case = Case::steady(2).await;
    let (fake, store) = (case.fake().clone(), Store::new(case.fake().client()));
    let before = fake.ring();
    fake.state().interfere = true;
    let goal = ask(&store, false).await.unwrap();
    assert_eq!(fake.writes(), 2, "the first one ran into another's");
    assert_eq!((fake.ring(), case.annotation("note").as_deref()), (before, Some("ours")));
    let phase = async || {
        let (ring, held) = store.read().await.unwrap();
        goal.phase(ring.ok().as_ref(), held.requests)
    };
    assert_eq!(phase().await, Phase::Asked);
    case.settle().await;
    assert_eq!(phase().await, Phase::Staged(2));
    case.speak_of([1]);
    case.settle().await;
    ask(&store, true).await.unwrap();
    assert_eq!((case.annotation(PRESS_ON).as_deref(), case.annotation(ROTATE)), (Some("true"), None));
    case.bench.advance(Duration::from_secs(30));
    case.settle().await;
    assert_eq!(phase().await, Phase::Draining(2));
    case.speak();
    case.settle().await;
    case.bench.advance(DRAIN);
    case.settle().await;
    assert_eq!(phase().await, Phase::Done(2));
    // What is no ring is not touched.
    fake.set(b"junk: true");
    fake.writes();
    let error = format!("{:#}", ask(&store, false).await.unwrap_err());
    assert!(error.contains("mended") && error.contains("not a YAML document"), "{error}");
    assert_eq!(fake.writes(), 0);
}

#[tokio::test]
async fn a_rotation_that_is_pressed_on_leaves_nodes_behind_and_only_that_one_does() {
    let mut case = Case::staged(2).await;
    case.speak_of([1]);
    case.annotate(PRESS_ON, "true");
    assert_eq!(case.settle().await, [(1, Active), (2, Staged)], "not at once");
    case.bench.advance(Duration::from_secs(30));
    assert_eq!(case.settle().await, [(1, Retiring), (2, Active)]);
    assert!(case.annotation(PRESS_ON).is_some(), "it is not over yet");
    case.speak_of([1]);
    case.settle().await;
    case.bench.advance(Duration::from_secs(30));
    case.settle().await;
    case.bench.advance(DRAIN);
    assert_eq!(case.settle().await, [(2, Active)]);
    assert_eq!(case.annotation(PRESS_ON), None);
    // The first key is over when it is activated.
    let mut case = Case::new(2);
    case.annotate(PRESS_ON, "true");
    case.settle().await;
    case.speak();
    assert_eq!(case.settle().await, [(1, Active)]);
    assert_eq!(case.annotation(PRESS_ON), None);
}

#[tokio::test]
async fn a_leftover_press_on_forces_no_rotation_that_comes_by_itself() {
    let mut case = Case::steady(2).await;
    case.annotate(PRESS_ON, "true");
    case.bench.advance(INTERVAL);
    assert_eq!(case.settle().await, [(1, Active), (2, Staged)]);
    assert_eq!(case.annotation(PRESS_ON), None);
    // Asked for together, it stays.
    let mut case = Case::steady(2).await;
    case.annotate(PRESS_ON, "true");
    case.annotate(ROTATE, "now");
    assert_eq!(case.settle().await, [(1, Active), (2, Staged)]);
    assert_eq!(case.annotation(PRESS_ON).as_deref(), Some("true"));
}

#[tokio::test]
async fn a_node_that_lost_its_sas_gets_a_new_incarnation() {
    let mut case = Case::steady(3).await;
    let ring = case.fake().ring();
    let mut lost = word(2, &ring);
    lost.burnt.insert(ring.generations[0].uid, 0);
    say(case.fake(), 2, &serde_json::to_value(lost).unwrap());
    case.bench.watch();
    assert_eq!(case.settle().await, [(1, Active)]);
    let rekeyed = case.fake().ring();
    assert_eq!(rekeyed.generations[0].incarnations, BTreeMap::from([(uid(1, 2), 1)]));
    assert_eq!(rekeyed.revision, ring.revision + 1, "once");
    let [Notice::Event { reason: Reason::NodesRekeyed, note, .. }] = &case.bench.told()[..] else {
        panic!("one Event")
    };
    assert!(note.ends_with("node-2"), "{note}");
}

#[tokio::test]
async fn a_word_that_cannot_be_read_is_none() {
    for junk in [json!("hush"), json!({"node": 3}), json!(null)] {
        let mut case = Case::staged(3).await;
        say(case.fake(), 2, &junk);
        case.bench.watch();
        assert!(case.settle().await.ends_with(&[(2, Staged)]), "{junk}");
        assert_eq!(case.fake().ring().pending, [uid(1, 2)].into(), "peers do not encrypt to it");
        assert!(case.waits().await.ends_with("waiting for node-1, node-3"), "{junk}");
        case.speak();
        assert_eq!(case.settle().await, [(1, Retiring), (2, Active)]);
        // Those who leave do so together.
        case.bench.advance(Duration::from_secs(5));
        case.settle().await;
        assert_eq!(case.fake().ring().pending, [].into());
    }
}

#[tokio::test]
async fn one_bad_node_is_left_out() {
    let mut case = Case::new(3);
    case.settle().await;
    case.speak_of([1, 2]);
    assert_eq!(case.settle().await, [(1, Staged)]);
    case.bench.advance(PENDING_AFTER);
    assert_eq!(case.settle().await, [(1, Active)]);
    assert_eq!((case.fake().ring().pending, case.bench.metric("pending_nodes")), ([uid(1, 3)].into(), 1));
    let pending = case.bench.told().into_iter().find_map(|notice| match notice {
        Notice::Event { reason: Reason::NodesPending, note, .. } => Some(note),
        _ => None,
    });
    assert!(pending.unwrap().starts_with("node-3 are spoken to in the clear"));
    case.bench.advance(INTERVAL);
    case.settle().await;
    case.speak_of([1, 2]);
    assert_eq!(case.settle().await, [(1, Retiring), (2, Active)]);
    case.speak_of([1, 2]);
    case.bench.advance(LIMIT);
    case.settle().await;
    case.bench.advance(DRAIN);
    assert_eq!(case.settle().await, [(2, Active)]);
    case.speak();
    case.settle().await;
    assert_eq!(case.fake().ring().pending, [].into());
}

/// A manager that goes up to enforcing.
async fn insisting(nodes: usize) -> Case {
    let mut case = Case::new(nodes);
    case.bench = Bench::with(case.fake(), Options { goal: Goal::Auto, ..options() });
    case.bench.watch();
    case.settle().await;
    case.speak();
    assert_eq!(case.settle().await, [(1, Active)]);
    case
}

#[tokio::test]
async fn insisting_waits_for_everybody_and_is_told() {
    let mut case = insisting(2).await;
    assert_eq!(case.fake().ring().enforcement, Enforcement::Permissive, "nobody has said that it sends");
    let mut hindered = word(2, &case.fake().ring());
    hindered.obstacles.insert("eth0 has disable_policy set".to_owned());
    case.speak();
    say(case.fake(), 2, &serde_json::to_value(hindered).unwrap());
    case.bench.watch();
    let reason = case.waits().await;
    assert!(reason.contains("not insisted on yet (node-2: eth0 has disable_policy set)"), "{reason}");
    case.bench.advance(QUIET);
    case.waits().await;
    let told = case.bench.told();
    let waiting = told.iter().find_map(|notice| match notice {
        Notice::Event { reason: Reason::EnforcementWaiting, note, .. } => Some(note.as_str()),
        _ => None,
    });
    assert!(waiting.unwrap().ends_with("node-2: insisting: node-2: eth0 has disable_policy set"));
    case.speak();
    case.settle().await;
    assert_eq!(case.fake().ring().enforcement, Enforcement::Enforcing);
    assert_eq!(case.bench.metric("enforcement{enforcement=\"enforcing\"}"), 1);
    assert!(case.bench.events().contains(&Reason::Enforcing));
    // What comes up later lowers nothing.
    case.fake().state().encryptions.clear();
    case.bench.watch();
    case.settle().await;
    assert_eq!(case.fake().ring().enforcement, Enforcement::Enforcing);
}

#[tokio::test]
async fn insisting_is_checked_against_fresh_lists_and_not_done_in_doubt() {
    let mut case = insisting(5).await;
    case.speak();
    // One joined meanwhile.
    let fake = case.fake().clone();
    fake.state().nodes.insert(name(6), node(6, "True"));
    case.settle().await;
    assert_eq!((fake.ring().enforcement, fake.ring().pending), (Enforcement::Permissive, [uid(1, 6)].into()));
    fake.state().nodes.retain(|other, _| [name(1), name(2)].contains(other));
    case.bench.watch();
    case.bench.advance(Duration::from_secs(5));
    let reason = case.waits().await;
    assert!(reason.contains("suddenly there are 2 Nodes instead of 6"), "{reason}");
    assert_eq!(fake.ring().pending.len(), 1, "nor does anybody leave the list");
    case.bench.advance(DISTRUST);
    case.settle().await;
    assert_eq!((fake.ring().enforcement, fake.ring().pending), (Enforcement::Permissive, [].into()));
    case.speak_of([1, 2]);
    case.settle().await;
    assert_eq!(fake.ring().enforcement, Enforcement::Enforcing, "in the end they are gone");
}

#[tokio::test]
async fn relenting_needs_nobodys_word() {
    let mut case = insisting(2).await;
    case.speak();
    case.settle().await;
    let fake = case.fake().clone();
    assert_eq!(fake.ring().enforcement, Enforcement::Enforcing);
    case.annotate(ENFORCE, "off");
    let enforcing = fake.ring();
    // Just started, the lists are not there yet; and then nobody says whether they may be read at all.
    let mut other = Bench::with(&fake, options());
    let review = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews".to_owned();
    for refused in [None, Some((review, StatusCode::INTERNAL_SERVER_ERROR))] {
        fake.state().refuse_path = refused;
        fake.set(enforcing.to_yaml().as_bytes());
        assert_eq!(other.turn().await.unwrap(), Outcome::Written);
        assert_eq!(fake.ring().enforcement, Enforcement::Permissive);
        assert_eq!(other.events(), [Reason::Relented]);
    }
    let error = other.turn().await.unwrap_err();
    assert!(matches!(error, TurnError::Access(_)), "all the rest needs it: {error}");
    fake.state().refuse_path = None;
    let error = other.turn().await.unwrap_err();
    assert!(matches!(error, TurnError::View(_)), "all the rest needs it: {error}");
    assert_eq!(fake.ring().enforcement, Enforcement::Permissive);
}

#[tokio::test]
async fn who_has_to_relent_again_has_the_whole_time_again() {
    let mut case = insisting(2).await;
    case.speak();
    case.settle().await;
    case.speak();
    let (fake, enforcing) = (case.fake().clone(), case.fake().ring());
    case.annotate(ENFORCE, "permissive");
    case.settle().await;
    fake.state().nodes.insert(name(2), node(2, "False"));
    case.speak_of([1]);
    case.settle().await;
    case.bench.advance(LIMIT);
    fake.set(enforcing.to_yaml().as_bytes());
    case.annotate(ENFORCE, "off");
    assert_eq!(case.settle().await, [(1, Active)], "node-2 insists");
    assert_eq!(fake.ring().enforcement, Enforcement::Permissive);
    case.bench.advance(LIMIT);
    assert_eq!(case.settle().await, [(1, Retiring)], "it is left behind");
}

#[tokio::test]
async fn somebody_asks_for_the_way_down_and_up_again() {
    let mut case = insisting(2).await;
    case.speak();
    case.settle().await;
    let (fake, store) = (case.fake().clone(), Store::new(case.fake().client()));
    // Nonsense is none.
    case.annotate(ENFORCE, "aus");
    case.settle().await;
    assert_eq!(fake.ring().enforcement, Enforcement::Enforcing);
    case.speak();
    fake.state().interfere = true;
    enforce::ask(&store, Some(Enforcement::Off)).await.unwrap();
    assert_eq!(
        (case.annotation(ENFORCE).as_deref(), case.annotation("note").as_deref()),
        (Some("off"), Some("ours"))
    );
    case.annotate(PRESS_ON, "false");
    let reason = {
        case.settle().await;
        case.waits().await
    };
    assert!(reason.ends_with("every node accepts plaintext again, waiting for node-1, node-2"), "{reason}");
    assert_eq!(fake.ring().enforcement, Enforcement::Permissive);
    case.speak();
    assert_eq!(case.settle().await, [(1, Retiring)]);
    assert_eq!(case.bench.metric("phase{phase=\"stopping\"}"), 1);
    for node in 1..=2 {
        let silent = Acknowledgement { silent: true, ..word(node, &fake.ring()) };
        say(&fake, node, &serde_json::to_value(silent).unwrap());
    }
    case.bench.watch();
    assert_eq!(case.settle().await, [(1, Retiring)], "packets are under way");
    case.bench.advance(DRAIN);
    assert_eq!(case.settle().await, []);
    assert_eq!(fake.ring().enforcement, Enforcement::Off);
    let events = case.bench.events();
    assert!(events.ends_with(&[Reason::Relented, Reason::SwitchingOff, Reason::SwitchedOff]), "{events:?}");
    enforce::ask(&store, None).await.unwrap();
    assert_eq!(case.annotation(ENFORCE), None);
    assert_eq!(case.settle().await, [(2, Staged)], "what the manager was started with counts again");
}

#[tokio::test]
async fn a_wiped_ring_begins_above_what_living_nodes_know() {
    let mut case = Case::staged(2).await;
    case.speak();
    case.fake().set(b"");
    // Not the manager that knew the ring.
    let fake = case.fake().clone();
    let mut other = Bench::new(&fake);
    other.watch();
    assert_eq!(other.settle().await, [(3, Staged)]);
    case.bench = other;
    case.speak();
    assert_eq!(case.settle().await, [(3, Active)]);
}

#[tokio::test]
async fn of_two_managers_one_acts() {
    let mut case = Case::staged(2).await;
    let fake = case.fake().clone();
    let mut other = Bench::new(&fake);
    other.now = case.bench.now;
    case.speak();
    other.watch();
    fake.writes();
    // The other one writes while this one lists.
    fake.state().interfere = true;
    assert_eq!(case.bench.turn().await.unwrap(), Outcome::Conflict);
    assert_eq!(other.turn().await.unwrap(), Outcome::Written);
    assert_eq!(case.settle().await, [(1, Retiring), (2, Active)]);
    assert_eq!(fake.writes(), 2);
}

#[tokio::test]
async fn people_hear_of_a_wait_and_nothing_depends_on_that() {
    let mut case = Case::staged(2).await;
    case.speak_of([1]);
    case.settle().await;
    assert_eq!(case.bench.events(), [Reason::RotationStarted]);
    case.bench.advance(QUIET);
    case.settle().await;
    let told = case.bench.told();
    let [Notice::Event { reason, note, secret }, Notice::Awaited { node, what }] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!(
        (*reason, note.as_str()),
        (Reason::RotationWaiting, "waiting for 15s for node-2: receiving generation 2")
    );
    assert!(secret.is_some());
    assert_eq!((node.as_str(), what.as_deref()), ("node-2", Some("receiving generation 2")));

    // Both reach the API; a node that never said anything has no object, which is no failure.
    let (outbox, receiver) = notices::queue();
    told.iter().for_each(|notice| outbox.put(notice.clone()));
    outbox.put(Notice::Awaited { node: name(1), what: what.clone() });
    drop(outbox);
    let fake = case.fake().clone();
    notices::deliver(fake.client(), receiver).await;
    let event = fake.state().events[0].clone();
    assert_eq!((&event["reason"], &event["type"]), (&json!("RotationWaiting"), &json!("Normal")));
    assert_eq!(event["involvedObject"]["kind"], json!("Secret"));
    assert_eq!(fake.state().encryptions[&name(1)]["status"]["awaited"], json!("receiving generation 2"));

    // Nobody takes notices any more: rotations go on.
    fake.state().refuse = Some((Method::POST, StatusCode::FORBIDDEN, "no".to_owned()));
    case.speak();
    assert_eq!(case.settle().await, [(1, Retiring), (2, Active)]);
}

#[tokio::test]
async fn the_startup_taint_goes_when_a_node_encrypts_or_nobody_is_to() {
    const TAINT: &str = "secureoverlay.io/starting";
    let mut case = Case::with(3, Options { startup_taint: Some(TAINT.to_owned()), ..options() });
    let other = json!({"key": "other", "value": "x", "effect": "NoExecute"});
    for node in 1..=3 {
        let taints = json!([{"key": TAINT, "effect": "NoSchedule"}, other]);
        case.fake().state().nodes.get_mut(&name(node)).unwrap()["spec"]["taints"] = taints;
    }
    let lifted = |case: &mut Case| {
        let lifts = case.bench.told().into_iter().filter(|notice| matches!(notice, Notice::Lift { .. }));
        lifts.collect::<Vec<_>>()
    };
    case.bench.watch();
    case.settle().await;
    case.speak();
    assert_eq!(case.settle().await, [(1, Active)]);
    assert_eq!(lifted(&mut case), [], "nobody encrypts yet");

    case.speak_of([1, 2]);
    case.settle().await;
    let lifts = lifted(&mut case);
    let lift = |node| Notice::Lift { node: name(node), key: TAINT.to_owned() };
    assert_eq!(lifts, [lift(1), lift(2)]);
    let (outbox, receiver) = notices::queue();
    lifts.into_iter().chain([lift(9)]).for_each(|lift| outbox.put(lift));
    drop(outbox);
    // Its kubelet writes one of them at the same moment.
    case.fake().state().interfere = true;
    notices::deliver(case.fake().client(), receiver).await;
    let taints = |node| case.fake().state().nodes[&name(node)]["spec"]["taints"].as_array().unwrap().clone();
    assert_eq!([1, 2].map(taints), [[other.clone()], [other.clone()]]);
    assert_eq!(taints(3).len(), 2);

    case.bench.watch();
    case.settle().await;
    assert_eq!(lifted(&mut case), []);
    case.annotate(ENFORCE, "off");
    case.settle().await;
    assert_eq!(lifted(&mut case), [lift(3)]);
}

#[tokio::test]
async fn a_ring_that_cannot_be_read_is_told_once() {
    let mut case = Case::steady(2).await;
    let good = case.fake().ring().to_yaml();
    for document in ["junk: true", "junk: true", "version: 9"] {
        case.fake().set(document.as_bytes());
        assert!(case.bench.turn().await.is_err());
    }
    assert_eq!(case.bench.events(), [Reason::RingUnreadable, Reason::RingUnreadable]);
    case.fake().set(b"");
    assert_eq!(case.bench.turn().await.unwrap(), Outcome::Written);
    assert_eq!(case.bench.events(), [Reason::RingRestored]);
    assert_eq!(*case.fake().ring().to_yaml().lines().last().unwrap(), *good.lines().last().unwrap());
}

#[tokio::test]
async fn the_watches_fill_the_view_and_tell_of_changes() {
    let fake = Fake::new();
    fake.state().nodes.insert(name(1), node(1, "True"));
    let (events, watch) = unbounded();
    fake.state().watch = Some(watch);
    let cluster = Cluster::default();
    let follow = tokio::spawn(cluster::follow(fake.client(), cluster.clone()));
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(fake.calls().is_empty(), "not before they are wanted");
    cluster.want();
    while cluster.view().is_err() {
        cluster.changed().await;
    }
    assert_eq!(cluster.view().unwrap().nodes.len(), 1);
    events.unbounded_send(json!({"type": "ADDED", "object": node(2, "True")})).unwrap();
    while cluster.view().unwrap().nodes.len() < 2 {
        cluster.changed().await;
    }
    events.unbounded_send(json!({"type": "DELETED", "object": node(1, "True")})).unwrap();
    while cluster.view().unwrap().nodes.len() > 1 {
        cluster.changed().await;
    }
    assert_eq!(cluster.view().unwrap().nodes[0].name, "node-2");
    follow.abort();
}
