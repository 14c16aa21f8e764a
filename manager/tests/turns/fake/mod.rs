//! An API server that holds one Secret, one DaemonSet, Nodes and NodeEncryptions, and remembers what it was asked.

pub mod bench;
pub mod cluster;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::http::{Method, Request, Response, StatusCode};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use futures::{StreamExt, channel::mpsc::UnboundedReceiver, stream};
use kube::{Client, client::Body};
use secureoverlay_common::ring::Ring;
use serde_json::{Value, json};
use tower::service_fn;

const SECRET: &str = "/api/v1/namespaces/kube-system/secrets/ucp-secureoverlay";
const DAEMON_SET: &str = "/apis/apps/v1/namespaces/kube-system/daemonsets/ucp-secureoverlay-agent";
const NODES: &str = "/api/v1/nodes";
const ENCRYPTIONS: &str = "/apis/secureoverlay.io/v1alpha1/nodeencryptions";
const EVENTS: &str = "/api/v1/namespaces/kube-system/events";
const REVIEW: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

#[derive(Clone)]
pub struct Fake(Arc<Mutex<State>>);

pub struct State {
    pub secret: Option<Value>,
    /// The DaemonSet's metadata.
    pub daemon_set: Option<Value>,
    pub may_read_daemon_set: bool,
    pub may_list_nodes: bool,
    /// By name.
    pub nodes: BTreeMap<String, Value>,
    /// By name.
    pub encryptions: BTreeMap<String, Value>,
    /// As they were posted.
    pub events: Vec<Value>,
    /// What watches of the Nodes tell from now on.
    pub watch: Option<UnboundedReceiver<Value>>,
    /// Method and path of every request.
    pub calls: Vec<String>,
    /// Requests of this method are answered with this, whatever they are.
    pub refuse: Option<(Method, StatusCode, String)>,
    /// Requests of this path are refused with this.
    pub refuse_path: Option<(String, StatusCode)>,
    /// The DaemonSet is answered for with this.
    pub override_daemon_set: Option<(StatusCode, String)>,
    /// Another writer changes the Secret once, between our reading and our writing.
    pub interfere: bool,
}

