//! The scenarios, by name, and what they share.

mod bench_netlink;
pub mod cluster;
mod crash;
mod decrypt;
mod delete;
mod disable;
mod dumpable;
mod enable;
mod encrypt;
pub mod enforcing;
mod esp_blocked;
mod flush;
mod foreign;
mod held_back;
mod ike;
mod intruder;
mod join_leave;
mod junk;
mod leaks;
mod limits;
pub mod manager;
pub mod metrics;
mod mke_manifest;
mod mtu;
mod mtu_policy;
mod not_a_removal;
pub mod overlay;
mod partition;
mod plain;
pub mod probe;
pub mod processes;
pub mod reachable;
mod reapply;
mod reboot;
pub mod ring;
mod rotate;
mod rotate_faults;
pub mod rotate_timed;
mod straggler;
mod suites;
mod upgrade;
pub mod wire;
pub mod xfrm;

use crate::scenario::Scenario;

/// All scenarios, in the order in which they are best run.
pub static ALL: &[Scenario] = &[
    plain::SCENARIO,
    encrypt::SCENARIO,
    esp_blocked::SCENARIO,
    mtu_policy::SCENARIO,
    enable::SCENARIO,
    disable::SCENARIO,
    delete::SCENARIO,
    upgrade::SCENARIO,
    crash::SCENARIO,
    join_leave::SCENARIO,
    rotate::SCENARIO,
    rotate_faults::SCENARIO,
    straggler::SCENARIO,
    flush::SCENARIO,
    limits::SCENARIO,
    partition::SCENARIO,
    rotate_timed::SCENARIO,
    reapply::SCENARIO,
    junk::SCENARIO,
    not_a_removal::SCENARIO,
    decrypt::SCENARIO,
    suites::SCENARIO,
    mke_manifest::SCENARIO,
    leaks::SCENARIO,
    foreign::SCENARIO,
    intruder::SCENARIO,
    reboot::SCENARIO,
    mtu::SCENARIO,
    bench_netlink::SCENARIO,
];
