//! The scenarios, by name, and what they share.

mod bench_netlink;
mod chaos;
pub mod cluster;
mod coverage;
mod crash;
pub mod decrypt;
mod delete;
mod disable;
mod dumpable;
mod enable;
mod encrypt;
pub mod enforcing;
mod esp_blocked;
mod field;
mod flush;
mod foreign;
mod held_back;
mod helm;
mod identity;
mod ike;
mod intruder;
mod join_leave;
mod junk;
mod leaks;
pub mod ledger;
mod limits;
pub mod manager;
pub mod metrics;
mod mke_manifest;
mod mtu;
mod mtu_policy;
mod not_a_removal;
mod objects;
mod operate;
pub mod overlay;
mod partition;
mod plain;
pub mod probe;
pub mod processes;
pub mod reachable;
mod reapply;
mod reboot;
mod restore;
pub mod ring;
mod rotate;
mod rotate_faults;
pub mod rotate_timed;
mod scale;
mod secret_reader;
pub mod settings;
mod straggler;
mod suites;
mod upgrade;
pub mod wire;
mod writes;
pub mod xfrm;

use crate::scenario::Scenario;

/// The numbers of a scenario's cases, where it has such.
pub fn cases(scenario: &str) -> Option<Vec<u8>> {
    (scenario == field::SCENARIO.name).then(field::numbers)
}

/// All scenarios, in the order in which they are best run: those that need SecureOverlay at work share one installation.
pub static ALL: &[Scenario] = &[
    plain::SCENARIO,
    encrypt::SCENARIO,
    enable::SCENARIO,
    delete::SCENARIO,
    mtu_policy::SCENARIO,
    esp_blocked::SCENARIO,
    disable::SCENARIO,
    upgrade::SCENARIO,
    crash::SCENARIO,
    chaos::SCENARIO,
    join_leave::SCENARIO,
    rotate::SCENARIO,
    rotate_faults::SCENARIO,
    straggler::SCENARIO,
    flush::SCENARIO,
    limits::SCENARIO,
    rotate_timed::SCENARIO,
    junk::SCENARIO,
    not_a_removal::SCENARIO,
    decrypt::SCENARIO,
    secret_reader::SCENARIO,
    suites::SCENARIO,
    reboot::SCENARIO,
    restore::SCENARIO,
    identity::SCENARIO,
    partition::SCENARIO,
    reapply::SCENARIO,
    helm::SCENARIO,
    leaks::SCENARIO,
    foreign::SCENARIO,
    coverage::SCENARIO,
    field::SCENARIO,
    intruder::SCENARIO,
    objects::SCENARIO,
    operate::SCENARIO,
    mke_manifest::SCENARIO,
    mtu::SCENARIO,
    bench_netlink::SCENARIO,
    scale::SCENARIO,
];
