//! Proof on the wire: packets from the bridge are opened with keys that are derived here, from the ring in the Secret,
//! the announcements and the nodes' private keys, and hold the probes that the pods sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use secureoverlay_keyring::keyring::KeyRing;
use secureoverlay_keyring::node_key::NodeKeyPair;
use secureoverlay_keyring::probe::{CANDIDATE_PORT, PINNED_PORT, Probe};
use secureoverlay_keyring::suite::Suite;
use secureoverlay_prober::packet::Packet as ProbePacket;
use serde_json::json;

use super::ring::read_document;
use super::suites::change_suite;
use super::wire;
use crate::interface::IDENTITY;
use crate::lab::Lab;
use crate::pcap::Packet;
use crate::progress::note;
use crate::sa_keys::{Attempt, Readable, SaTable, esp, key_pair};
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};
use crate::state::Node;

/// The scenario.
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

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    let time = profile.lasting(5, 30);

    let (mut sent, mut decrypted, mut probes) = (0, BTreeMap::new(), BTreeMap::new());
    let mut bad = Bad::default();
    let keys = lab.on_all_nodes(|node| private_key(lab, node))?;
    for suite in Suite::ALL {
        change_suite(overlay, suite)?;
        let ring = ring(lab)?;
        let readable = readable(lab)?;
        let watched = wire::watch_for(probe, &format!("with {suite}"), time)?;
        watched.check_delivered(report);
        watched.check_encrypted(report);
        let same = ring_generations(&ring) == ring_generations(&self::ring(lab)?);
        report.check(same, "the ring changed while packets were captured");

        note(format!("opening {} packets of {suite}", watched.wire.esp));
        let found = Found::in_packets(&readable, &readable.derive(&keys)?, &watched.captured.packets);
        report.check(
            found.probes.len() as u64 == watched.probes.sent,
            format!(
                "with {suite}: {} of {} probes in captured packets",
                found.probes.len(),
                watched.probes.sent
            ),
        );
        report.check(
            ring.generations.iter().all(|generation| generation.suite == suite),
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
    change_suite(overlay, Suite::default())
}

/// The ring in the Secret.
pub fn ring(lab: &Lab) -> Result<KeyRing> {
    Ok(KeyRing::parse(&read_document(lab)?.context("there is no ring")?)?)
}

fn ring_generations(ring: &KeyRing) -> Vec<String> {
    ring.generations.iter().map(|generation| generation.uid.to_string()).collect()
}

/// What can be read in the API now.
pub fn readable(lab: &Lab) -> Result<Readable> {
    let mut readable = Readable::default();
    readable.add_ring(ring(lab)?);
    readable.add_peers(&lab.kubectl_json(&["get", "encryptionpeers"])?)?;
    Ok(readable)
}

/// A node's key pair, from its directory.
pub fn private_key(lab: &Lab, node: &Node) -> Result<NodeKeyPair> {
    let identity = lab.exec_ok(&node.name, &["cat", IDENTITY])?;
    key_pair(&identity).with_context(|| format!("the identity of {}", node.name))
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
    /// Run, sender and number, and where it went.
    probes: BTreeSet<(u64, String, u32, Ipv4Addr)>,
    bad: Bad,
}

impl Found {
    /// Opens every ESP packet.
    fn in_packets(readable: &Readable, table: &SaTable, packets: &[Packet]) -> Self {
        let (mut found, mut nonces, names) = (Self::default(), BTreeSet::new(), readable.names());
        for packet in packets.iter().filter(|packet| packet.ip_protocol() == Some(50)) {
            let Some((id, esp)) = esp(packet) else {
                found.bad.unknown_sa += 1;
                continue;
            };
            match table.open(packet) {
                Attempt::NotEsp | Attempt::UnknownSa => found.bad.unknown_sa += 1,
                Attempt::WrongKey => found.bad.tag_failures += 1,
                Attempt::Opened(opened) => {
                    found.decrypted += 1;
                    match inner(opened.next_header, &opened.payload) {
                        Some((to, payload)) => {
                            let from_here = |probe: &ProbePacket| names.get(&id.0) == Some(&probe.from);
                            if let Some(probe) = ProbePacket::decode(payload).filter(from_here) {
                                found.probes.insert((probe.run, probe.from, probe.seq, to));
                            }
                        }
                        None if is_proof(opened.next_header, &opened.payload) => {}
                        None => found.bad.not_ipip += 1,
                    }
                }
            }
            found.bad.repeated_nonces += u64::from(!nonces.insert((id, esp.iv)));
        }
        found
    }
}

/// Destination and UDP payload of the inner packet, the payload empty where it is not UDP; `None` if there is no whole
/// IPv4 packet.
pub fn inner(next_header: u8, packet: &[u8]) -> Option<(Ipv4Addr, &[u8])> {
    let header = packet.get(..20)?;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if next_header != IPIP || header[0] >> 4 != 4 || length != packet.len() {
        return None;
    }
    let to = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
    let payload = packet.get(usize::from(header[0] & 15) * 4..)?;
    Some((to, if header[9] == UDP { payload.get(8..)? } else { &[] }))
}

/// Whether it is one of the packets by which agents prove SAs, from and to one of their two ports.
fn is_proof(next_header: u8, packet: &[u8]) -> bool {
    let Some((header, data)) = packet.split_at_checked(8) else { return false };
    let same = |port: u16| header[..4] == [port.to_be_bytes(); 2].concat();
    next_header == UDP && [PINNED_PORT, CANDIDATE_PORT].into_iter().any(same) && Probe::parse(data).is_some()
}

#[cfg(test)]
mod tests {
    use secureoverlay_keyring::probe::ProbeKind;

    use super::*;

    #[test]
    fn proofs_are_known_by_their_ports_and_content() {
        let probe = Probe { kind: ProbeKind::Ping, spi: 7, nonce: [3; 16] };
        for port in [9468_u16, 9469] {
            let header = [&port.to_be_bytes()[..], &port.to_be_bytes(), &[0, 34, 0, 0]].concat();
            let packet = [&header[..], &probe.to_bytes()].concat();
            assert!(is_proof(UDP, &packet) && is_proof(UDP, &[&header[..], &probe.to_padded(1400)].concat()));
            assert!(!is_proof(IPIP, &packet) && !is_proof(UDP, &header) && !is_proof(UDP, &packet[..20]));
            let mut other = packet;
            other[3] ^= 0x10;
            assert!(!is_proof(UDP, &other));
        }
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
