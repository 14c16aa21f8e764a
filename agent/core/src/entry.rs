//! One entry of a node: what it sends with, and is sent to with.

use secureoverlay_keyring::{
    address::NodeAddress,
    derivation::{Endpoint, EndpointKey, SaPath},
    peer::{Instance, Sender},
    uid::Uid,
};

/// A [`Sender`] as it is announced, or, under MKE's manifest, a Node's boot ID in the place of instance and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// Who sends.
    pub instance: Instance,
    /// From where, and to where.
    pub address: NodeAddress,
    /// What is sent to it is derived with this.
    pub key: EndpointKey,
}

impl From<&Sender> for Entry {
    fn from(sender: &Sender) -> Self {
        Self {
            instance: sender.instance,
            address: sender.address,
            key: EndpointKey::Public(sender.public_key),
        }
    }
}

impl Entry {
    /// That of a Node that announces nothing.
    #[must_use]
    pub fn of_boot_id(address: NodeAddress, boot_id: Uid) -> Self {
        Self { instance: boot_id.into(), address, key: EndpointKey::BootId(boot_id) }
    }

    /// As it is announced; `None` for a boot ID.
    #[must_use]
    pub const fn sender(&self) -> Option<Sender> {
        match self.key {
            EndpointKey::Public(public_key) => {
                Some(Sender { instance: self.instance, address: self.address, public_key })
            }
            EndpointKey::BootId(_) => None,
        }
    }

    /// The SA from this entry to `dst`, which only needs an address and a key.
    #[must_use]
    pub const fn path_to(&self, dst: Endpoint) -> SaPath {
        SaPath { instance: self.instance, src: self.endpoint(), dst }
    }

    /// Its end of a pair.
    #[must_use]
    pub const fn endpoint(&self) -> Endpoint {
        Endpoint { address: self.address, key: self.key }
    }
}
