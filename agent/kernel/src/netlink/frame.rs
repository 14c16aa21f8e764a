//! Netlink framing (RFC 3549, `linux/netlink.h`): datagrams into messages, and the answers that every family shares.

use netlink_packet_core::{
    NLM_F_ACK_TLVS, NLM_F_CAPPED, NetlinkBuffer, NlaBuffer, NlasIterator, parse_i32, parse_u32,
};
use rustix::io::Errno;

use crate::error::{Malformed, Refusal};

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER_LEN: usize = 16;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// One message of a datagram.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// The messages of one datagram; ends after the first malformed one.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Result<Message<'_>, Malformed>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let message = match NetlinkBuffer::new_checked(datagram) {
            Ok(message) => message,
            Err(error) => {
                datagram = &[];
                return Some(Err(error.into()));
            }
        };
        let length = message.length() as usize;
        let parsed = Message {
            kind: message.message_type(),
            flags: message.flags(),
            sequence: message.sequence_number(),
            payload: &datagram[HEADER_LEN..length],
        };
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(parsed))
    })
}

/// The answer in the payload of an `NLMSG_ERROR` with the header's `flags`: `None` is success.
///
/// # Errors
/// The payload is too short or its error number impossible. A broken extended acknowledgement is no error: its text
/// is left out.
pub fn parse_error(payload: &[u8], flags: u16) -> Result<Option<Refusal>, Malformed> {
    let code = leading_code(payload)?;
    if code == 0 {
        return Ok(None);
    }
    // The number that the kernel gives is negative, and Errno knows 1 to 4095 only.
    let errno = code
        .checked_neg()
        .filter(|errno| (1..4096).contains(errno))
        .ok_or_else(|| Malformed(format!("error number {code}")))?;
    let message = (flags & NLM_F_ACK_TLVS != 0).then(|| extended_message(payload, flags)).flatten();
    Ok(Some(Refusal { errno: Errno::from_raw_os_error(errno), message }))
}

/// The first four bytes of `NLMSG_ERROR` and `NLMSG_DONE`: 0 or a negative error number.
fn leading_code(payload: &[u8]) -> Result<i32, Malformed> {
    let bytes = payload.get(..4).ok_or_else(|| Malformed(format!("an answer of {} bytes", payload.len())))?;
    Ok(parse_i32(bytes)?)
}

/// `NLMSGERR_ATTR_MSG` behind the echoed request, of which a capped answer holds only the header.
fn extended_message(payload: &[u8], flags: u16) -> Option<String> {
    let echoed = if flags & NLM_F_CAPPED != 0 {
        HEADER_LEN
    } else {
        let length = parse_u32(payload.get(4..8)?).ok()? as usize;
        length.max(HEADER_LEN).checked_next_multiple_of(4)?
    };
    let text = attributes(payload.get(echoed.checked_add(4)?..)?)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)?;
    let text = String::from_utf8_lossy(text.value()).trim_end_matches('\0').to_owned();
    (!text.is_empty()).then_some(text)
}

/// The attributes of a message, after its fixed header; ends after the first malformed one.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = Result<NlaBuffer<&[u8]>, Malformed>> {
    NlasIterator::new(bytes).map(|attribute| attribute.map_err(Malformed::from))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A capped refusal with an extended acknowledgement.
    fn refusal() -> Vec<u8> {
        let mut payload = (-22_i32).to_ne_bytes().to_vec();
        payload.extend([0; HEADER_LEN]);
        let text = b"Requested AEAD algorithm not found\0";
        payload.extend((text.len() as u16 + 4).to_ne_bytes());
        payload.extend(NLMSGERR_ATTR_MSG.to_ne_bytes());
        payload.extend(text);
        payload.push(0);
        payload
    }

    #[test]
    fn reads_the_kernels_words() {
        let parsed = parse_error(&refusal(), NLM_F_CAPPED | NLM_F_ACK_TLVS).unwrap().unwrap();
        assert_eq!(parsed.errno, Errno::INVAL);
        assert_eq!(parsed.message.as_deref(), Some("Requested AEAD algorithm not found"));
        assert_eq!(
            parsed.to_string(),
            "Invalid argument (os error 22), \"Requested AEAD algorithm not found\""
        );
    }

    #[test]
    fn skips_an_echoed_request_that_is_not_capped() {
        let mut payload = refusal();
        payload[4..8].copy_from_slice(&24_u32.to_ne_bytes());
        payload.splice(20..20, [7; 8]);
        let parsed = parse_error(&payload, NLM_F_ACK_TLVS).unwrap().unwrap();
        assert_eq!(parsed.message.as_deref(), Some("Requested AEAD algorithm not found"));
    }

    #[test]
    fn zero_is_success() {
        assert_eq!(parse_error(&[0; 20], 0), Ok(None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>, flags: u16) {
            let _ = parse_error(&bytes, flags);
            let total: usize = messages(&bytes).flatten().map(|m| m.payload.len() + HEADER_LEN).sum();
            prop_assert!(total <= bytes.len());
        }

        #[test]
        fn damaged_refusals_are_read_without_panic(at in 0..58_usize, value: u8, cut in 0..58_usize, flags: u16) {
            let mut payload = refusal();
            let at = at % payload.len();
            payload[at] = value;
            payload.truncate(cut);
            let _ = parse_error(&payload, flags);
        }
    }
}