impl Fake {
    pub fn new() -> Self {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {
                "name": "ucp-secureoverlay", "namespace": "kube-system", "resourceVersion": "1",
                "uid": "11111111-2222-3333-4444-555555555555",
                "labels": {"team": "network"}, "annotations": {"note": "ours"},
            },
        });
        Self(Arc::new(Mutex::new(State {
            secret: Some(secret),
            daemon_set: None,
            may_read_daemon_set: false,
            may_list_nodes: false,
            nodes: BTreeMap::new(),
            encryptions: BTreeMap::new(),
            events: Vec::new(),
            watch: None,
            calls: Vec::new(),
            refuse: None,
            refuse_path: None,
            override_daemon_set: None,
            interfere: false,
        })))
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn client(&self) -> Client {
        let fake = self.clone();
        Client::new(
            service_fn(move |request: Request<Body>| {
                let fake = fake.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect_bytes().await.unwrap();
                    let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
                    if query.contains("watch=true") {
                        return Ok(fake.watch(path));
                    }
                    let (status, answer) = fake.answer(&parts.method, path, query, &body);
                    let mut response = Response::new(axum::body::Body::from(answer));
                    *response.status_mut() = status;
                    Ok::<_, Infallible>(response)
                }
            }),
            "default",
        )
    }

    /// One that tells what [`State::watch`] yields, or nothing for ever.
    fn watch(&self, path: &str) -> Response<axum::body::Body> {
        let mut state = self.state();
        state.calls.push(format!("WATCH {path}"));
        let events = if path == NODES { state.watch.take() } else { None };
        let lines = match events {
            Some(events) => events.map(|event| Ok::<_, Infallible>(format!("{event}\n"))).boxed(),
            None => stream::pending().boxed(),
        };
        Response::new(axum::body::Body::from_stream(lines))
    }

    fn answer(&self, method: &Method, path: &str, query: &str, body: &[u8]) -> (StatusCode, String) {
        let mut state = self.state();
        state.calls.push(format!("{method} {path}"));
        if let Some((_, status, text)) = state.refuse.as_ref().filter(|(refused, ..)| refused == method) {
            return (*status, text.clone());
        }
        if let Some((_, code)) = state.refuse_path.as_ref().filter(|(refused, _)| refused == path) {
            return status(*code, "InternalError", "refused for the test", &Value::Null);
        }
        match (method, path) {
            (&Method::GET, SECRET) => match &state.secret {
                Some(secret) => (StatusCode::OK, secret.to_string()),
                None => not_found("secrets", "ucp-secureoverlay"),
            },
            (&Method::PUT, SECRET) => {
                if std::mem::take(&mut state.interfere) {
                    state.bump();
                }
                let mut new: Value = serde_json::from_slice(body).unwrap();
                let old = state.secret.as_ref().expect("only an existing Secret is replaced");
                if new["metadata"]["resourceVersion"] != old["metadata"]["resourceVersion"] {
                    return status(
                        StatusCode::CONFLICT,
                        "Conflict",
                        "the object has been modified",
                        &Value::Null,
                    );
                }
                new["metadata"]["uid"] = old["metadata"]["uid"].clone();
                state.secret = Some(new);
                state.bump();
                (StatusCode::OK, state.secret.as_ref().unwrap().to_string())
            }
            (&Method::GET, DAEMON_SET) => match (&state.override_daemon_set, &state.daemon_set) {
                (Some(answer), _) => answer.clone(),
                (None, Some(meta)) => {
                    let answer = json!({
                        "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": meta,
                    });
                    (StatusCode::OK, answer.to_string())
                }
                (None, None) => not_found("daemonsets", "ucp-secureoverlay-agent"),
            },
            (&Method::POST, REVIEW) => {
                let mut review: Value = serde_json::from_slice(body).unwrap();
                let asked = &review["spec"]["resourceAttributes"];
                let allowed = match (asked["verb"].as_str().unwrap(), asked["resource"].as_str().unwrap()) {
                    ("get", "daemonsets") => state.may_read_daemon_set,
                    ("list", "nodes" | "nodeencryptions") => state.may_list_nodes,
                    other => panic!("unexpected question: {other:?}"),
                };
                review["status"] = json!({"allowed": allowed});
                (StatusCode::CREATED, review.to_string())
            }
            (&Method::GET, NODES) => list(&state.nodes, query),
            (&Method::GET, ENCRYPTIONS) => list(&state.encryptions, query),
            (&Method::POST, EVENTS) => {
                let event: Value = serde_json::from_slice(body).unwrap();
                state.events.push(event.clone());
                (StatusCode::CREATED, event.to_string())
            }
            (&Method::GET, path) if path.starts_with(NODES) => {
                let name = path.strip_prefix(&format!("{NODES}/")).unwrap();
                state
                    .nodes
                    .get(name)
                    .map_or_else(|| not_found("nodes", name), |node| (StatusCode::OK, node.to_string()))
            }
            (&Method::PATCH, path) if path.starts_with(NODES) => {
                let name = path.strip_prefix(&format!("{NODES}/")).unwrap().to_owned();
                let conflict = std::mem::take(&mut state.interfere);
                let patch: Value = serde_json::from_slice(body).unwrap();
                let node = state.nodes.get_mut(&name).unwrap();
                if conflict {
                    node["metadata"]["resourceVersion"] = json!("2");
                }
                if patch["metadata"]["resourceVersion"] != node["metadata"]["resourceVersion"] {
                    return status(
                        StatusCode::CONFLICT,
                        "Conflict",
                        "the object has been modified",
                        &Value::Null,
                    );
                }
                node["spec"]["taints"] = patch["spec"]["taints"].clone();
                (StatusCode::OK, node.to_string())
            }
            (&Method::PATCH, path) => {
                let name = path.strip_prefix(&format!("{ENCRYPTIONS}/")).unwrap();
                let name = name.strip_suffix("/status").unwrap();
                let patch: Value = serde_json::from_slice(body).unwrap();
                let Some(object) = state.encryptions.get_mut(name) else {
                    return not_found("nodeencryptions", name);
                };
                object["status"]["awaited"] = patch["status"]["awaited"].clone();
                (StatusCode::OK, object.to_string())
            }
            _ => panic!("unexpected request: {method} {path}"),
        }
    }

    /// The ring as the agents would read it.
    pub fn ring(&self) -> Ring {
        let text = self.state().secret.as_ref().unwrap()["data"]["keys"].as_str().unwrap().to_owned();
        Ring::parse(&BASE64.decode(text).unwrap()).unwrap()
    }

    /// Somebody writes the Secret's entry.
    pub fn set(&self, document: &[u8]) {
        let mut state = self.state();
        state.secret.as_mut().unwrap()["data"] = json!({"keys": BASE64.encode(document)});
        state.bump();
    }

    /// The requests since the last call.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }

    /// How many of them are writes.
    pub fn writes(&self) -> usize {
        self.calls().iter().filter(|call| call.starts_with("PUT")).count()
    }
}

/// A page of a list, as `limit` and `continue` ask for.
fn list(objects: &BTreeMap<String, Value>, query: &str) -> (StatusCode, String) {
    let parameter = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find_map(|(other, value)| (other == name).then(|| value.parse::<usize>().unwrap()))
    };
    let (from, limit) = (parameter("continue").unwrap_or(0), parameter("limit").expect("lists are paged"));
    let items: Vec<_> = objects.values().skip(from).take(limit).collect();
    let next = (from + items.len() < objects.len()).then(|| (from + items.len()).to_string());
    let metadata = json!({"resourceVersion": "1", "continue": next});
    (StatusCode::OK, json!({"metadata": metadata, "items": items}).to_string())
}

impl State {
    fn bump(&mut self) {
        let version = &mut self.secret.as_mut().unwrap()["metadata"]["resourceVersion"];
        *version = json!((version.as_str().unwrap().parse::<u64>().unwrap() + 1).to_string());
    }
}

fn not_found(kind: &str, name: &str) -> (StatusCode, String) {
    let details = json!({"name": name, "kind": kind});
    status(StatusCode::NOT_FOUND, "NotFound", &format!("{kind} {name:?} not found"), &details)
}

pub fn status(code: StatusCode, reason: &str, message: &str, details: &Value) -> (StatusCode, String) {
    let mut status = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "metadata": {},
        "code": code.as_u16(), "reason": reason, "message": message,
    });
    if !details.is_null() {
        status["details"] = details.clone();
    }
    (code, status.to_string())
}
