//! `/healthz`, `/readyz` and `/metrics`, as soon as their port can be had.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use secureoverlay_daemon::{health::Health, http};
use tokio::time::sleep;

/// Between two tries to take the port.
const AGAIN: Duration = Duration::from_secs(5);

/// Serves them. Any process on the host's network may have taken the port first: encryption does not wait for it.
pub async fn serve(addr: SocketAddr, health: Health, registry: Arc<Registry>) {
    let mut told = false;
    loop {
        match http::bind(addr, health.clone(), registry.clone()).await {
            Ok(bound) => {
                tracing::info!(listen = %bound.addr, "serving health and metrics");
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
        let serving = tokio::spawn(serve(addr, Health::default(), Registry::default().into()));
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
