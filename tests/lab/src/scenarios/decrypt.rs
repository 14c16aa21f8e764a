//! Proof on the wire: packets from the bridge are opened with keys that are derived here, from the ring in the Secret
//! and the Node objects, and hold the probes that the pods sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use secureoverlay_common::node::{NodeFacts, SlimNode};
use secureoverlay_common::ring::Ring;
use secureoverlay_common::secret::SecretBytes;
use secureoverlay_common::suite::Suite;
use secureoverlay_common::wire::{self as scheme, End};
use secureoverlay_prober::packet::Packet as ProbePacket;
use serde_json::json;

use super::ring::read_document;
use super::suites::{change_suite, wait_for_suite};
use super::wire;
use crate::esp::Esp;
use crate::lab::Lab;
use crate::pcap::Packet;
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};

pub const SCENARIO: Scenario = Scenario {
    name: "wire",
    about: "captured packets are opened with derived keys and hold the probes, for every suite",
    tier: Tier::Gate,
    estimate: 90,
    alone: false,
    run: Run::Installed(run),
};

const IPIP: u8 = 4;
const UDP: u8 = 17;
/// The port at which agents probe whether ESP passes.
const REACH_PORT: u16 = 9468;

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    let time = profile.lasting(5, 30);

    let (mut sent, mut decrypted, mut probes) = (0, BTreeMap::new(), BTreeMap::new());
    let mut bad = Bad::default();
    for suite in Suite::ALL {
        change_suite(overlay, suite)?;
        let keys = Keys::read(lab)?;
        let watched = wire::watch_for(probe, &format!("with {suite}"), time)?;
        watched.check_delivered(report);
        watched.check_encrypted(report);
        report.check(Keys::read(lab)?.ring == keys.ring, "the ring changed while packets were captured");

        note(format!("opening {} packets of {suite}", watched.wire.esp));
        let found = keys.open(&watched.captured.packets);
        report.check(
            found.probes.len() as u64 == watched.probes.sent,
            format!(
                "with {suite}: {} of {} probes in captured packets",
                found.probes.len(),
                watched.probes.sent
            ),
        );
        report.check(
            keys.ring.generations.iter().all(|generation| generation.suite == suite),
            format!("the ring is not of {suite} alone"),
        );
        sent += watched.probes.sent;
        decrypted.insert(suite.name(), found.decrypted);
        probes.insert(suite.name(), found.probes.len());
        bad.tag_failures += found.bad.tag_failures;
        bad.unknown_sa += found.bad.unknown_sa;
        bad.not_ipip += found.bad.not_ipip;
        bad.repeated_nonces += found.bad.repeated_nonces;
    }
    report.figure("decrypted", json!(decrypted));
    report.figure("probes", json!(probes));
    report.figure("sent", sent);
    report.check(decrypted.values().all(|packets| *packets > 0), "a suite without packets proves nothing");
    report.expect("tag_failures", bad.tag_failures, 0);
    report.expect("unknown_sa", bad.unknown_sa, 0);
    report.expect("not_ipip", bad.not_ipip, 0);
    report.expect("repeated_nonces", bad.repeated_nonces, 0);
    overlay.configure_manager(&["SECUREOVERLAY_SUITE-"])?;
    wait_for_suite(lab, Suite::default())
}

/// What must not be found.
#[derive(Debug, Default)]
struct Bad {
    tag_failures: u64,
    unknown_sa: u64,
    not_ipip: u64,
    repeated_nonces: u64,
}

/// What was found in a capture.
#[derive(Debug, Default)]
struct Found {
    decrypted: u64,
    /// Run, sender and number, and whom it went to.
    probes: BTreeSet<(u64, String, u32, Ipv4Addr)>,
    bad: Bad,
}

/// The keys of all SAs between the lab's nodes, as anybody derives them who may read the Secret.
struct Keys {
    ring: Ring,
    sas: BTreeMap<(IpAddr, IpAddr, u32), (Suite, SecretBytes)>,
    names: BTreeMap<IpAddr, String>,
}

