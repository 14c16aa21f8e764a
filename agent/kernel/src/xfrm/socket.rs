//! The kernel's SAs and policies over netlink.

use netlink_packet_core::NLMSG_ERROR;
use netlink_packet_xfrm::constants::{
    XFRM_MSG_GETPOLICY, XFRM_MSG_GETSA, XFRM_MSG_GETSADINFO, XFRM_MSG_GETSPDINFO,
};
use rustix::io::Errno;
use secureoverlay_agent_core::{
    kernel::{Counts, Kernel, OpError, OpErrorKind},
    xfrm::{Actual, Op, Owner, Policy, Sa, SaId},
};

use super::{
    counts::{FLAGS_LEN, parse_policy_count, parse_state_count},
    decode::{parse_policy, parse_sa},
    encode::{BATCH, Batch, emitted, policy_id, state_id},
};
use crate::{
    error::{self, KernelError, Refusal},
    netlink::{
        frame::{Message, parse_error},
        socket::{RequestSocket, Subsystem},
    },
};

const CHANGING: &str = "changing SAs and policies";

/// A netlink socket for SAs and policies. Needs the capability NET_ADMIN in the network namespace.
pub struct XfrmSocket {
    requests: RequestSocket,
}

impl XfrmSocket {
    /// Opens the socket.
    ///
    /// # Errors
    /// The kernel has no XFRM netlink, or does not let us use it.
    pub fn open() -> Result<Self, KernelError> {
        Ok(Self { requests: RequestSocket::open(Subsystem::Xfrm)? })
    }

    /// How many packets and bytes an SA has carried; `None` where it is not there.
    ///
    /// # Errors
    /// The kernel can't be asked, or its answer can't be read.
    pub fn carried(&mut self, id: SaId) -> Result<Option<(u64, u64)>, KernelError> {
        let found = self.requests.get(
            XFRM_MSG_GETSA,
            &emitted(&state_id(id)),
            "reading an SA's counters",
            parse_sa,
        )?;
        Ok(found.ok().flatten().filter(|found| !found.larval).map(|found| (found.sa.packets, found.sa.bytes)))
    }

    /// Sends up to [`BATCH`] operations at once and sorts the answers.
    fn apply_batch(&mut self, batch: &mut Batch, ops: &[Op]) -> Vec<Result<(), OpError>> {
        let count = u32::try_from(ops.len()).expect("a batch is at most 128 operations");
        let first = self.requests.reserve(count);
        batch.fill(ops, first);
        let mut refusals: Vec<Option<Refusal>> = vec![None; ops.len()];
        let ended = self.requests.exchange(batch.bytes(), (first, count), CHANGING, |index, message| {
            if let Some(refusal) = answer(&message)? {
                refusals[index as usize] = Some(refusal);
            }
            Ok(index + 1 == count)
        });
        ops.iter()
            .zip(refusals)
            .map(|(op, refusal)| match (refusal, &ended) {
                (Some(refusal), _) if already_gone(op, refusal.errno) => Ok(()),
                (Some(refusal), _) => Err(error::refused(op, &refusal)),
                // Without the answer to the last one, silence about another means nothing.
                (None, Err(error)) => Err(error::unknown(op, error)),
                (None, Ok(())) => Ok(()),
            })
            .collect()
    }

    /// Something with the SA's identity is there: replaces it if it is a placeholder of the kernel for our policy,
    /// else says whose it is.
    fn add_over(&mut self, batch: &mut Batch, op: &Op, sa: &Sa, refusal: OpError) -> Result<(), OpError> {
        let found = self
            .requests
            .get(XFRM_MSG_GETSA, &emitted(&state_id(sa.id)), "looking at the SA in the way", parse_sa)
            .map_err(|error| error::unknown(op, &error))?;
        let Ok(Some(found)) = found else {
            // It went away again meanwhile: the caller's next dump shows what to do.
            return Err(refusal);
        };
        match found.sa.owner {
            Owner::Foreign => {
                Err(error::foreign(op, &format!("an SA with this SPI and destination from {}", found.sa.src)))
            }
            Owner::Ours if found.larval => {
                let first = self.requests.reserve(1);
                batch.fill_replacement(sa, first);
                let mut refused = None;
                self.requests
                    .exchange(batch.bytes(), (first, 1), CHANGING, |_, message| {
                        refused = answer(&message)?;
                        Ok(true)
                    })
                    .map_err(|error| error::unknown(op, &error))?;
                refused.map_or(Ok(()), |refusal| Err(error::refused(op, &refusal)))
            }
            Owner::Ours => Err(refusal),
        }
    }

