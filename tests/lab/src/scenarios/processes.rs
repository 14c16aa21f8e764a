//! SecureOverlay's processes as the nodes see them.

use anyhow::Result;

use crate::lab::Lab;

/// The agent's program.
pub const AGENT: &str = "ucp-secureoverlay-agent";
/// The manager's program.
pub const MANAGER: &str = "ucp-secureoverlay-mgr";

/// Process ids of a program in a node, without the first process of its container where that only starts it; also while the API server is down.
pub fn pids(lab: &Lab, node: &str, program: &str) -> Result<Vec<String>> {
    // One process looks at all: in a guest, starting a process takes milliseconds.
    let looks = "ls -l /proc/[0-9]*/exe 2> /dev/null; grep -H ^PPid: /proc/[0-9]*/status 2> /dev/null; true";
    let shown = lab.exec_ok(node, &["sh", "-c", looks])?;
    Ok(working(&shown, program))
}

/// Those that are not there to start another of the same program.
fn working(shown: &str, program: &str) -> Vec<String> {
    let all = running(shown, program);
    let parent = |line: &str| {
        let (file, parent) = line.split_once(":PPid:")?;
        let pid = file.strip_prefix("/proc/")?.strip_suffix("/status")?;
        all.iter().any(|it| it == pid).then(|| parent.trim().to_owned())
    };
    let parents: Vec<String> = shown.lines().filter_map(parent).collect();
    all.iter().filter(|pid| !parents.contains(pid)).cloned().collect()
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

    #[test]
    fn process_that_starts_another_of_its_kind_does_not_count() {
        let shown = "\
lrwxrwxrwx 1 root root 0 Nov 30 10:00 /proc/400/exe -> /ucp-secureoverlay-agent
lrwxrwxrwx 1 root root 0 Nov 30 10:00 /proc/412/exe -> /ucp-secureoverlay-agent
lrwxrwxrwx 1 65532 65532 0 Nov 30 10:00 /proc/77/exe -> /ucp-secureoverlay-mgr
/proc/77/status:PPid:\t70
/proc/400/status:PPid:\t70
/proc/412/status:PPid:\t400
";
        assert_eq!(working(shown, AGENT), ["412"]);
        assert_eq!(working(shown, MANAGER), ["77"]);
    }
}
