//! The agent of SecureOverlay as a library: everything but the command line.
//!
//! What is decided lives in `secureoverlay_agent_core`; this crate reads what it decides by and does what it decides.
//!
//! | module | does |
//! |---|---|
//! | [`supervisor`] | process 1 of the container: starts the agent again if a signal ends it |
//! | [`run`] | the main loop |
//! | [`worker`] | the thread that talks to the kernel, by [`kernel`] |
//! | [`sources`], [`source`], [`daemon_set`], [`api`] | what the API says, and what is written there |
//! | [`network`], [`surroundings`], [`mtu`] | what the kernel says of the network |
//! | [`probe_sockets`] | the packets of proofs |
//! | [`startup`], [`state_directory`] | identity, state and journal of this boot |
//! | [`status`], [`writer`], [`report`], [`metrics`] | what the agent says of itself |
//! | [`check`], [`cleanup`] | commands for a person on the node |

pub mod ages;
pub mod api;
pub mod check;
pub mod cleanup;
pub mod clock;
pub mod config;
pub mod daemon_set;
pub mod heard;
pub mod inputs;
pub mod io;
pub mod kernel;
pub mod lifecycle;
pub mod mark;
pub mod metrics;
pub mod mtu;
pub mod mtu_lookup;
pub mod mtu_setting;
pub mod network;
pub mod probe_sockets;
pub mod removal;
pub mod report;
pub mod rights;
pub mod run;
pub mod source;
pub mod sources;
pub mod startup;
pub mod state_directory;
pub mod status;
pub mod supervisor;
pub mod surroundings;
pub mod watching;
pub mod worker;
pub mod writer;
pub mod xfrm;
