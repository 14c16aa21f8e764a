//! One netlink socket, connected to the kernel: requests, batches of them, dumps.

use std::{io, time::Duration};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_OVERRUN,
};
use netlink_sys::{Socket, SocketAddr, protocols};
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send, sockopt},
};
use zeroize::{Zeroize, Zeroizing};

use super::frame::{HEADER_LEN, Message, messages, parse_error};
use crate::error::{KernelError, Malformed, Refusal};

/// Room for the largest datagram that the kernel sends in a dump (32 KiB), twice.
pub(crate) const RECEIVE_LEN: usize = 64 * 1024;
/// Answers to a batch, and events, queue up in the socket while we do something else.
const RECEIVE_QUEUE: usize = 8 * 1024 * 1024;
/// The kernel answers while it handles the request; only the loading of a module takes longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const DUMP_ATTEMPTS: u32 = 8;

/// Which part of the kernel is at the other end.
#[derive(Clone, Copy)]
pub(crate) enum Subsystem {
    /// SAs and policies.
    Xfrm,
    /// Links, addresses, routes.
    Route,
}

impl Subsystem {
    const fn protocol(self) -> isize {
        match self {
            Self::Xfrm => protocols::NETLINK_XFRM,
            Self::Route => protocols::NETLINK_ROUTE,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Xfrm => "XFRM",
            Self::Route => "routes",
        }
    }
}

/// Opens a socket, connected so that only the kernel can send to it, or subscribed to `groups` (a bit each).
pub(crate) fn open(subsystem: Subsystem, groups: u32) -> Result<Socket, KernelError> {
    let open = || -> io::Result<Socket> {
        let mut socket = Socket::new(subsystem.protocol())?;
        // A refusal must not echo the request: it would carry the key.
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        // Forcing takes NET_ADMIN, which changes need anyway. Without it the system's limit holds.
        if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_QUEUE).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_QUEUE)?;
        }
        socket.bind(&SocketAddr::new(0, groups))?;
        if groups == 0 {
            socket.connect(&SocketAddr::new(0, 0))?;
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        }
        Ok(socket)
    };
    open().map_err(|source| KernelError::Open { subsystem: subsystem.name(), source })
}

/// Receives one datagram.
pub(crate) fn receive<'b>(
    socket: &Socket,
    buffer: &'b mut [u8],
    doing: &'static str,
) -> Result<&'b [u8], KernelError> {
    loop {
        match recv(socket, &mut *buffer, RecvFlags::TRUNC) {
            Ok((_, length)) if length > buffer.len() => {
                let source = Malformed(format!("a datagram of {length} bytes"));
                return Err(KernelError::Malformed { doing, source });
            }
            Ok((_, length)) => return Ok(&buffer[..length]),
            Err(Errno::INTR) => {}
            Err(Errno::NOBUFS) => return Err(KernelError::Lost { doing }),
            Err(Errno::AGAIN) => return Err(KernelError::NoAnswer { doing }),
            Err(errno) => return Err(KernelError::Io { doing, source: errno.into() }),
        }
    }
}

/// A socket for requests. After an exchange that did not come to its end the next one uses a fresh socket, so that
/// late answers can't be taken for others.
pub(crate) struct RequestSocket {
    subsystem: Subsystem,
    socket: Option<Socket>,
    sequence: u32,
    /// Answers; empty of them between exchanges, for dumps carry keys.
    buffer: Zeroizing<Vec<u8>>,
}

impl RequestSocket {
    pub fn open(subsystem: Subsystem) -> Result<Self, KernelError> {
        let buffer = Zeroizing::new(vec![0; RECEIVE_LEN]);
        Ok(Self { subsystem, socket: Some(open(subsystem, 0)?), sequence: 0, buffer })
    }

    /// Reserves `count` consecutive sequence numbers and returns the first.
    pub fn reserve(&mut self, count: u32) -> u32 {
        // 0 is the kernel's, for messages without a request.
        let first =
            self.sequence.checked_add(1).filter(|first| first.checked_add(count).is_some()).unwrap_or(1);
        self.sequence = first + (count - 1);
        first
    }

