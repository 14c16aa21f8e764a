//! The addresses that this node's tunnels go from, and those that they went from until lately.

use std::sync::Arc;

use super::{ADDRESS_GRACE, Agent, IdentityStore};
use crate::{Time, network::LocalNetwork};

impl<S: IdentityStore> Agent<S> {
    pub(super) fn take_network(&mut self, network: LocalNetwork, now: Time) {
        self.network_known = true;
        for lost in self.network.tunnel_addresses.iter().filter(|own| !network.tunnel_addresses.contains(own))
        {
            self.former_addresses.insert(*lost, now);
        }
        self.former_addresses.retain(|own, _| !network.tunnel_addresses.contains(own));
        self.expire_addresses(now);
        let former_addresses = self.former_addresses.keys().copied().collect();
        self.proofs.set_tunnel_mtu(network.tunnel_mtu.filter(|_| self.settings.needs_room));
        self.network = Arc::new(LocalNetwork { former_addresses, ..network });
    }

    /// An address that was lost for long is neither received at nor announced.
    pub(super) fn expire_addresses(&mut self, now: Time) {
        self.former_addresses.retain(|_, since| *since + ADDRESS_GRACE > now);
        if self.network.former_addresses.iter().any(|own| !self.former_addresses.contains_key(own)) {
            let former_addresses = self.former_addresses.keys().copied().collect();
            self.network = Arc::new(LocalNetwork { former_addresses, ..(*self.network).clone() });
        }
    }
}
