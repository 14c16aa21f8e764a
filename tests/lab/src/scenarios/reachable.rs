//! Whether the tunnel to a node works, asked with echoes rather than counted over a while.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::cluster::until;
use super::overlay::PATIENCE;
use crate::lab::Lab;
use crate::state::Node;

/// Rounds of echoes that must all be answered, one after the other.
const ROUNDS: usize = 3;

/// Waits until the tunnel to `node` works with every other node, both ways: an echo and its answer, several times.
/// Returns how long it took until the first of these.
pub fn wait(lab: &Lab, node: &Node, others: &[Node]) -> Result<Duration> {
    let begun = Instant::now();
    let mut works_since = None;
    let mut rounds = 0;
    until("the tunnels to work", PATIENCE, || {
        let at = begun.elapsed();
        for other in others {
            let (from, to) = (other.tunnel_ip.to_string(), node.tunnel_ip.to_string());
            let words = ["ping", "-q", "-c", "1", "-W", "1", "-I", &from, &to];
            if lab.exec(&other.name, &words)?.status != 0 {
                (works_since, rounds) = (None, 0);
                return Ok(false);
            }
        }
        works_since.get_or_insert(at);
        rounds += 1;
        Ok(rounds == ROUNDS)
    })?;
    Ok(works_since.unwrap_or_default())
}
