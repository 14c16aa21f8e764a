use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use axum::http::{Method, Request, Response};
use kube::client::Body;
use secureoverlay_keyring::{
    acknowledgement::{Acknowledgement, UnknownGateways},
    keyring::Enforcement,
};
use tokio::task::JoinHandle;
use tower::service_fn;

use super::*;

/// An API server with one object, which answers as a real one does.
#[derive(Default)]
struct Server {
    object: Option<Value>,
    /// Access reviews say no.
    refuses: bool,
    /// Writes get this status instead.
    fails: Option<u16>,
    /// Method and path of each request.
    log: Vec<String>,
}

impl Server {
    fn answer(&mut self, method: &Method, path: &str, body: &Value) -> (u16, Value) {
        self.log.push(format!("{method} {path}"));
        if path.ends_with("/selfsubjectaccessreviews") {
            let asked = &body["spec"]["resourceAttributes"];
            let asked = [&asked["verb"], &asked["resource"], &asked["subresource"]];
            assert_eq!(asked, ["patch", "nodeencryptions", "status"]);
            return (201, json!({ "spec": {}, "status": { "allowed": !self.refuses } }));
        }
        if let Some(code) = self.fails {
            return (code, failure(code));
        }
        match (method.as_str(), &mut self.object) {
            ("PATCH" | "GET", None) => (404, failure(404)),
            ("GET", Some(object)) => (200, object.clone()),
            ("PATCH", Some(object)) => {
                let status = path.ends_with("/status");
                assert_eq!(body.get("status").is_some(), status, "{body}");
                apply(object, body);
                (200, object.clone())
            }
            ("POST", None) => {
                let mut object = body.clone();
                // A status in a creation is ignored.
                object.as_object_mut().unwrap().remove("status");
                self.object = Some(object.clone());
                (201, object)
            }
            _ => panic!("not expected: {method} {path}"),
        }
    }

    fn status(&self) -> &Value {
        &self.object.as_ref().unwrap()["status"]
    }
}

fn failure(code: u16) -> Value {
    let reason = if code == 404 { "NotFound" } else { "No" };
    json!({ "kind": "Status", "status": "Failure", "message": "no", "reason": reason, "code": code })
}

