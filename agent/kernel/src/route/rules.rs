//! Rules of policy routing (`linux/fib_rules.h`): which tables are looked up besides the main one.

use crate::{error::Malformed, netlink::frame};

/// Length of `struct fib_rule_hdr`.
const HEADER_LEN: usize = 12;
const AF_INET: u8 = 2;
/// `FR_ACT_TO_TBL`: look a table up.
const ACT_TO_TABLE: u8 = 1;
/// `FRA_TABLE`: a table's number where it does not fit into the header.
const FRA_TABLE: u16 = 15;

/// An `RTM_GETRULE` for all IPv4 rules.
pub(super) fn request() -> Vec<u8> {
    let mut header = vec![0; HEADER_LEN];
    header[0] = AF_INET;
    header
}

/// The payload of an `RTM_NEWRULE`: the table that it leads to, `None` if it leads to none.
///
/// # Errors
/// It is not one.
pub fn parse_rule(payload: &[u8]) -> Result<Option<u32>, Malformed> {
    let header = payload
        .first_chunk::<HEADER_LEN>()
        .ok_or_else(|| Malformed(format!("a rule of {} bytes", payload.len())))?;
    let (short, action) = (header[4], header[7]);
    let mut table = u32::from(short);
    for attribute in frame::attributes(&payload[HEADER_LEN..]) {
        let attribute = attribute?;
        if attribute.kind() == FRA_TABLE {
            let value = <[u8; 4]>::try_from(attribute.value());
            table = u32::from_ne_bytes(value.map_err(|_| Malformed("a table's number is cut off".into()))?);
        }
    }
    Ok((action == ACT_TO_TABLE).then_some(table))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `ip rule add fwmark 0x200000/0x200000 lookup 1`, as Linux shows it, without what is not read.
    fn rule(action: u8, table: u32) -> Vec<u8> {
        let mut payload = vec![2, 0, 0, 0, u8::try_from(table).unwrap_or(252), 0, 0, action, 0, 0, 0, 0];
        payload.extend([8, 0, 6, 0, 99, 0, 0, 0]);
        payload.extend([8, 0, 15, 0]);
        payload.extend(table.to_ne_bytes());
        payload
    }

    #[test]
    fn table_of_a_rule_is_read() {
        assert_eq!(parse_rule(&rule(1, 1)), Ok(Some(1)));
        assert_eq!(parse_rule(&rule(1, 100_000)), Ok(Some(100_000)));
        assert_eq!(parse_rule(&rule(6, 0)), Ok(None), "blackhole: no table");
        assert!(parse_rule(&[2, 0, 0]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = parse_rule(&bytes);
        }
    }
}