    /// A policy with this selector is there: says whose it is.
    fn explain_policy(&mut self, op: &Op, policy: &Policy, refusal: OpError) -> OpError {
        let payload = emitted(&policy_id(policy.id));
        match self.requests.get(
            XFRM_MSG_GETPOLICY,
            &payload,
            "looking at the policy in the way",
            parse_policy,
        ) {
            Ok(Ok(Some(found))) if found.owner == Owner::Foreign => {
                error::foreign(op, &format!("a policy with this selector and priority {}", found.priority))
            }
            Ok(_) => refusal,
            Err(error) => error::unknown(op, &error),
        }
    }
}

impl Kernel for XfrmSocket {
    type Error = KernelError;

    fn dump(&mut self) -> Result<Actual, KernelError> {
        let sas = self.requests.dump(XFRM_MSG_GETSA, &[], "reading the kernel's SAs", |payload| {
            Ok(parse_sa(payload)?.filter(|state| !state.larval).map(|state| state.sa))
        })?;
        let policies =
            self.requests.dump(XFRM_MSG_GETPOLICY, &[], "reading the kernel's policies", parse_policy)?;
        Ok(Actual { sas, policies })
    }

    fn counts(&mut self) -> Result<Option<Counts>, KernelError> {
        let doing = "counting SAs and policies";
        let refused = |refusal| KernelError::Refused { doing, refusal };
        let flags = [0xff; FLAGS_LEN];
        let sas = self.requests.get(XFRM_MSG_GETSADINFO, &flags, doing, parse_state_count)?;
        let policies = self.requests.get(XFRM_MSG_GETSPDINFO, &flags, doing, parse_policy_count)?;
        let (sas, policies) = (sas.map_err(refused)?, policies.map_err(refused)?);
        Ok(Some(Counts { sas, policies }))
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>> {
        let mut batch = Batch::new();
        let mut outcomes = Vec::with_capacity(ops.len());
        for ops in ops.chunks(BATCH) {
            outcomes.extend(self.apply_batch(&mut batch, ops));
        }
        for (op, outcome) in ops.iter().zip(&mut outcomes) {
            match (op, &outcome) {
                (Op::AddSa(sa), Err(error)) if error.kind == OpErrorKind::Exists => {
                    *outcome = self.add_over(&mut batch, op, sa, error.clone());
                }
                (Op::AddPolicy(policy), Err(error)) if error.kind == OpErrorKind::Exists => {
                    *outcome = Err(self.explain_policy(op, policy, error.clone()));
                }
                _ => {}
            }
        }
        outcomes
    }
}

/// The refusal in an answer to a change, if it is one.
fn answer(message: &Message<'_>) -> Result<Option<Refusal>, KernelError> {
    if message.kind != NLMSG_ERROR {
        return Ok(None);
    }
    parse_error(message.payload, message.flags)
        .map_err(|source| KernelError::Malformed { doing: CHANGING, source })
}

/// Whether what `op` deletes was not there: that is what was wanted.
const fn already_gone(op: &Op, errno: Errno) -> bool {
    match op {
        Op::DeleteSa(_) => matches!(errno, Errno::SRCH),
        Op::DeletePolicy(_) => matches!(errno, Errno::NOENT),
        Op::AddSa(_) | Op::AddPolicy(_) | Op::UpdatePolicy(_) => false,
    }
}
