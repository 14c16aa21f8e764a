//! Layouts of routes, rules and devices on a node: what the product says of its coverage is compared with what is readable
//! on the wire. It says "complete" only where all traffic to pods is encrypted, and enforces only there.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use super::cluster::until;
use super::probe::Probe;
use super::wire::{self, Watched};
use super::{enforcing, manager};
use crate::lab::Lab;
use crate::pcap::Packet;
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};
use crate::state::Node;

pub const SCENARIO: Scenario = Scenario {
    name: "coverage",
    about: "whatever routes, rules and devices a node has: it calls itself covered only if nothing to pods is readable",
    tier: Tier::Gate,
    estimate: 300,
    alone: false,
    run: Run::Installed(run),
};

/// How long a node may take to notice another layout.
const NOTICED: Duration = Duration::from_secs(60);
/// How long traffic is looked at: longer than the agent's pause between two looks at its routes, so that what it says
/// afterwards is about this layout.
const WATCHED: Duration = Duration::from_secs(12);
/// How long a cluster that must not enforce is left to try.
const TRIED: Duration = Duration::from_secs(8);
/// UDP port of VXLAN (RFC 7348).
const VXLAN: u16 = 4789;
/// Layouts in `--full`.
const MANY: usize = 50;

/// What a layout does to the traffic of one node toward another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// All of it goes into the tunnel.
    Covered,
    /// Some of it is readable on the wire.
    Readable,
    /// It goes where no node answers.
    Lossy,
}

/// A layout: what is run on the node `at`, about its peer.
struct Layout {
    name: &'static str,
    kind: Kind,
    /// With `$NODE` (the peer's address), `$BLOCKS` (those of its pods), `$POD` (one pod) and `$UPLINK`.
    script: &'static str,
}

const LAYOUTS: [Layout; 10] = [
    Layout { name: "one route for each node", kind: Kind::Covered, script: "sh /lab/node/routes.sh cidr" },
    Layout {
        name: "the pool moved to VXLAN",
        kind: Kind::Readable,
        script: "ip link add vxlan.lab type vxlan id 42 dstport 4789 local $NODE_IP dev $UPLINK
            ip link set vxlan.lab address 02:00:00:00:00:01 up
            bridge fdb append 00:00:00:00:00:00 dev vxlan.lab dst $NODE
            ip neigh add 198.18.77.1 lladdr 02:00:00:00:00:02 dev vxlan.lab
            for block in $BLOCKS; do ip route replace $block via 198.18.77.1 dev vxlan.lab onlink proto 80; done",
    },
    Layout {
        name: "CrossSubnet: one block without a tunnel",
        kind: Kind::Readable,
        script: "for block in $BLOCKS; do ip route replace $block via $NODE dev $UPLINK onlink proto 80; done",
    },
    Layout {
        name: "one pod beside its block",
        kind: Kind::Readable,
        script: "ip route add $POD via $NODE dev $UPLINK onlink",
    },
    Layout {
        name: "a rule leads to another table",
        kind: Kind::Readable,
        script: "for block in $BLOCKS; do ip route add $block via $NODE dev $UPLINK onlink table 77; done
            ip rule add pref 99 lookup 77",
    },
    Layout {
        name: "a table that no rule leads to",
        kind: Kind::Covered,
        script: "for block in $BLOCKS; do ip route add $block via $NODE dev $UPLINK onlink table 77; done",
    },
    Layout {
        name: "a node is the gateway of a network without pods",
        kind: Kind::Covered,
        script: "ip route add 198.18.0.0/24 via $NODE dev $UPLINK",
    },
    Layout {
        name: "a network with the name of a runtime's bridge on every node",
        kind: Kind::Covered,
        script: "ip link add bridge.lab type bridge
            ip addr add 172.17.0.1/16 dev bridge.lab
            ip link set bridge.lab up",
    },
    Layout {
        name: "a tunnel to an address that no node announces",
        kind: Kind::Lossy,
        script: "for block in $BLOCKS; do ip route replace $block via 10.200.0.250 dev tunl0 onlink proto 80; done",
    },
    Layout {
        name: "the default route alone leads to a node's pods",
        kind: Kind::Readable,
        script: "for block in $BLOCKS; do ip route del $block; done",
    },
];