impl Keys {
    fn read(lab: &Lab) -> Result<Self> {
        let ring = Ring::parse(&read_document(lab)?.context("there is no ring")?)?;
        let list = lab.kubectl_json(&["get", "nodes"])?;
        let nodes: Vec<SlimNode> =
            serde_json::from_value(list["items"].clone()).context("reading the Nodes")?;
        let mut ends = BTreeMap::new();
        for facts in nodes.iter().map(NodeFacts::from) {
            let (addr, node, boot) = (facts.addr, facts.uid, facts.boot);
            let end = addr.zip(node).zip(boot).map(|((addr, node), boot)| End { addr, node, boot });
            ends.insert(facts.name, end.context("a Node lacks its UID, address or boot ID")?);
        }
        let mut sas = BTreeMap::new();
        for generation in &ring.generations {
            for src in ends.values() {
                for dst in ends.values().filter(|dst| *dst != src) {
                    let id = (src.addr, dst.addr, scheme::spi(generation, src));
                    sas.insert(id, (generation.suite, scheme::sa_key(generation, src, dst)));
                }
            }
        }
        let names = ends.into_iter().map(|(name, end)| (end.addr, name)).collect();
        Ok(Self { ring, sas, names })
    }

    /// Opens every ESP packet. The capture is shorter than 2³² packets, so the upper half of all sequence numbers is 0.
    fn open(&self, packets: &[Packet]) -> Found {
        let mut found = Found::default();
        let mut nonces = BTreeSet::new();
        for packet in packets.iter().filter(|packet| packet.ip_protocol() == Some(50)) {
            let (Some(src), Some(dst)) = (packet.source(), packet.destination()) else { continue };
            let Some(esp) = packet.payload().and_then(Esp::parse) else {
                found.bad.unknown_sa += 1;
                continue;
            };
            let id = (src.into(), dst.into(), esp.spi);
            let Some((suite, key)) = self.sas.get(&id) else {
                found.bad.unknown_sa += 1;
                continue;
            };
            found.bad.repeated_nonces += u64::from(!nonces.insert((id, esp.iv)));
            let Some(opened) = esp.open(*suite, key, 0) else {
                found.bad.tag_failures += 1;
                continue;
            };
            found.decrypted += 1;
            match inner(opened.next_header, &opened.payload) {
                Some((to, payload)) => {
                    let from_here = |probe: &ProbePacket| self.names.get(&src.into()) == Some(&probe.from);
                    if let Some(probe) = ProbePacket::decode(payload).filter(from_here) {
                        found.probes.insert((probe.run, probe.from, probe.seq, to));
                    }
                }
                None if is_reach_probe(opened.next_header, &opened.payload) => {}
                None => found.bad.not_ipip += 1,
            }
        }
        found
    }
}

/// Destination and UDP payload of the inner packet, the payload empty where it is not UDP; `None` if there is no whole
/// IPv4 packet.
fn inner(next_header: u8, packet: &[u8]) -> Option<(Ipv4Addr, &[u8])> {
    let header = packet.get(..20)?;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if next_header != IPIP || header[0] >> 4 != 4 || length != packet.len() {
        return None;
    }
    let to = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
    let payload = packet.get(usize::from(header[0] & 15) * 4..)?;
    Some((to, if header[9] == UDP { payload.get(8..)? } else { &[] }))
}

/// Whether it is one of the packets by which agents try whether ESP passes: UDP from their port to the same.
fn is_reach_probe(next_header: u8, packet: &[u8]) -> bool {
    let port = REACH_PORT.to_be_bytes();
    next_header == UDP && packet.len() > 8 && packet[..4] == [port, port].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_probes_are_known_by_their_ports() {
        let mut packet = vec![0x24, 0xfc, 0x24, 0xfc, 0, 30, 0, 0];
        assert!(!is_reach_probe(UDP, &packet));
        packet.extend([0; 22]);
        assert!(is_reach_probe(UDP, &packet));
        assert!(!is_reach_probe(IPIP, &packet));
        packet[3] = 0xfd;
        assert!(!is_reach_probe(UDP, &packet));
    }

    #[test]
    fn only_whole_ipv4_packets_are_inner_packets() {
        let mut packet = vec![0x45, 0, 0, 31, 0, 0, 0, 0, 64, UDP, 0, 0, 10, 244, 1, 2, 10, 244, 2, 3];
        packet.extend([0; 8]);
        packet.extend(b"abc");
        assert_eq!(inner(IPIP, &packet), Some((Ipv4Addr::new(10, 244, 2, 3), &b"abc"[..])));
        assert_eq!(inner(UDP, &packet), None);
        assert_eq!(inner(IPIP, &packet[..30]), None);
        assert_eq!(inner(IPIP, &packet[..10]), None);
        packet[9] = 6;
        assert_eq!(inner(IPIP, &packet), Some((Ipv4Addr::new(10, 244, 2, 3), &[][..])));
        packet[0] = 0x65;
        assert_eq!(inner(IPIP, &packet), None);
    }
}
