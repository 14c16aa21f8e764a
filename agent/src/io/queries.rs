//! What operators ask the agent through its loopback port, beside health and metrics. No answer holds a key.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{ConnectInfo, Path, Request, State},
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use secureoverlay_keyring::inspection::{CHECK, CheckReport, PATHS, PeerPaths};
use serde::Serialize;
use tokio::sync::{Mutex, mpsc, oneshot};

use super::input::Input;
use crate::{cli::check, config::Node};

/// A check loads the kernel and the API server: within this time all get the same answer.
const CHECK_AGE: Duration = Duration::from_secs(10);

/// What an operator asks the main loop.
#[derive(Debug)]
pub struct PathQuery {
    /// Name of the peer's Node.
    pub peer: String,
    /// Takes the answer.
    pub answer: oneshot::Sender<PeerPaths>,
}

struct Served {
    node: Node,
    inputs: mpsc::Sender<Input>,
    /// One check at a time, and when the last one was.
    check: Mutex<Option<(Instant, CheckReport)>>,
}

/// The pages, for processes of this node alone: metrics may be served to other hosts too.
pub fn router(node: Node, inputs: mpsc::Sender<Input>) -> Router {
    let served = Served { node, inputs, check: Mutex::default() };
    let paths = Router::new().route(&format!("{PATHS}/{{peer}}"), get(paths)).route(CHECK, get(checked));
    paths.layer(middleware::from_fn(only_local)).with_state(Arc::new(served))
}

/// Where the pages are served, if not where the metrics are: port-forwards lead to the loopback.
#[must_use]
pub fn own_address(metrics: SocketAddr) -> Option<SocketAddr> {
    let elsewhere = !metrics.ip().is_loopback() && !metrics.ip().is_unspecified();
    elsewhere.then(|| (Ipv4Addr::LOCALHOST, metrics.port()).into())
}

async fn only_local(ConnectInfo(from): ConnectInfo<SocketAddr>, request: Request, next: Next) -> Response {
    if from.ip().to_canonical().is_loopback() {
        return next.run(request).await;
    }
    StatusCode::NOT_FOUND.into_response()
}

async fn paths(State(served): State<Arc<Served>>, Path(peer): Path<String>) -> Response {
    let (answer, answered) = oneshot::channel();
    if served.inputs.try_send(Input::Paths(PathQuery { peer, answer })).is_err() {
        return (StatusCode::SERVICE_UNAVAILABLE, "the agent is busy, or ends\n").into_response();
    }
    match answered.await {
        Ok(paths) => json(&paths),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the agent ends\n").into_response(),
    }
}

async fn checked(State(served): State<Arc<Served>>) -> Response {
    let mut last = served.check.lock().await;
    if let Some((_, report)) = last.as_ref().filter(|(at, _)| at.elapsed() < CHECK_AGE) {
        return json(report);
    }
    let node = served.node.clone();
    // It waits for the kernel, and for this process's own pages: not in the main loop's thread.
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::io::Result::Ok(runtime.block_on(check::check(&node, None)).to_document())
    };
    match tokio::task::spawn_blocking(run).await {
        Ok(Ok(report)) => {
            let answer = json(&report);
            *last = Some((Instant::now(), report));
            answer
        }
        Ok(Err(error)) => failed(&error),
        Err(error) => failed(&error),
    }
}

fn json(document: &impl Serialize) -> Response {
    match serde_json::to_string(document) {
        Ok(text) => ([(CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::fmt::Display) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("failed to answer: {error}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use axum::{
        body::{Body, to_bytes},
        extract::connect_info::MockConnectInfo,
    };
    use clap::Parser;
    use tower::ServiceExt;

    use super::*;
    use crate::config::Config;

    #[test]
    fn port_forwards_find_the_pages_wherever_metrics_are() {
        for (metrics, own) in [
            ("127.0.0.1:9467", None),
            ("0.0.0.0:9467", None),
            ("[::]:9467", None),
            ("192.0.2.1:9470", Some("127.0.0.1:9470")),
        ] {
            assert_eq!(
                own_address(metrics.parse().unwrap()),
                own.map(|own| own.parse().unwrap()),
                "{metrics}"
            );
        }
    }

    async fn get(router: Router, path: &str) -> (StatusCode, String) {
        let request = axum::http::Request::get(path).body(Body::empty()).unwrap();
        let answer = router.oneshot(request).await.unwrap();
        let status = answer.status();
        let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn main_loop_is_asked_by_the_name_of_the_peer() {
        let node = Config::parse_from(["agent", "--metrics-bind-address", "127.0.0.1:1"]).node;
        let (inputs, mut inbox) = mpsc::channel(1);
        let from = |address: &str| MockConnectInfo(address.parse::<SocketAddr>().unwrap());
        let pages = router(node, inputs);
        let elsewhere = pages.clone().layer(from("192.0.2.7:1000"));
        assert_eq!(get(elsewhere, "/paths/node-2").await.0, StatusCode::NOT_FOUND);
        let router = pages.layer(from("127.0.0.1:1000"));
        let asked = tokio::spawn(get(router.clone(), "/paths/node-2"));
        let Some(Input::Paths(PathQuery { peer, answer })) = inbox.recv().await else { panic!("no query") };
        answer.send(PeerPaths { peer, looked: true, ..PeerPaths::default() }).unwrap();
        let (status, text) = asked.await.unwrap();
        let paths: PeerPaths = serde_json::from_str(&text).unwrap();
        assert!(status == StatusCode::OK && paths.peer == "node-2" && paths.looked, "{text}");
        drop(inbox);
        assert_eq!(get(router.clone(), "/paths/node-2").await.0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(get(router.clone(), "/paths/").await.0, StatusCode::NOT_FOUND);

        // Wherever this runs, a check says something of the agent, which is not there.
        let (status, text) = get(router, CHECK).await;
        let report: CheckReport = serde_json::from_str(&text).unwrap();
        assert!(status == StatusCode::OK && report.items.iter().any(|item| item.what == "agent"), "{text}");
    }
}
