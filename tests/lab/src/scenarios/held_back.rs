//! Genuine ESP that its receiver has not seen: sent by a node, captured on the bridge, and kept from the other node.
//!
//! A node drops a packet that it has received before whatever else is wrong with it. Only one that it has not received
//! shows more than the replay window at work.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::capture::Capture;
use crate::lab::Lab;
use crate::pcap::Packet;
use crate::state::Node;
use crate::wait::wait_until;

/// How long it may take: much less than the replay window covers.
const PATIENCE: Duration = Duration::from_secs(30);
/// ESP packets longer than this are held back: probes are shorter.
const LONG: usize = 300;
/// UDP payload that makes them so.
const PAYLOAD: usize = 400;
/// The packet filter that does it.
const TABLE: &str = "secureoverlay-held-back";

/// Packets of IPv4, outer header included.
#[derive(Debug)]
pub struct Held {
    /// Never received, four times as many as asked for.
    fresh: Vec<Vec<u8>>,
    /// Probes that were received meanwhile, as many as asked for.
    pub probes: Vec<Vec<u8>>,
}

impl Held {
    /// Lets a node send to a port of a pod on another node, while probes go the same way.
    pub fn capture(
        lab: &Lab,
        from: &Node,
        to: &Node,
        (pod, port): (Ipv4Addr, u16),
        count: usize,
    ) -> Result<Self> {
        let rule = format!(
            "table bridge {TABLE} {{ chain hold {{ type filter hook forward priority 0; \
             ip protocol 50 ip saddr {} ip daddr {} ip length > {LONG} drop; }}; }}",
            from.ip, to.ip
        );
        // A few more than are needed: a busy guest may drop one.
        let sent = 4 * count + count / 2;
        let script =
            format!("for i in {{1..{sent}}}; do printf %0{PAYLOAD}d $i > /dev/udp/{pod}/{port}; done");
        let capture = Capture::start("held-back", None)?;
        lab.in_network(&["nft", &rule])?;
        let enough = lab.exec_ok(&from.name, &["bash", "-c", &script]).and_then(|_| {
            wait_until("enough ESP to be captured", PATIENCE, || {
                let held = Self::of(&capture.so_far()?.packets, from.ip, to.ip, count);
                Ok((held.fresh.len() >= 4 * count && held.probes.len() >= count).then_some(()))
            })
        });
        lab.in_network(&["nft", "delete", "table", "bridge", TABLE])?;
        enough?;
        Ok(Self::of(&capture.stop()?.packets, from.ip, to.ip, count))
    }

    /// What was held back, in four parts of one size.
    pub fn quarters(&self) -> Result<[&[Vec<u8>]; 4]> {
        let size = self.fresh.len() / 4;
        ensure!(size > 0, "nothing was held back");
        Ok([0, 1, 2, 3].map(|quarter| &self.fresh[quarter * size..(quarter + 1) * size]))
    }

    fn of(packets: &[Packet], from: Ipv4Addr, to: Ipv4Addr, count: usize) -> Self {
        let esp = packets.iter().filter(|it| {
            it.ip_protocol() == Some(50) && (it.source(), it.destination()) == (Some(from), Some(to))
        });
        let (fresh, probes): (Vec<&[u8]>, Vec<&[u8]>) =
            esp.filter_map(Packet::ipv4).partition(|packet| packet.len() > LONG);
        let owned = |packets: &[&[u8]]| packets.iter().map(|packet| packet.to_vec()).collect();
        let (wanted, last) = (fresh.len().min(4 * count), probes.len().saturating_sub(count));
        Self { fresh: owned(&fresh[..wanted]), probes: owned(&probes[last..]) }
    }
}

/// SPIs of ESP packets, as `ip xfrm` prints them.
pub fn spis(packets: &[Vec<u8>]) -> BTreeSet<String> {
    let spi = |packet: &Vec<u8>| {
        let start = usize::from(packet.first()? & 15) * 4;
        Some(u32::from_be_bytes(packet.get(start..start + 4)?.try_into().ok()?))
    };
    packets.iter().filter_map(spi).map(|spi| format!("{spi:#010x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::{frame, ipip};

    const NODE: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 11);
    const PEER: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 12);

    fn captured(packet: &[u8]) -> Packet {
        Packet { time: Duration::ZERO, frame: frame([1; 6], [2; 6], packet) }
    }

    /// An ESP packet, made from a plaintext one.
    fn esp(from: Ipv4Addr, to: Ipv4Addr, length: usize, spi: u32) -> Packet {
        let mut packet = ipip(from, to, &[&spi.to_be_bytes()[..], &vec![0; length - 24]].concat());
        packet[9] = 50;
        captured(&packet)
    }

    #[test]
    fn what_is_held_back_is_told_from_probes() {
        let packets = [
            esp(PEER, NODE, 476, 1),
            esp(NODE, PEER, 476, 2),
            esp(PEER, NODE, 140, 3),
            captured(&ipip(PEER, NODE, &[0; 400])),
        ];
        let held = Held::of(&packets, PEER, NODE, 1);
        assert_eq!(held.fresh, [packets[0].ipv4().unwrap()]);
        assert_eq!(held.probes, [packets[2].ipv4().unwrap()]);
        assert_eq!(spis(&held.fresh), ["0x00000001".to_owned()].into());
        assert!(held.quarters().is_err());
    }

    #[test]
    fn the_first_held_back_and_the_last_probes_are_taken() {
        let packets: Vec<Packet> =
            (0..10).flat_map(|spi| [esp(PEER, NODE, 476, spi), esp(PEER, NODE, 140, spi)]).collect();
        let held = Held::of(&packets, PEER, NODE, 2);
        let last: Vec<&[u8]> = packets[17..].iter().step_by(2).filter_map(Packet::ipv4).collect();
        assert_eq!(held.probes, last);
        let quarters = held.quarters().unwrap();
        assert_eq!(quarters.map(<[_]>::len), [2; 4]);
        let first: Vec<&[u8]> = packets.iter().step_by(2).take(8).filter_map(Packet::ipv4).collect();
        assert_eq!(quarters.concat(), first);
    }
}
