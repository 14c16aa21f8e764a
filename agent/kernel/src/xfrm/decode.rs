//! XFRM netlink messages into plain data. Nothing here panics, whatever the bytes.

use std::net::IpAddr;

use netlink_packet_xfrm::{
    Address, LifetimeConfig, Selector, UserPolicyInfo, UserSaInfo, UserTemplate, XFRM_USER_POLICY_INFO_LEN,
    XFRM_USER_SA_INFO_LEN, XFRM_USER_TEMPLATE_LEN,
    constants::{
        AF_INET, AF_INET6, IPPROTO_ESP, XFRM_MODE_TRANSPORT, XFRM_POLICY_ALLOW, XFRM_POLICY_BLOCK,
        XFRM_POLICY_IN, XFRM_POLICY_OUT, XFRM_POLICY_TYPE_MAIN, XFRM_STATE_ESN, XFRMA_ALG_AEAD,
        XFRMA_ALG_AUTH, XFRMA_ALG_CRYPT, XFRMA_ENCAP, XFRMA_IF_ID, XFRMA_MARK, XFRMA_POLICY_TYPE,
        XFRMA_REPLAY_ESN_VAL, XFRMA_TMPL,
    },
};
use secureoverlay_agent_core::xfrm::{
    ActualPolicy, ActualSa, Direction, IPPROTO_UDP, Net, Owner, PolicyAction, PolicyId, REPLAY_WINDOW, REQID,
    SaId, Traffic,
};
use secureoverlay_keyring::{secret::SecretBytes, suite::Suite};

use super::encode::{AEAD_HEADER_LEN, AEAD_NAME, key_material_len, policy_selector, state_selector};
use crate::{error::Malformed, netlink::frame::attributes};

/// Offset of `replay_window` in `struct xfrm_replay_state_esn`.
const ESN_WINDOW: std::ops::Range<usize> = 20..24;

/// An ESP SA from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateMessage {
    /// The SA.
    pub sa: ActualSa,
    /// It has no algorithms: a placeholder that the kernel made while it asks a key manager for the real one.
    pub larval: bool,
}

/// Reads the payload of an `XFRM_MSG_NEWSA`; `None` if it is no ESP SA of IPv4 or IPv6.
///
/// # Errors
/// It is shorter than the fixed structure, or the attributes' lengths don't fit.
pub fn parse_sa(payload: &[u8]) -> Result<Option<StateMessage>, Malformed> {
    let info = UserSaInfo::parse(payload)?;
    let (Some(src), Some(dst)) = (ip(info.saddr, info.family), ip(info.id.daddr, info.family)) else {
        return Ok(None);
    };
    if info.id.proto != IPPROTO_ESP {
        return Ok(None);
    }
    let mut cipher = None;
    let mut larval = true;
    let mut addressable = true;
    let mut window = 0;
    let mut encapsulated = false;
    for attribute in attributes(&payload[XFRM_USER_SA_INFO_LEN..]) {
        let attribute = attribute?;
        match attribute.kind() {
            XFRMA_ALG_AEAD => {
                larval = false;
                cipher = parse_aead(attribute.value());
            }
            XFRMA_ALG_CRYPT | XFRMA_ALG_AUTH => larval = false,
            XFRMA_REPLAY_ESN_VAL => window = word(attribute.value(), ESN_WINDOW).unwrap_or(0),
            XFRMA_ENCAP => encapsulated = true,
            XFRMA_MARK | XFRMA_IF_ID => addressable = false,
            _ => {}
        }
    }
    // With a mark or an interface id it can't be named by an SaId, and we install none.
    let ours = info.reqid == REQID && info.mode == XFRM_MODE_TRANSPORT && addressable;
    let well_formed = info.selector == state_selector(src, dst)
        && info.flags == XFRM_STATE_ESN
        && info.lifetime_cfg == LifetimeConfig::default()
        && window == REPLAY_WINDOW
        && !encapsulated
        && !larval;
    let sa = ActualSa {
        src,
        id: SaId { dst, spi: info.id.spi },
        owner: if ours { Owner::Ours } else { Owner::Foreign },
        cipher: cipher.filter(|_| ours),
        well_formed,
        packets: info.lifetime_cur.packets,
        bytes: info.lifetime_cur.bytes,
    };
    Ok(Some(StateMessage { sa, larval }))
}

/// `struct xfrm_algo_aead`, if it is one of our suites and the key is shown: under lockdown it reads as zeros.
fn parse_aead(value: &[u8]) -> Option<(Suite, SecretBytes)> {
    let (header, key) = value.split_at_checked(AEAD_HEADER_LEN)?;
    let name = header[..64].split(|byte| *byte == 0).next()?;
    let (key_bits, icv_bits) = (word(header, 64..68)?, word(header, 68..72)?);
    let suite = Suite::ALL.into_iter().find(|suite| {
        key_bits as usize == 8 * key_material_len(*suite) && icv_bits as usize == 8 * suite.icv_len()
    })?;
    let key = key.get(..key_material_len(suite))?;
    let shown = key.iter().any(|byte| *byte != 0);
    (name == AEAD_NAME && shown).then(|| (suite, SecretBytes::copy_from(key)))
}