/// Takes away what any layout made.
const UNDO: &str = "ip link del vxlan.lab; ip link del bridge.lab; ip rule del pref 99; ip route flush table 77; \
                    ip route del 198.18.0.0/24; ip route del $POD; sh /lab/node/routes.sh calico";

#[derive(Default)]
struct Figures {
    layouts: u64,
    covered: u64,
    readable: u64,
    lossy: u64,
    false_covered: u64,
    unexplained_loss: u64,
    enforced: u64,
}

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    let mut rng = StdRng::seed_from_u64(profile.seed());
    let count = profile.pick(LAYOUTS.len(), MANY);
    let mut figures = Figures::default();
    enforcing::request(lab, "permissive")?;
    for n in 0..count {
        // Each kind once, then whatever is drawn.
        let layout = LAYOUTS.get(n).unwrap_or(&LAYOUTS[rng.random_range(0..LAYOUTS.len())]);
        let at = rng.random_range(0..lab.nodes().len());
        let toward = (at + rng.random_range(1..lab.nodes().len())) % lab.nodes().len();
        let (node, peer) = (&lab.nodes()[at], &lab.nodes()[toward]);
        note(format!("{}: {} toward {}", node.name, layout.name, peer.name));
        let place = Place { lab, node, peer, pod: probe.pod_on(&peer.name)? };
        let judged = try_layout(&place, layout, probe, report, &mut figures);
        place.undo()?;
        judged?;
        complete(&place, report, "afterwards")?;
    }
    let Figures { layouts, covered, readable, lossy, false_covered, unexplained_loss, enforced } = figures;
    report.figure("seed", profile.seed());
    for (name, value) in
        [("layouts", layouts), ("covered", covered), ("readable", readable), ("lossy", lossy)]
    {
        report.figure(name, value);
    }
    report.expect_none("false_covered", false_covered);
    report.expect_none("unexplained_loss", unexplained_loss);
    report.expect("enforced", enforced, covered);
    enforcing::request_nothing(lab)?;
    enforcing::wait(lab)
}

/// A node whose routes change, and the peer that they lead to.
pub struct Place<'l> {
    /// The cluster.
    pub lab: &'l Lab,
    /// The node.
    pub node: &'l Node,
    /// The peer.
    pub peer: &'l Node,
    /// A pod of the peer.
    pub pod: Ipv4Addr,
}

impl Place<'_> {
    /// The script of the layout with this name.
    pub fn layout(name: &str) -> Result<&'static str> {
        let layout = LAYOUTS.iter().find(|layout| layout.name == name);
        Ok(layout.with_context(|| format!("there is no layout {name}"))?.script)
    }

    /// Runs a script on the node, with the variables that layouts use.
    pub fn script(&self, flags: &str, script: &str) -> Result<String> {
        let Node { ip, pod_cidr, .. } = self.peer;
        let network = pod_cidr.split_once(".0/").context("a pod network of another form")?.0;
        let mut text = format!(". /lab/node/environment; set {flags}; NODE={ip} POD={}; ", self.pod);
        text += "UPLINK=$(ip -o route get $NODE | sed 's/.* dev \\([^ ]*\\).*/\\1/'); ";
        let _ = write!(text, "BLOCKS='{network}.0/26 {network}.64/26 {network}.128/26 {network}.192/26'; ");
        self.lab.exec_ok(&self.node.name, &["sh", "-c", &(text + script)])
    }

    /// Takes back what any layout made.
    pub fn undo(&self) -> Result<()> {
        self.script("+e", &format!("{{ {UNDO} {}; }} 2> /dev/null", self.lab.tunnel_mtu())).map(drop)
    }

    /// What the node's object says of its coverage: status and reason.
    fn says(&self) -> Result<(String, String)> {
        let all = manager::statuses(self.lab, "conditions")?;
        let conditions = all.get(&self.node.name).and_then(Value::as_array).cloned().unwrap_or_default();
        let coverage = conditions.into_iter().find(|condition| condition["type"] == "CoverageComplete");
        let coverage = coverage.unwrap_or_default();
        let text = |field: &str| coverage[field].as_str().unwrap_or_default().to_owned();
        Ok((text("status"), text("reason")))
    }
}

