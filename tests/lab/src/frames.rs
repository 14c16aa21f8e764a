//! Packets made by hand: what no kernel would send.

use std::net::Ipv4Addr;

/// An Ethernet address.
pub type Mac = [u8; 6];

const IPIP: u8 = 4;
const UDP: u8 = 17;
/// Length of an IPv4 header without options.
const HEADER: usize = 20;

/// An address of Ethernet from text such as `52:54:00:c8:00:01`.
pub fn mac(text: &str) -> Option<Mac> {
    let bytes: Option<Vec<u8>> =
        text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes?.try_into().ok()
}

/// A frame that carries an IPv4 packet.
pub fn frame(to: Mac, from: Mac, packet: &[u8]) -> Vec<u8> {
    [&to[..], &from[..], &[0x08, 0x00], packet].concat()
}

/// A UDP datagram in IPv4, as from a pod to a pod. It has no checksum, which IPv4 allows.
pub fn udp(from: Ipv4Addr, to: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let header = [port, port, length, 0].map(u16::to_be_bytes).concat();
    ipv4(UDP, from, to, &[&header, payload].concat())
}

/// IP in IP (RFC 2003): what a tunnel makes of a pod's packet, in the clear.
pub fn ipip(from: Ipv4Addr, to: Ipv4Addr, inner: &[u8]) -> Vec<u8> {
    ipv4(IPIP, from, to, inner)
}

/// The same IPv4 packet from another address, with the right checksum; `None` if it is no IPv4 packet.
pub fn with_source(packet: &[u8], source: Ipv4Addr) -> Option<Vec<u8>> {
    let mut packet = packet.to_vec();
    let length = usize::from(packet.first().filter(|first| **first >> 4 == 4)? & 15) * 4;
    let header = packet.get_mut(..length).filter(|header| header.len() >= HEADER)?;
    header[12..16].copy_from_slice(&source.octets());
    set_checksum(header);
    Some(packet)
}

/// The same packet with one bit of its last byte flipped; in ESP that is a bit of the ICV.
pub fn with_other_end(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if let Some(last) = packet.last_mut() {
        *last ^= 1;
    }
    packet
}

fn ipv4(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let length = ((HEADER + payload.len()) as u16).to_be_bytes();
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, protocol, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    set_checksum(&mut packet);
    packet.extend(payload);
    packet
}

/// RFC 791, section 3.1.
fn set_checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let checksum = !sum(header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// The one's complement sum of all 16-bit words (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pcap::Packet;

    const A: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 12);
    const B: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 11);
    const POD_A: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 10);
    const POD_B: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 10);

    /// The example header of many textbooks.
    #[test]
    fn the_checksum_is_the_right_one() {
        let mut header =
            [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xff, 0xff, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        set_checksum(&mut header);
        assert_eq!(header[10..12], [0xb8, 0x61]);
        assert_eq!(sum(&header), 0xffff, "what a receiver checks");
    }

    #[test]
    fn plaintext_is_a_datagram_between_pods_between_nodes() {
        let packet = ipip(A, B, &udp(POD_A, POD_B, 9, b"hello"));
        let frame = frame([1; 6], [2; 6], &packet);
        assert_eq!(frame[..14], [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 8, 0]);
        let captured = Packet { time: Duration::ZERO, frame };
        assert_eq!(
            (captured.ip_protocol(), captured.source(), captured.destination()),
            (Some(4), Some(A), Some(B))
        );
        let inner = captured.payload().unwrap();
        assert_eq!((inner.len(), sum(&inner[..HEADER])), (33, 0xffff));
        assert_eq!(inner[2..4], [0, 33]);
        assert_eq!((&inner[12..16], &inner[16..20]), (&POD_A.octets()[..], &POD_B.octets()[..]));
        assert_eq!(inner[20..], [0, 9, 0, 9, 0, 13, 0, 0, b'h', b'e', b'l', b'l', b'o']);
    }

    #[test]
    fn another_source_changes_nothing_else() {
        let packet = ipip(A, B, &udp(POD_A, POD_B, 9, b"hello"));
        let other = with_source(&packet, Ipv4Addr::new(10, 200, 0, 66)).unwrap();
        assert_eq!(other[12..16], [10, 200, 0, 66]);
        assert_eq!(sum(&other[..HEADER]), 0xffff);
        assert_eq!(other[16..], packet[16..]);
        assert_eq!(with_source(&other, A), Some(packet.clone()), "and back");
        for length in 0..HEADER {
            assert_eq!(with_source(&packet[..length], A), None, "{length} bytes");
        }
        assert_eq!(with_source(&[0x60; 40], A), None);
        assert_eq!(with_source(&[0x40; 40], A), None, "a header too short for one");
    }

    #[test]
    fn the_end_differs_in_a_bit() {
        assert_eq!(with_other_end(&[7, 8]), [7, 9]);
        assert_eq!(with_other_end(&[]), [0; 0]);
    }

    #[test]
    fn ethernet_addresses_are_read() {
        assert_eq!(mac("52:54:00:c8:00:0a\n"), Some([0x52, 0x54, 0, 0xc8, 0, 10]));
        for text in ["", "52:54:00:c8:00", "52:54:00:c8:00:0a:00", "52:54:00:c8:00:xx"] {
            assert_eq!(mac(text), None, "{text}");
        }
    }
}
