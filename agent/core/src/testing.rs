//! What unit tests share.

use std::{
    convert::Infallible,
    ops::{Deref, DerefMut},
};

use secureoverlay_keyring::{
    address::NodeAddress,
    keyring::{Enforcement, Generation, Identities, KeyRing, Role, SPI_SEED_LEN, Traffic},
    node_key::NodeKeyPair,
    peer::{EncryptionPeerSpec, Instance, Sender},
    secret::SecretBytes,
    settings::Settings,
    suite::Suite,
    uid::Uid,
};

use crate::{
    fake_kernel::FakeKernel,
    identity::Identity,
    kernel::{Kernel, OpError},
    peers::{Content, PeerObject},
    xfrm::{Actual, Op},
};

pub fn uid(n: u8) -> Uid {
    Uid::from_random([n; 16])
}

pub fn address(n: u8) -> NodeAddress {
    format!("192.0.2.{n}").parse().unwrap()
}

pub fn instance(n: u8) -> Instance {
    uid(n).into()
}

/// The key pair of node `n`.
pub fn key_pair(n: u8) -> NodeKeyPair {
    NodeKeyPair::from_private(&SecretBytes::copy_from(&[n.wrapping_add(1); 32])).unwrap()
}

pub fn identity(n: u8) -> Identity {
    Identity { instance: instance(n), key_pair: key_pair(n) }
}

pub fn generation(n: u8, role: Role) -> Generation {
    Generation {
        id: n.into(),
        uid: uid(200 + n),
        role,
        suite: Suite::Aes128Gcm8,
        traffic: Traffic::Ipip,
        identities: Identities::Announced,
        key: SecretBytes::copy_from(&[n; 16]),
        spi_seed: SecretBytes::copy_from(&[n; SPI_SEED_LEN]),
        created_at: "2026-11-30T03:00:00Z".parse().unwrap(),
        role_since: "2026-11-30T03:00:00Z".parse().unwrap(),
    }
}

pub fn ring(enforcement: Enforcement, generations: &[(u8, Role)]) -> KeyRing {
    KeyRing {
        enforcement,
        generations: generations.iter().map(|(n, role)| generation(*n, *role)).collect(),
        ..KeyRing::off(1, uid(90), None, Settings::default())
    }
}

/// The object of node `n`, with entries of these instances at these addresses; an instance has the key of its number.
pub fn peer_object(n: u8, entries: &[(u8, u8)]) -> PeerObject {
    let senders = entries.iter().map(|(who, at)| Sender {
        instance: instance(*who),
        address: address(*at),
        public_key: *key_pair(*who).public(),
    });
    PeerObject {
        name: format!("node-{n}"),
        uid: uid(150 + n),
        created: n.into(),
        generation: 1,
        resource_version: "1".to_owned(),
        content: Ok(Content::Announced(EncryptionPeerSpec {
            node_uid: uid(100 + n),
            senders: senders.collect(),
            pod_networks: Default::default(),
        })),
    }
}

/// A model that its reconciler owns.
#[derive(Clone)]
pub struct OwnedKernel(pub FakeKernel);

impl Deref for OwnedKernel {
    type Target = FakeKernel;

    fn deref(&self) -> &FakeKernel {
        &self.0
    }
}

impl DerefMut for OwnedKernel {
    fn deref_mut(&mut self) -> &mut FakeKernel {
        &mut self.0
    }
}

impl Kernel for OwnedKernel {
    type Error = Infallible;

    fn dump(&mut self) -> Result<Actual, Infallible> {
        (&mut self.0).dump()
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>> {
        (&mut self.0).apply(ops)
    }
}
