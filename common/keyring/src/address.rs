//! Addresses that a node's SAs are between.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// An address that one host can have: not unspecified, loopback, multicast or broadcast. An IPv4 address is never
/// held in its IPv4-mapped IPv6 form, so that equal addresses are equal values.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeAddress(IpAddr);

/// The text is not an address of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an address of a node: an IPv4 or IPv6 address that is neither unspecified, loopback, multicast nor broadcast"
)]
pub struct InvalidAddress;

impl NodeAddress {
    /// The address.
    #[must_use]
    pub const fn ip(self) -> IpAddr {
        self.0
    }

    /// The 16 bytes that enter the derivation: IPv6 as it is, IPv4 as IPv4-mapped IPv6 (RFC 4291, section 2.5.5.2).
    #[must_use]
    pub const fn addr16(self) -> [u8; 16] {
        match self.0 {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        }
    }

    /// Whether an SA can be between both.
    #[must_use]
    pub const fn same_family(self, other: Self) -> bool {
        self.0.is_ipv4() == other.0.is_ipv4()
    }
}

impl TryFrom<IpAddr> for NodeAddress {
    type Error = InvalidAddress;

    fn try_from(ip: IpAddr) -> Result<Self, InvalidAddress> {
        let ip = ip.to_canonical();
        let broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
        let usable = !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !broadcast;
        if usable { Ok(Self(ip)) } else { Err(InvalidAddress) }
    }
}

impl FromStr for NodeAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        text.parse::<IpAddr>().map_err(|_| InvalidAddress)?.try_into()
    }
}

impl TryFrom<String> for NodeAddress {
    type Error = InvalidAddress;

    fn try_from(text: String) -> Result<Self, InvalidAddress> {
        text.parse()
    }
}

impl From<NodeAddress> for String {
    fn from(address: NodeAddress) -> Self {
        address.to_string()
    }
}

impl From<NodeAddress> for IpAddr {
    fn from(address: NodeAddress) -> Self {
        address.0
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl JsonSchema for NodeAddress {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "NodeAddress".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "minLength": 2, "maxLength": 45})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_in_two_spellings_is_one_value() {
        let plain: NodeAddress = "192.0.2.9".parse().unwrap();
        assert_eq!("::ffff:192.0.2.9".parse(), Ok(plain));
        assert_eq!(plain.to_string(), "192.0.2.9");
        assert_eq!(plain.addr16(), *b"\0\0\0\0\0\0\0\0\0\0\xff\xff\xc0\x00\x02\x09");
        let v6: NodeAddress = "2001:DB8:0::1".parse().unwrap();
        assert_eq!(v6.to_string(), "2001:db8::1");
        assert!(v6.same_family(v6) && !v6.same_family(plain));
    }

    #[test]
    fn address_that_no_host_can_have_is_refused() {
        for text in [
            "0.0.0.0",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "192.0.2.0.1",
            "192.0.2.1/24",
            "fe80::1%eth0",
            "",
        ] {
            assert_eq!(text.parse::<NodeAddress>(), Err(InvalidAddress), "{text}");
        }
    }
}
