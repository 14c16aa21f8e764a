//! A fourth host on the bridge, which belongs to no cluster and sends whatever it likes.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};

use crate::frames::{Mac, frame};
use crate::network::{BRIDGE, inside, ip, within};
use crate::run::output;
use crate::wait::wait_until;

/// Its address. Nothing answers there: an intruder need not.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 66);
/// Its Ethernet address, which tells its frames in a capture from all others. What it sends again bears it too: with a
/// node's address the bridge would take the intruder for that node, and no longer bring the node its packets.
pub const MAC: Mac = [0x02, 0, 0, 0, 0, 0x66];

/// Its interface, and the bridge's end of the wire.
const INTERFACE: &str = "intruder";
const PORT: &str = "intruder-port";
const PORT_MAC: &str = "fe:ff:ff:ff:ff:fe";
/// Between two frames: more at once would overrun a guest.
const PACE: Duration = Duration::from_millis(1);

/// The host, there as long as this lives.
#[derive(Debug)]
pub struct Intruder {
    wire: RawSocket,
}

impl Intruder {
    /// Puts it on the bridge.
    pub fn plug_in() -> Result<Self> {
        // What a scenario that was killed left.
        drop(ip(&["link", "delete", INTERFACE]));
        let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
        ip(&["link", "add", "name", INTERFACE, "type", "veth", "peer", "name", PORT])?;
        let plugged = || -> Result<RawSocket> {
            // The lab's own kernel is behind this interface: without this it would answer ARP for the API server here.
            ip(&["link", "set", "dev", INTERFACE, "address", &mac, "arp", "off"])?;
            ip(&["link", "set", "dev", INTERFACE, "up"])?;
            // The bridge takes the lowest address of its ports for its own, and nodes know the API server by that.
            ip(&["link", "set", "dev", PORT, "address", PORT_MAC])?;
            ip(&["link", "set", "dev", PORT, "master", BRIDGE, "up"])?;
            wait_until("the bridge to forward the intruder's frames", Duration::from_secs(10), || {
                let link = output(inside("ip").args(["-d", "link", "show", "dev", PORT]))?;
                Ok(link.contains("state forwarding").then_some(()))
            })?;
            within(|| RawSocket::open(INTERFACE))?
        };
        match plugged() {
            Ok(wire) => Ok(Self { wire }),
            Err(error) => {
                drop(ip(&["link", "delete", INTERFACE]));
                Err(error.context("putting an intruder on the bridge"))
            }
        }
    }

    /// Sends IPv4 packets to this Ethernet address.
    pub fn send(&self, to: Mac, packets: &[Vec<u8>]) -> Result<()> {
        for packet in packets {
            self.wire.send(&frame(to, MAC, packet))?;
            thread::sleep(PACE);
        }
        Ok(())
    }
}

impl Drop for Intruder {
    fn drop(&mut self) {
        // Gone with the lab if not now.
        drop(ip(&["link", "delete", INTERFACE]));
    }
}

/// Sends Ethernet frames by an interface; packet(7).
#[derive(Debug)]
struct RawSocket {
    socket: OwnedFd,
    interface: LinkAddr,
}

impl RawSocket {
    /// Opens one in the network namespace of the calling thread, and stays there.
    fn open(interface: &str) -> Result<Self> {
        let link = getifaddrs()
            .context("listing interfaces")?
            .filter(|address| address.interface_name == interface)
            .find_map(|address| address.address?.as_link_addr().copied())
            .with_context(|| format!("there is no interface {interface}"))?;
        // Without a protocol it receives nothing.
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
            .context("opening a socket for frames")?;
        Ok(Self { socket, interface: link })
    }

    fn send(&self, frame: &[u8]) -> Result<()> {
        sendto(self.socket.as_raw_fd(), frame, &self.interface, MsgFlags::empty())
            .map(drop)
            .context("sending a frame")
    }
}
