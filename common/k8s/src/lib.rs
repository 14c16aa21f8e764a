//! SecureOverlay's custom resources, and how its programs read the Kubernetes API.
//!
//! | module | holds |
//! |---|---|
//! | [`encryption_peer`], [`node_encryption`] | the custom resources that agents write |
//! | [`cluster_encryption`], [`key_rotation`] | the custom resources of operators |
//! | [`definitions`] | their CustomResourceDefinitions, as they ship in the manifest |
//! | [`node`] | the part of a Node that is read |
//! | [`object`] | an object as it came, each read by itself: a hostile one breaks no list |
//! | [`ring_secret`] | the Secret with the key ring |
//! | [`watch`] | one watch for all of them, which does not go blind |
//! | [`client`], [`access`] | the client, its errors in words, and what it may do |
//! | [`names`] | names of objects, labels and annotations |

pub mod access;
pub mod client;
pub mod cluster_encryption;
pub mod definitions;
pub mod encryption_peer;
pub mod key_rotation;
pub mod names;
pub mod node;
pub mod node_encryption;
pub mod object;
pub mod ring_secret;
pub mod watch;
