use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::{prelude::*, sample::Index};
use secureoverlay_agent_core::xfrm::{Op, Policy, Sa};

use super::{super::encode::*, *};
use crate::netlink::frame::messages;

const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1));
const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2));

fn sa(suite: Suite, src: IpAddr, dst: IpAddr) -> Sa {
    let key: Vec<u8> = (0xa0_u8..).take(key_material_len(suite)).collect();
    Sa { src, id: SaId { dst, spi: 0x1234_5678 }, suite, key: SecretBytes::copy_from(&key) }
}

fn policy(direction: Direction, action: PolicyAction) -> Policy {
    Policy { id: PolicyId::tunnel(direction, Net::host(A), Net::host(B)), action }
}

/// The payloads of the requests for `ops`: a dump's payloads have the same form.
fn payloads(ops: &[Op]) -> Vec<Vec<u8>> {
    let mut batch = Batch::new();
    batch.fill(ops, 1);
    messages(batch.bytes()).map(|message| message.unwrap().payload.to_vec()).collect()
}

fn payload(op: Op) -> Vec<u8> {
    payloads(&[op]).remove(0)
}

fn add_state() -> Vec<u8> {
    payload(Op::AddSa(sa(Suite::Aes128Gcm8, A, B)))
}

fn add_policy() -> Vec<u8> {
    payload(Op::AddPolicy(policy(Direction::Out, PolicyAction::Esp(Some(77)))))
}

fn parsed_sa(payload: &[u8]) -> StateMessage {
    parse_sa(payload).unwrap().unwrap()
}

fn parsed_policy(payload: &[u8]) -> ActualPolicy {
    parse_policy(payload).unwrap().unwrap()
}

/// Where in `payload` the value of the attribute `kind` begins.
fn value_of(payload: &[u8], fixed: usize, wanted: u16) -> usize {
    let value = attributes(&payload[fixed..]).map(Result::unwrap).find(|a| a.kind() == wanted).unwrap();
    value.value().as_ptr() as usize - payload.as_ptr() as usize
}

#[test]
fn what_we_send_reads_as_what_we_want() {
    let v6 = |last| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last));
    for suite in Suite::ALL {
        for (src, dst) in [(A, B), (v6(1), v6(2))] {
            let wanted = sa(suite, src, dst);
            let StateMessage { sa: found, larval } = parsed_sa(&payload(Op::AddSa(wanted.clone())));
            assert!(!larval && found.well_formed);
            assert_eq!((found.src, found.id, found.owner), (src, wanted.id, Owner::Ours));
            assert_eq!(found.cipher, Some((suite, wanted.key)));
        }
    }
    let probe = |direction| PolicyId::probe(direction, A, B, 9468);
    for wanted in [
        Policy { id: probe(Direction::Out), action: PolicyAction::Esp(Some(77)) },
        Policy { id: probe(Direction::In), action: PolicyAction::Esp(None) },
        policy(Direction::Out, PolicyAction::Esp(Some(77))),
        policy(Direction::In, PolicyAction::Esp(None)),
        policy(Direction::Out, PolicyAction::Allow),
        policy(Direction::In, PolicyAction::Block),
    ] {
        let found = parsed_policy(&payload(Op::AddPolicy(wanted)));
        assert_eq!((found.id, found.owner, found.action), (wanted.id, Owner::Ours, Some(wanted.action)));
        assert_eq!(
            (found.priority, found.protocol),
            (wanted.action.priority(), wanted.id.traffic.protocol())
        );
    }
}

