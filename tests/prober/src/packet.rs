//! The probe packet: a fixed header, the sender's name, zeros up to the wanted size. Numbers are big-endian.
//!
//! ```text
//! 0       4               12      16      20 21
//! | magic |      run      |  seq  | late  |n| name … | zeros … |
//! ```

use std::time::Duration;

const MAGIC: [u8; 4] = *b"SOV1";
const HEADER: usize = 21;

/// The longest name of a sender, in bytes.
pub const MAX_NAME: usize = 63;
/// The largest packet, in bytes of UDP payload.
pub const MAX_SIZE: usize = 8192;

/// One probe packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The measurement that it belongs to.
    pub run: u64,
    /// Its number, from 0; also its place in the sender's schedule.
    pub seq: u32,
    /// How long after its scheduled time it was sent.
    pub late: Duration,
    /// Who sent it.
    pub from: String,
}

impl Packet {
    /// Writes the packet into `buffer`, padded with zeros to `size` bytes of UDP payload where it is shorter.
    /// Names beyond [`MAX_NAME`] are cut off; requests with such names are refused before.
    pub fn encode(&self, size: usize, buffer: &mut Vec<u8>) {
        let name = &self.from.as_bytes()[..self.from.len().min(MAX_NAME)];
        buffer.clear();
        buffer.extend_from_slice(&MAGIC);
        buffer.extend_from_slice(&self.run.to_be_bytes());
        buffer.extend_from_slice(&self.seq.to_be_bytes());
        buffer.extend_from_slice(&u32::try_from(self.late.as_micros()).unwrap_or(u32::MAX).to_be_bytes());
        buffer.push(name.len() as u8);
        buffer.extend_from_slice(name);
        buffer.resize(size.clamp(buffer.len(), MAX_SIZE), 0);
    }

    /// Reads a packet; `None` for anything that is not one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (header, rest) = bytes.split_at_checked(HEADER)?;
        if header[..4] != MAGIC {
            return None;
        }
        let name = rest.get(..usize::from(header[20]))?;
        if name.is_empty() || name.len() > MAX_NAME {
            return None;
        }
        Some(Self {
            run: u64::from_be_bytes(header[4..12].try_into().ok()?),
            seq: u32::from_be_bytes(header[12..16].try_into().ok()?),
            late: Duration::from_micros(u32::from_be_bytes(header[16..20].try_into().ok()?).into()),
            from: str::from_utf8(name).ok()?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> Packet {
        Packet { run: 7, seq: 258, late: Duration::from_micros(1500), from: "node-1".into() }
    }

    #[test]
    fn comes_back_as_it_was_and_has_the_wanted_size() {
        let mut bytes = Vec::new();
        packet().encode(100, &mut bytes);
        assert_eq!(bytes.len(), 100);
        assert_eq!(Packet::decode(&bytes), Some(packet()));
        packet().encode(0, &mut bytes);
        assert_eq!(bytes.len(), HEADER + 6);
        assert_eq!(Packet::decode(&bytes), Some(packet()));
    }

    #[test]
    fn broken_packets_are_not_packets() {
        let mut bytes = Vec::new();
        packet().encode(0, &mut bytes);
        for cut in 0..bytes.len() {
            assert_eq!(Packet::decode(&bytes[..cut]), None, "{cut} bytes");
        }
        for (at, value) in [(0, b'X'), (20, 0), (20, 64), (HEADER, 0xff)] {
            let mut broken = bytes.clone();
            broken[at] = value;
            assert_eq!(Packet::decode(&broken), None, "byte {at} = {value}");
        }
    }
}
