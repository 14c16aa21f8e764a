//! Links and their addresses (`RTM_GETLINK`, `RTM_GETADDR`).

use std::net::IpAddr;

use neli::{
    attr::Attribute,
    consts::rtnl::{Ifa, Iff, Ifla, IflaInfo, RtAddrFamily, RtScope},
    rtnl::{Ifaddrmsg, IfaddrmsgBuilder, Ifinfomsg, IfinfomsgBuilder},
};

use super::message::{address, decode, encode, text, word};
use crate::{error::Malformed, switches::Switches};

/// The kind of IP-in-IP tunnel devices.
const IPIP: &str = "ipip";
/// Among the attributes of an IPIP device nested in `IFLA_INFO_DATA` (`linux/if_tunnel.h`).
const IFLA_IPTUN_REMOTE: u16 = 3;

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

pub(super) fn links_request() -> Vec<u8> {
    let message = IfinfomsgBuilder::default().ifi_family(RtAddrFamily::Unspecified).build();
    encode(&message.expect("every other field has a default"))
}

pub(super) fn addresses_request() -> Vec<u8> {
    let message = IfaddrmsgBuilder::default()
        .ifa_family(RtAddrFamily::Unspecified)
        .ifa_prefixlen(0)
        .ifa_scope(RtScope::Universe)
        .ifa_index(0)
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
