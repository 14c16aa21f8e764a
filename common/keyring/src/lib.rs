//! What nodes and manager of SecureOverlay share: the key ring, what nodes announce and acknowledge, and the wire
//! scheme that derives SPIs and SA keys from both (`docs/wire-scheme.md`).
//!
//! Pure: no I/O, no clock; randomness is an argument.
//!
//! | module | holds |
//! |---|---|
//! | [`phase`] | where a ring is in the life of its keys |
//! | [`keyring`], [`settings`] | the document in the Secret: generations, exclusions, effective settings |
//! | [`peer`] | `EncryptionPeer.spec`: what a node announces to its peers |
//! | [`cluster_encryption`], [`key_rotation`], [`condition`] | the operator's objects |
//! | [`acknowledgement`], [`node_encryption`] | what a node reports to the manager, and to operators |
//! | [`inspection`] | what an agent answers on its node's loopback |
//! | [`node_key`] | the node's X25519 key pair and the secrets that it shares with peers |
//! | [`derivation`] | SPI and key of every SA |
//! | [`probe`] | the packets that prove an SA |
//! | [`suite`], [`mtu`] | cipher suites, and the room that they need |
//! | [`address`], [`uid`], [`secret`], [`duration`] | the values that all of these are made of |
//!
//! Data flows one way: a [`keyring::Generation`] and two announced [`peer::Sender`] entries go into
//! [`derivation::Derivation`], an SA comes out.

pub mod acknowledgement;
pub mod address;
pub mod cluster_encryption;
pub mod condition;
pub mod derivation;
pub mod duration;
pub mod inspection;
pub mod key_rotation;
pub mod keyring;
pub mod mtu;
pub mod node_encryption;
pub mod node_key;
pub mod peer;
pub mod phase;
pub mod probe;
pub mod secret;
pub mod settings;
pub mod suite;
pub mod uid;
