//! Links, addresses and routes (rtnetlink, RFC 3549, `linux/rtnetlink.h`): the facts for the MTU and coverage checks.
//!
//! neli knows the messages. They travel over the driver's own socket, which waits for a limited time, notices
//! interrupted dumps and takes damaged frames for errors.

use std::{
    collections::BTreeSet,
    io::Cursor,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use neli::{
    FromBytesWithInput, ToBytes,
    attr::Attribute,
    consts::rtnl::{
        Ifa, Iff, Ifla, IflaInfo, RtAddrFamily, RtScope, RtTable, Rta, RtaType, Rtm, Rtn, Rtprot,
    },
    err::DeError,
    rtnl::{
        Ifaddrmsg, IfaddrmsgBuilder, Ifinfomsg, IfinfomsgBuilder, RtAttrHandle, RtattrBuilder, Rtmsg,
        RtmsgBuilder,
    },
    types::{Buffer, RtBuffer},
};

use secureoverlay_agent_core::coverage::MAIN_TABLE;

use super::{
    error::{KernelError, Malformed, Refusal},
    frame,
    rules::{self, parse_rule},
    socket::{RequestSocket, Subsystem},
    switches::Switches,
};
use crate::xfrm::Net;

/// The kind of IP-in-IP tunnel devices.
const IPIP: &str = "ipip";
/// Among the attributes nested in `RTA_METRICS`, which neli does not name.
const RTAX_MTU: u16 = 2;
/// Among the attributes of an IPIP device nested in `IFLA_INFO_DATA` (`linux/if_tunnel.h`).
const IFLA_IPTUN_REMOTE: u16 = 3;
/// `RT_TABLE_LOCAL`: addresses of this node.
const LOCAL_TABLE: u32 = 255;
/// `RTM_GETRULE`, which neli does not name.
const RTM_GETRULE: u16 = 34;
/// Length of `struct rtnexthop`.
const HOP_LEN: usize = 8;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Bytes of the largest packet.
    pub mtu: u32,
    /// The kind of a virtual one, such as `ipip`.
    pub kind: Option<String>,
    /// The other end of an IPIP tunnel that has a fixed one; Calico's `tunl0` has none.
    pub remote: Option<IpAddr>,
    /// Whether it was switched on.
    pub up: bool,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it takes part in IPsec.
    pub switches: Switches,
}

impl Link {
    /// An IP-in-IP tunnel device.
    #[must_use]
    pub fn is_ipip(&self) -> bool {
        self.kind.as_deref() == Some(IPIP)
    }
}

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

/// A netlink socket for links and routes. Reading needs no capability.
pub struct LinkSocket {
    requests: RequestSocket,
}

impl LinkSocket {
    /// Opens the socket.
    ///
    /// # Errors
    /// The system does not let us.
    pub fn open() -> Result<Self, KernelError> {
        Ok(Self { requests: RequestSocket::open(Subsystem::Route)? })
    }

    /// All interfaces with their addresses, in the order of their numbers.
    ///
    /// # Errors
    /// The kernel refuses, or its answer can't be read.
    pub fn links(&mut self) -> Result<Vec<Link>, KernelError> {
        let mut links =
            self.requests.dump(Rtm::Getlink.into(), &links_request(), "reading the links", |payload| {
                parse_link(payload).map(Some)
            })?;
        let addresses = self.requests.dump(
            Rtm::Getaddr.into(),
            &addresses_request(),
            "reading the addresses",
            parse_address,
        )?;
        links.sort_by_key(|link| link.index);
        for (index, address) in addresses {
            if let Ok(at) = links.binary_search_by_key(&index, |link| link.index) {
                links[at].addresses.push(address);
            }
        }
        Ok(links)
    }

    /// The route to `destination`, or why there is none.
    ///
    /// # Errors
    /// The kernel can't be asked, or its answer can't be read.
    pub fn route_to(&mut self, destination: IpAddr) -> Result<Result<RouteTo, Refusal>, KernelError> {
        self.requests.get(
            Rtm::Getroute.into(),
            &route_request(destination),
            "looking up a route",
            parse_route,
        )
    }

    /// The IPv4 routes of the main table, each way of a multipath route by itself.
    ///
    /// # Errors
    /// The kernel refuses, or its answer can't be read.
    pub fn ways(&mut self) -> Result<Vec<Way>, KernelError> {
        let routes = self.routes()?;
        Ok(routes.into_iter().filter(|(table, _)| *table == MAIN_TABLE).map(|(_, way)| way).collect())
    }

    /// The IPv4 routes of all tables but that of local addresses, with their tables.
    ///
    /// # Errors
    /// The kernel refuses, or its answer can't be read.
    pub fn routes(&mut self) -> Result<Vec<(u32, Way)>, KernelError> {
        let routes =
            self.requests.dump(Rtm::Getroute.into(), &ways_request(), "reading the routes", |payload| {
                parse_ways(payload).map(Some)
            })?;
        Ok(routes.into_iter().flatten().collect())
    }

