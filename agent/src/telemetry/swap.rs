//! Whether memory, and with it a key, may reach a disk.

use std::{fs, io};

/// A line of `/proc/swaps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwapDevice {
    /// The device or file.
    pub name: String,
    /// `partition` or `file`.
    pub kind: String,
}

/// The devices that the kernel swaps to: finding `KeyMaySwap` where there is any.
///
/// # Errors
/// `/proc/swaps` can't be read. On a kernel without swap it does not exist, which is no error.
pub fn swap_devices() -> io::Result<Vec<SwapDevice>> {
    match fs::read_to_string("/proc/swaps") {
        Ok(text) => Ok(parse(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn parse(text: &str) -> Vec<SwapDevice> {
    let device = |line: &str| {
        let mut fields = line.split_whitespace();
        let (name, kind) = (fields.next()?, fields.next().unwrap_or_default());
        Some(SwapDevice { name: name.to_owned(), kind: kind.to_owned() })
    };
    text.lines().skip(1).filter_map(device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_the_lines_after_the_header() {
        let header = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        assert_eq!(parse(header), []);
        assert_eq!(parse(""), []);
        let text =
            format!("{header}/dev/dm-1   partition\t8388604\t\t0\t\t-2\n/swap\\040file  file 1 0 -3\n");
        let device = |name: &str, kind: &str| SwapDevice { name: name.to_owned(), kind: kind.to_owned() };
        assert_eq!(parse(&text), [device("/dev/dm-1", "partition"), device("/swap\\040file", "file")]);
    }

    #[test]
    fn this_kernels_table_is_read() {
        let lines =
            fs::read_to_string("/proc/swaps").map_or(0, |text| text.lines().count().saturating_sub(1));
        assert_eq!(swap_devices().unwrap().len(), lines);
    }
}