fn try_layout(
    place: &Place<'_>,
    layout: &Layout,
    probe: &Probe,
    report: &mut Report,
    figures: &mut Figures,
) -> Result<()> {
    place.script("-e", layout.script)?;
    // A node that has nothing to say anew says what it said before.
    let noticed =
        until(layout.name, NOTICED, || Ok((place.says()?.0 == "True") == (layout.kind == Kind::Covered)));
    let watched = wire::watch_for(probe, layout.name, WATCHED)?;
    let (status, reason) = place.says()?;
    let as_meant = (status == "True") == (layout.kind == Kind::Covered);
    report.check(noticed.is_ok() && as_meant, format!("{}: {status} ({reason})", layout.name));
    let readable = readable(&watched, place.node.ip);
    let lost = lost(&watched, place);
    let seen = if readable > 0 {
        Kind::Readable
    } else if lost > 0 {
        Kind::Lossy
    } else {
        Kind::Covered
    };
    note(format!("  {status} ({reason}); {readable} packets readable, {lost} lost: {seen:?}"));
    report.check(
        seen == layout.kind,
        format!("{}: {seen:?} on the wire, meant as {:?}", layout.name, layout.kind),
    );
    figures.layouts += 1;
    match seen {
        Kind::Covered => figures.covered += 1,
        Kind::Readable => figures.readable += 1,
        Kind::Lossy => figures.lossy += 1,
    }
    figures.false_covered += u64::from(status == "True" && seen == Kind::Readable);
    figures.unexplained_loss += u64::from(status == "True" && lost > 0);
    enforcing::request_nothing(place.lab)?;
    let enforces = || enforcing::enforces(place.lab, place.lab.nodes());
    let enforced = if seen == Kind::Covered {
        until("every node to enforce", NOTICED, enforces).is_ok()
    } else {
        std::thread::sleep(TRIED);
        enforces()?
    };
    figures.enforced += u64::from(enforced);
    let should = seen == Kind::Covered;
    report.check(enforced == should, format!("{}: enforces: {enforced}, should: {should}", layout.name));
    enforcing::request(place.lab, "permissive")
}

/// Waits until the node calls itself covered again.
fn complete(place: &Place<'_>, report: &mut Report, when: &str) -> Result<()> {
    let complete = until("the node to be covered again", NOTICED, || Ok(place.says()?.0 == "True"));
    report.check(complete.is_ok(), format!("{when}: {:?}", place.says()?));
    Ok(())
}

/// Packets of pods from this node that can be read on the wire: in IPIP, in VXLAN, or as they are.
fn readable(watched: &Watched, from: Ipv4Addr) -> usize {
    let of_pods = |address: Option<Ipv4Addr>| address.is_some_and(|it| it.octets()[..2] == [10, 244]);
    let by_vxlan = |packet: &&Packet| {
        let port =
            packet.payload().and_then(|udp| udp.get(2..4)).map(|port| u16::from_be_bytes([port[0], port[1]]));
        packet.ip_protocol() == Some(17) && port == Some(VXLAN)
    };
    let packets = watched.captured.packets.iter();
    let read = packets.filter(|packet| {
        let tunnelled =
            packet.source() == Some(from) && (packet.ip_protocol() == Some(4) || by_vxlan(packet));
        tunnelled || (of_pods(packet.source()) && of_pods(packet.destination()))
    });
    read.count()
}

/// Probes that did not come from one node to the other.
fn lost(watched: &Watched, place: &Place<'_>) -> u32 {
    let directions = watched.probes.directions.iter();
    let concerned = directions.filter(|it| it.from == place.node.name && it.to == place.peer.name);
    concerned.map(|it| if it.received == 0 { it.lost.max(1) } else { it.lost }).sum()
}
