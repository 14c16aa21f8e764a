//! The kernel's word that this machine was put back to a snapshot, or is a copy of another.
//!
//! Linux shows no generation id to read (drivers/virt/vmgenid.c); since 6.10 it sends a uevent with `NEW_VMGENID=1`
//! when the id changes. Kernels without that, and machines without the device, send none.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_KOBJECT_UEVENT};
use rustix::io::Errno;

/// The multicast group of the kernel's own events; udev's have another.
const KERNEL_GROUP: u32 = 1;
const NEW_GENERATION: &[u8] = b"NEW_VMGENID=1";

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmEvent {
    /// The machine has a new generation: counters of SAs may have been used already.
    NewGeneration,
    /// Events were lost, among which may have been one.
    Lost,
}

/// The kernel's events. Blocking: for a thread of its own.
#[derive(Debug)]
pub struct VmGenerationEvents {
    socket: Socket,
}

impl VmGenerationEvents {
    /// Subscribes, which takes no capability.
    ///
    /// # Errors
    /// The kernel has no such socket, or there are too many open files.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_KOBJECT_UEVENT)?;
        socket.bind(&SocketAddr::new(0, KERNEL_GROUP))?;
        Ok(Self { socket })
    }

    /// Waits for the next event.
    ///
    /// # Errors
    /// The socket's.
    pub fn next_event(&mut self) -> io::Result<VmEvent> {
        loop {
            match self.socket.recv_from_full() {
                // Processes may send to the group, from ports of their own.
                Ok((message, from)) if from.port_number() == 0 && is_new_generation(&message) => {
                    return Ok(VmEvent::NewGeneration);
                }
                Ok(_) => {}
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::NOBUFS) => return Ok(VmEvent::Lost),
                    Some(Errno::INTR) => {}
                    _ => return Err(error),
                },
            }
        }
    }
}

/// `ACTION@PATH`, then variables, each ended by a zero byte.
fn is_new_generation(message: &[u8]) -> bool {
    message.split(|byte| *byte == 0).skip(1).any(|variable| variable == NEW_GENERATION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_variable_counts() {
        let message = b"change@/devices/LNXSYSTM:00/VMGENCTR:00\0ACTION=change\0SUBSYSTEM=acpi\0NEW_VMGENID=1\0SEQNUM=7\0";
        assert!(is_new_generation(message));
        assert!(is_new_generation(&message[..message.len() - 10]), "cut off behind it");
        for other in [
            &b""[..],
            b"NEW_VMGENID=1\0",
            b"change@/x\0NEW_VMGENID=11\0",
            b"change@/x\0SYNTH_ARG_NEW_VMGENID=1\0",
            b"change@/NEW_VMGENID=1\0ACTION=change\0",
        ] {
            assert!(!is_new_generation(other), "{}", String::from_utf8_lossy(other));
        }
    }

    #[test]
    fn kernel_lets_everyone_subscribe() {
        assert!(VmGenerationEvents::open().is_ok());
    }
}
