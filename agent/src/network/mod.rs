//! What the kernel shows of this node's network, and what follows from it.
//!
//! | module | does |
//! |---|---|
//! | [`reader`] | addresses that tunnels go from, networks of pods |
//! | [`measure`] | reads what is around the tunnel |
//! | [`surroundings`] | what lets traffic past the policies |
//! | [`mtu`], [`mtu_setting`] | whether packets fit with ESP; what sets the tunnel's MTU |
//! | [`probe_sockets`] | the packets of proofs |

pub mod measure;
pub mod mtu;
pub mod mtu_setting;
pub mod probe_sockets;
pub mod reader;
pub mod surroundings;