/// RFC 7386.
fn apply(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().unwrap();
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            apply(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

fn uid(n: u8) -> Uid {
    Uid::from_random([n; 16])
}

fn want(node: u8, receivable: &[u8], peers: usize) -> DesiredStatus {
    let ack = Acknowledgement {
        ack_id: uid(90),
        node_uid: uid(node),
        instance: uid(101).into(),
        receivable: receivable.iter().map(|n| uid(*n)).collect(),
        proven_generations: [].into(),
        active_generation: receivable.first().map(|n| uid(*n)),
        sends_none: receivable.is_empty(),
        all_pairs_proven: false,
        exhausted_generations: [].into(),
        highest_generation_seen: 1,
        enforcement: Enforcement::Permissive,
        enforcement_blockers: [].into(),
        unproven_pairs: vec![],
        tunnel_mtu_too_large: false,
        unknown_gateways: UnknownGateways::default(),
        no_peers: false,
    };
    let condition = |kind: &str, holds: bool| {
        let status = if holds { "True" } else { "False" };
        json!({ "type": kind, "status": status, "reason": "R", "message": "", "lastTransitionTime": "1970-01-01T00:00:00Z" })
    };
    let conditions = json!([condition("Ready", !receivable.is_empty()), condition("KeysValid", true)]);
    let conditions = serde_json::from_value(conditions).unwrap();
    let key = receivable.first().map(|n| u64::from(*n));
    let status = NodeEncryptionStatus {
        acknowledgement: Some(ack),
        key,
        conditions,
        ..NodeEncryptionStatus::default()
    };
    DesiredStatus { node: uid(node), peers, renewal: 0, status }
}

struct Case {
    server: Arc<Mutex<Server>>,
    wanted: watch::Sender<Option<DesiredStatus>>,
    task: JoinHandle<()>,
    metrics: Metrics,
}

impl Case {
    fn start(server: Server) -> Self {
        let server = Arc::new(Mutex::new(server));
        let behind = server.clone();
        let respond = move |request: Request<Body>| {
            let server = behind.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
                let (code, answer) = server.lock().unwrap().answer(&parts.method, parts.uri.path(), &body);
                let body = Body::from(serde_json::to_vec(&answer).unwrap());
                Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap())
            }
        };
        let client = Client::new(service_fn(respond), "default");
        let (wanted, receiver) = watch::channel(None);
        let (metrics, _) = Metrics::new();
        let task = tokio::spawn(write(client, "node-1".to_owned(), receiver, metrics.clone()));
        Self { server, wanted, task, metrics }
    }

    fn with<T>(&self, what: impl FnOnce(&mut Server) -> T) -> T {
        what(&mut self.server.lock().unwrap())
    }

    fn want(&self, want: DesiredStatus) {
        self.wanted.send(Some(want)).unwrap();
    }

    fn requests(&self) -> usize {
        self.with(|server| server.log.len())
    }

    fn written(&self) -> Acknowledgement {
        self.with(|server| serde_json::from_value(server.status()["acknowledgement"].clone()).unwrap())
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn the_object_is_made_and_follows() {
    let case = Case::start(Server::default());
    sleep(SECOND).await;
    assert_eq!(case.requests(), 0, "nothing is known yet");
    case.want(want(1, &[1, 2], 2));
    sleep(SECOND).await;
    let object = case.with(|server| server.object.clone()).unwrap();
    assert_eq!((&object["kind"], &object["metadata"]["name"]), (&json!("NodeEncryption"), &json!("node-1")));
    let owner = &object["metadata"]["ownerReferences"][0];
    assert_eq!(
        (&owner["uid"], &owner["kind"], owner.get("controller")),
        (&json!(uid(1)), &json!("Node"), None)
    );
    assert_eq!(case.written(), want(1, &[1, 2], 2).status.acknowledgement.unwrap());
    case.want(want(1, &[2, 3], 2));
    sleep(SECOND).await;
    assert_eq!(case.written(), want(1, &[2, 3], 2).status.acknowledgement.unwrap());
    // What is not said any more is not left behind.
    case.want(want(1, &[], 2));
    sleep(SECOND).await;
    assert_eq!(case.written(), want(1, &[], 2).status.acknowledgement.unwrap());
    assert!(case.with(|server| server.status()["key"].is_null()));
    assert_eq!(case.metrics.status_writes("written"), 3);
    case.wanted.send(None).unwrap();
    let before = case.requests();
    sleep(86_400 * SECOND).await;
    assert_eq!(case.requests(), before, "a removal is not written about");
    drop(case.wanted);
    case.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn conditions_keep_their_time_and_nothing_is_written_while_nothing_changes() {
    let old = json!({ "conditions": [
        { "type": "Ready", "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2020-02-02T00:00:00Z" },
        { "type": "KeysValid", "status": "False", "reason": "R", "message": "", "lastTransitionTime": "2020-02-02T00:00:00Z" },
    ], "acknowledgement": "noise" });
    let object = json!({ "apiVersion": "secureoverlay.io/v1alpha1", "kind": "NodeEncryption",
        "metadata": { "name": "node-1", "ownerReferences": [{ "uid": uid(9) }] }, "status": old });
    let case = Case::start(Server { object: Some(object), ..Server::default() });
    case.want(want(1, &[1], 2));
    sleep(SECOND).await;
    let since = |case: &Case, at: usize| {
        case.with(|server| server.status()["conditions"][at]["lastTransitionTime"].clone())
    };
    assert_eq!(since(&case, 0), json!("2020-02-02T00:00:00Z"), "as before this agent's time");
    assert_ne!(since(&case, 1), json!("2020-02-02T00:00:00Z"));
    assert_ne!(since(&case, 1), json!("1970-01-01T00:00:00Z"));
    assert_eq!(
        case.with(|server| server.object.as_ref().unwrap()["metadata"]["ownerReferences"][0]["uid"].clone()),
        json!(uid(1))
    );
    let before = case.requests();
    sleep(86_400 * SECOND).await;
    assert_eq!(case.requests(), before);
    // The Node was made anew under the same name.
    case.want(want(2, &[1], 2));
    sleep(SECOND).await;
    assert_eq!(
        case.with(|server| server.object.as_ref().unwrap()["metadata"]["ownerReferences"][0]["uid"].clone()),
        json!(uid(2))
    );
}

#[tokio::test(start_paused = true)]
async fn same_status_is_written_anew_once_the_history_went_back() {
    let case = Case::start(Server::default());
    let same = want(1, &[1, 2], 2);
    case.want(same.clone());
    sleep(SECOND).await;
    let backup = json!([uid(1)]);
    case.with(|server| {
        server.object.as_mut().unwrap()["status"]["acknowledgement"]["receivable"] = backup;
    });
    case.want(DesiredStatus { renewal: 1, ..same.clone() });
    sleep(SECOND).await;
    assert_eq!(case.written(), same.status.acknowledgement.unwrap());
    assert_eq!(case.metrics.status_writes("written"), 2);
}

#[tokio::test(start_paused = true)]
async fn failures_are_outlived_and_a_missing_right_is_asked_for_rarely() {
    let case = Case::start(Server { fails: Some(500), ..Server::default() });
    case.want(want(1, &[1], 2));
    sleep(600 * SECOND).await;
    assert!((8..40).contains(&case.metrics.status_writes("failed")), "{:?}", case.with(|s| s.log.len()));
    case.with(|server| server.fails = None);
    sleep(RETRY_LAST * 2).await;
    assert_eq!(case.metrics.status_writes("written"), 1);
    // The object is deleted: the next write makes it again.
    case.with(|server| server.object = None);
    case.want(want(1, &[1, 2], 2));
    sleep(10 * SECOND).await;
    assert_eq!(case.written().receivable.len(), 2);
    let case = Case::start(Server { refuses: true, ..Server::default() });
    case.want(want(1, &[1], 2));
    sleep(3600 * SECOND).await;
    assert!((10..30).contains(&case.requests()), "{}", case.requests());
    assert!(case.with(|server| server.object.is_none()));
    case.with(|server| server.refuses = false);
    sleep(600 * SECOND).await;
    assert_eq!(case.written().receivable.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_large_cluster_does_not_write_all_at_once() {
    let case = Case::start(Server::default());
    case.want(want(1, &[1], 5000));
    let mut waited = 0;
    while case.with(|server| server.object.is_none()) {
        sleep(SECOND).await;
        waited += 1;
    }
    let own = 50.0 * share("node-1");
    assert!((own..own + 2.0).contains(&f64::from(waited)), "{waited} and not {own}");
    let before = case.requests();
    for n in 2..40 {
        case.want(want(1, &[n], 5000));
        sleep(SECOND).await;
    }
    assert_eq!(case.requests(), before, "one word in 50 s is enough");
    sleep(50 * SECOND).await;
    assert_eq!((case.requests(), case.written().receivable.contains(&uid(39))), (before + 1, true));
}

#[test]
fn nodes_spread_evenly() {
    let early = (0..1000).filter(|n| share(&format!("node-{n}")) < 0.5).count();
    assert!((400..600).contains(&early), "{early}");
    assert_eq!([spread(10), spread(49), spread(5000)], [Duration::ZERO, Duration::ZERO, 50 * SECOND]);
}

#[tokio::test(start_paused = true)]
async fn pair_that_is_proven_soon_is_not_written_about_and_one_that_is_not_is() {
    let with = |all_pairs_proven: bool| {
        let mut want = want(1, &[1], 2);
        want.status.acknowledgement.as_mut().unwrap().all_pairs_proven = all_pairs_proven;
        want
    };
    let case = Case::start(Server::default());
    let writes = || case.metrics.status_writes("written");
    case.want(with(true));
    sleep(SECOND).await;
    assert_eq!(writes(), 1);
    case.want(with(false));
    sleep(20 * SECOND).await;
    case.want(with(true));
    sleep(60 * SECOND).await;
    assert_eq!(writes(), 1, "a node has joined");
    case.want(with(false));
    sleep(29 * SECOND).await;
    assert_eq!(writes(), 1);
    sleep(2 * SECOND).await;
    assert_eq!((writes(), case.written().all_pairs_proven), (2, false));
    case.want(with(true));
    sleep(SECOND).await;
    assert_eq!((writes(), case.written().all_pairs_proven), (3, true), "good news is written at once");
}
