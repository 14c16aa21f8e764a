//! What a listener on the wire can read.

use std::net::Ipv4Addr;

use crate::pcap::Packet;

/// A line of text found in a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Protocol of the outer IPv4 header.
    pub protocol: u8,
    /// Source of the outer header.
    pub from: Ipv4Addr,
    /// Destination of the outer header.
    pub to: Ipv4Addr,
    /// From the text to the end of its line.
    pub line: String,
}

/// All packets that hold `text`.
pub fn search(packets: &[Packet], text: &str) -> Vec<Found> {
    packets.iter().filter_map(|packet| find(packet, text.as_bytes())).collect()
}

fn find(packet: &Packet, text: &[u8]) -> Option<Found> {
    let bytes = packet.ipv4()?;
    let at = bytes.windows(text.len()).position(|window| window == text)?;
    let line = bytes[at..].split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    Some(Found {
        protocol: packet.ip_protocol()?,
        from: packet.source()?,
        to: packet.destination()?,
        line: String::from_utf8_lossy(line).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn finds_the_line_and_who_sent_it() {
        let text = b"\x01\x02GET /recipe HTTP/1.1\r\nHost: x\r\n";
        let mut frame = vec![0; 12];
        frame.extend([
            8,
            0,
            0x45,
            0,
            0,
            20 + text.len() as u8,
            0,
            0,
            0,
            0,
            64,
            4,
            0,
            0,
            10,
            0,
            0,
            1,
            10,
            0,
            0,
            2,
        ]);
        frame.extend(text);
        let packets = [Packet { time: Duration::ZERO, frame }];
        let expected = Found {
            protocol: 4,
            from: Ipv4Addr::new(10, 0, 0, 1),
            to: Ipv4Addr::new(10, 0, 0, 2),
            line: "GET /recipe HTTP/1.1".into(),
        };
        assert_eq!(search(&packets, "GET /"), [expected]);
        assert!(search(&packets, "POST /").is_empty());
    }
}
