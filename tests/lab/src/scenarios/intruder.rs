//! A host that belongs to no cluster sends plaintext, replays, forgeries and what old keys made: no pod gets any of
//! it, and the node's counters say why.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use secureoverlay_prober::snmp::udp_counter;

use super::cluster::until;
use super::held_back::{Held, spis};
use super::overlay::{Manifest, Overlay, PATIENCE};
use super::probe::Probe;
use super::processes::pids;
use super::ring::Ring;
use super::{manager, wire, xfrm};
use crate::frames::{self, Mac, ipip, udp, with_other_end, with_source};
use crate::intruder::{ADDRESS, Intruder, MAC};
use crate::lab::Lab;
use crate::pcap::Packet;
use crate::progress::note;
use crate::scenario::{Profile, Report, Run, Scenario, Tier};
use crate::state::Node;
use crate::wait::wait_until;

pub const SCENARIO: Scenario = Scenario {
    name: "intruder",
    about: "plaintext, replayed, forged and outdated packets from a stranger reach no pod, and are counted",
    tier: Tier::Gate,
    estimate: 60,
    alone: false,
    run: Run::Cluster(run),
};

/// Packets of each kind.
const N: usize = 200;
/// Probes a second in each direction: so few that what was held back for a minute is still within the replay window of
/// 4096.
const RATE: u32 = 50;
/// How long nodes may take until they enforce, once all encrypt.
const ENFORCING: Duration = Duration::from_secs(60);
/// How long what was sent may take until it is counted.
const COUNTED: Duration = Duration::from_secs(10);
/// The discard port (RFC 863): nothing listens there, and the pod's kernel counts what comes.
const CLOSED: u16 = 9;

/// What a kernel does not let in, and the counters of `/proc/net/xfrm_stat` of which one rises for each packet.
struct Kind {
    name: &'static str,
    counted_as: &'static [&'static str],
}

/// `TmplMismatch` where a peer's policy demands ESP, the others where only the block covers the packet.
const PLAINTEXT: &[&str] = &["XfrmInTmplMismatch", "XfrmInPolBlock", "XfrmInNoPols"];
const AS_NODE: Kind = Kind { name: "plaintext_from_a_node", counted_as: PLAINTEXT };
const AS_STRANGER: Kind = Kind { name: "plaintext_from_a_stranger", counted_as: PLAINTEXT };
const FORGED: Kind = Kind { name: "esp_with_a_wrong_tag", counted_as: &["XfrmInStateProtoError"] };
/// The tag does not cover the outer header; the SA's selector does.
const FROM_STRANGER: Kind = Kind { name: "esp_from_a_stranger", counted_as: &["XfrmInStateMismatch"] };
const FROM_NODE: Kind = Kind { name: "esp_from_another_node", counted_as: &["XfrmInStateMismatch"] };
/// With extended sequence numbers, one from before the window passes for one of the next 2³², and fails its tag.
const REPLAYED: Kind =
    Kind { name: "esp_replayed", counted_as: &["XfrmInStateSeqError", "XfrmInStateProtoError"] };
const OUTDATED: Kind = Kind { name: "esp_of_a_dropped_generation", counted_as: &["XfrmInNoStates"] };

