//! From one cipher suite to another is a rotation: nothing is lost, and until it ends the tunnel's MTU must suit both.

use std::time::Duration;

use anyhow::{Result, bail};
use secureoverlay_keyring::keyring::{KeyRing, Role};
use secureoverlay_keyring::mtu::Bound;
use secureoverlay_keyring::suite::Suite;
use serde_json::json;

use super::cluster::until;
use super::decrypt::ring;
use super::overlay::{Overlay, PATIENCE};
use super::{metrics, settings, wire};
use crate::interface::manager::{ACKNOWLEDGED, PROPAGATION_DELAY, ROTATION_MODE, TIMED};
use crate::interface::metric;
use crate::lab::Lab;
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};

pub const SCENARIO: Scenario = Scenario {
    name: "suites",
    about: "a running cluster moves through all cipher suites without loss, told its MTU in time",
    tier: Tier::Gate,
    estimate: 90,
    alone: true,
    run: Run::Installed(run),
};

/// MTU of the lab's bridge.
const EXTERNAL: u32 = 1500;

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    // By acknowledgement the phases would pass faster than they can be looked at.
    let delay = profile.pick("6s", "30s");
    overlay
        .configure_manager(&[&format!("{ROTATION_MODE}={TIMED}"), &format!("{PROPAGATION_DELAY}={delay}")])?;
    wait_for(lab, "the first generation alone", |ring| alone(ring, Suite::default()))?;

    note("the same traffic without a change");
    let baseline = wire::baseline(probe, report, Duration::from_secs(10))?;
    let mut limits = vec![json!({"ring": [Suite::default().name()], "limit": expected(&[Suite::default()])})];
    wait_for_limit(lab, &[Suite::default()])?;

    let changed = wire::watch(probe, "while changing suites", || {
        let mut from = Suite::default();
        for to in [Suite::Aes128Gcm16, Suite::Aes256Gcm16, Suite::Aes128Gcm8] {
            note(format!("from {from} to {to}"));
            request(overlay, to)?;
            let has = |ring: &KeyRing, role: Role, suite: Suite| {
                ring.with_role(role).is_some_and(|generation| generation.suite == suite)
            };
            for (role, suite, active) in [(Role::Staged, to, from), (Role::Retiring, from, to)] {
                let phase = format!("{suite} to be {role:?} beside {active}");
                let now = |ring: &KeyRing| has(ring, role, suite) && has(ring, Role::Active, active);
                wait_for(lab, &phase, now)?;
                wait_for_limit(lab, &[from, to])?;
                if !now(&ring(lab)?) {
                    bail!("the agents were too late with the MTU for both suites, waiting for {phase}");
                }
            }
            limits.push(json!({"ring": [from.name(), to.name()], "limit": expected(&[from, to])}));
            wait_for(lab, "the end of the rotation", |ring| alone(ring, to))?;
            wait_for_limit(lab, &[to])?;
            limits.push(json!({"ring": [to.name()], "limit": expected(&[to])}));
            from = to;
        }
        Ok(())
    })?;
    changed.check_delivered(report);
    changed.check_encrypted(report);
    changed.check_gap(report, &baseline);
    report.figure("suites", Suite::ALL.map(Suite::name));
    report.figure("rotations", 3);
    report.figure("mtu_limits", limits);
    report.figure("sent", changed.probes.sent);
    report.figure("lost", changed.probes.lost);
    report.figure("ipip", changed.wire.ipip);
    report.figure("max_gap_ms", changed.probes.longest_gap_ms);
    report.figure("baseline_gap_ms", baseline.longest_gap_ms);
    overlay.configure_manager(&[&format!("{ROTATION_MODE}={ACKNOWLEDGED}"), &format!("{PROPAGATION_DELAY}-")])
}

/// Sets the suite and waits until no other is in the ring.
pub fn change_suite(overlay: &Overlay<'_>, suite: Suite) -> Result<()> {
    request(overlay, suite)?;
    wait_for_suite(overlay.lab, suite)
}

/// Waits until no other is in the ring.
pub fn wait_for_suite(lab: &Lab, suite: Suite) -> Result<()> {
    wait_for(lab, "the suite to change", |ring| alone(ring, suite))
}

/// Sets the suite.
pub fn request(overlay: &Overlay<'_>, suite: Suite) -> Result<()> {
    settings::edit(overlay.lab, &json!({ "cipherSuite": suite }))
}

fn wait_for(lab: &Lab, what: &str, condition: impl Fn(&KeyRing) -> bool) -> Result<()> {
    until(what, PATIENCE, || Ok(condition(&ring(lab)?)))
}

/// One generation, active, of this suite: no rotation is going on.
fn alone(ring: &KeyRing, suite: Suite) -> bool {
    ring.generations.len() == 1 && ring.active().is_some_and(|generation| generation.suite == suite)
}

/// MKE's bound and the kernel's, with the largest of these suites.
fn expected(suites: &[Suite]) -> (u32, u32) {
    let bounds = || suites.iter().map(|suite| Bound::new(EXTERNAL, *suite));
    (
        bounds().map(|bound| bound.mke).min().unwrap_or(0),
        bounds().map(|bound| bound.kernel).min().unwrap_or(0),
    )
}

/// Waits until every agent reports the bounds for these suites.
fn wait_for_limit(lab: &Lab, suites: &[Suite]) -> Result<()> {
    let (mke, kernel) = expected(suites);
    until(&format!("all agents to report the MTU limits {mke} and {kernel}"), PATIENCE / 4, || {
        for node in lab.nodes() {
            for (rule, limit) in [("mke", mke), ("kernel", kernel)] {
                let metric = format!("{}{{rule=\"{rule}\"}}", metric::MTU_LIMIT);
                if metrics::of_agent(lab, &node.name, &metric)? != Some(f64::from(limit)) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    })
}
