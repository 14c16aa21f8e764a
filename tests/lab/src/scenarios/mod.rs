//! The scenarios, by name, and what they share.

mod bench_netlink;
pub mod cluster;
mod decrypt;
mod dumpable;
mod encrypt;
mod foreign;
mod ike;
mod junk;
mod leaks;
pub mod metrics;
mod mke_manifest;
mod not_a_removal;
pub mod overlay;
mod plain;
pub mod probe;
pub mod processes;
mod reapply;
mod reboot;
pub mod ring;
pub mod rotate_timed;
mod suites;
pub mod wire;
pub mod xfrm;

use crate::scenario::Scenario;

/// All scenarios, in the order in which they are best run.
pub static ALL: &[Scenario] = &[
    plain::SCENARIO,
    encrypt::SCENARIO,
    rotate_timed::SCENARIO,
    reapply::SCENARIO,
    junk::SCENARIO,
    not_a_removal::SCENARIO,
    decrypt::SCENARIO,
    suites::SCENARIO,
    mke_manifest::SCENARIO,
    leaks::SCENARIO,
    foreign::SCENARIO,
    reboot::SCENARIO,
    bench_netlink::SCENARIO,
];
