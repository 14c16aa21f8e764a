//! Batched netlink with messages built beforehand, by the library alone: shares no code with the agent's driver.

use std::net::IpAddr;

use anyhow::{Context, ensure};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_xfrm::{
    Address, Id, ReplayEsn, Selector, UserPolicyInfo, UserSaInfo, UserTemplate, XfrmAttrs, XfrmMessage,
    constants::{
        AF_INET, IPPROTO_ESP, XFRM_MODE_TRANSPORT, XFRM_POLICY_ALLOW, XFRM_POLICY_BLOCK, XFRM_POLICY_IN,
        XFRM_POLICY_OUT, XFRM_STATE_ESN,
    },
    nlas::AlgAead,
    policy, state,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_XFRM};
use secureoverlay_agent_core::{
    plan::{Plan, PlannedSa},
    xfrm::{Direction, Net, PolicyAction, PolicyId, REPLAY_WINDOW, REQID, Traffic},
};

/// Messages that are sent at once.
const BATCH: usize = 128;

/// The messages of a plan, ready to be sent.
pub fn batches(plan: &Plan) -> Vec<Vec<u8>> {
    let states = plan.sas.values().map(add_state);
    let policies = plan.policies.iter().map(|(id, action)| add_policy(*id, *action));
    let messages: Vec<XfrmMessage> = states.chain(policies).collect();
    messages.chunks(BATCH).map(batch).collect()
}

/// Sends them; every answer must be a success.
pub fn send(batches: &[Vec<u8>]) -> anyhow::Result<()> {
    let mut socket = Socket::new(NETLINK_XFRM).context("opening a netlink socket")?;
    socket.bind_auto().context("binding the netlink socket")?;
    socket.connect(&SocketAddr::new(0, 0)).context("connecting the netlink socket")?;
    let mut answer = Vec::with_capacity(64 << 10);
    for batch in batches {
        socket.send(batch, 0).context("sending a batch")?;
        answer.clear();
        socket.recv(&mut answer, 0).context("waiting for the answer")?;
        let message = NetlinkBuffer::new_checked(answer.as_slice()).context("reading the answer")?;
        let error = message.payload().get(..4);
        ensure!(error == Some([0; 4].as_slice()), "the kernel refused a message: {error:?}");
    }
    Ok(())
}

fn batch(messages: &[XfrmMessage]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (at, message) in messages.iter().enumerate() {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL;
        if at + 1 == messages.len() {
            header.flags |= NLM_F_ACK;
        }
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message.clone()));
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len(), 0);
        message.serialize(&mut bytes[start..]);
    }
    bytes
}

fn add_state(planned: &PlannedSa) -> XfrmMessage {
    let (sa, key) = (&planned.sa, planned.sa.key.expose());
    let (src, dst) = (sa.src, sa.id.dst);
    let mut alg_name = [0; 64];
    let name = b"rfc4106(gcm(aes))";
    alg_name[..name.len()].copy_from_slice(name);
    XfrmMessage::AddSa(state::ModifyMessage {
        user_sa_info: UserSaInfo {
            selector: selector(Net::host(src), Net::host(dst), 0),
            id: id(dst, sa.id.spi),
            saddr: Address::from_ip(&src),
            reqid: REQID,
            family: AF_INET,
            mode: XFRM_MODE_TRANSPORT,
            flags: XFRM_STATE_ESN,
            ..UserSaInfo::default()
        },
        nlas: vec![
            XfrmAttrs::EncryptionAlgAead(AlgAead {
                alg_name,
                alg_key_len: 8 * key.len() as u32,
                alg_icv_len: 8 * sa.suite.icv_len() as u32,
                alg_key: key.to_vec(),
            }),
            XfrmAttrs::ReplayStateEsn(ReplayEsn {
                bmp_len: REPLAY_WINDOW / 32,
                replay_window: REPLAY_WINDOW,
                ..ReplayEsn::default()
            }),
        ],
    })
}

fn add_policy(policy: PolicyId, action: PolicyAction) -> XfrmMessage {
    let template = |spi: Option<u32>| UserTemplate {
        id: id(policy.dst.addr, spi.unwrap_or(0)),
        family: AF_INET,
        saddr: Address::from_ip(&policy.src.addr),
        reqid: REQID,
        mode: XFRM_MODE_TRANSPORT,
        ..UserTemplate::default()
    };
    XfrmMessage::AddPolicy(policy::ModifyMessage {
        user_policy_info: UserPolicyInfo {
            selector: policy_selector(&policy),
            priority: action.priority(),
            direction: if policy.direction == Direction::In { XFRM_POLICY_IN } else { XFRM_POLICY_OUT },
            action: if action == PolicyAction::Block { XFRM_POLICY_BLOCK } else { XFRM_POLICY_ALLOW },
            ..UserPolicyInfo::default()
        },
        nlas: match action {
            PolicyAction::Esp(spi) => vec![XfrmAttrs::Template(vec![template(spi)])],
            PolicyAction::Allow | PolicyAction::Block => vec![],
        },
    })
}

fn id(dst: IpAddr, spi: u32) -> Id {
    Id { daddr: Address::from_ip(&dst), spi, proto: IPPROTO_ESP }
}

fn policy_selector(policy: &PolicyId) -> Selector {
    let selector = selector(policy.src, policy.dst, policy.traffic.protocol());
    match policy.traffic {
        Traffic::Tunnel => selector,
        Traffic::Probe(port) => {
            Selector { sport: port, sport_mask: u16::MAX, dport: port, dport_mask: u16::MAX, ..selector }
        }
    }
}

fn selector(src: Net, dst: Net, protocol: u8) -> Selector {
    Selector {
        daddr: Address::from_ip(&dst.addr),
        saddr: Address::from_ip(&src.addr),
        prefixlen_d: dst.prefix,
        prefixlen_s: src.prefix,
        family: AF_INET,
        proto: protocol,
        ..Selector::default()
    }
}
