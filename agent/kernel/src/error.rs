//! What can go wrong between us and the kernel, and what to do about it.

use std::{fmt, io};

use rustix::io::Errno;
use secureoverlay_agent_core::{
    kernel::{OpError, OpErrorKind},
    xfrm::Op,
};

/// The kernel's "no" to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error number.
    pub errno: Errno,
    /// The extended acknowledgement's text, where the kernel gave one.
    pub message: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from(self.errno))?;
        match &self.message {
            Some(message) => write!(f, ", \"{message}\""),
            None => Ok(()),
        }
    }
}

/// Bytes from a netlink socket that are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed netlink message: {0}")]
pub struct Malformed(pub(crate) String);

impl From<netlink_packet_core::DecodeError> for Malformed {
    fn from(error: netlink_packet_core::DecodeError) -> Self {
        Self(error.to_string())
    }
}

impl From<neli::err::DeError> for Malformed {
    fn from(error: neli::err::DeError) -> Self {
        Self(error.to_string())
    }
}

/// A request, or a whole batch or dump, that did not come to an end.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No socket.
    #[error("opening the netlink socket for {subsystem}: {source}; {}", advice_for_open(.source))]
    Open {
        /// `XFRM` or `routes`.
        subsystem: &'static str,
        /// The system call's error.
        source: io::Error,
    },
    /// A system call on an open socket failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The system call's error.
        source: io::Error,
    },
    /// The kernel refused the request as a whole.
    #[error("{doing}: {refusal}; {}", advice(.refusal.errno))]
    Refused {
        /// What was being done.
        doing: &'static str,
        /// The answer.
        refusal: Refusal,
    },
    /// The socket's receive buffer ran over (`ENOBUFS`).
    #[error("{doing}: answers of the kernel were lost, its state is known only after another dump")]
    Lost {
        /// What was being done.
        doing: &'static str,
    },
    /// The kernel did not answer in time.
    #[error("{doing}: no answer of the kernel; its state is known only after another dump")]
    NoAnswer {
        /// What was being done.
        doing: &'static str,
    },
    /// The answer can't be read.
    #[error("{doing}: {source}")]
    Malformed {
        /// What was being done.
        doing: &'static str,
        /// What is wrong with it.
        source: Malformed,
    },
    /// Every dump was interrupted by changes.
    #[error("{doing}: the kernel's tables changed during each of {attempts} dumps; try again later")]
    Unsteady {
        /// What was being done.
        doing: &'static str,
        /// How often it was tried.
        attempts: u32,
    },
}

/// The kernel's refusal of `op`.
pub(crate) fn refused(op: &Op, refusal: &Refusal) -> OpError {
    let kind = match (op, refusal.errno) {
        (_, Errno::PERM | Errno::ACCESS) => OpErrorKind::NotPermitted,
        (_, Errno::EXIST) => OpErrorKind::Exists,
        (Op::AddSa(_), Errno::PROTONOSUPPORT | Errno::NOSYS | Errno::NOENT) => OpErrorKind::Unsupported,
        _ => OpErrorKind::Refused,
    };
    OpError { what: describe(op), kind, detail: format!("{refusal}; {}", advice(refusal.errno)) }
}

/// `op` met an object that is not ours.
pub(crate) fn foreign(op: &Op, found: &str) -> OpError {
    let detail = format!(
        "{found}, which is not ours, is in the way and was left alone; remove it or its owner from this node"
    );
    OpError { what: describe(op), kind: OpErrorKind::Foreign, detail }
}

/// The request or its answer was lost.
pub(crate) fn unknown(op: &Op, cause: &KernelError) -> OpError {
    let kind = match cause {
        KernelError::Open { .. } => OpErrorKind::Refused,
        KernelError::Io { .. }
        | KernelError::Refused { .. }
        | KernelError::Lost { .. }
        | KernelError::NoAnswer { .. }
        | KernelError::Malformed { .. }
        | KernelError::Unsteady { .. } => OpErrorKind::Unknown,
    };
    OpError { what: describe(op), kind, detail: cause.to_string() }
}

