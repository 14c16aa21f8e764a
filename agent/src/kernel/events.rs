//! Notifications that something of the kernel's XFRM tables changed.

use std::time::Duration;

use netlink_packet_xfrm::constants::{XFRM_MSG_EXPIRE, XFRMNLGRP_EXPIRE, XFRMNLGRP_POLICY};
use netlink_sys::Socket;
use rustix::net::sockopt;

use super::{
    error::KernelError,
    frame::messages,
    socket::{Subsystem, open, receive},
};

const WAITING: &str = "waiting for XFRM notifications";
/// A notification is one policy or one SA without its key.
const BUFFER_LEN: usize = 16 * 1024;

/// A reason to look at the kernel again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Policies were added, changed, deleted or flushed, by us or by others.
    Policy,
    /// An SA reached a limit.
    Expire,
    /// There were more notifications than the socket holds.
    Overrun,
}

/// A subscription to policy changes and expiries.
///
/// Not to changes of SAs: those notifications carry keys. So the flush or deletion of SAs alone is not noticed here,
/// and callers need a timer as well. Our own changes are notified too: callers wait a moment and look once.
pub struct Events {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Events {
    /// Subscribes. Needs the capability NET_ADMIN.
    ///
    /// # Errors
    /// The kernel has no XFRM netlink, or does not let us use it.
    pub fn open() -> Result<Self, KernelError> {
        let groups = 1 << (XFRMNLGRP_EXPIRE - 1) | 1 << (XFRMNLGRP_POLICY - 1);
        Ok(Self { socket: open(Subsystem::Xfrm, groups)?, buffer: vec![0; BUFFER_LEN] })
    }

    /// Blocks until a notification comes, or for `timeout` (without one: for ever); `None` if none came.
    ///
    /// # Errors
    /// The socket is unusable: open another.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Option<Event>, KernelError> {
        // A zero timeout would mean none.
        let timeout = timeout.map(|timeout| timeout.max(Duration::from_millis(1)));
        sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, timeout)
            .map_err(|errno| KernelError::Io { doing: WAITING, source: errno.into() })?;
        match receive(&self.socket, &mut self.buffer, WAITING) {
            Ok(datagram) => {
                let expired = messages(datagram).flatten().any(|message| message.kind == XFRM_MSG_EXPIRE);
                Ok(Some(if expired { Event::Expire } else { Event::Policy }))
            }
            Err(KernelError::Lost { .. } | KernelError::Malformed { .. }) => Ok(Some(Event::Overrun)),
            Err(KernelError::NoAnswer { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
