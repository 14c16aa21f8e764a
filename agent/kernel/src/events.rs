//! Notifications that something of the kernel's XFRM tables, addresses or routes changed.

use std::time::Duration;

use netlink_packet_xfrm::constants::{
    XFRM_MSG_EXPIRE, XFRM_MSG_FLUSHPOLICY, XFRMNLGRP_EXPIRE, XFRMNLGRP_POLICY,
};
use netlink_sys::Socket;
use rustix::net::sockopt;

use crate::{
    error::KernelError,
    netlink::{
        frame::messages,
        socket::{Subsystem, open, receive},
    },
};

const WAITING: &str = "waiting for XFRM notifications";
const WAITING_FOR_ROUTES: &str = "waiting for changes of addresses and routes";
/// `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV4_ROUTE` (`linux/rtnetlink.h`).
const ROUTE_GROUPS: u32 = 0x10 | 0x40;
/// A notification is one policy, one SA without its key, one address or one route.
const BUFFER_LEN: usize = 16 * 1024;

/// A reason to look at the kernel again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Policies were added, changed or deleted, by us or by others.
    Policy,
    /// Another program flushed all policies: we delete ours one by one.
    Flush,
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
        limit(&self.socket, timeout, WAITING)?;
        match receive(&self.socket, &mut self.buffer, WAITING) {
            Ok(datagram) => Ok(Some(classify(datagram))),
            Err(KernelError::Lost { .. } | KernelError::Malformed { .. }) => Ok(Some(Event::Overrun)),
            Err(KernelError::NoAnswer { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A subscription to changes of IPv4 addresses and routes.
pub struct NetworkEvents {
    socket: Socket,
    buffer: Vec<u8>,
}

impl NetworkEvents {
    /// Subscribes, which takes no capability.
    ///
    /// # Errors
    /// The system does not let us.
    pub fn open() -> Result<Self, KernelError> {
        Ok(Self { socket: open(Subsystem::Route, ROUTE_GROUPS)?, buffer: vec![0; BUFFER_LEN] })
    }

    /// Blocks until something changed, or for `timeout` (without one: for ever). Returns whether it did.
    ///
    /// # Errors
    /// The socket is unusable: open another.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<bool, KernelError> {
        limit(&self.socket, timeout, WAITING_FOR_ROUTES)?;
        match receive(&self.socket, &mut self.buffer, WAITING_FOR_ROUTES) {
            Ok(_) | Err(KernelError::Lost { .. } | KernelError::Malformed { .. }) => Ok(true),
            Err(KernelError::NoAnswer { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// How long a receive may take.
fn limit(socket: &Socket, timeout: Option<Duration>, doing: &'static str) -> Result<(), KernelError> {
    // A zero timeout would mean none.
    let timeout = timeout.map(|timeout| timeout.max(Duration::from_millis(1)));
    sockopt::set_socket_timeout(socket, sockopt::Timeout::Recv, timeout)
        .map_err(|errno| KernelError::Io { doing, source: errno.into() })
}

/// What a datagram tells: the most urgent of its messages.
fn classify(datagram: &[u8]) -> Event {
    let has = |kind| messages(datagram).flatten().any(|message| message.kind == kind);
    if has(XFRM_MSG_FLUSHPOLICY) {
        Event::Flush
    } else if has(XFRM_MSG_EXPIRE) {
        Event::Expire
    } else {
        Event::Policy
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_xfrm::constants::{XFRM_MSG_DELPOLICY, XFRM_MSG_NEWPOLICY};

    use super::*;
    use crate::netlink::socket::{begin, finish};

    fn datagram(kinds: &[u16]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for kind in kinds {
            let start = bytes.len();
            begin(&mut bytes, *kind, 0, 0);
            bytes.extend_from_slice(&[0; 4]);
            finish(&mut bytes, start);
        }
        bytes
    }

    #[test]
    fn flush_is_told_from_other_changes() {
        for (kinds, expected) in [
            (&[XFRM_MSG_NEWPOLICY][..], Event::Policy),
            (&[XFRM_MSG_DELPOLICY, XFRM_MSG_DELPOLICY], Event::Policy),
            (&[XFRM_MSG_EXPIRE], Event::Expire),
            (&[XFRM_MSG_NEWPOLICY, XFRM_MSG_FLUSHPOLICY], Event::Flush),
            (&[], Event::Policy),
        ] {
            assert_eq!(classify(&datagram(kinds)), expected, "{kinds:?}");
        }
    }
}
