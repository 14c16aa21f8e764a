//! The kernel's XFRM error counters (`net/xfrm/xfrm_proc.c` in the kernel's sources).

use std::{collections::BTreeMap, io};

/// Where the counters of the process's network namespace are.
pub const XFRM_STAT: &str = "/proc/self/net/xfrm_stat";

/// The counters by their name in the kernel, such as `XfrmInNoStates`.
///
/// # Errors
/// The file can't be read; a kernel without `CONFIG_XFRM_STATISTICS` has none.
pub fn xfrm_stat() -> io::Result<BTreeMap<String, u64>> {
    std::fs::read(XFRM_STAT).map(|bytes| parse_xfrm_stat(&String::from_utf8_lossy(&bytes)))
}

/// Reads lines of a name and a number; others are left out.
#[must_use]
pub fn parse_xfrm_stat(text: &str) -> BTreeMap<String, u64> {
    let parse = |line: &str| {
        let (name, value) = line.split_once(char::is_whitespace)?;
        let named = name.starts_with("Xfrm") && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        Some((named.then(|| name.to_owned())?, value.trim().parse().ok()?))
    };
    text.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_the_kernels_table() {
        let text = "XfrmInError             \t0\nXfrmInNoStates          \t17\nXfrmOutNoStates\t18446744073709551615\n";
        let expected = [("XfrmInError", 0), ("XfrmInNoStates", 17), ("XfrmOutNoStates", u64::MAX)];
        assert_eq!(parse_xfrm_stat(text), expected.map(|(name, value)| (name.to_owned(), value)).into());
    }

    #[test]
    fn leaves_out_what_is_no_counter() {
        let text = "\nXfrm\nXfrmInError -1\nXfrmIn\"Error 5\nTcpExt 1\nXfrmOutError 3 4\nXfrmInHdrError 2";
        assert_eq!(parse_xfrm_stat(text), [("XfrmInHdrError".to_owned(), 2)].into());
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text: String) {
            prop_assert!(parse_xfrm_stat(&text).len() <= text.lines().count());
        }
    }
}
