//! `/healthz`, `/readyz`, `/metrics` and the operators' queries, as soon as their port can be had.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use prometheus_client::registry::Registry;
use secureoverlay_daemon::{health::Health, http};
use tokio::time::sleep;

use crate::io::queries;

/// Between two tries to take a port.
const AGAIN: Duration = Duration::from_secs(5);

/// Serves them.
pub async fn serve(addr: SocketAddr, health: Health, registry: Registry, queries: Router) {
    let status = http::router(health, Arc::new(registry));
    match queries::own_address(addr) {
        None => serve_at(addr, status.merge(queries)).await,
        Some(own) => drop(tokio::join!(serve_at(addr, status), serve_at(own, queries))),
    }
}

/// Any process on the host's network may have taken the port first: encryption does not wait for it.
async fn serve_at(addr: SocketAddr, pages: Router) {
    let mut told = false;
    loop {
        match http::bind_router(addr, pages.clone()).await {
            Ok(bound) => {
                tracing::info!(listen = %bound.addr, "serving health, metrics or queries");
                drop(bound.serve().await);
                return;
            }
            Err(error) if !told => {
                tracing::warn!(
                    %error,
                    "cannot serve health and metrics, so this pod is not Ready; trying again. `ss -ltnp` finds the program \
                     that has the port"
                );
                told = true;
            }
            Err(_) => {}
        }
        sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn taken_port_is_served_once_it_is_free() {
        let other = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let addr = other.local_addr().unwrap();
        let serving = tokio::spawn(serve(addr, Health::default(), Registry::default(), Router::new()));
        tokio::task::yield_now().await;
        drop(other);
        let begun = tokio::time::Instant::now();
        while TcpStream::connect(addr).await.is_err() {
            assert!(begun.elapsed() < 3 * AGAIN, "nothing listens on {addr}");
            sleep(Duration::from_millis(50)).await;
        }
        assert!(!serving.is_finished());
        serving.abort();
    }
}
