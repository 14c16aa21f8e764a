//! Running a command inside a guest: a small framed protocol over TCP, and its client.
//!
//! A request is one JSON frame; then both sides send frames of `tag (1) ‖ length (4, big endian) ‖ data`
//! until the guest sends the exit status. Nothing but the lab can reach the guests' port.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// The guests' port.
pub const PORT: u16 = 7;

/// Largest frame that is accepted.
const MAX_FRAME: u32 = 16 << 20;

/// What to run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Request {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The whole environment; none means the guest's own.
    pub env: Option<Vec<(String, String)>>,
    /// Working directory; none means `/`.
    pub cwd: Option<String>,
}

/// Frame kinds.
pub mod tag {
    /// The request (client).
    pub const REQUEST: u8 = 1;
    /// Standard input (client); empty: end of it.
    pub const STDIN: u8 = 2;
    /// Standard output (guest).
    pub const STDOUT: u8 = 3;
    /// Standard error (guest).
    pub const STDERR: u8 = 4;
    /// The exit status, four bytes (guest).
    pub const EXIT: u8 = 5;
}

/// Writes one frame.
pub fn write_frame(mut to: impl Write, tag: u8, data: &[u8]) -> io::Result<()> {
    let length = u32::try_from(data.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut frame = Vec::with_capacity(5 + data.len());
    frame.push(tag);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(data);
    to.write_all(&frame)
}

/// Reads one frame.
pub fn read_frame(mut from: impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    from.read_exact(&mut head)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    if length > MAX_FRAME {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut data = vec![0; length as usize];
    from.read_exact(&mut data)?;
    Ok((head[0], data))
}

/// Connects to a guest's exec server (in the caller's network namespace), waiting for it to come up for as
/// long as `alive` says that it may.
pub fn connect(guest: Ipv4Addr, patience: Duration, mut alive: impl FnMut() -> bool) -> Result<TcpStream> {
    let deadline = Instant::now() + patience;
    let address = SocketAddr::from((guest, PORT));
    loop {
        let error = match TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
            Ok(stream) => {
                stream.set_nodelay(true).context("setting up the connection")?;
                return Ok(stream);
            }
            Err(error) => error,
        };
        if Instant::now() >= deadline || !alive() {
            return Err(error).with_context(|| format!("no answer from the guest at {guest}; is it up?"));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a request: `stdin` is sent from another thread, output goes to the two writers, and the exit status
/// is returned (128 + signal for a killed command).
pub fn run(
    stream: &TcpStream,
    request: &Request,
    stdin: Option<Box<dyn Read + Send>>,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> Result<i32> {
    let body = serde_json::to_vec(request).context("encoding the request")?;
    write_frame(stream, tag::REQUEST, &body).context("sending the request to the guest")?;
    let sender = stream.try_clone().context("sharing the connection")?;
    // Left alone on purpose when the command ends first: it may be blocked reading a terminal.
    drop(thread::spawn(move || send_stdin(&sender, stdin)));
    loop {
        let (kind, data) = read_frame(stream)
            .with_context(|| format!("the guest went away while running {:?}", request.argv))?;
        match kind {
            tag::STDOUT => {
                stdout.write_all(&data).context("writing the command's output")?;
                stdout.flush().context("writing the command's output")?;
            }
            tag::STDERR => {
                stderr.write_all(&data).context("writing the command's messages")?;
                stderr.flush().context("writing the command's messages")?;
            }
            tag::EXIT if data.len() == 4 => {
                drop(stream.shutdown(Shutdown::Both));
                return Ok(i32::from_be_bytes([data[0], data[1], data[2], data[3]]));
            }
            other => bail!("the guest sent an unexpected frame ({other})"),
        }
    }
}

fn send_stdin(stream: &TcpStream, stdin: Option<Box<dyn Read + Send>>) {
    if let Some(mut stdin) = stdin {
        let mut buffer = [0; 16 << 10];
        while let Ok(count @ 1..) = stdin.read(&mut buffer) {
            if write_frame(stream, tag::STDIN, &buffer[..count]).is_err() {
                return;
            }
        }
    }
    // Fails only when the command is over, which the reading side notices.
    drop(write_frame(stream, tag::STDIN, &[]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_way() {
        let mut wire = Vec::new();
        write_frame(&mut wire, tag::STDOUT, b"hello").unwrap();
        write_frame(&mut wire, tag::STDIN, b"").unwrap();
        let mut wire = wire.as_slice();
        assert_eq!(read_frame(&mut wire).unwrap(), (tag::STDOUT, b"hello".to_vec()));
        assert_eq!(read_frame(&mut wire).unwrap(), (tag::STDIN, vec![]));
        assert!(read_frame(&mut wire).is_err());
    }

    #[test]
    fn absurd_lengths_are_refused() {
        assert!(read_frame(&[1, 0xff, 0xff, 0xff, 0xff, 0][..]).is_err());
    }
}