fn run(lab: &Lab, report: &mut Report, _: Profile) -> Result<()> {
    let [node, peer, other, ..] = lab.nodes() else { bail!("this takes three nodes") };
    let overlay = Overlay::new(lab, Manifest::Ours);
    let probe = Probe::deploy(lab)?;
    let victim = Victim::find(lab, node, probe.pod_on(&node.name)?)?;
    let (pod, theirs) = (victim.pod, probe.pod_on(&peer.name)?);
    let intruder = Intruder::plug_in()?;
    // To every address that the node takes for its own.
    let plaintext = |source: Ipv4Addr| -> Vec<Vec<u8>> {
        let inner = udp(theirs, pod, CLOSED, b"from an intruder");
        let to_each = victim.addresses.iter().map(|address| ipip(source, *address, &inner));
        to_each.flat_map(|packet| vec![packet; N]).collect()
    };
    let mut trial = Trial { intruder: &intruder, victim: &victim, told: Told::default(), sent: 0 };

    note(format!("without SecureOverlay: plaintext to {:?}", victim.addresses));
    let all = [plaintext(peer.ip), plaintext(ADDRESS)].concat();
    let control = trial.control(&all)?;
    report.check(
        control == all.len() as u64,
        format!("without SecureOverlay {control} of {} injected packets were delivered", all.len()),
    );
    report.figure("control_injected", all.len());
    report.figure("control_delivered", control);

    overlay.enable()?;
    wait_insisting(lab)?;
    trial.sent = 0;
    let watched = wire::watch(&probe.at(RATE), "while a stranger injects", || {
        note("plaintext");
        trial.attack(report, &AS_NODE, &plaintext(peer.ip))?;
        trial.attack(report, &AS_STRANGER, &plaintext(ADDRESS))?;

        note("ESP that the node has not seen yet");
        let before = victim.delivered()?;
        let held = Held::capture(lab, peer, node, (pod, CLOSED), N)?;
        ensure!(victim.delivered()? == before, "packets that were to be held back were delivered");
        let [forged, moved, genuine, outdated] = held.quarters()?;
        let from = |packets: &[Vec<u8>], source| -> Result<Vec<Vec<u8>>> {
            packets.iter().map(|it| with_source(it, source).context("not an IPv4 packet")).collect()
        };
        let wrong: Vec<Vec<u8>> = forged.iter().map(|packet| with_other_end(packet)).collect();
        trial.attack(report, &FORGED, &wrong)?;
        // What was refused for its tag has not been received: the same packets serve again.
        trial.attack(report, &FROM_STRANGER, &from(forged, ADDRESS)?)?;
        trial.attack(report, &FROM_NODE, &from(moved, other.ip)?)?;

        // As it was sent, such a packet is received, once: nothing but the change was refused.
        let delivered = trial.control(genuine)?;
        report
            .check(delivered == N as u64, format!("{delivered} of {N} untouched ESP packets were delivered"));
        report.figure("control_esp_delivered", delivered);
        trial.attack(report, &REPLAYED, &[genuine, &held.probes].concat())?;

        note("a rotation, and ESP from before");
        let spis = spis(outdated);
        manager::rotate(lab, &["--wait"])?;
        until("the node to drop the old generation", PATIENCE, || {
            let kernel = xfrm::dump(lab)?.remove(&node.name).context("no such node")?;
            Ok(kernel.spis_between(peer.ip, node.ip).is_disjoint(&spis))
        })?;
        trial.attack(report, &OUTDATED, outdated)
    })?;
    // A replayed probe that is let in is one that the prober has twice.
    watched.check_delivered(report);
    report.figure("sent", watched.probes.sent);
    report.figure("lost", watched.probes.lost);

    let packets = &watched.captured.packets;
    let (ours, nodes): (Vec<&Packet>, Vec<&Packet>) =
        packets.iter().filter(|packet| packet.ipv4().is_some()).partition(|packet| is_ours(packet));
    report.check(
        ours.len() == trial.sent,
        format!("{} packets of the intruder on the wire, {} sent", ours.len(), trial.sent),
    );
    let clear = nodes.iter().filter(|packet| packet.ip_protocol() == Some(4)).count();
    report.expect("plaintext_packets", clear as u64, 0);
    trial.told.report(report);
    overlay.disable_and_check(report)
}

/// Waits until the ring says that nodes enforce, and all do.
fn wait_insisting(lab: &Lab) -> Result<()> {
    let peers = lab.nodes().len() - 1;
    until("every node to require ESP", ENFORCING, || {
        let says = Ring::read(lab)?.is_some_and(|ring| ring.enforcement() == "enforcing" && ring.is_steady());
        Ok(says && xfrm::dump(lab)?.values().all(|kernel| kernel.enforces(peers)))
    })
}

/// The node that is attacked, and a pod on it.
struct Victim<'a> {
    lab: &'a Lab,
    node: &'a Node,
    mac: Mac,
    /// All that the node itself receives at.
    addresses: BTreeSet<Ipv4Addr>,
    pod: Ipv4Addr,
    /// A process in the pod.
    prober: String,
}

impl<'a> Victim<'a> {
    fn find(lab: &'a Lab, node: &'a Node, pod: Ipv4Addr) -> Result<Self> {
        let mac = lab.exec_ok(&node.name, &["cat", "/sys/class/net/vec0/address"])?;
        let mac = frames::mac(&mac).with_context(|| format!("{mac} is no Ethernet address"))?;
        let shown = lab.exec_ok(&node.name, &["ip", "-4", "-o", "address", "show", "scope", "global"])?;
        let addresses = addresses(&shown);
        ensure!(
            addresses.contains(&node.ip) && addresses.contains(&node.tunnel_ip),
            "{} has the addresses {addresses:?}",
            node.name
        );
        let [prober] = &pids(lab, &node.name, "prober")?[..] else {
            bail!("not exactly one prober on {}", node.name)
        };
        Ok(Self { lab, node, mac, addresses, pod, prober: prober.clone() })
    }

    /// Datagrams that came to closed ports of the pod.
    fn delivered(&self) -> Result<u64> {
        let snmp = self.lab.exec_ok(&self.node.name, &["cat", &format!("/proc/{}/net/snmp", self.prober)])?;
        udp_counter(&snmp, "NoPorts").context("the pod's kernel does not count datagrams to closed ports")
    }

    /// What the node's IPsec dropped, by its name for the reason.
    fn dropped(&self) -> Result<BTreeMap<String, u64>> {
        Ok(counters(&self.lab.exec_ok(&self.node.name, &["cat", "/proc/net/xfrm_stat"])?))
    }
}

/// What was injected and what became of it, by kind.
#[derive(Default)]
struct Told {
    injected: BTreeMap<&'static str, usize>,
    delivered: BTreeMap<&'static str, u64>,
    counters: BTreeMap<&'static str, BTreeMap<String, u64>>,
}

