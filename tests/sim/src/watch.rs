//! Watches: late, broken, twice, or silent.

use crate::Time;

/// One watch connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stream {
    /// Counts connections: what was under way on a former one is lost.
    pub connection: u64,
    /// It is up.
    pub up: bool,
    /// Changes of the log that were delivered.
    pub position: usize,
    /// A delivery is on its way.
    pub scheduled: bool,
    /// Nothing is delivered until then, and nothing tells of it.
    pub silent_until: Time,
}

impl Stream {
    /// It breaks.
    pub const fn cut(&mut self) {
        self.connection += 1;
        (self.up, self.scheduled) = (false, false);
    }
}

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// The Secret.
    Secret,
    /// EncryptionPeers.
    Peers,
}
