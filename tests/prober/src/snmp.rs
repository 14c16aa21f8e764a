//! The kernel's counters of UDP datagrams, such as those thrown away because a socket's receive buffer was full.

use std::{fs, io};

/// `Udp: RcvbufErrors` of this network namespace.
///
/// # Errors
/// `/proc/net/snmp` can't be read or has no such counter.
pub fn receive_buffer_errors() -> io::Result<u64> {
    udp_counter(&fs::read_to_string("/proc/net/snmp")?, "RcvbufErrors")
        .ok_or_else(|| io::Error::other("/proc/net/snmp has no Udp RcvbufErrors"))
}

/// A counter of UDP in `/proc/net/snmp`, which has two lines a protocol: names, then values (`net/ipv4/proc.c`).
#[must_use]
pub fn udp_counter(snmp: &str, counter: &str) -> Option<u64> {
    let mut udp = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (udp.next()?, udp.next()?);
    let (_, value) = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == counter)?;
    value.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::udp_counter;

    #[test]
    fn finds_the_counter_by_name() {
        let snmp = "Tcp: A B\nTcp: 1 2\nUdp: InDatagrams NoPorts RcvbufErrors SndbufErrors\nUdp: 9 8 7 6\nUdpLite: RcvbufErrors\nUdpLite: 3\n";
        assert_eq!(udp_counter(snmp, "RcvbufErrors"), Some(7));
        assert_eq!(udp_counter(snmp, "NoPorts"), Some(8));
    }

    #[test]
    fn anything_else_is_nothing() {
        for snmp in ["", "Udp: RcvbufErrors\n", "Udp: A\nUdp: 1\n", "Udp: RcvbufErrors\nUdp: x\n"] {
            assert_eq!(udp_counter(snmp, "RcvbufErrors"), None, "{snmp:?}");
        }
    }
}
