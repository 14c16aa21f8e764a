//! Operations into XFRM netlink messages (`linux/xfrm.h`).
//!
//! The fixed structures are the library's. Attributes with key material are written by hand, straight into a buffer
//! that is wiped: the library's types would leave copies behind.

use std::net::IpAddr;

use netlink_packet_core::{Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};
use netlink_packet_xfrm::{
    Address, Id, ReplayEsn, Selector, UserPolicyId, UserPolicyInfo, UserSaId, UserSaInfo, UserTemplate,
    constants::{
        AF_INET, AF_INET6, IPPROTO_ESP, XFRM_MODE_TRANSPORT, XFRM_MSG_DELPOLICY, XFRM_MSG_DELSA,
        XFRM_MSG_NEWPOLICY, XFRM_MSG_NEWSA, XFRM_MSG_UPDPOLICY, XFRM_MSG_UPDSA, XFRM_POLICY_ALLOW,
        XFRM_POLICY_BLOCK, XFRM_POLICY_IN, XFRM_POLICY_OUT, XFRM_STATE_ESN, XFRMA_ALG_AEAD,
        XFRMA_REPLAY_ESN_VAL, XFRMA_TMPL,
    },
};
use secureoverlay_agent_core::xfrm::{
    Direction, Net, Op, Policy, PolicyAction, PolicyId, REPLAY_WINDOW, REQID, Sa, SaId, Traffic,
};
use secureoverlay_keyring::suite::Suite;
use zeroize::{Zeroize, Zeroizing};

use crate::netlink::socket::{begin, finish};

/// The kernel's name of RFC 4106's AEAD.
pub(super) const AEAD_NAME: &[u8] = b"rfc4106(gcm(aes))";
/// `struct xfrm_algo_aead` without the key: name, key length in bits, ICV length in bits.
pub(super) const AEAD_HEADER_LEN: usize = 64 + 4 + 4;
/// Messages that are sent at once.
pub(super) const BATCH: usize = 128;
/// The largest message: an SA with a 36-byte key takes 380 bytes.
const MESSAGE_MAX: usize = 384;

/// Messages that will be sent at once, in a buffer that never grows (a copy would stay behind) and is wiped.
pub(super) struct Batch(Zeroizing<Vec<u8>>);

