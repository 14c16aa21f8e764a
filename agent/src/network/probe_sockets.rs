//! The UDP sockets of probes, at each address that tunnels go from.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};
use secureoverlay_agent_core::{plan::PROBE_PORTS, proof::Ping};
use secureoverlay_keyring::address::NodeAddress;
use tokio::{net::UdpSocket, sync::mpsc::Sender, task::JoinHandle};

/// Longest packet that is read; longer ones are cut off, and so are no probes.
const LONGEST: usize = 9216;

/// A packet that came.
#[derive(Debug)]
pub struct Packet {
    /// This node's address.
    pub local: NodeAddress,
    /// The sender's address.
    pub from: IpAddr,
    /// The port at both ends.
    pub port: u16,
    /// What came.
    pub payload: Vec<u8>,
}

/// All open sockets.
pub struct ProbeSockets {
    packets: Sender<Packet>,
    open: BTreeMap<(NodeAddress, u16), Socket>,
}

struct Socket {
    socket: Arc<UdpSocket>,
    reader: JoinHandle<()>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl ProbeSockets {
    /// None are open yet; what comes goes to `packets`.
    #[must_use]
    pub const fn new(packets: Sender<Packet>) -> Self {
        Self { packets, open: BTreeMap::new() }
    }

    /// Opens the sockets at these addresses, and closes others. Returns what could not be opened, for people.
    pub async fn listen_at(&mut self, addresses: &[NodeAddress]) -> Result<(), String> {
        self.open.retain(|(address, _), _| addresses.contains(address));
        for (address, port) in addresses.iter().flat_map(|address| PROBE_PORTS.map(|port| (*address, port))) {
            if self.open.contains_key(&(address, port)) {
                continue;
            }
            let socket = open(address, port).await.map_err(|error| {
                format!(
                    "failed to open UDP port {port} at {address} for probes: {error}; find out which program has it \
                     (ss -lunp), and add {} and {} to net.ipv4.ip_local_reserved_ports",
                    PROBE_PORTS[0], PROBE_PORTS[1]
                )
            })?;
            let socket = Arc::new(socket);
            let reader = tokio::spawn(read(socket.clone(), address, port, self.packets.clone()));
            self.open.insert((address, port), Socket { socket, reader });
        }
        Ok(())
    }

    /// Sends a ping. One that can't be sent gets no answer, which is what pings are there to find.
    pub fn ping(&self, ping: &Ping) {
        self.send(ping.pair.src, ping.pair.dst.ip(), ping.port, &ping.payload);
    }

    /// Sends an answer.
    pub fn answer(&self, packet: &Packet, payload: &[u8]) {
        self.send(packet.local, packet.from, packet.port, payload);
    }

    fn send(&self, local: NodeAddress, to: IpAddr, port: u16, payload: &[u8]) {
        let Some(Socket { socket, .. }) = self.open.get(&(local, port)) else { return };
        if let Err(error) = socket.try_send_to(payload, SocketAddr::new(to, port)) {
            tracing::debug!(%to, %error, "a probe can't be sent");
        }
    }
}

async fn open(address: NodeAddress, port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddr::new(address.ip(), port)).await?;
    if address.ip().is_ipv4() {
        // The device's MTU counts, not what an ICMP message says: fragments would prove nothing.
        set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
    }
    Ok(socket)
}

async fn read(socket: Arc<UdpSocket>, local: NodeAddress, port: u16, packets: Sender<Packet>) {
    let mut buffer = vec![0; LONGEST];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, from)) if from.port() == port => {
                let packet = Packet { local, from: from.ip(), port, payload: buffer[..length].to_vec() };
                // More than can be taken is dropped, as a network drops it.
                let _ = packets.try_send(packet);
            }
            Ok(_) => {}
            // An ICMP error about a packet of before.
            Err(error) => tracing::debug!(%error, "a probe socket reports an error"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn port_in_use_is_named() {
        let address: NodeAddress = "192.0.2.1".parse().unwrap();
        let mut sockets = ProbeSockets::new(mpsc::channel(1).0);
        let error = sockets.listen_at(&[address]).await.unwrap_err();
        assert!(error.contains("9468") && error.contains("192.0.2.1"), "{error}");
    }
}
