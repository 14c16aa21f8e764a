//! An API server that holds one Secret and one DaemonSet, and remembers what it was asked.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::http::{Method, Request, Response, StatusCode};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use kube::{Client, client::Body};
use secureoverlay_common::ring::Ring;
use serde_json::{Value, json};
use tower::service_fn;

const SECRET: &str = "/api/v1/namespaces/kube-system/secrets/ucp-secureoverlay";
const DAEMON_SET: &str = "/apis/apps/v1/namespaces/kube-system/daemonsets/ucp-secureoverlay-agent";
const REVIEW: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

#[derive(Clone)]
pub struct Fake(Arc<Mutex<State>>);

pub struct State {
    pub secret: Option<Value>,
    /// The DaemonSet's metadata.
    pub daemon_set: Option<Value>,
    pub may_read_daemon_set: bool,
    /// Method and path of every request.
    pub calls: Vec<String>,
    /// Requests of this method are answered with this, whatever they are.
    pub refuse: Option<(Method, StatusCode, String)>,
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
            calls: Vec::new(),
            refuse: None,
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
                    let (status, answer) = fake.answer(&parts.method, parts.uri.path(), &body);
                    let mut response = Response::new(Body::from(answer.into_bytes()));
                    *response.status_mut() = status;
                    Ok::<_, Infallible>(response)
                }
            }),
            "default",
        )
    }

    fn answer(&self, method: &Method, path: &str, body: &[u8]) -> (StatusCode, String) {
        let mut state = self.state();
        state.calls.push(format!("{method} {path}"));
        if let Some((_, status, text)) = state.refuse.as_ref().filter(|(refused, ..)| refused == method) {
            return (*status, text.clone());
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
                assert_eq!((&asked["verb"], &asked["resource"]), (&json!("get"), &json!("daemonsets")));
                review["status"] = json!({"allowed": state.may_read_daemon_set});
                (StatusCode::CREATED, review.to_string())
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