    /// Sends the messages in `bytes` and hands every message that answers one of the `count` sequence numbers from
    /// `first` to `take`, together with its index, until `take` says that this was the last.
    pub fn exchange(
        &mut self,
        bytes: &[u8],
        (first, count): (u32, u32),
        doing: &'static str,
        mut take: impl FnMut(u32, Message<'_>) -> Result<bool, KernelError>,
    ) -> Result<(), KernelError> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => open(self.subsystem, 0)?,
        };
        match send(&socket, bytes, SendFlags::empty()) {
            Ok(sent) if sent == bytes.len() => {}
            Ok(_) => return Err(KernelError::NoAnswer { doing }),
            Err(errno) => return Err(KernelError::Io { doing, source: errno.into() }),
        }
        let mut longest = 0;
        let ended = (|| loop {
            let datagram = receive(&socket, &mut self.buffer, doing)?;
            longest = longest.max(datagram.len());
            for message in messages(datagram) {
                let message = message.map_err(|source| KernelError::Malformed { doing, source })?;
                let index = message.sequence.wrapping_sub(first);
                if index < count && take(index, message)? {
                    return Ok(());
                }
            }
        })();
        // Wiping all of it after every batch would cost more than the batch.
        self.buffer[..longest].zeroize();
        match &ended {
            Ok(()) => self.socket = Some(socket),
            Err(_) => self.buffer.as_mut_slice().zeroize(),
        }
        ended
    }

    /// Asks for one object. `parse` gets its payload; a refusal becomes `Ok(Err(…))`.
    pub fn get<T>(
        &mut self,
        kind: u16,
        payload: &[u8],
        doing: &'static str,
        parse: impl Fn(&[u8]) -> Result<T, Malformed>,
    ) -> Result<Result<T, Refusal>, KernelError> {
        let malformed = |source| KernelError::Malformed { doing, source };
        let first = self.reserve(1);
        let mut answer = None;
        self.exchange(&request(kind, NLM_F_REQUEST, first, payload), (first, 1), doing, |_, message| {
            answer = Some(if message.kind == NLMSG_ERROR {
                let refusal = parse_error(message.payload, message.flags).map_err(malformed)?;
                Err(refusal.ok_or_else(|| malformed(Malformed("an empty answer".to_owned())))?)
            } else {
                Ok(parse(message.payload).map_err(malformed)?)
            });
            Ok(true)
        })?;
        answer.ok_or(KernelError::NoAnswer { doing })
    }

    /// Asks for all objects of a kind; what `parse` returns `None` for is left out. An interrupted dump is repeated.
    pub fn dump<T>(
        &mut self,
        kind: u16,
        payload: &[u8],
        doing: &'static str,
        parse: impl Fn(&[u8]) -> Result<Option<T>, Malformed>,
    ) -> Result<Vec<T>, KernelError> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut found = Vec::new();
            match self.dump_once(kind, payload, doing, &mut |object| {
                found.extend(parse(object)?);
                Ok(())
            }) {
                Ok(true) => return Ok(found),
                Ok(false) | Err(KernelError::Lost { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(KernelError::Unsteady { doing, attempts: DUMP_ATTEMPTS })
    }

    /// Whether the dump is consistent.
    fn dump_once(
        &mut self,
        kind: u16,
        payload: &[u8],
        doing: &'static str,
        take: &mut dyn FnMut(&[u8]) -> Result<(), Malformed>,
    ) -> Result<bool, KernelError> {
        let malformed = |source| KernelError::Malformed { doing, source };
        let first = self.reserve(1);
        let mut consistent = true;
        self.exchange(
            &request(kind, NLM_F_REQUEST | NLM_F_DUMP, first, payload),
            (first, 1),
            doing,
            |_, message| {
                consistent &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_OVERRUN => Err(KernelError::Lost { doing }),
                    NLMSG_ERROR | NLMSG_DONE => {
                        match parse_error(message.payload, message.flags).map_err(malformed)? {
                            Some(refusal) => Err(KernelError::Refused { doing, refusal }),
                            None => Ok(true),
                        }
                    }
                    _ => take(message.payload).map(|()| false).map_err(malformed),
                }
            },
        )?;
        Ok(consistent)
    }
}

/// A request without key material.
fn request(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    begin(&mut bytes, kind, flags, sequence);
    bytes.extend_from_slice(payload);
    finish(&mut bytes, 0);
    bytes
}

/// Appends a message's header, its length left open.
pub(crate) fn begin(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32) {
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    // To the kernel, whose port is 0.
    bytes.extend_from_slice(&[0; 4]);
}

/// Fills in the length of the message that begins at `start` and ends where `bytes` ends.
pub(crate) fn finish(bytes: &mut [u8], start: usize) {
    let length = u32::try_from(bytes.len() - start).expect("messages are bounded by the batch's buffer");
    bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}
