//! Routes (`RTM_GETROUTE`): the one to a destination, and all of a dump.

use std::net::{IpAddr, Ipv4Addr};

use neli::{
    attr::Attribute,
    consts::rtnl::{RtAddrFamily, RtScope, RtTable, Rta, Rtn, Rtprot},
    err::DeError,
    rtnl::{RtAttrHandle, RtattrBuilder, Rtmsg, RtmsgBuilder},
    types::{Buffer, RtBuffer},
};
use secureoverlay_agent_core::xfrm::Net;

use super::message::{address, decode, encode, word};
use crate::{error::Malformed, netlink::frame};

/// Among the attributes nested in `RTA_METRICS`, which neli does not name.
const RTAX_MTU: u16 = 2;
/// `RT_TABLE_LOCAL`: addresses of this node.
const LOCAL_TABLE: u32 = 255;
/// Length of `struct rtnexthop`.
const HOP_LEN: usize = 8;

/// Where the kernel sends packets for a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteTo {
    /// Number of the interface.
    pub oif: u32,
    /// The next hop, if the destination is not itself on the link.
    pub gateway: Option<IpAddr>,
    /// The source address that it chooses.
    pub prefsrc: Option<IpAddr>,
    /// The route's MTU where it has one: configured, or learned from ICMP for this destination.
    pub mtu: Option<u32>,
    /// An ordinary route (`RTN_UNICAST`): neither to ourselves nor a broadcast.
    pub unicast: bool,
}

/// One way that a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// The destinations.
    pub to: Net,
    /// Number of the interface; 0 where packets are dropped (a block of addresses that this node gives to its pods).
    pub oif: u32,
    /// The next hop, if the destinations are not themselves on the link.
    pub gateway: Option<IpAddr>,
    /// The route's MTU where it has one.
    pub mtu: Option<u32>,
}

pub(super) fn route_request(destination: IpAddr) -> Vec<u8> {
    let (family, octets) = match destination {
        IpAddr::V4(address) => (RtAddrFamily::Inet, address.octets().to_vec()),
        IpAddr::V6(address) => (RtAddrFamily::Inet6, address.octets().to_vec()),
    };
    let bits = if destination.is_ipv4() { 32 } else { 128 };
    let to = RtattrBuilder::default()
        .rta_type(Rta::Dst)
        .rta_payload(octets)
        .build()
        .expect("an attribute is a type and a payload");
    routes_request(family, bits, RtBuffer::from_iter([to]))
}

pub(super) fn ways_request() -> Vec<u8> {
    routes_request(RtAddrFamily::Inet, 0, RtBuffer::new())
}

fn routes_request(family: RtAddrFamily, bits: u8, attributes: RtBuffer<Rta, Buffer>) -> Vec<u8> {
    let message = RtmsgBuilder::default()
        .rtm_family(family)
        .rtm_dst_len(bits)
        .rtm_src_len(0)
        .rtm_tos(0)
        .rtm_table(RtTable::Unspec)
        .rtm_protocol(Rtprot::Unspec)
        .rtm_scope(RtScope::Universe)
        .rtm_type(Rtn::Unspec)
        .rtattrs(attributes)
        .build();
    encode(&message.expect("every other field has a default or is set"))
}

/// The payload of an `RTM_NEWROUTE`.
///
/// # Errors
/// It is not one.
pub fn parse_route(payload: &[u8]) -> Result<RouteTo, Malformed> {
    let message: Rtmsg = decode(payload)?;
    let attributes = message.rtattrs().get_attr_handle();
    Ok(RouteTo {
        // Routes that lead nowhere have none.
        oif: word(&attributes, Rta::Oif)?.unwrap_or(0),
        gateway: address(&attributes, Rta::Gateway),
        prefsrc: address(&attributes, Rta::Prefsrc),
        mtu: route_mtu(&attributes)?,
        unicast: *message.rtm_type() == Rtn::Unicast,
    })
}

fn route_mtu(attributes: &RtAttrHandle<'_, Rta>) -> Result<Option<u32>, DeError> {
    match attributes.get_attribute(Rta::Metrics) {
        Some(metrics) => word(&metrics.get_attr_handle()?, RTAX_MTU),
        None => Ok(None),
    }
}

/// The payload of an `RTM_NEWROUTE` from a dump: its table and the ways that it leads, none if it is no ordinary route,
/// or one to this node's own addresses. A next hop that is not IPv4 (`RTA_VIA`)
/// is shown as none.
///
/// # Errors
/// It is not one.
pub fn parse_ways(payload: &[u8]) -> Result<Vec<(u32, Way)>, Malformed> {
    let message: Rtmsg = decode(payload)?;
    let attributes = message.rtattrs().get_attr_handle();
    let table = word(&attributes, Rta::Table)?.unwrap_or(u8::from(*message.rtm_table()).into());
    let blackhole = *message.rtm_type() == Rtn::Blackhole;
    if table == LOCAL_TABLE || !(blackhole || *message.rtm_type() == Rtn::Unicast) {
        return Ok(Vec::new());
    }
    let ways = ways_of(&message, &attributes, blackhole)?;
    Ok(ways.into_iter().map(|way| (table, way)).collect())
}

fn ways_of(
    message: &Rtmsg,
    attributes: &RtAttrHandle<'_, Rta>,
    blackhole: bool,
) -> Result<Vec<Way>, Malformed> {
    // The default route has no address.
    let addr = address(attributes, Rta::Dst).unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let to = Net { addr, prefix: *message.rtm_dst_len() };
    if blackhole {
        return Ok(vec![Way { to, oif: 0, gateway: None, mtu: None }]);
    }
    let mtu = route_mtu(attributes)?;
    if let Some(hops) = attributes.get_attribute(Rta::Multipath) {
        return parse_hops(to, mtu, hops.payload().as_ref());
    }
    let oif = word(attributes, Rta::Oif)?.unwrap_or(0);
    Ok(vec![Way { to, oif, gateway: address(attributes, Rta::Gateway), mtu }])
}

/// The next hops of a multipath route, each a `struct rtnexthop` and attributes.
fn parse_hops(to: Net, mtu: Option<u32>, mut bytes: &[u8]) -> Result<Vec<Way>, Malformed> {
    let mut ways = Vec::new();
    while !bytes.is_empty() {
        let header =
            bytes.first_chunk::<HOP_LEN>().ok_or_else(|| Malformed("a next hop is cut off".into()))?;
        let [low, high, _, _, oif @ ..] = *header;
        let length = usize::from(u16::from_ne_bytes([low, high]));
        let hop =
            bytes.get(HOP_LEN..length).ok_or_else(|| Malformed(format!("a next hop of {length} bytes")))?;
        let mut gateway = None;
        for attribute in frame::attributes(hop) {
            let attribute = attribute?;
            if attribute.kind() == u16::from(Rta::Gateway) {
                gateway =
                    <[u8; 4]>::try_from(attribute.value()).ok().map(|octets| Ipv4Addr::from(octets).into());
            }
        }
        ways.push(Way { to, oif: u32::from_ne_bytes(oif), gateway, mtu });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(ways)
}
