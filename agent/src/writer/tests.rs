use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use axum::http::{Method, Request, Response};
use kube::client::Body;
use secureoverlay_common::acknowledgement::Acknowledgement;
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
                assert!(body.as_object().unwrap().keys().all(|key| (key == "status") == status), "{body}");
                merge(object, body);
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
fn merge(target: &mut Value, patch: &Value) {
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
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

fn uid(n: u8) -> Uid {
    Uid::from_random([n; 16])
}

fn want(node: u8, receives: &[u8], peers: usize) -> Wanted {
    let said = Acknowledgement {
        node: uid(node),
        boot: uid(101),
        installation: None,
        receives: receives.iter().map(|n| (uid(*n), [(uid(1), u32::from(*n))].into())).collect(),
        sends: receives.first().map(|n| uid(*n)),
        silent: false,
        revision: 1,
        encrypts: false,
        burnt: [].into(),
        spent: [].into(),
        newest: 1,
        enforcement: secureoverlay_common::ring::Enforcement::Permissive,
        obstacles: [].into(),
        unreachable: None,
        oversized: false,
    };
    let condition = |kind: &str, holds: bool| {
        let status = if holds { "True" } else { "False" };
        json!({ "type": kind, "status": status, "reason": "R", "message": "", "lastTransitionTime": "1970-01-01T00:00:00Z" })
    };
    let conditions = json!([condition("Ready", !receives.is_empty()), condition("KeysValid", true)]);
    let conditions = serde_json::from_value(conditions).unwrap();
    let status =
        NodeEncryptionStatus { acknowledgement: Some(said), conditions, ..NodeEncryptionStatus::default() };
    Wanted { node: uid(node), peers, status }
}

struct Case {
    server: Arc<Mutex<Server>>,
    wanted: watch::Sender<Option<Wanted>>,
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

    fn want(&self, want: Wanted) {
        self.wanted.send(Some(want)).unwrap();
    }

    fn requests(&self) -> usize {
        self.with(|server| server.log.len())
    }

    fn writes(&self) -> usize {
        self.with(|server| server.log.iter().filter(|request| !request.starts_with("GET")).count())
    }

    fn said(&self) -> Acknowledgement {
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
    assert_eq!(case.said(), want(1, &[1, 2], 2).status.acknowledgement.unwrap());
    // The manager writes its field; what we no longer say is not left behind.
    case.with(|server| merge(server.object.as_mut().unwrap(), &json!({ "status": { "awaited": "you" } })));
    case.want(want(1, &[2, 3], 2));
    sleep(SECOND).await;
    assert_eq!(case.said(), want(1, &[2, 3], 2).status.acknowledgement.unwrap());
    case.want(want(1, &[], 2));
    sleep(SECOND).await;
    assert_eq!(case.said(), want(1, &[], 2).status.acknowledgement.unwrap());
    assert_eq!(case.with(|server| server.status()["awaited"].clone()), json!("you"));
    assert_eq!(case.metrics.acknowledgements("written"), 3);
    case.wanted.send(None).unwrap();
    let before = case.requests();
    sleep(10 * HEARTBEAT).await;
    assert_eq!(case.requests(), before, "a removal is not written about");
    drop(case.wanted);
    case.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_comes_and_conditions_keep_their_time() {
    let old = json!({ "conditions": [
        { "type": "Ready", "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2020-02-02T00:00:00Z" },
        { "type": "KeysValid", "status": "False", "reason": "R", "message": "", "lastTransitionTime": "2020-02-02T00:00:00Z" },
    ], "acknowledgement": "somebody else's noise" });
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
    let before = case.writes();
    sleep(HEARTBEAT.mul_f64(0.85)).await;
    assert_eq!(case.writes(), before);
    sleep(HEARTBEAT.mul_f64(0.3)).await;
    assert_eq!(case.writes(), before + 1, "one request is a heartbeat");
    // The Node was made anew under the same name.
    case.want(want(2, &[1], 2));
    sleep(SECOND).await;
    assert_eq!(
        case.with(|server| server.object.as_ref().unwrap()["metadata"]["ownerReferences"][0]["uid"].clone()),
        json!(uid(2))
    );
}

#[tokio::test(start_paused = true)]
async fn failures_are_outlived_and_a_missing_right_is_asked_for_rarely() {
    let case = Case::start(Server { fails: Some(500), ..Server::default() });
    case.want(want(1, &[1], 2));
    sleep(600 * SECOND).await;
    assert!((8..40).contains(&case.metrics.acknowledgements("failed")), "{:?}", case.with(|s| s.log.len()));
    case.with(|server| server.fails = None);
    sleep(RETRY_LAST * 2).await;
    assert_eq!(case.metrics.acknowledgements("written"), 1);
    // Somebody deletes the object; the next word brings it back.
    case.with(|server| server.object = None);
    case.want(want(1, &[1, 2], 2));
    sleep(10 * SECOND).await;
    assert_eq!(case.said().receives.len(), 2);
    // It does not take a word.
    case.with(|server| server.object = None);
    sleep(2 * LOOK).await;
    assert_eq!(case.said().receives.len(), 2);
    case.with(|server| {
        merge(server.object.as_mut().unwrap(), &json!({ "status": { "acknowledgement": null } }));
    });
    sleep(2 * LOOK).await;
    assert_eq!(case.said().receives.len(), 2);
    // An API server that does not answer says nothing about the object.
    let before = case.writes();
    case.with(|server| server.fails = Some(500));
    sleep(2 * LOOK).await;
    assert_eq!(case.writes(), before);
    let case = Case::start(Server { refuses: true, ..Server::default() });
    case.want(want(1, &[1], 2));
    sleep(3600 * SECOND).await;
    assert!((10..30).contains(&case.requests()), "{}", case.requests());
    assert!(case.with(|server| server.object.is_none()));
    case.with(|server| server.refuses = false);
    sleep(600 * SECOND).await;
    assert_eq!(case.said().receives.len(), 1);
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
    assert_eq!((case.requests(), case.said().receives.contains_key(&uid(39))), (before + 1, true));
    // Traffic stands still until this is heard.
    let mut lost = want(1, &[39], 5000);
    lost.status.acknowledgement.as_mut().unwrap().burnt = [(uid(39), 0)].into();
    case.want(lost);
    sleep(HURRY + SECOND).await;
    assert_eq!(case.said().burnt.len(), 1);
}

#[test]
fn nodes_spread_evenly() {
    let early = (0..1000).filter(|n| share(&format!("node-{n}")) < 0.5).count();
    assert!((400..600).contains(&early), "{early}");
    assert_eq!([spread(10), spread(49), spread(5000)], [Duration::ZERO, Duration::ZERO, 50 * SECOND]);
}

#[test]
fn a_change_leads_from_one_value_to_the_other() {
    let values = [
        json!({}),
        json!({ "a": 1, "b": { "c": [1], "d": { "e": 1 } } }),
        json!({ "b": { "d": { "f": 2 } }, "g": "x" }),
        json!({ "b": 3 }),
    ];
    for from in &values {
        for to in &values {
            let mut value = from.clone();
            merge(&mut value, &change(from, to));
            assert_eq!(&value, to);
        }
        assert_eq!(change(from, from), json!({}));
    }
}
