//! Reading a capture file (classic pcap, Ethernet), also one that is still being written.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Length of the file's header, before the first packet.
pub const HEADER: usize = 24;

/// A captured frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Since the Unix epoch.
    pub time: Duration,
    /// From the Ethernet header on.
    pub frame: Vec<u8>,
}

impl Packet {
    /// Ethernet type.
    pub fn ethertype(&self) -> Option<u16> {
        Some(u16::from_be_bytes([*self.frame.get(12)?, *self.frame.get(13)?]))
    }

    /// The IPv4 packet, header included, without Ethernet's padding.
    pub fn ipv4(&self) -> Option<&[u8]> {
        let packet = self.frame.get(14..).filter(|p| self.ethertype() == Some(0x0800) && p.len() >= 20)?;
        let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
        packet.get(..length).filter(|p| p.len() >= 20)
    }

    /// Protocol of the IPv4 packet.
    pub fn ip_protocol(&self) -> Option<u8> {
        self.ipv4().map(|packet| packet[9])
    }

    /// Source of the (outer) IPv4 packet.
    pub fn source(&self) -> Option<Ipv4Addr> {
        self.ipv4().map(|p| Ipv4Addr::new(p[12], p[13], p[14], p[15]))
    }

    /// Destination of the (outer) IPv4 packet.
    pub fn destination(&self) -> Option<Ipv4Addr> {
        self.ipv4().map(|p| Ipv4Addr::new(p[16], p[17], p[18], p[19]))
    }

    /// What follows the IPv4 header.
    pub fn payload(&self) -> Option<&[u8]> {
        self.ipv4().and_then(|p| p.get(usize::from(p[0] & 15) * 4..))
    }

    /// SPI of an ESP packet.
    pub fn spi(&self) -> Option<u32> {
        let payload = self.payload().filter(|_| self.ip_protocol() == Some(50))?;
        Some(u32::from_be_bytes(payload.get(..4)?.try_into().ok()?))
    }
}

/// Reads all complete packets of a file.
pub fn read(path: &Path) -> Result<Vec<Packet>> {
    let data = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    parse(&data).with_context(|| format!("reading {}", path.display()))
}

fn parse(data: &[u8]) -> Result<Vec<Packet>> {
    if data.is_empty() {
        return Ok(Vec::new());
    }
    let word = |at: usize| data.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    ensure!(word(0) == Some(0xa1b2_c3d4), "not a pcap file of this machine");
    ensure!(word(20) == Some(1), "not a capture of Ethernet frames");
    let mut packets = Vec::new();
    let mut at = HEADER;
    // The last packet may be half written.
    while let (Some(seconds), Some(micros), Some(length)) = (word(at), word(at + 4), word(at + 8)) {
        let start = at + 16;
        let Some(frame) = data.get(start..start + length as usize) else { break };
        let time = Duration::from_secs(seconds.into()) + Duration::from_micros(micros.into());
        packets.push(Packet { time, frame: frame.to_vec() });
        at = start + length as usize;
    }
    Ok(packets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(frames: &[&[u8]]) -> Vec<u8> {
        let mut data = Vec::new();
        for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65535, 1] {
            data.extend_from_slice(&word.to_le_bytes());
        }
        for frame in frames {
            let length = u32::try_from(frame.len()).unwrap();
            for word in [7, 9, length, length] {
                data.extend_from_slice(&word.to_le_bytes());
            }
            data.extend_from_slice(frame);
        }
        data
    }

    fn esp() -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 50, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0, 0, 1, 2, 0, 0, 0, 1]);
        frame.extend([0; 18]);
        frame
    }

    #[test]
    fn an_esp_packet_is_recognised() {
        let packets = parse(&file(&[&esp()])).unwrap();
        assert_eq!(packets.len(), 1);
        let packet = &packets[0];
        assert_eq!(packet.time, Duration::new(7, 9000));
        assert_eq!((packet.ip_protocol(), packet.spi()), (Some(50), Some(258)));
        assert_eq!(packet.source(), Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(packet.payload().map(<[u8]>::len), Some(8), "padding is not payload");
    }

    #[test]
    fn every_cut_of_a_file_is_read_up_to_the_last_whole_packet() {
        let whole = file(&[&esp(), &esp()]);
        for length in 24..whole.len() {
            let packets = parse(&whole[..length]).unwrap();
            assert!(packets.len() < 2);
        }
        assert!(parse(&[1; 30]).is_err());
    }

    #[test]
    fn short_and_odd_frames_are_nothing() {
        for length in 0..esp().len() {
            let packet = Packet { time: Duration::ZERO, frame: esp()[..length].to_vec() };
            assert!(packet.ip_protocol().is_none() || length >= 42);
        }
    }
}