/// Reads the payload of an `XFRM_MSG_NEWPOLICY`; `None` for forward and socket policies and those that are neither
/// for IPv4 nor for IPv6.
///
/// # Errors
/// It is shorter than the fixed structure, or the attributes' lengths don't fit.
pub fn parse_policy(payload: &[u8]) -> Result<Option<ActualPolicy>, Malformed> {
    let info = UserPolicyInfo::parse(payload)?;
    let direction = match info.direction {
        XFRM_POLICY_IN => Direction::In,
        XFRM_POLICY_OUT => Direction::Out,
        _ => return Ok(None),
    };
    let Some(id) = parse_selector(direction, &info.selector) else {
        return Ok(None);
    };
    // What a PolicyId can't name is not ours: we could neither have made it nor delete it.
    let mut addressable = info.selector == policy_selector(&id);
    // Ports that the id names are no condition beyond it.
    let ports = (info.selector.sport_mask, info.selector.dport_mask) != (0, 0);
    let mut conditional = ports && !id.is_probe();
    let mut marked = false;
    let mut templates = Vec::new();
    for attribute in attributes(&payload[XFRM_USER_POLICY_INFO_LEN..]) {
        let attribute = attribute?;
        match attribute.kind() {
            XFRMA_TMPL => templates = parse_templates(attribute.value())?,
            // Of struct xfrm_mark the value comes first: 0, whatever the mask, is that of packets without a mark.
            XFRMA_MARK => {
                (addressable, marked) = (false, true);
                conditional |= word(attribute.value(), 0..4).is_none_or(|mark| mark != 0);
            }
            XFRMA_IF_ID => (addressable, marked, conditional) = (false, true, true),
            XFRMA_POLICY_TYPE => addressable &= attribute.value().first() == Some(&XFRM_POLICY_TYPE_MAIN),
            _ => {}
        }
    }
    let ours = addressable && marked_as_ours(&info, &templates);
    Ok(Some(ActualPolicy {
        id,
        index: info.index,
        priority: info.priority,
        protocol: info.selector.proto,
        conditional,
        marked,
        owner: if ours { Owner::Ours } else { Owner::Foreign },
        action: ours.then(|| action(id, &info, &templates)).flatten(),
    }))
}

/// The action of a policy of ours, if it is of a form that we install.
fn action(id: PolicyId, info: &UserPolicyInfo, templates: &[UserTemplate]) -> Option<PolicyAction> {
    let action = match (templates, info.action) {
        ([], XFRM_POLICY_ALLOW) => PolicyAction::Allow,
        ([], XFRM_POLICY_BLOCK) => PolicyAction::Block,
        ([template], XFRM_POLICY_ALLOW) => {
            // The kernel ignores the addresses of a transport mode template, iproute2 and we fill them in.
            let required = template.optional == 0 && template.share == 0 && template.aalgos == u32::MAX;
            let spi = (template.id.spi != 0).then_some(template.id.spi);
            let right_way = match id.direction {
                Direction::In => spi.is_none(),
                Direction::Out => true,
            };
            (required && right_way).then_some(PolicyAction::Esp(spi))?
        }
        _ => return None,
    };
    let plain = info.flags == 0 && info.share == 0 && info.lifetime_cfg == LifetimeConfig::default();
    (plain && info.priority == action.priority()).then_some(action)
}

/// Templates are marked by the reqid, policies without any by their priority.
fn marked_as_ours(info: &UserPolicyInfo, templates: &[UserTemplate]) -> bool {
    if templates.is_empty() {
        [PolicyAction::Allow, PolicyAction::Block].iter().any(|action| action.priority() == info.priority)
    } else {
        templates.iter().all(|template| {
            template.reqid == REQID
                && template.id.proto == IPPROTO_ESP
                && template.mode == XFRM_MODE_TRANSPORT
        })
    }
}

fn parse_templates(value: &[u8]) -> Result<Vec<UserTemplate>, Malformed> {
    let templates = value.chunks_exact(XFRM_USER_TEMPLATE_LEN);
    if !templates.remainder().is_empty() {
        return Err(Malformed(format!("templates of {} bytes", value.len())));
    }
    templates.map(|template| UserTemplate::parse(template).map_err(Malformed::from)).collect()
}

fn parse_selector(direction: Direction, selector: &Selector) -> Option<PolicyId> {
    Some(PolicyId {
        direction,
        src: Net { addr: ip(selector.saddr, selector.family)?, prefix: selector.prefixlen_s },
        dst: Net { addr: ip(selector.daddr, selector.family)?, prefix: selector.prefixlen_d },
        traffic: match (selector.proto, selector.sport_mask, selector.dport_mask) {
            (IPPROTO_UDP, u16::MAX, u16::MAX) if selector.sport == selector.dport => {
                Traffic::Probe(selector.dport)
            }
            _ => Traffic::Tunnel,
        },
    })
}

fn ip(address: Address, family: u16) -> Option<IpAddr> {
    match family {
        AF_INET => Some(address.to_ipv4().into()),
        AF_INET6 => Some(address.to_ipv6().into()),
        _ => None,
    }
}

fn word(bytes: &[u8], range: std::ops::Range<usize>) -> Option<u32> {
    bytes.get(range)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
