//! An API server that holds one Secret, one DaemonSet, Nodes, EncryptionPeers and NodeEncryptions, and remembers what it
//! was asked.

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
use secureoverlay_keyring::keyring::KeyRing;
use serde_json::{Value, json};
use tower::service_fn;

const SECRET: &str = "/api/v1/namespaces/kube-system/secrets/ucp-secureoverlay";
const DAEMON_SET: &str = "/apis/apps/v1/namespaces/kube-system/daemonsets/ucp-secureoverlay-agent";
const NODES: &str = "/api/v1/nodes";
const PEERS: &str = "/apis/secureoverlay.io/v1alpha1/encryptionpeers";
const PODS: &str = "/api/v1/namespaces/kube-system/pods";
const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
const ENCRYPTIONS: &str = "/apis/secureoverlay.io/v1alpha1/nodeencryptions";
const ROTATIONS: &str = "/apis/secureoverlay.io/v1alpha1/keyrotations";
const SETTINGS_STATUS: &str = "/apis/secureoverlay.io/v1alpha1/clusterencryptions/default/status";
const EVENTS: &str = "/api/v1/namespaces/kube-system/events";
const EVENTS_OF_CLUSTER: &str = "/api/v1/namespaces/default/events";
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
    pub peers: BTreeMap<String, Value>,
    /// By name.
    pub encryptions: BTreeMap<String, Value>,
    /// By name.
    pub rotations: BTreeMap<String, Value>,
    /// Version of the Secret that the cache has, where that is another one.
    pub cached: Option<u64>,
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
    /// The next write of the Secret is done, and its answer lost.
    pub lose_answer: bool,
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
            peers: BTreeMap::new(),
            encryptions: BTreeMap::new(),
            rotations: BTreeMap::new(),
            cached: None,
            events: Vec::new(),
            watch: None,
            calls: Vec::new(),
            refuse: None,
            refuse_path: None,
            override_daemon_set: None,
            lose_answer: false,
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
                Some(secret) => {
                    let mut secret = secret.clone();
                    if let Some(cached) = state.cached.filter(|_| query.contains("resourceVersion=0")) {
                        secret["metadata"]["resourceVersion"] = json!(cached.to_string());
                    }
                    (StatusCode::OK, secret.to_string())
                }
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
                if std::mem::take(&mut state.lose_answer) {
                    return status(StatusCode::GATEWAY_TIMEOUT, "Timeout", "no answer", &Value::Null);
                }
                (StatusCode::OK, state.secret.as_ref().unwrap().to_string())
            }
            (&Method::POST, SECRETS) => {
                let mut new: Value = serde_json::from_slice(body).unwrap();
                assert!(state.secret.is_none(), "there is one");
                new["metadata"]["uid"] = json!("22222222-2222-3333-4444-555555555555");
                new["metadata"]["resourceVersion"] = json!("1");
                state.secret = Some(new.clone());
                (StatusCode::CREATED, new.to_string())
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
                    ("list", "nodes" | "encryptionpeers" | "nodeencryptions") => state.may_list_nodes,
                    other => panic!("unexpected question: {other:?}"),
                };
                review["status"] = json!({"allowed": allowed});
                (StatusCode::CREATED, review.to_string())
            }
            (&Method::GET, NODES) => list(&state.nodes, query),
            (&Method::GET, PEERS) => list(&state.peers, query),
            (&Method::GET, ENCRYPTIONS) => list(&state.encryptions, query),
            (&Method::GET, PODS) => list(&BTreeMap::new(), query),
            (&Method::POST, EVENTS | EVENTS_OF_CLUSTER) => {
                let event: Value = serde_json::from_slice(body).unwrap();
                state.events.push(event.clone());
                (StatusCode::CREATED, event.to_string())
            }
            (&Method::POST, ROTATIONS) => {
                let mut new: Value = serde_json::from_slice(body).unwrap();
                let number = state.rotations.len();
                let meta = &mut new["metadata"];
                meta["uid"] = json!(cluster::uid(9, number));
                meta["resourceVersion"] = json!("1");
                let name = meta["name"].as_str().unwrap_or_default().to_owned();
                let name = if name.is_empty() { format!("rotate-{number}") } else { name };
                new["metadata"]["name"] = json!(name);
                state.rotations.insert(name, new.clone());
                (StatusCode::CREATED, new.to_string())
            }
            (&Method::GET, path) if path.starts_with(ROTATIONS) => {
                let name = path.strip_prefix(ROTATIONS).unwrap().trim_start_matches('/');
                match state.rotations.get(name) {
                    _ if name.is_empty() => list(&state.rotations, query),
                    Some(rotation) => (StatusCode::OK, rotation.to_string()),
                    None => not_found("keyrotations", name),
                }
            }
            (&Method::PATCH, SETTINGS_STATUS) => {
                let patch: Value = serde_json::from_slice(body).unwrap();
                let object = json!({"metadata": {"name": "default"}, "spec": {}, "status": patch["status"]});
                (StatusCode::OK, object.to_string())
            }
            (&Method::PATCH, path) if path.starts_with(ROTATIONS) => {
                let name = path.strip_prefix(&format!("{ROTATIONS}/")).unwrap().trim_end_matches("/status");
                let patch: Value = serde_json::from_slice(body).unwrap();
                let rotation = state.rotations.get_mut(name).unwrap();
                let version = &patch["metadata"]["resourceVersion"];
                if !version.is_null() && *version != rotation["metadata"]["resourceVersion"] {
                    return status(StatusCode::CONFLICT, "Conflict", "modified", &Value::Null);
                }
                for field in ["spec", "status"] {
                    if let Some(new) = patch.get(field) {
                        rotation[field] = new.clone();
                    }
                }
                let before: u64 = rotation["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
                rotation["metadata"]["resourceVersion"] = json!((before + 1).to_string());
                (StatusCode::OK, rotation.to_string())
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
            (&Method::DELETE, path) => {
                let (kind, name) = path.rsplit_once('/').unwrap();
                let options: Value = serde_json::from_slice(body).unwrap();
                let objects = match kind {
                    PEERS => &mut state.peers,
                    ROTATIONS => &mut state.rotations,
                    _ => &mut state.encryptions,
                };
                let uid = objects.get(name).map(|object| object["metadata"]["uid"].clone());
                if uid != Some(options["preconditions"]["uid"].clone()) {
                    return status(StatusCode::CONFLICT, "Conflict", "another object", &Value::Null);
                }
                objects.remove(name);
                (
                    StatusCode::OK,
                    json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}).to_string(),
                )
            }
            _ => panic!("unexpected request: {method} {path}"),
        }
    }

    /// The ring as the agents would read it.
    pub fn ring(&self) -> KeyRing {
        let text = self.state().secret.as_ref().unwrap()["data"]["keys"].as_str().unwrap().to_owned();
        KeyRing::parse(&BASE64.decode(text).unwrap()).unwrap()
    }

    /// Another client writes the Secret's entry.
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
        pairs.find_map(|(other, value)| (other == name).then(|| value.parse::<usize>().ok())).flatten()
    };
    let (from, limit) = (parameter("continue").unwrap_or(0), parameter("limit").unwrap_or(usize::MAX));
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
