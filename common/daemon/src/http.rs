//! `/healthz`, `/readyz` and `/metrics`.

use std::{io, net::SocketAddr, sync::Arc, time::Instant};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::net::TcpListener;

use crate::health::{Health, Verdict};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A server that holds its port, and answers once [`Bound::serve`] runs.
#[derive(Debug)]
pub struct Bound {
    /// The real address, also where port 0 was asked for.
    pub addr: SocketAddr,
    listener: TcpListener,
    router: Router,
}

/// Takes the port.
///
/// # Errors
/// The address is taken, or not one of this host's.
pub async fn bind(addr: SocketAddr, health: Health, registry: Registry) -> io::Result<Bound> {
    bind_router(addr, router(health, Arc::new(registry))).await
}

/// The three pages.
pub fn router(health: Health, registry: Arc<Registry>) -> Router {
    let alive = health.clone();
    Router::new()
        .route("/healthz", get(async move || respond(alive.alive(Instant::now()))))
        .route("/readyz", get(async move || respond(health.ready())))
        .route("/metrics", get(async move || metrics(&registry)))
}

/// Takes a port for pages of the caller's.
///
/// # Errors
/// The address is taken, or not one of this host's.
pub async fn bind_router(addr: SocketAddr, router: Router) -> io::Result<Bound> {
    let listener = TcpListener::bind(addr)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("listening on {addr}: {error}")))?;
    Ok(Bound { addr: listener.local_addr()?, listener, router })
}

impl Bound {
    /// Answers until dropped. Pages know who asks (`ConnectInfo`).
    ///
    /// # Errors
    /// None in practice: failed connections are dropped one by one.
    pub async fn serve(self) -> io::Result<()> {
        axum::serve(self.listener, self.router.into_make_service_with_connect_info::<SocketAddr>()).await
    }
}

fn respond(verdict: Verdict) -> Response {
    let status = if verdict.good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, verdict.text).into_response()
}

fn metrics(registry: &Registry) -> Response {
    let mut text = String::new();
    match encode(&mut text, registry) {
        Ok(()) => ([(CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("writing the metrics: {error}\n")).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    async fn fetch(addr: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn three_pages_tell_the_state() {
        let health = Health::default();
        let task = health.task("ring");
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        registry.register("writes", "Writes", counter.clone());
        counter.inc();
        let bound = bind(([127, 0, 0, 1], 0).into(), health, registry).await.unwrap();
        let addr = bound.addr;
        let server = tokio::spawn(bound.serve());

        assert!(fetch(addr, "/healthz").await.starts_with("HTTP/1.1 200"));
        let text = fetch(addr, "/readyz").await;
        assert!(text.starts_with("HTTP/1.1 503") && text.contains("ring: not ready: starting"), "{text}");
        task.ready();
        assert!(fetch(addr, "/readyz").await.starts_with("HTTP/1.1 200"));
        let text = fetch(addr, "/metrics").await;
        assert!(text.contains("openmetrics") && text.contains("writes_total 1"), "{text}");
        assert!(fetch(addr, "/").await.starts_with("HTTP/1.1 404"));

        let error = bind(addr, Health::default(), Registry::default()).await.unwrap_err();
        assert!(error.to_string().contains(&addr.to_string()), "{error}");
        server.abort();
    }
}
