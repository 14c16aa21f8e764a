//! The probes' UDP socket: what [`Probing`] decides goes out, what comes in goes to it.

use std::{io, net::SocketAddr, time::Duration};

use rand::{TryRng, rngs::SysRng};
use tokio::{
    net::UdpSocket,
    sync::{mpsc::Sender, watch},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    agent::Event,
    metrics::Metrics,
    probing::{LEN, Nonce, Probes, Probing, Received, Verdicts},
};

/// Before another attempt to open the socket.
const AGAIN: Duration = Duration::from_secs(10);
/// Without anything to do.
const IDLE: Duration = Duration::from_secs(3600);

/// Probes what is `wanted` for as long as somebody may want something, and tells the verdicts.
pub async fn probe(mut wanted: watch::Receiver<Option<Probes>>, events: Sender<Event>, metrics: Metrics) {
    let mut failing = false;
    loop {
        let Some(probes) = wanted.borrow_and_update().clone() else {
            if wanted.changed().await.is_err() {
                return;
            }
            continue;
        };
        let error = match UdpSocket::bind((probes.local, probes.port)).await {
            Ok(socket) => {
                if failing {
                    tracing::info!("probing whether ESP passes works again");
                }
                failing = false;
                let ports = Ports { socket, port: probes.port };
                match ports.probe(probes, &mut wanted, &events, &metrics).await {
                    Ok(true) => continue,
                    Ok(false) => return,
                    Err(error) => format!("probing whether ESP passes: {error}"),
                }
            }
            Err(error) => format!(
                "cannot open UDP port {} at {} to probe whether ESP passes: {error}; {}",
                probes.port,
                probes.local,
                match error.kind() {
                    io::ErrorKind::AddrNotAvailable =>
                        "the node has no such address: correct its Node object",
                    _ => "choose another with --probe-port on all nodes",
                }
            ),
        };
        if !failing {
            tracing::warn!("{error}");
            failing = true;
        }
        if events.send(Event::Probed(Err(error))).await.is_err() {
            return;
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = sleep(AGAIN) => {}
        }
    }
}

struct Ports {
    socket: UdpSocket,
    port: u16,
}

impl Ports {
    /// Probes until something else is wanted (true), or nothing ever will be (false).
    async fn probe(
        &self,
        mut probes: Probes,
        wanted: &mut watch::Receiver<Option<Probes>>,
        events: &Sender<Event>,
        metrics: &Metrics,
    ) -> io::Result<bool> {
        let mut probing = Probing::new(probes.local);
        let mut told: Option<Verdicts> = None;
        // One more than a packet, so that longer ones are seen to be.
        let mut buffer = [0; LEN + 1];
        probing.probe(&probes.peers, Instant::now().into_std());
        let (mut changed, mut wake) = (true, Instant::now());
        loop {
            // What anybody may send at any rate costs no more than to receive it.
            if changed || Instant::now() >= wake {
                self.send_due(&mut probing).await?;
                let verdicts = probing.verdicts();
                if told.as_ref() != Some(&verdicts) {
                    if events.send(Event::Probed(Ok(verdicts.clone()))).await.is_err() {
                        return Ok(false);
                    }
                    told = Some(verdicts);
                }
                wake = probing.wake_at().map_or_else(|| Instant::now() + IDLE, Instant::from_std);
            }
            changed = true;
            tokio::select! {
                wanting = wanted.changed() => {
                    if wanting.is_err() {
                        return Ok(false);
                    }
                    match wanted.borrow_and_update().clone() {
                        Some(new) if (new.local, new.port) == (probes.local, probes.port) => probes = new,
                        _ => return Ok(true),
                    }
                    probing.probe(&probes.peers, Instant::now().into_std());
                    // Whoever wants something else, or the same once more, may have forgotten.
                    told = None;
                }
                received = self.socket.recv_from(&mut buffer) => {
                    let (length, from) = received?;
                    changed = self.receive(&mut probing, &buffer[..length], from, metrics).await;
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    async fn send_due(&self, probing: &mut Probing) -> io::Result<()> {
        let now = Instant::now().into_std();
        probing.expire(now);
        if let Some(to) = probing.due(now) {
            let mut nonce = Nonce::default();
            SysRng.try_fill_bytes(&mut nonce).map_err(io::Error::other)?;
            let ping = probing.ping(to, nonce, now);
            self.send(&ping, (to, self.port).into()).await;
        }
        Ok(())
    }

    /// What can't be sent is a probe without an answer, which is what probes are there to find.
    async fn send(&self, packet: &[u8], to: SocketAddr) {
        if let Err(error) = self.socket.send_to(packet, to).await {
            tracing::debug!(%to, %error, "a probe can't be sent");
        }
    }

    /// Whether that was one to take notice of.
    async fn receive(
        &self,
        probing: &mut Probing,
        bytes: &[u8],
        from: SocketAddr,
        metrics: &Metrics,
    ) -> bool {
        let received = if from.port() == self.port {
            probing.receive(from.ip(), bytes, Instant::now().into_std())
        } else {
            Received::Ignored
        };
        match received {
            Received::Answer(pong) => self.send(&pong, from).await,
            Received::Taken => {}
            Received::Ignored => metrics.probe_ignored(),
        }
        matches!(received, Received::Answer(_) | Received::Taken)
    }
}

#[cfg(test)]
mod tests;