/// The operation in words, without keys.
fn describe(op: &Op) -> String {
    match op {
        Op::AddSa(sa) => format!("adding SA {} from {} ({})", sa.id, sa.src, sa.suite),
        Op::DeleteSa(id) => format!("deleting SA {id}"),
        Op::AddPolicy(policy) => format!("adding policy {}", policy.id),
        Op::UpdatePolicy(policy) => format!("updating policy {}", policy.id),
        Op::DeletePolicy(id) => format!("deleting policy {id}"),
    }
}

/// What usually brings `errno` about in answers of XFRM, and what mends it.
fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM | Errno::ACCESS => "the process needs the capability NET_ADMIN",
        Errno::EXIST => "an object with this identity is there already: dump again",
        Errno::SRCH => "it is gone: dump again",
        Errno::NOBUFS | Errno::NOMEM => "the kernel is short of memory: dump again and retry",
        // No ESP, no such AEAD, no part of one.
        Errno::PROTONOSUPPORT | Errno::NOSYS | Errno::NOENT => {
            "the kernel lacks ESP or its cipher, or may not load it: on the host, `modprobe -a esp4 gcm seqiv` (for IPv6 esp6) \
             says which; where it loads nothing and reports nothing, /etc/modprobe.d blocks the module"
        }
        Errno::INVAL => "the kernel does not take this request: it may be too old, or lack an option",
        _ => "nothing was changed by it",
    }
}

fn advice_for_open(source: &io::Error) -> &'static str {
    match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PROTONOSUPPORT | Errno::CONNREFUSED) => {
            "the kernel has no XFRM netlink: on the host, `modprobe xfrm_user`"
        }
        Some(Errno::PERM | Errno::ACCESS) => "the process needs the capability NET_ADMIN",
        Some(Errno::NOPROTOOPT) => "the kernel is older than 4.12",
        _ => "is netlink forbidden here, by seccomp for instance?",
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use secureoverlay_agent_core::xfrm::{Sa, SaId};
    use secureoverlay_keyring::{secret::SecretBytes, suite::Suite};

    use super::*;

    fn refused(op: &Op, errno: Errno) -> OpError {
        super::refused(op, &Refusal { errno, message: Some("the kernel's words".to_owned()) })
    }

    #[test]
    fn errors_say_what_was_done_what_came_back_and_what_helps() {
        let id = SaId { dst: Ipv4Addr::new(10, 0, 0, 2).into(), spi: 0x1000 };
        let src = Ipv4Addr::new(10, 0, 0, 1).into();
        let add = Op::AddSa(Sa { src, id, suite: Suite::default(), key: SecretBytes::copy_from(&[7; 20]) });
        assert_eq!(
            refused(&add, Errno::PERM).to_string(),
            "adding SA 10.0.0.2 SPI 0x00001000 from 10.0.0.1 (aes128gcm8): Operation not permitted (os error 1), \
             \"the kernel's words\"; the process needs the capability NET_ADMIN"
        );
        for (errno, kind, advice) in [
            (Errno::EXIST, OpErrorKind::Exists, "dump again"),
            (Errno::PROTONOSUPPORT, OpErrorKind::Unsupported, "modprobe -a esp4 gcm seqiv"),
            (Errno::NOSYS, OpErrorKind::Unsupported, "modprobe -a esp4 gcm seqiv"),
            (Errno::NOENT, OpErrorKind::Unsupported, "modprobe -a esp4 gcm seqiv"),
            (Errno::NOBUFS, OpErrorKind::Refused, "retry"),
            (Errno::INVAL, OpErrorKind::Refused, "too old"),
        ] {
            let error = refused(&add, errno);
            assert_eq!(error.kind, kind, "{errno:?}");
            assert!(error.to_string().contains(advice), "{error}");
        }
        assert_eq!(refused(&Op::DeleteSa(id), Errno::NOENT).kind, OpErrorKind::Refused);
    }

    #[test]
    fn a_lost_answer_is_not_a_refusal() {
        let op = Op::DeleteSa(SaId { dst: Ipv4Addr::LOCALHOST.into(), spi: 256 });
        assert_eq!(unknown(&op, &KernelError::Lost { doing: "testing" }).kind, OpErrorKind::Unknown);
    }

    #[test]
    fn a_kernel_without_xfrm_is_told_by_name() {
        let source = io::Error::from(Errno::PROTONOSUPPORT);
        let text = KernelError::Open { subsystem: "XFRM", source }.to_string();
        assert!(text.contains("modprobe xfrm_user"), "{text}");
    }
}
