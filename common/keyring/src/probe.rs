//! The UDP packets by which two nodes prove an SA.

/// Port of probes that take the SA that pod traffic is pinned to, where there is one.
pub const PINNED_PORT: u16 = 9468;
/// Port of probes that take the SA that traffic would move to.
pub const CANDIDATE_PORT: u16 = 9469;
/// Bytes of a packet, behind the UDP header. A ping may have zeros behind them, so that it is as long as the packets
/// that have to pass.
pub const LEN: usize = 26;
/// Bytes of [`Probe::nonce`].
pub const NONCE_LEN: usize = 16;

const MAGIC: [u8; 4] = *b"SOVP";
const VERSION: u8 = 1;

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// Asks for an answer.
    Ping,
    /// Says that the ping came.
    Answer,
}

/// A packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What it is.
    pub kind: ProbeKind,
    /// SPI of the SA that is tested: that of the ping, in its answer as well.
    pub spi: u32,
    /// Random in a ping; the same in its answer.
    pub nonce: [u8; NONCE_LEN],
}

impl Probe {
    /// The answer to this ping; `None` to an answer.
    #[must_use]
    pub const fn answer(&self) -> Option<Self> {
        match self.kind {
            ProbeKind::Ping => Some(Self { kind: ProbeKind::Answer, ..*self }),
            ProbeKind::Answer => None,
        }
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; LEN] {
        let kind = match self.kind {
            ProbeKind::Ping => 1,
            ProbeKind::Answer => 2,
        };
        let mut bytes = [0; LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&[VERSION, kind]);
        bytes[6..10].copy_from_slice(&self.spi.to_be_bytes());
        bytes[10..].copy_from_slice(&self.nonce);
        bytes
    }

    /// [`Self::to_bytes`] with zeros up to `len` bytes, for a ping.
    #[must_use]
    pub fn to_padded(&self, len: usize) -> Vec<u8> {
        let mut bytes = self.to_bytes().to_vec();
        bytes.resize(len.max(LEN), 0);
        bytes
    }

    /// Reads what came; `None` for everything that is no probe of this version.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (bytes, padding) = bytes.split_first_chunk::<LEN>()?;
        let (head, nonce) = bytes.split_first_chunk::<10>()?;
        let [m, a, g, i, version, kind, spi @ ..] = *head;
        if [m, a, g, i] != MAGIC || version != VERSION {
            return None;
        }
        let kind = match kind {
            1 if padding.iter().all(|byte| *byte == 0) => ProbeKind::Ping,
            2 if padding.is_empty() => ProbeKind::Answer,
            _ => return None,
        };
        Some(Self { kind, spi: u32::from_be_bytes(spi), nonce: nonce.try_into().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: Probe = Probe { kind: ProbeKind::Ping, spi: 0x0102_0304, nonce: [7; NONCE_LEN] };

    #[test]
    fn probe_is_read_as_it_was_written() {
        assert_eq!(PING.to_bytes()[..11], *b"SOVP\x01\x01\x01\x02\x03\x04\x07");
        let answer = PING.answer().unwrap();
        for probe in [PING, answer] {
            assert_eq!(Probe::parse(&probe.to_bytes()), Some(probe));
        }
        assert_eq!((answer.spi, answer.nonce), (PING.spi, PING.nonce));
        assert_eq!(answer.answer(), None, "answers are not answered");
    }

    #[test]
    fn padded_ping_is_read_as_the_ping() {
        let padded = PING.to_padded(1444);
        assert_eq!((padded.len(), Probe::parse(&padded)), (1444, Some(PING)));
        assert_eq!(PING.to_padded(0), PING.to_bytes());
    }

    #[test]
    fn other_packets_are_ignored() {
        for (at, value) in [(0, b's'), (4, 2), (5, 0), (5, 3)] {
            let mut bytes = PING.to_bytes();
            bytes[at] = value;
            assert_eq!(Probe::parse(&bytes), None, "byte {at}");
        }
        let bytes = PING.to_bytes();
        assert_eq!(Probe::parse(&bytes[..LEN - 1]), None);
        assert_eq!(Probe::parse(&[&bytes[..], &[0, 1]].concat()), None, "padding is zeros");
        assert_eq!(Probe::parse(&[&PING.answer().unwrap().to_bytes()[..], &[0]].concat()), None);
        assert_eq!(Probe::parse(&[]), None);
    }
}