impl Batch {
    pub fn new() -> Self {
        Self(Zeroizing::new(Vec::with_capacity(BATCH * MESSAGE_MAX)))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Wipes the buffer and fills it with `ops` (at most [`BATCH`]), numbered from `first`. Refusals are answered
    /// anyway; the last message asks for an answer also to success, and all answers before it have come by then.
    pub fn fill(&mut self, ops: &[Op], first: u32) {
        self.wipe();
        let mut sequence = first;
        for (at, op) in ops.iter().enumerate() {
            let flags = if at + 1 == ops.len() { NLM_F_ACK } else { 0 };
            match op {
                Op::AddSa(sa) => {
                    self.state(XFRM_MSG_NEWSA, NLM_F_CREATE | NLM_F_EXCL | flags, sequence, sa);
                }
                Op::DeleteSa(id) => self.message(XFRM_MSG_DELSA, flags, sequence, |bytes| {
                    append(bytes, &state_id(*id));
                }),
                Op::AddPolicy(policy) => {
                    self.policy(XFRM_MSG_NEWPOLICY, NLM_F_CREATE | NLM_F_EXCL | flags, sequence, policy);
                }
                Op::UpdatePolicy(policy) => {
                    self.policy(XFRM_MSG_UPDPOLICY, NLM_F_REPLACE | flags, sequence, policy);
                }
                Op::DeletePolicy(id) => self.message(XFRM_MSG_DELPOLICY, flags, sequence, |bytes| {
                    append(bytes, &policy_id(*id));
                }),
            }
            sequence = sequence.wrapping_add(1);
        }
    }

    /// Wipes the buffer and fills it with the replacement of a larval SA by `sa`.
    pub fn fill_replacement(&mut self, sa: &Sa, sequence: u32) {
        self.wipe();
        self.state(XFRM_MSG_UPDSA, NLM_F_REPLACE | NLM_F_ACK, sequence, sa);
    }

    /// All that was written; the vector's own way would also wipe the rest of its room, every time.
    fn wipe(&mut self) {
        self.0.as_mut_slice().zeroize();
        self.0.clear();
    }

    fn message(&mut self, kind: u16, flags: u16, sequence: u32, body: impl FnOnce(&mut Vec<u8>)) {
        let start = self.0.len();
        begin(&mut self.0, kind, NLM_F_REQUEST | flags, sequence);
        body(&mut self.0);
        finish(&mut self.0, start);
        debug_assert!(self.0.len() - start <= MESSAGE_MAX, "a batch's buffer must not grow");
    }

    fn state(&mut self, kind: u16, flags: u16, sequence: u32, sa: &Sa) {
        self.message(kind, flags, sequence, |bytes| {
            append(bytes, &state_info(sa));
            attribute(bytes, XFRMA_ALG_AEAD, |bytes| {
                let key = sa.key.expose();
                bytes.extend_from_slice(AEAD_NAME);
                bytes.resize(bytes.len() + 64 - AEAD_NAME.len(), 0);
                bytes.extend_from_slice(&bits(key.len()).to_ne_bytes());
                bytes.extend_from_slice(&bits(sa.suite.icv_len()).to_ne_bytes());
                bytes.extend_from_slice(key);
            });
            // The kernel takes the structure without its bitmap and starts with an empty one.
            attribute(bytes, XFRMA_REPLAY_ESN_VAL, |bytes| {
                append(
                    bytes,
                    &ReplayEsn {
                        bmp_len: REPLAY_WINDOW / 32,
                        replay_window: REPLAY_WINDOW,
                        ..ReplayEsn::default()
                    },
                );
            });
        });
    }

    fn policy(&mut self, kind: u16, flags: u16, sequence: u32, policy: &Policy) {
        self.message(kind, flags, sequence, |bytes| {
            append(bytes, &policy_info(policy));
            if let PolicyAction::Esp(spi) = policy.action {
                attribute(bytes, XFRMA_TMPL, |bytes| append(bytes, &template(policy.id, spi)));
            }
        });
    }
}

/// How many bytes of AEAD key material (with salt) `suite` takes.
pub(super) const fn key_material_len(suite: Suite) -> usize {
    suite.key_len() + Suite::SALT_LEN
}

fn bits(bytes: usize) -> u32 {
    u32::try_from(bytes * 8).expect("keys and ICVs are at most 36 bytes")
}

fn append(bytes: &mut Vec<u8>, value: &impl Emitable) {
    let start = bytes.len();
    bytes.resize(start + value.buffer_len(), 0);
    value.emit(&mut bytes[start..]);
}

fn attribute(bytes: &mut Vec<u8>, kind: u16, value: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&kind.to_ne_bytes());
    value(bytes);
    let length = u16::try_from(bytes.len() - start).expect("our attributes are at most 112 bytes");
    bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

pub(super) const fn family(address: IpAddr) -> u16 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn selector(src: Net, dst: Net, protocol: u8) -> Selector {
    Selector {
        daddr: Address::from_ip(&dst.addr),
        saddr: Address::from_ip(&src.addr),
        prefixlen_d: dst.prefix,
        prefixlen_s: src.prefix,
        family: family(dst.addr),
        proto: protocol,
        ..Selector::default()
    }
}

/// The selector of a policy.
pub(super) fn policy_selector(id: &PolicyId) -> Selector {
    let selector = selector(id.src, id.dst, id.traffic.protocol());
    match id.traffic {
        Traffic::Tunnel => selector,
        Traffic::Probe(port) => {
            Selector { sport: port, sport_mask: u16::MAX, dport: port, dport_mask: u16::MAX, ..selector }
        }
    }
}

/// The selector of an SA: exactly its two ends. Without it ESP with a rewritten outer source would be accepted.
pub(super) fn state_selector(src: IpAddr, dst: IpAddr) -> Selector {
    selector(Net::host(src), Net::host(dst), 0)
}

fn state_info(sa: &Sa) -> UserSaInfo {
    UserSaInfo {
        selector: state_selector(sa.src, sa.id.dst),
        id: Id { daddr: Address::from_ip(&sa.id.dst), spi: sa.id.spi, proto: IPPROTO_ESP },
        saddr: Address::from_ip(&sa.src),
        reqid: REQID,
        family: family(sa.id.dst),
        mode: XFRM_MODE_TRANSPORT,
        flags: XFRM_STATE_ESN,
        ..UserSaInfo::default()
    }
}

/// What names an SA in requests.
pub(super) fn state_id(id: SaId) -> UserSaId {
    UserSaId { daddr: Address::from_ip(&id.dst), spi: id.spi, family: family(id.dst), proto: IPPROTO_ESP }
}

fn direction(direction: Direction) -> u8 {
    match direction {
        Direction::In => XFRM_POLICY_IN,
        Direction::Out => XFRM_POLICY_OUT,
    }
}

fn policy_info(policy: &Policy) -> UserPolicyInfo {
    UserPolicyInfo {
        selector: policy_selector(&policy.id),
        priority: policy.action.priority(),
        direction: direction(policy.id.direction),
        action: match policy.action {
            PolicyAction::Esp(_) | PolicyAction::Allow => XFRM_POLICY_ALLOW,
            PolicyAction::Block => XFRM_POLICY_BLOCK,
        },
        ..UserPolicyInfo::default()
    }
}

fn template(id: PolicyId, spi: Option<u32>) -> UserTemplate {
    UserTemplate {
        id: Id { daddr: Address::from_ip(&id.dst.addr), spi: spi.unwrap_or(0), proto: IPPROTO_ESP },
        family: family(id.dst.addr),
        saddr: Address::from_ip(&id.src.addr),
        reqid: REQID,
        mode: XFRM_MODE_TRANSPORT,
        ..UserTemplate::default()
    }
}

/// What names a policy in requests.
pub(super) fn policy_id(id: PolicyId) -> UserPolicyId {
    UserPolicyId {
        selector: policy_selector(&id),
        direction: direction(id.direction),
        ..UserPolicyId::default()
    }
}

/// A structure's bytes, for requests without key material.
pub(super) fn emitted(value: &impl Emitable) -> Vec<u8> {
    let mut bytes = Vec::new();
    append(&mut bytes, value);
    bytes
}
