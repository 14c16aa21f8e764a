//! SecureOverlay's processes as the nodes see them.

use anyhow::Result;

use crate::lab::Lab;

/// The agent's program.
pub const AGENT: &str = "ucp-secureoverlay-agent";
/// The manager's program.
pub const MANAGER: &str = "ucp-secureoverlay-mgr";

/// Process ids of a program in a node, also while the API server is down.
pub fn pids(lab: &Lab, node: &str, program: &str) -> Result<Vec<String>> {
    let script = format!(
        "for p in /proc/[0-9]*; do case $(readlink $p/exe) in */{program}) echo ${{p#/proc/}};; esac; done; true"
    );
    Ok(lab.exec_ok(node, &["bash", "-c", &script])?.split_whitespace().map(str::to_owned).collect())
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
