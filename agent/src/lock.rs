//! One agent a node.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
};

/// Name of the abstract socket that the running agent holds. The kernel frees it when the process ends, however it
/// does. It belongs to the network namespace, as does everything that the agent programs.
const NAME: &str = "secureoverlay-agent";

/// Held by the one agent of this network namespace.
#[derive(Debug)]
pub struct Lock {
    _socket: UnixListener,
}

impl Lock {
    /// Takes the lock; `None` while somebody else has it.
    ///
    /// # Errors
    /// Sockets can't be made at all.
    pub fn take() -> io::Result<Option<Self>> {
        take(NAME)
    }
}

fn take(name: &str) -> io::Result<Option<Lock>> {
    match UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?) {
        Ok(socket) => Ok(Some(Lock { _socket: socket })),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let name = format!("secureoverlay-test-{}", std::process::id());
        let first = take(&name).unwrap().expect("nobody has it");
        assert!(take(&name).unwrap().is_none());
        drop(first);
        assert!(take(&name).unwrap().is_some());
    }
}