/// `XFRM_MSG_NEWSA`, checked by hand against `linux/xfrm.h` on a little-endian machine.
#[cfg(target_endian = "little")]
#[test]
fn golden_bytes_of_an_sa() {
    let mut batch = Batch::new();
    batch.fill(&[Op::AddSa(sa(Suite::Aes128Gcm8, A, B))], 7);
    let infinite = [0xff; 32];
    let expected: Vec<u8> = [
        // nlmsghdr: length 364, XFRM_MSG_NEWSA, REQUEST | ACK | EXCL | CREATE, sequence 7, port 0
        &[0x6c, 1, 0, 0, 0x10, 0, 5, 6, 7, 0, 0, 0, 0, 0, 0, 0][..],
        // xfrm_selector: destination, source, ports and masks 0,
        &[10, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[10, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0; 8],
        // AF_INET, prefixes 32 and 32, any protocol, padding, interface 0, user 0
        &[2, 0, 32, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        // xfrm_id: destination, SPI in network order, ESP, padding
        &[10, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0x12, 0x34, 0x56, 0x78, 50, 0, 0, 0],
        // source
        &[10, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        // xfrm_lifetime_cfg: bytes and packets without limit, no times; xfrm_lifetime_cur; xfrm_stats; seq
        &infinite,
        &[0; 32],
        &[0; 32],
        &[0; 12],
        &[0; 4],
        // reqid, AF_INET, transport mode, no short replay window, XFRM_STATE_ESN, padding
        &[0x5b, 0x0e, 0xc0, 0x5e, 2, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0],
        // XFRMA_ALG_AEAD: 4 + 72 + 20 bytes; name, 160 bits of key and salt, 64 bits of ICV, key and salt
        &[96, 0, 18, 0],
        b"rfc4106(gcm(aes))",
        &[0; 64 - 17],
        &[160, 0, 0, 0, 64, 0, 0, 0],
        &(0xa0..0xb4).collect::<Vec<u8>>(),
        // XFRMA_REPLAY_ESN_VAL: 4 + 24 bytes; 128 words of bitmap, four counters of 0, window 4096
        &[28, 0, 23, 0, 128, 0, 0, 0],
        &[0; 16],
        &[0, 16, 0, 0],
    ]
    .concat();
    assert_eq!(batch.bytes(), expected);
}

#[test]
fn a_full_batch_stays_in_its_buffer_and_is_numbered() {
    let mut batch = Batch::new();
    let before = batch.bytes().as_ptr();
    batch.fill(&vec![Op::AddSa(sa(Suite::Aes256Gcm16, A, B)); BATCH], 1000);
    assert_eq!(batch.bytes().as_ptr(), before, "a grown buffer leaves keys behind");
    let sent: Vec<_> = messages(batch.bytes()).map(Result::unwrap).collect();
    assert_eq!(sent.len(), BATCH);
    for (at, message) in sent.iter().enumerate() {
        assert_eq!(message.sequence as usize, 1000 + at);
        assert_eq!(message.flags & netlink_packet_core::NLM_F_ACK != 0, at + 1 == BATCH);
    }
}

#[test]
fn hidden_keys_and_larval_sas_are_told_apart() {
    let mut hidden = add_state();
    let key = value_of(&hidden, XFRM_USER_SA_INFO_LEN, XFRMA_ALG_AEAD) + AEAD_HEADER_LEN;
    hidden[key..key + 20].fill(0);
    let found = parsed_sa(&hidden);
    assert_eq!((found.larval, found.sa.well_formed, found.sa.cipher), (false, true, None));

    let larval = parsed_sa(&add_state()[..XFRM_USER_SA_INFO_LEN]);
    assert_eq!((larval.larval, larval.sa.well_formed, larval.sa.owner), (true, false, Owner::Ours));
}

#[test]
fn other_peoples_sas_are_foreign_and_their_keys_left_alone() {
    // Offsets in struct xfrm_usersa_info.
    for (at, what) in [(208, "reqid"), (214, "mode")] {
        let mut payload = add_state();
        payload[at] ^= 1;
        let found = parsed_sa(&payload).sa;
        assert_eq!((found.owner, found.cipher), (Owner::Foreign, None), "{what}");
    }
    let mut marked = add_state();
    marked.extend([12, 0, 21, 0, 1, 0, 0, 0, 255, 0, 0, 0]);
    assert_eq!(parsed_sa(&marked).sa.owner, Owner::Foreign);
    let mut ah = add_state();
    ah[76] = 51;
    assert_eq!(parse_sa(&ah), Ok(None));
}

#[test]
fn sas_of_ours_that_are_not_as_we_install_them_are_seen() {
    for (at, what) in [(42, "selector"), (96, "byte limit"), (216, "flags")] {
        let mut payload = add_state();
        payload[at] ^= 1;
        let found = parsed_sa(&payload).sa;
        assert_eq!((found.owner, found.well_formed), (Owner::Ours, false), "{what}");
    }
    let mut narrow = add_state();
    let window = value_of(&narrow, XFRM_USER_SA_INFO_LEN, XFRMA_REPLAY_ESN_VAL) + ESN_WINDOW.start;
    narrow[window] = 1;
    assert!(!parsed_sa(&narrow).sa.well_formed);
}

#[test]
fn other_peoples_policies_are_foreign() {
    // Offsets in struct xfrm_userpolicy_info: protocol, mask of the destination port, interface.
    for (at, what) in [(44, "protocol"), (34, "port"), (48, "interface")] {
        let mut payload = add_policy();
        payload[at] ^= 1;
        let found = parsed_policy(&payload);
        assert_eq!((found.owner, found.action), (Owner::Foreign, None), "{what}");
        assert_eq!(found.conditional, what == "port", "{what}");
    }
    let probe = PolicyId::probe(Direction::Out, A, B, 9468);
    let probe = payload(Op::AddPolicy(Policy { id: probe, action: PolicyAction::Esp(Some(77)) }));
    assert!(!parsed_policy(&probe).conditional);
    // Another port on one side, only a part of the ports, another protocol.
    for (at, what) in [(32, "port"), (34, "mask"), (36, "port"), (38, "mask"), (44, "protocol")] {
        let mut payload = probe.clone();
        payload[at] ^= 1;
        let found = parsed_policy(&payload);
        assert_eq!((found.owner, found.id.is_probe()), (Owner::Foreign, false), "probe's {what} at {at}");
        assert!(found.conditional, "probe's {what} at {at}");
    }
    let template = value_of(&add_policy(), XFRM_USER_POLICY_INFO_LEN, XFRMA_TMPL);
    // Offsets in struct xfrm_user_tmpl.
    for (at, what) in [(20, "protocol"), (44, "reqid"), (48, "mode")] {
        let mut payload = add_policy();
        payload[template + at] ^= 1;
        assert_eq!(parsed_policy(&payload).owner, Owner::Foreign, "template's {what}");
    }
    let mut other_priority = payload(Op::AddPolicy(policy(Direction::In, PolicyAction::Block)));
    other_priority[152] ^= 1;
    assert_eq!(parsed_policy(&other_priority).owner, Owner::Foreign);
    let mut interface_id = add_policy();
    interface_id.extend([8, 0, 31, 0, 1, 0, 0, 0]);
    let found = parsed_policy(&interface_id);
    assert_eq!((found.owner, found.conditional), (Owner::Foreign, true));
    assert!(!parsed_policy(&add_policy()).conditional);
    // XFRMA_MARK: value and mask.
    for (value, conditional) in [(1, true), (0, false)] {
        let mut marked = add_policy();
        marked.extend([12, 0, 21, 0, value, 0, 0, 0, 255, 0, 0, 0]);
        let found = parsed_policy(&marked);
        assert_eq!((found.conditional, found.marked), (conditional, true), "mark {value}/0xff");
        assert_eq!(found.owner, Owner::Foreign);
    }
    let mut sub = add_policy();
    sub.extend([12, 0, 16, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(parsed_policy(&sub).owner, Owner::Foreign);
}

#[test]
fn policies_of_ours_in_other_forms_have_no_action() {
    let template = value_of(&add_policy(), XFRM_USER_POLICY_INFO_LEN, XFRMA_TMPL);
    let mut optional = add_policy();
    optional[template + 50] = 1;
    let found = parsed_policy(&optional);
    assert_eq!((found.owner, found.action), (Owner::Ours, None));

    let mut priority = add_policy();
    priority[152] ^= 1;
    let found = parsed_policy(&priority);
    assert_eq!((found.owner, found.action), (Owner::Ours, None));

    let mut twice = add_policy();
    let copy = twice[template..template + XFRM_USER_TEMPLATE_LEN].to_vec();
    twice.extend(copy);
    twice[template - 4..template - 2].copy_from_slice(&(4 + 2 * XFRM_USER_TEMPLATE_LEN as u16).to_ne_bytes());
    let found = parsed_policy(&twice);
    assert_eq!((found.owner, found.action), (Owner::Ours, None));
}

#[test]
fn forward_and_socket_policies_are_left_out() {
    for direction in 2..=255 {
        let mut payload = add_policy();
        payload[160] = direction;
        assert_eq!(parse_policy(&payload), Ok(None));
    }
}

#[test]
fn errors_and_debug_texts_hold_no_key() {
    let op = Op::AddSa(sa(Suite::Aes256Gcm16, A, B));
    let refusal = crate::Refusal { errno: rustix::io::Errno::INVAL, message: Some("no".to_owned()) };
    let error = crate::error::refused(&op, &refusal);
    let texts = [format!("{op:?} {op:#?} {error} {error:?}"), format!("{:?}", parsed_sa(&add_state()))];
    for text in texts {
        for shape in ["a0a1a2", "A0A1A2", "160, 161", "160,\n", "a0, a1", "oKGi"] {
            assert!(!text.contains(shape), "{shape} in {text}");
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
        let _ = (parse_sa(&bytes), parse_policy(&bytes));
    }

    #[test]
    fn any_tail_is_read_without_panic(tail: Vec<u8>) {
        let state = [&add_state()[..XFRM_USER_SA_INFO_LEN], &tail].concat();
        let policy = [&add_policy()[..XFRM_USER_POLICY_INFO_LEN], &tail].concat();
        let _ = (parse_sa(&state), parse_policy(&policy));
    }

    #[test]
    fn damaged_messages_are_read_without_panic(
        at: Index, value: u8, cut: Index, suite in prop::sample::select(Suite::ALL.to_vec()),
    ) {
        for mut payload in [payload(Op::AddSa(sa(suite, A, B))), add_policy()] {
            let at = at.index(payload.len());
            payload[at] = value;
            payload.truncate(cut.index(payload.len() + 1));
            let _ = (parse_sa(&payload), parse_policy(&payload));
        }
    }
}
