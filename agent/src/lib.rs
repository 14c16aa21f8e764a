//! The agent of SecureOverlay as a library: everything but the command line.
//!
//! What is decided lives in `secureoverlay_agent_core`, what the kernel is asked by in `secureoverlay_agent_kernel`. This
//! crate reads what is decided by, and does what is decided.
//!
//! | module | does |
//! |---|---|
//! | [`config`] | flags |
//! | [`supervisor`] | process 1 of the container: starts the agent again if a signal ends it |
//! | [`run`] | builds the parts and runs the main loop |
//! | [`io`] | what the API server says, and what is written there |
//! | [`kernel`] | the threads that talk to the kernel |
//! | [`telemetry`] | log, health, metrics, and the text of the NodeEncryption |
//! | [`network`] | what the kernel shows of this node's network |
//! | [`state_directory`] | identity, state and journal of this boot as files |
//! | [`uninstall`] | is it a removal, or a restart? |
//! | [`cli`] | commands for a person on the node |
//!
//! A module uses those below it: [`run`] uses all, [`io`] uses [`telemetry`], [`telemetry`] uses [`kernel`], [`kernel`] uses
//! [`network`]. [`cli`] is used by [`io`] alone, for the check that operators ask for.

pub mod cli;
pub mod clock;
pub mod config;
pub mod io;
pub mod kernel;
pub mod network;
pub mod run;
pub mod state_directory;
pub mod supervisor;
pub mod telemetry;
pub mod uninstall;
