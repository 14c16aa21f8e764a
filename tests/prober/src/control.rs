//! What a prober is asked and answers on its control port: one line of JSON each over TCP.
//!
//! A measurement: `open` on every pod, `send` on every pod, … `stop` on every pod, `report` until nothing more
//! arrives. The order matters: packets of a run that is not open are not counted.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::account::Received;

/// The longest line, in bytes.
pub const MAX_LINE: u64 = 64 * 1024;
const PATIENCE: Duration = Duration::from_secs(10);

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Begin to count the packets of this run.
    Open {
        /// Any number that no earlier run had.
        run: u64,
    },
    /// Send to these peers until `stop` or the limit.
    Send {
        /// An open run.
        run: u64,
        /// This pod's name in its packets.
        name: String,
        /// Where to send: name and UDP address of each peer.
        peers: BTreeMap<String, SocketAddr>,
        /// Packets a second to each peer.
        rate: u32,
        /// Bytes of UDP payload.
        size: u16,
        /// The sender stops by itself after this time.
        max_seconds: u32,
    },
    /// Stop sending.
    Stop {
        /// The run.
        run: u64,
    },
    /// Tell the figures so far.
    Report {
        /// The run.
        run: u64,
    },
}

/// What one pod sent in a run. Empty while it has not sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Packets to each peer: the numbers 0 to `packets` − 1.
    pub packets: u32,
    /// Of these, those that the pod's own kernel refused to send, by peer.
    pub refused: BTreeMap<String, u32>,
    /// Names of the peers sent to.
    pub peers: Vec<String>,
    /// Time between two packets to one peer, in microseconds.
    pub period_us: u64,
    /// Still sending.
    pub running: bool,
}

/// One pod's figures of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReport {
    /// What it sent.
    pub sent: Sent,
    /// What it received, by sender.
    pub received: BTreeMap<String, Received>,
    /// Datagrams lost in sockets of this network namespace since `open` (`RcvbufErrors`).
    pub overruns: u64,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Done; the figures as they are now.
    Done(PodReport),
    /// Refused, and why.
    Refused(String),
}

/// Asks the prober whose control port is `address`.
///
/// # Errors
/// It can't be reached, does not answer in 10 s, or refuses.
pub fn ask(address: SocketAddr, request: &Request) -> io::Result<PodReport> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write_line(&stream, request)?;
    match read_line(&mut BufReader::new(&stream))? {
        Some(Answer::Done(report)) => Ok(report),
        Some(Answer::Refused(why)) => Err(io::Error::other(why)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Writes one message.
pub(crate) fn write_line(mut to: impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// Reads one message; `None` at the end of the stream.
pub(crate) fn read_line<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    from.take(MAX_LINE).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the line is cut off or too long"));
    }
    Ok(Some(serde_json::from_slice(&line)?))
}
