//! The switches that take an interface out of IPsec: `net.ipv4.conf.*.disable_xfrm` and `.disable_policy`.
//!
//! Those of an interface come with its link (`IFLA_AF_SPEC`, filled by `inet_fill_link_af` in `net/ipv4/devinet.c`),
//! those of `all` from `/proc/sys`.

use std::fs;

use netlink_packet_xfrm::constants::AF_INET;

use crate::{error::Malformed, netlink::frame::attributes};

const ALL: &str = "/proc/sys/net/ipv4/conf/all";
/// The only attribute that IPv4 has in `IFLA_AF_SPEC`: an array of 32-bit numbers.
const IFLA_INET_CONF: u16 = 1;
/// Places in the array (`linux/ip.h` counts from 1: `IPV4_DEVCONF_NOXFRM` is 15, `IPV4_DEVCONF_NOPOLICY` 16).
const NOXFRM: usize = 14;
const NOPOLICY: usize = 15;

/// Both switches of an interface, or of all. Each counts if it is set for either of the two (`IN_DEV_ORCONF` in
/// `linux/inetdevice.h`; older kernels look at the interface alone). `None` where the kernel does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switches {
    /// `disable_xfrm`: what leaves by the interface is not encrypted.
    pub disable_xfrm: Option<bool>,
    /// `disable_policy`: what comes in by the interface is not checked.
    pub disable_policy: Option<bool>,
}

impl Switches {
    /// Those of `all` in this process's network namespace, and why one could not be read.
    #[must_use]
    pub fn of_all() -> (Self, Option<String>) {
        let (xfrm, policy) = (read("disable_xfrm"), read("disable_policy"));
        let why = [xfrm.as_ref().err(), policy.as_ref().err()].into_iter().flatten().next().cloned();
        (Self { disable_xfrm: xfrm.ok(), disable_policy: policy.ok() }, why)
    }

    /// Reads the value of an `IFLA_AF_SPEC`.
    pub(crate) fn parse(value: &[u8]) -> Result<Self, Malformed> {
        let Some(ipv4) = find(value, AF_INET)? else { return Ok(Self::default()) };
        let Some(conf) = find(&ipv4, IFLA_INET_CONF)? else { return Ok(Self::default()) };
        let conf = conf.as_chunks::<4>().0;
        let set = |at: usize| conf.get(at).map(|number| *number != [0; 4]);
        Ok(Self { disable_xfrm: set(NOXFRM), disable_policy: set(NOPOLICY) })
    }
}

/// The value of the first attribute of this kind.
fn find(bytes: &[u8], kind: u16) -> Result<Option<Vec<u8>>, Malformed> {
    for attribute in attributes(bytes) {
        let attribute = attribute?;
        if attribute.kind() == kind {
            return Ok(Some(attribute.value().to_vec()));
        }
    }
    Ok(None)
}

fn read(name: &str) -> Result<bool, String> {
    let path = format!("{ALL}/{name}");
    let text = fs::read_to_string(&path).map_err(|error| format!("reading {path}: {error}"))?;
    match text.trim().parse::<i64>() {
        Ok(number) => Ok(number != 0),
        Err(_) => Err(format!("{path} holds no number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of an `IFLA_AF_SPEC` with IPv6 before IPv4, and with these two numbers.
    fn af_spec(noxfrm: u32, nopolicy: u32) -> Vec<u8> {
        let attribute = |kind: u16, value: &[u8]| {
            let length = u16::try_from(4 + value.len()).unwrap();
            [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat()
        };
        let mut numbers = vec![1_u32; 14];
        numbers.extend([noxfrm, nopolicy, 7]);
        let numbers: Vec<u8> = numbers.into_iter().flat_map(u32::to_ne_bytes).collect();
        let ipv4 = attribute(IFLA_INET_CONF, &numbers);
        [attribute(10, &attribute(1, &[9; 12])), attribute(AF_INET, &ipv4)].concat()
    }

    #[test]
    fn each_switch_has_its_place() {
        for (noxfrm, nopolicy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            let expected = Switches { disable_xfrm: Some(noxfrm != 0), disable_policy: Some(nopolicy != 0) };
            assert_eq!(Switches::parse(&af_spec(noxfrm, nopolicy)), Ok(expected));
        }
    }

    #[test]
    fn what_is_not_said_is_not_known() {
        assert_eq!(Switches::parse(&[]), Ok(Switches::default()));
        let spec = af_spec(1, 1);
        assert_eq!(Switches::parse(&spec[..20]), Ok(Switches::default()), "IPv6 alone");
        assert!(Switches::parse(&spec[..spec.len() - 1]).is_err(), "cut off");
        assert!(read("no_such_switch").unwrap_err().contains("no_such_switch"));
    }
}