    /// The tables that IPv4 rules lead to.
    ///
    /// # Errors
    /// The kernel refuses, or its answer can't be read.
    pub fn tables(&mut self) -> Result<BTreeSet<u32>, KernelError> {
        let tables =
            self.requests.dump(RTM_GETRULE, &rules::request(), "reading the routing rules", parse_rule)?;
        Ok(tables.into_iter().collect())
    }
}

fn links_request() -> Vec<u8> {
    let message = IfinfomsgBuilder::default().ifi_family(RtAddrFamily::Unspecified).build();
    encode(&message.expect("every other field has a default"))
}

fn addresses_request() -> Vec<u8> {
    let message = IfaddrmsgBuilder::default()
        .ifa_family(RtAddrFamily::Unspecified)
        .ifa_prefixlen(0)
        .ifa_scope(RtScope::Universe)
        .ifa_index(0)
        .build();
    encode(&message.expect("every other field has a default or is set"))
}

fn route_request(destination: IpAddr) -> Vec<u8> {
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

fn ways_request() -> Vec<u8> {
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

/// The payload of an `RTM_NEWLINK`; addresses are left empty.
///
/// # Errors
/// It is not one.
pub fn parse_link(payload: &[u8]) -> Result<Link, Malformed> {
    let message: Ifinfomsg = decode(payload)?;
    let index = *message.ifi_index();
    let attributes = message.rtattrs().get_attr_handle();
    let name = attributes.get_attribute(Ifla::Ifname);
    let (mut kind, mut remote) = (None, None);
    if let Some(info) = attributes.get_attribute(Ifla::Linkinfo) {
        let info = info.get_attr_handle()?;
        kind = info.get_attribute(IflaInfo::Kind).map(text);
        if let (Some(IPIP), Some(data)) = (kind.as_deref(), info.get_attribute(IflaInfo::Data)) {
            remote = address(&data.get_attr_handle()?, IFLA_IPTUN_REMOTE);
        }
    }
    Ok(Link {
        index: u32::try_from(index).map_err(|_| Malformed(format!("link number {index}")))?,
        name: name.map(text).ok_or_else(|| Malformed(format!("link {index} has no name")))?,
        mtu: word(&attributes, Ifla::Mtu)?.ok_or_else(|| Malformed(format!("link {index} has no MTU")))?,
        kind,
        remote: remote.filter(|remote| !remote.is_unspecified()),
        up: message.ifi_flags().contains(Iff::UP),
        addresses: Vec::new(),
        switches: match attributes.get_attribute(Ifla::AfSpec) {
            Some(spec) => Switches::parse(spec.payload().as_ref())?,
            None => Switches::default(),
        },
    })
}

/// The payload of an `RTM_NEWADDR`: number of the interface and own address, `None` if it is neither IPv4 nor IPv6.
///
/// # Errors
/// It is not one.
pub fn parse_address(payload: &[u8]) -> Result<Option<(u32, IpAddr)>, Malformed> {
    let message: Ifaddrmsg = decode(payload)?;
    let attributes = message.rtattrs().get_attr_handle();
    // On a point-to-point link IFA_ADDRESS is the other end.
    let own = address(&attributes, Ifa::Local).or_else(|| address(&attributes, Ifa::Address));
    Ok(own.map(|own| (*message.ifa_index(), own)))
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

fn encode(message: &impl ToBytes) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    message.to_bytes(&mut bytes).expect("a Vec takes all bytes");
    bytes.into_inner()
}

fn decode<M: FromBytesWithInput<Input = usize>>(payload: &[u8]) -> Result<M, DeError> {
    M::from_bytes_with_input(&mut Cursor::new(payload), payload.len())
}

fn word<T: RtaType>(attributes: &RtAttrHandle<'_, T>, kind: T) -> Result<Option<u32>, DeError> {
    attributes.get_attribute(kind).map(Attribute::get_payload_as).transpose()
}

fn address<T: RtaType>(attributes: &RtAttrHandle<'_, T>, kind: T) -> Option<IpAddr> {
    let bytes = attributes.get_attribute(kind)?.payload().as_ref();
    let v4 = || <[u8; 4]>::try_from(bytes).ok().map(|octets| Ipv4Addr::from(octets).into());
    let v6 = || <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).into());
    v4().or_else(v6)
}

/// Not neli's own conversion, which panics when there is not even a final NUL.
fn text<T>(attribute: &impl Attribute<T>) -> String {
    String::from_utf8_lossy(attribute.payload().as_ref()).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
#[path = "links_tests.rs"]
mod tests;
