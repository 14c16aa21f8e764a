//! How far encryption is enforced, as an operator sees it and as the kernels do.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::cluster::until;
use super::overlay::{Overlay, PATIENCE};
use super::probe::Probe;
use super::ring::Ring;
use super::wire::{self, Watched};
use super::{manager, rotate_timed, settings, xfrm};
use crate::lab::Lab;
use crate::scenario::Report;
use crate::state::Node;

/// Edits the settings so that the ring comes to `rung`, and waits until it has.
pub fn request(lab: &Lab, rung: &str) -> Result<()> {
    let goal = match rung {
        "off" => "Off",
        "permissive" => "Permissive",
        _ => "Auto",
    };
    settings::edit(lab, &json!({ "enforcement": goal }))?;
    until(&format!("the ring to be {rung}"), PATIENCE, || {
        Ok(Ring::read(lab)?.is_some_and(|ring| ring.enforcement() == rung))
    })
}

/// Takes back what was requested: the default counts again.
pub fn request_nothing(lab: &Lab) -> Result<()> {
    settings::edit(lab, &json!({"enforcement": null}))
}

/// Waits until ring, kernels and `kubectl get nodeencryptions` say that nothing leaves or enters in the clear.
pub fn wait(lab: &Lab) -> Result<()> {
    until("every node to enforce", PATIENCE, || enforces(lab, lab.nodes()))
}

/// Whether the ring and these nodes enforce.
pub fn enforces(lab: &Lab, nodes: &[Node]) -> Result<bool> {
    Ok(not_enforced(lab, nodes)?.is_none())
}

/// What does not enforce of the ring and these nodes, if anything.
fn not_enforced(lab: &Lab, nodes: &[Node]) -> Result<Option<String>> {
    if Ring::read(lab)?.is_none_or(|ring| ring.enforcement() != "enforcing") {
        return Ok(Some("the ring does not enforce".to_owned()));
    }
    let (kernels, say) = (xfrm::dump(lab)?, manager::statuses(lab, "state")?);
    Ok(nodes.iter().find_map(|node| {
        // Out and in.
        let blocks = kernels.get(&node.name).map_or(0, xfrm::Kernel::blocks);
        let says = say.get(&node.name);
        let enforces = blocks >= 2 && says.is_some_and(|says| says == "Enforcing");
        (!enforces).then(|| format!("{} says {says:?}, and has {blocks} blocks", node.name))
    }))
}

/// Waits until every node has said, for the ring as it is, that all its pairs with nodes of the lab are proven.
pub fn wait_proven(lab: &Lab) -> Result<()> {
    until("every pair to be proven", PATIENCE, || proven(lab))
}

/// Whether they have.
fn proven(lab: &Lab) -> Result<bool> {
    Ok(not_proven(lab)?.is_none())
}

/// What is not proven, if anything.
fn not_proven(lab: &Lab) -> Result<Option<String>> {
    let ring = Ring::read(lab)?;
    let Some((ring, active)) = ring.and_then(|ring| ring.uid("active").map(|active| (ring, active))) else {
        return Ok(Some("the ring has no active generation".to_owned()));
    };
    let all = manager::statuses(lab, "acknowledgement")?;
    Ok(lab.nodes().iter().find_map(|Node { name, .. }| {
        let Some(said) = all.get(name) else { return Some(format!("{name} has said nothing")) };
        if said["ackId"] != ring.ack_id() || said["activeGeneration"] != *active {
            return Some(format!("{name} has not answered the ring as it is"));
        }
        let unproven = manager::unproven_in(said, &active);
        let ours = lab.nodes().iter().find(|other| unproven.contains(&other.name));
        ours.map(|other| format!("{name} has not proven {}", other.name))
    }))
}

/// What nodes lack until they enforce and have proven all pairs; an API server in the middle of something counts.
pub fn lacks(lab: &Lab) -> Option<String> {
    let enforcement = not_enforced(lab, lab.nodes());
    let lack = enforcement.and_then(|lack| lack.map_or_else(|| not_proven(lab), |lack| Ok(Some(lack))));
    lack.unwrap_or_else(|error| Some(format!("{error:#}")))
}

/// Applies, and waits until everything is up and enforces.
pub fn enable(overlay: &Overlay<'_>) -> Result<()> {
    overlay.enable()?;
    rotate_timed::wait_steady(overlay.lab)?;
    wait(overlay.lab)
}

/// Waits until no kernel holds anything of ours.
pub fn wait_gone(lab: &Lab) -> Result<()> {
    until("the kernels to hold nothing of ours", PATIENCE, || Ok(xfrm::ours_in(&xfrm::dump(lab)?) == (0, 0)))
}

/// What a scenario adds up over its events.
#[derive(Debug, Default)]
pub struct Totals {
    sent: u64,
    lost: u64,
    plaintext: u64,
}

impl Totals {
    /// Does something under traffic that must lose nothing. With `enforces` nothing may be seen in the clear either.
    pub fn event(
        &mut self,
        report: &mut Report,
        probe: &Probe,
        what: &str,
        enforces: bool,
        event: impl FnOnce() -> Result<()>,
    ) -> Result<Watched> {
        crate::progress::note(what);
        let watched = wire::watch(probe, what, event)?;
        watched.check_delivered(report);
        if enforces {
            watched.check_encrypted(report);
            self.plaintext += watched.wire.ipip;
        }
        self.sent += watched.probes.sent;
        self.lost += watched.probes.lost;
        Ok(watched)
    }

    /// The figures.
    pub fn tell(&self, report: &mut Report) {
        report.figure("sent", self.sent);
        report.expect_none("lost", self.lost);
        report.expect("plaintext_packets", self.plaintext, 0);
    }
}

/// Checks that nothing was made anew: every SA and policy is the one that was there before.
pub fn check_unchanged(
    lab: &Lab,
    report: &mut Report,
    what: &str,
    before: &BTreeMap<String, xfrm::Kernel>,
) -> Result<()> {
    let changes = xfrm::changes(before, &xfrm::dump(lab)?);
    report.check(changes.is_empty(), format!("{what}: no kernel changed {changes:?}"));
    Ok(())
}

/// Two seconds of traffic when all is over: in the clear, and all of it there.
pub fn check_off(report: &mut Report, probe: &Probe) -> Result<()> {
    let after = wire::watch_for(probe, "when off", Duration::from_secs(2))?;
    after.check_delivered(report);
    let (clear, esp) = (after.wire.ipip, after.wire.esp);
    report.check(
        clear >= after.probes.sent && esp == 0,
        format!("when off: {clear} packets in the clear, {esp} ESP"),
    );
    Ok(())
}

/// The node that scenarios take away, and the others.
pub fn one_and_others(lab: &Lab) -> Result<(&Node, &[Node])> {
    lab.nodes().split_last().context("a lab without nodes")
}
