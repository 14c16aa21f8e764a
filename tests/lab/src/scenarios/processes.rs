//! SecureOverlay's processes as the nodes see them.

use anyhow::Result;

use crate::lab::Lab;

/// The agent's program.
pub const AGENT: &str = "ucp-secureoverlay-agent";
/// The manager's program.
pub const MANAGER: &str = "ucp-secureoverlay-mgr";

/// Process ids of a program in a node, also while the API server is down.
pub fn pids(lab: &Lab, node: &str, program: &str) -> Result<Vec<String>> {
    // One process looks at all: in a guest, starting a process takes milliseconds.
    let links = lab.exec_ok(node, &["sh", "-c", "ls -l /proc/[0-9]*/exe 2> /dev/null; true"])?;
    Ok(running(&links, program))
}

/// The process ids of a program in what `ls -l /proc/[0-9]*/exe` prints.
fn running(links: &str, program: &str) -> Vec<String> {
    let pid = |line: &str| {
        let (link, target) = line.split_once(" -> ")?;
        let is_it = target.rsplit_once('/')?.1 == program;
        is_it.then(|| Some(link.rsplit_once("/proc/")?.1.strip_suffix("/exe")?.to_owned()))?
    };
    links.lines().filter_map(pid).collect()
}

/// Sends a signal to a program on a node; returns how many processes got it.
pub fn signal(lab: &Lab, node: &str, program: &str, signal: &str) -> Result<usize> {
    let mut got = 0;
    for pid in pids(lab, node, program)? {
        // One that has ended since then gets none.
        got += usize::from(lab.exec(node, &["kill", signal, &pid])?.status == 0);
    }
    Ok(got)
}

/// Sends a signal to a program on all nodes; returns how many processes got it.
pub fn signal_everywhere(lab: &Lab, program: &str, word: &str) -> Result<usize> {
    lab.nodes().iter().map(|node| signal(lab, &node.name, program, word)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_known_by_the_name_of_its_file() {
        let links = "\
lrwxrwxrwx 1 root root 0 Nov 30 10:00 /proc/1/exe -> /lab/init
lrwxrwxrwx 1 root root 0 Nov 30 10:00 /proc/412/exe -> /ucp-secureoverlay-agent
lrwxrwxrwx 1 65532 65532 0 Nov 30 10:00 /proc/77/exe -> /ucp-secureoverlay-mgr
lrwxrwxrwx 1 root root 0 Nov 30 10:00 /proc/413/exe -> /other-ucp-secureoverlay-agent
lrwxrwxrwx 1 root root 0 Nov 30 10:00 /proc/414/exe
";
        assert_eq!(running(links, AGENT), ["412"]);
        assert_eq!(running(links, MANAGER), ["77"]);
        assert!(running(links, "prober").is_empty());
    }
}
