//! The largest packet that gets through IPIP in ESP with "don't fragment" set, found by trying. This runs inside a guest.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};
use secureoverlay_keyring::suite::Suite;
use serde::{Deserialize, Serialize};

use crate::network::within_namespace;
use crate::run::{output_with_stdin, quiet};

/// MTUs of the wire that are tried.
pub const EXTERNAL: [u32; 12] = [1280, 1400, 1450, 1480, 1500, 1501, 1502, 1503, 1504, 8900, 9000, 9001];

/// Addresses of the two nodes, and of the ends of the tunnel between them.
const NODES: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
const PODS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 1, 1), Ipv4Addr::new(10, 77, 2, 1)];
const PORT: u16 = 7100;
/// The tunnel's own limit, far above all others.
const TUNNEL_MTU: u32 = 65_000;
/// IPv4 and UDP headers of the inner packet.
const HEADERS: u32 = 28;
/// A packet that always gets through.
const SMALL: u32 = 100;
/// One comes at once or never; a guest may be stopped for a while.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was found for an MTU and a suite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// MTU of the wire.
    pub external: u32,
    /// Cipher suite of the SA.
    pub suite: Suite,
    /// Bytes of the largest inner IPv4 packet that got through; one byte more did not.
    pub largest: u32,
}

/// Tries all and prints a line of JSON for each.
pub fn main() -> Result<()> {
    for (index, suite) in Suite::ALL.into_iter().enumerate() {
        for (number, external) in EXTERNAL.into_iter().enumerate() {
            let largest = measure(&format!("mtu-{index}-{number}"), external, suite)
                .with_context(|| format!("trying an MTU of {external} with {suite}"))?;
            let found = Found { external, suite, largest };
            println!("{}", serde_json::to_string(&found).context("encoding a result")?);
        }
    }
    Ok(())
}

/// In new network namespaces, because kernels remember what they learned about paths. They end with the guest.
fn measure(name: &str, external: u32, suite: Suite) -> Result<u32> {
    let nodes = [format!("{name}-a"), format!("{name}-b")];
    for node in &nodes {
        quiet(Command::new("ip").args(["netns", "add", node]))?;
    }
    let wire =
        format!("link add eth0 mtu {external} type veth peer name eth0 mtu {external} netns {}\n", nodes[1]);
    batch(&nodes[0], &(wire + &setup(0, suite)))?;
    batch(&nodes[1], &setup(1, suite))?;
    let [sender, receiver] = [0, 1].map(|end| open(&nodes[end], PODS[end]));
    let mut path = Way { sender: sender?, receiver: receiver?, number: 0 };
    largest(SMALL, external, |size| path.carries(size))
}

/// `ip` in a namespace, with a line for each command.
fn batch(namespace: &str, commands: &str) -> Result<()> {
    output_with_stdin(Command::new("ip").args(["-n", namespace, "-batch", "-"]), commands.as_bytes())
        .map(drop)
}

/// One node's part, as commands for `ip`: the first sends, the second demands ESP.
fn setup(end: usize, suite: Suite) -> String {
    let (own, peer, own_pod, peer_pod) = (NODES[end], NODES[1 - end], PODS[end], PODS[1 - end]);
    let [from, to] = NODES;
    let direction = ["out", "in"][end];
    // No secret: nothing that matters is ever sent with it.
    let key = "5a".repeat(suite.key_len() + Suite::SALT_LEN);
    let icv = suite.icv_len() * 8;
    format!(
        "address add {own}/24 dev eth0\n\
         link set eth0 up\n\
         link add tunnel type ipip local {own} remote {peer}\n\
         address add {own_pod} peer {peer_pod} dev tunnel\n\
         link set tunnel mtu {TUNNEL_MTU} up\n\
         xfrm state add src {from} dst {to} proto esp spi 0x1000 reqid 1 mode transport replay-window 64 flag esn \
         aead rfc4106(gcm(aes)) 0x{key} {icv}\n\
         xfrm policy add src {from}/32 dst {to}/32 proto 4 dir {direction} \
         tmpl src {from} dst {to} proto esp reqid 1 mode transport\n"
    )
}

/// A socket of a pod, whose packets are never fragmented, and tried whatever the kernel thinks that the path carries.
fn open(namespace: &str, pod: Ipv4Addr) -> Result<UdpSocket> {
    let open = || -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((pod, PORT))?;
        set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    };
    within_namespace(&Path::new("/run/netns").join(namespace), open)?.context("opening a pod's socket")
}

/// From one pod to the other.
struct Way {
    sender: UdpSocket,
    receiver: UdpSocket,
    number: u32,
}

impl Way {
    /// Does a packet of this size, headers included, arrive? A small one is sent after it: nothing overtakes here, so
    /// once that has come, the other won't.
    fn carries(&mut self, size: u32) -> Result<bool> {
        for size in [size, SMALL] {
            self.number += 1;
            let mut payload = vec![0; (size - HEADERS) as usize];
            payload[..4].copy_from_slice(&self.number.to_be_bytes());
            self.sender
                .send_to(&payload, (PODS[1], PORT))
                .with_context(|| format!("sending {size} bytes"))?;
        }
        let mut arrived = false;
        let mut buffer = vec![0; TUNNEL_MTU as usize];
        loop {
            let length = self.receiver.recv(&mut buffer).context("waiting for a small packet")?;
            ensure!(length >= 4, "a packet of {length} bytes arrived, and none was sent");
            let number = u32::from_be_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]);
            if number == self.number {
                return Ok(arrived);
            }
            ensure!(number + 1 == self.number && !arrived, "packet {number} arrived late or twice");
            ensure!(length == (size - HEADERS) as usize, "{length} bytes of {size} arrived");
            arrived = true;
        }
    }
}

/// The largest size that is carried, between one that is and one that is not.
fn largest(
    mut carried: u32,
    mut too_large: u32,
    mut carries: impl FnMut(u32) -> Result<bool>,
) -> Result<u32> {
    if !carries(carried)? {
        bail!("not even {carried} bytes get through");
    }
    if carries(too_large)? {
        bail!("{too_large} bytes get through, and nothing limits them");
    }
    while too_large - carried > 1 {
        let size = carried + (too_large - carried) / 2;
        *(if carries(size)? { &mut carried } else { &mut too_large }) = size;
    }
    Ok(carried)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_is_found_whichever_it_is() {
        for limit in 100..400 {
            let mut tried = 0;
            let found = largest(100, 400, |size| {
                tried += 1;
                Ok(size <= limit)
            });
            assert_eq!(found.unwrap(), limit);
            assert!(tried <= 12, "{tried} packets for {limit}");
        }
    }

    #[test]
    fn where_nothing_or_everything_gets_through_nothing_is_found() {
        assert!(largest(100, 400, |_| Ok(false)).is_err());
        assert!(largest(100, 400, |_| Ok(true)).is_err());
        assert!(largest(100, 400, |_| bail!("no network")).is_err());
    }

    #[test]
    fn both_ends_have_the_same_sa() {
        for suite in Suite::ALL {
            let [a, b] = [0, 1].map(|end| setup(end, suite));
            let state =
                |setup: &str| setup.lines().find(|line| line.starts_with("xfrm state")).map(str::to_owned);
            assert!(state(&a).is_some() && state(&a) == state(&b), "{a}{b}");
            assert!(a.contains("dir out tmpl") && b.contains("dir in tmpl"), "{a}{b}");
            let key = a.split_once("0x5a").unwrap().1.split_once(' ').unwrap().0;
            assert_eq!(2 + key.len(), (suite.key_len() + 4) * 2);
        }
    }
}
