//! What the agent asks and tells the API server: thin, and without decisions.
//!
//! | module | does |
//! |---|---|
//! | [`input`] | what all of it comes to: the inputs of the main loop |
//! | [`watches`] | what is watched: the key ring, peers, our DaemonSet |
//! | [`queries`] | what operators ask through the loopback port |
//! | [`requests`] | single requests: this node's EncryptionPeer, a Node, the key ring |
//! | [`status_writer`] | writes this node's NodeEncryption |
//! | [`rights`] | which sources this agent may read |
//! | [`mtu_lookup`] | what sets the tunnels' MTU |

pub mod input;
pub mod mtu_lookup;
pub mod queries;
pub mod requests;
pub mod rights;
pub mod status_writer;
pub mod watches;
