//! The lab: a real Kubernetes cluster whose nodes have real kernels of their own, on one small machine.
//!
//! See `tests/lab/README.md` for how it works and why.

pub mod cache;
pub mod capture;
pub mod clean;
pub mod cli;
pub mod control_plane;
pub mod demo;
pub mod esp;
pub mod exec;
pub mod frames;
pub mod guest;
pub mod host;
pub mod images;
pub mod interface;
pub mod interrupt;
pub mod intruder;
pub mod kernel_command;
pub mod lab;
pub mod lanes;
pub mod largest;
pub mod lifecycle;
pub mod needles;
pub mod network;
pub mod node;
pub mod pcap;
pub mod pki;
pub mod place;
pub mod plan;
pub mod process;
pub mod product;
pub mod progress;
pub mod run;
pub mod run_command;
pub mod runner;
pub mod sa_keys;
pub mod scenario;
pub mod scenarios;
pub mod state;
pub mod store;
pub mod uml;
pub mod wait;
