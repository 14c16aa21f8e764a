//! The network between machines: who has an address, and what passes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// What passes.
#[derive(Debug, Default)]
pub struct Network {
    /// Who has an address now.
    pub owners: BTreeMap<IpAddr, usize>,
    /// ESP does not pass from one machine to the other.
    pub esp_blocked: BTreeSet<(usize, usize)>,
    /// Large packets do not pass from one machine to the other.
    pub narrow: BTreeSet<(usize, usize)>,
}

impl Network {
    /// Whether ESP of this size passes.
    #[must_use]
    pub fn passes(&self, from: usize, to: usize, large: bool) -> bool {
        !(self.esp_blocked.contains(&(from, to)) || large && self.narrow.contains(&(from, to)))
    }

    /// Everything passes again.
    pub fn heal(&mut self) {
        self.esp_blocked.clear();
        self.narrow.clear();
    }
}
