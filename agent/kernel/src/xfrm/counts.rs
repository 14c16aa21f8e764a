//! How many SAs and policies there are (`XFRM_MSG_GETSADINFO`, `XFRM_MSG_GETSPDINFO`): a question that costs next to
//! nothing, whatever the answer.

use netlink_packet_xfrm::constants::{XFRMA_SAD_CNT, XFRMA_SPD_INFO};

use crate::{error::Malformed, netlink::frame::attributes};

/// Both messages begin with 32 bits of flags.
pub(super) const FLAGS_LEN: usize = 4;

/// Reads the payload of an `XFRM_MSG_NEWSADINFO`: the number of SAs.
///
/// # Errors
/// It is too short, or has no number.
pub fn parse_state_count(payload: &[u8]) -> Result<u32, Malformed> {
    let [count] = numbers(payload, XFRMA_SAD_CNT)?;
    Ok(count)
}

/// Reads the payload of an `XFRM_MSG_NEWSPDINFO` (`struct xfrmu_spdinfo`): the number of in and out policies.
///
/// # Errors
/// It is too short, or has no numbers.
pub fn parse_policy_count(payload: &[u8]) -> Result<u32, Malformed> {
    let [inbound, outbound] = numbers(payload, XFRMA_SPD_INFO)?;
    Ok(inbound.saturating_add(outbound))
}

/// The first numbers in the attribute of this kind.
fn numbers<const N: usize>(payload: &[u8], kind: u16) -> Result<[u32; N], Malformed> {
    let rest = payload.get(FLAGS_LEN..).ok_or_else(|| Malformed("counts without their flags".to_owned()))?;
    for attribute in attributes(rest) {
        let attribute = attribute?;
        if attribute.kind() == kind {
            let words = attribute.value().as_chunks::<4>().0;
            let first = words.first_chunk::<N>().ok_or_else(|| Malformed("a count is cut off".to_owned()))?;
            return Ok(first.map(u32::from_ne_bytes));
        }
    }
    Err(Malformed(format!("no attribute {kind} among the counts")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, numbers: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0xff; FLAGS_LEN];
        let length = u16::try_from(4 + 4 * numbers.len()).unwrap();
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        numbers.iter().for_each(|number| bytes.extend_from_slice(&number.to_ne_bytes()));
        bytes
    }

    #[test]
    fn the_kernels_numbers_are_found() {
        assert_eq!(parse_state_count(&message(XFRMA_SAD_CNT, &[20_000])), Ok(20_000));
        assert_eq!(parse_policy_count(&message(XFRMA_SPD_INFO, &[3, 4, 5, 6, 7, 8])), Ok(7));
        assert!(parse_policy_count(&message(XFRMA_SPD_INFO, &[1])).is_err());
        for bad in [vec![], vec![0; 4], message(9, &[1]), message(XFRMA_SPD_INFO, &[])] {
            assert!(parse_state_count(&bad).is_err() && parse_policy_count(&bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn noise_is_no_panic(payload in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = (parse_state_count(&payload), parse_policy_count(&payload));
        }
    }
}