impl Told {
    fn report(&self, report: &mut Report) {
        report.figure("injected", &self.injected);
        report.figure("delivered", &self.delivered);
        report.figure("counters", &self.counters);
    }
}

struct Trial<'a> {
    intruder: &'a Intruder,
    victim: &'a Victim<'a>,
    told: Told,
    /// Packets that were sent.
    sent: usize,
}

impl Trial<'_> {
    /// Sends what is to be delivered; returns how much of it was.
    fn control(&mut self, packets: &[Vec<u8>]) -> Result<u64> {
        let before = self.victim.delivered()?;
        self.intruder.send(self.victim.mac, packets)?;
        self.sent += packets.len();
        let delivered = || Ok(self.victim.delivered()?.saturating_sub(before));
        // How much is missing is the caller's to judge.
        drop(until("what is to be delivered", COUNTED, || Ok(delivered()? >= packets.len() as u64)));
        delivered()
    }

    /// Sends what must not be delivered.
    fn attack(&mut self, report: &mut Report, kind: &Kind, packets: &[Vec<u8>]) -> Result<()> {
        let Kind { name, counted_as } = kind;
        let (delivered, dropped) = (self.victim.delivered()?, self.victim.dropped()?);
        self.intruder.send(self.victim.mac, packets)?;
        self.sent += packets.len();
        let mut risen = BTreeMap::new();
        let counted = wait_until("the packets to be counted", COUNTED, || {
            risen = rise(&dropped, &self.victim.dropped()?);
            let counted: u64 = counted_as.iter().filter_map(|counter| risen.get(*counter)).sum();
            Ok((counted >= packets.len() as u64).then_some(()))
        });
        let delivered = self.victim.delivered()?.saturating_sub(delivered);
        note(format!("  {name}: {} injected, {delivered} delivered, {risen:?}", packets.len()));
        report.check(packets.len() >= N, format!("{name}: only {} packets injected", packets.len()));
        report.check(delivered == 0, format!("{name}: {delivered} of {} delivered", packets.len()));
        report.check(
            counted.is_ok(),
            format!("{name}: {} injected, of which {counted_as:?} should tell: {risen:?}", packets.len()),
        );
        self.told.injected.insert(*name, packets.len());
        self.told.delivered.insert(*name, delivered);
        self.told.counters.insert(*name, risen);
        Ok(())
    }
}

fn is_ours(packet: &Packet) -> bool {
    packet.frame.get(6..12) == Some(&MAC[..])
}

/// The addresses in what `ip -4 -o address` prints, each once: the devices of a node's pods share one.
fn addresses(shown: &str) -> BTreeSet<Ipv4Addr> {
    let address = |line: &str| line.split_once(" inet ")?.1.split(['/', ' ']).next()?.parse().ok();
    shown.lines().filter_map(address).collect()
}

/// The counters of `/proc/net/xfrm_stat`.
fn counters(text: &str) -> BTreeMap<String, u64> {
    let counter = |line: &str| {
        let (name, value) = line.split_once(char::is_whitespace)?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(counter).collect()
}

/// By how much counters rose; those that did not are left out.
fn rise(before: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let risen = now.iter().map(|(name, value)| {
        (name.clone(), value.saturating_sub(before.get(name).copied().unwrap_or_default()))
    });
    risen.filter(|(_, by)| *by > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_all_interfaces() {
        let shown = "2: vec0    inet 10.200.0.11/24 scope global vec0\\       valid_lft forever preferred_lft forever\n\
                     3: tunl0    inet 10.244.1.240/32 scope global tunl0\\       valid_lft forever\n\
                     5: veth1c    inet 10.244.1.1/32 scope global veth1c\\       valid_lft forever\n\
                     6: veth2d    inet 10.244.1.1/32 scope global veth2d\\       valid_lft forever\n";
        let found: Vec<String> = addresses(shown).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.200.0.11", "10.244.1.1", "10.244.1.240"]);
    }

    #[test]
    fn only_counters_that_rose_are_told() {
        let before =
            counters("XfrmInError             \t0\nXfrmInNoStates          \t17\nXfrmInPolBlock\t3\n");
        let now = counters(
            "XfrmInError             \t0\nXfrmInNoStates          \t217\nXfrmInPolBlock\t3\nXfrmNew\t1\n",
        );
        assert_eq!(
            rise(&before, &now),
            [("XfrmInNoStates".to_owned(), 200), ("XfrmNew".to_owned(), 1)].into()
        );
    }

    #[test]
    fn the_intruders_frames_are_known_by_their_source() {
        let of = |frame: Vec<u8>| Packet { time: Duration::ZERO, frame };
        let packet = ipip(ADDRESS, ADDRESS, &[]);
        assert!(is_ours(&of(frames::frame([1; 6], MAC, &packet))));
        assert!(!is_ours(&of(frames::frame(MAC, [1; 6], &packet))));
        assert!(!is_ours(&of(frames::frame([1; 6], MAC, &packet)[..11].to_vec())));
    }
}
