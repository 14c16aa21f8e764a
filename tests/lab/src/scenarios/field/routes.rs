//! How pods are reached: routes, devices and policies of others that lead traffic around encryption, or do not.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Case, Field, SEEN};
use crate::capture::Capture;
use crate::scenarios::cluster::until;
use crate::scenarios::coverage::Place;
use crate::state::Node;

/// Side by side: each has a node, or a route, of its own.
pub const CASES: [Case; 5] = [
    Case::new(
        1,
        "the pool is moved to VXLAN while nodes enforce",
        "node and cluster say what leaves by which device, and what to do",
        moved_to_vxlan,
    ),
    Case::new(
        2,
        "a tunnel leads to an address that no node announces",
        "the address is named, and nothing leaves in the clear",
        unknown_gateway,
    ),
    Case::new(
        6,
        "a node is the gateway of a network without pods",
        "that is no finding",
        gateway_of_another_network,
    ),
    Case::new(
        18,
        "a tunnel device for each peer, routes without a gateway",
        "the MTU of that device is judged, and its traffic is encrypted",
        device_for_each_peer,
    ),
    Case::new(
        30,
        "a policy of another program for mark 0 with a mask",
        "it is reported: it takes all packets without a mark",
        masked_policy,
    ),
];

/// Longer than the agent's pause between two looks at its routes.
const LOOK: Duration = Duration::from_secs(12);

impl Field<'_> {
    fn place<'p>(&'p self, node: &'p Node, peer: &'p Node) -> Result<Place<'p>> {
        Ok(Place { lab: self.lab(), node, peer, pod: self.probe.pod_on(&peer.name)? })
    }
}

/// Does something to a node's routes, and takes it back whatever came of it.
fn with_layout(place: &Place<'_>, script: &str, seen: impl FnOnce() -> Result<String>) -> Result<String> {
    let outcome = place.script("-e", script).and_then(|_| seen());
    place.undo()?;
    outcome
}

fn moved_to_vxlan(field: &Field<'_>) -> Result<String> {
    let [node, peer, _] = field.nodes;
    let place = field.place(node, peer)?;
    with_layout(&place, Place::layout("the pool moved to VXLAN")?, || {
        let found = field.found(node, "PlaintextBypass", &["vxlan.lab", "by VXLAN", "vxlanMode: Never"])?;
        for kind in ["CoverageComplete", "Ready"] {
            field.until_condition(node, kind, "False")?;
        }
        let mut cluster = Default::default();
        until("the cluster's object to say so", SEEN, || {
            cluster = field.cluster_condition("CoverageComplete")?;
            Ok(cluster[0] == "False" && cluster[2].contains(&node.name))
        })?;
        Ok(format!("{found} The cluster: {}", cluster[2]))
    })
}

fn unknown_gateway(field: &Field<'_>) -> Result<String> {
    let [peer, node, _] = field.nodes;
    let place = field.place(node, peer)?;
    with_layout(&place, Place::layout("a tunnel to an address that no node announces")?, || {
        let found = field.found(node, "GatewayUnknown", &["10.200.0.250"])?;
        let (sent, clear) = in_the_clear(field, node, &place.pod.to_string())?;
        ensure!(clear == 0, "{clear} packets for {sent} pings left {} in the clear", node.name);
        Ok(format!("{found}; {clear} of {sent} packets in the clear"))
    })
}

/// Pings an address, and returns how often, and how many IPIP packets left the node meanwhile.
fn in_the_clear(field: &Field<'_>, node: &Node, to: &str) -> Result<(usize, usize)> {
    const SENT: usize = 8;
    let capture = Capture::start(&format!("field-{}", node.name), None)?;
    let words = ["ping", "-q", "-i", "0.1", "-W", "1", "-c", &SENT.to_string(), to];
    // Nothing may answer.
    field.lab().exec(&node.name, &words)?;
    let packets = capture.stop()?.packets;
    let clear = packets.iter().filter(|it| it.ip_protocol() == Some(4) && it.source() == Some(node.ip));
    Ok((SENT, clear.count()))
}

fn gateway_of_another_network(field: &Field<'_>) -> Result<String> {
    let [_, peer, node] = field.nodes;
    let network = "198.18.7.0/24";
    field.sh(node, &format!("ip route add {network} via {} dev vec0", peer.ip))?;
    // Nothing happens: the agent has looked meanwhile.
    thread::sleep(LOOK);
    let findings = field.findings(node);
    field.sh(node, &format!("ip route del {network}"))?;
    let named = findings?.into_iter().find(|(_, message)| message.contains("198.18.7."));
    ensure!(named.is_none(), "{named:?}");
    Ok("no finding names it".to_owned())
}

fn device_for_each_peer(field: &Field<'_>) -> Result<String> {
    let [_, peer, node] = field.nodes;
    let place = field.place(node, peer)?;
    // As kube-router makes them. Its MTU is what is left of the uplink's, without room for ESP; that of tunl0 is not used.
    let script = "ip link add tun-lab type ipip local $NODE_IP remote $NODE
        ip link set tun-lab mtu 1480 up
        for block in $BLOCKS; do ip route replace $block dev tun-lab proto 80 src $TUNNEL_IP; done";
    let seen = with_layout(&place, script, || {
        let said = field.until_condition(node, "MTUValid", "False")?;
        ensure!(said.contains("1480") && said.contains("tun-lab"), "{said}");
        let pod = place.pod.to_string();
        let capture = Capture::start("field-device", None)?;
        let answered =
            field.lab().exec(&node.name, &["ping", "-q", "-i", "0.1", "-W", "1", "-c", "5", &pod])?;
        let packets = capture.stop()?.packets;
        let of = |protocol| {
            let sent = |it: &&crate::pcap::Packet| {
                it.ip_protocol() == Some(protocol)
                    && (it.source(), it.destination()) == (Some(node.ip), Some(peer.ip))
            };
            packets.iter().filter(sent).count()
        };
        ensure!(answered.status == 0, "pings by the device are lost: {}", answered.stdout);
        ensure!(of(50) >= 5 && of(4) == 0, "{} ESP packets, {} in the clear", of(50), of(4));
        Ok(format!("{said}; {} ESP packets, {} in the clear", of(50), of(4)))
    });
    field.try_sh(node, "ip link del tun-lab")?;
    seen
}

fn masked_policy(field: &Field<'_>) -> Result<String> {
    let [node, _, peer] = field.nodes;
    let id = format!("src {}/32 dst {}/32 proto 4 dir out", node.ip, peer.ip);
    field.sh(node, &format!("ip xfrm policy add {id} priority 100 mark 0 mask 0xff"))?;
    let found = field.found(node, "ForeignPolicy", &[&peer.ip.to_string(), "priority 100"]);
    // By its priority: by its selector the kernel might take ours.
    field.sh(node, "ip xfrm policy deleteall dir out priority 100")?;
    found
}
