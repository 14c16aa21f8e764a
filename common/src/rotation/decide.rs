//! What the next write of the ring is.
//!
//! Up: all nodes receive, then all send, then all enforce. Down: the same backwards. Enforcing is never lowered because of
//! a blocker that comes later: that is only told.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    ABSENT, Action, Cause, Decision, EnforcementGoal, Evidence, Installation, Settings, Step, schedule::due,
    step::Gate,
};
use crate::{
    phase::Phase,
    ring::{Enforcement, Generation, Ring},
};

/// Decides the next step. `ring` is `None` where the Secret holds none yet.
#[must_use]
pub fn decide(
    ring: Option<&Ring>,
    installation: Installation,
    evidence: &Evidence,
    now: Timestamp,
    settings: &Settings,
) -> Decision {
    let goal = settings.goal;
    if let Some(decision) = by_installation(ring, installation, goal) {
        return decision;
    }
    let phase = Phase::of(ring);
    let Some(ring) = ring.filter(|_| phase != Phase::Off) else {
        return without_keys(phase, evidence, goal);
    };
    let gate = Gate::of(phase, ring.enforcement, goal, evidence);
    if let Some(decision) = before_any_step(ring, phase, evidence) {
        return Decision { wait: gate.and_then(|gate| gate.wait()), ..decision };
    }
    if ring.enforcement == Enforcement::Enforcing && goal != EnforcementGoal::Auto {
        return Decision::act(Action::RELAX, "plaintext is to be accepted, as asked");
    }
    match (gate, phase.active()) {
        (Some(gate), _) if gate.step != Step::Enforce => gate.decide(),
        (enforce, Some(active)) => steady(ring, active, enforce, evidence, now, settings),
        // Stopping, and encryption is wanted again.
        (_, None) => Decision::rotate(Action::Stage, Cause::First, "no generation can be sent with"),
    }
}

/// A ring lives as long as the DaemonSet that it was made for.
fn by_installation(
    ring: Option<&Ring>,
    installation: Installation,
    goal: EnforcementGoal,
) -> Option<Decision> {
    match installation {
        Installation::Unknown => None,
        // Being removed, or orphaned: then its pods go on, and must find their keys.
        Installation::Absent => {
            Some(Decision::wait(ABSENT, "the agents' DaemonSet is not there: nothing is rotated"))
        }
        Installation::Present(uid) => {
            ring?.installation.filter(|other| *other != uid)?;
            let why = "the ring was made for another DaemonSet of the agents";
            Some(match goal {
                EnforcementGoal::Off => Decision::act(Action::Reset, why),
                // In one write: a ring that is off in between would take orphaned agents down the ladder.
                EnforcementGoal::Auto | EnforcementGoal::Permissive => {
                    Decision::rotate(Action::Bootstrap, Cause::First, why)
                }
            })
        }
    }
}

/// Without a ring, or with one that is off.
fn without_keys(phase: Phase<'_>, evidence: &Evidence, goal: EnforcementGoal) -> Decision {
    // Without a ring, nodes that know one go on with what they hold: only a ring takes them to off.
    let leftover = phase == Phase::Empty && evidence.newest > 0;
    if goal == EnforcementGoal::Off && !leftover {
        return Decision::wait(Duration::MAX, "encryption is off, as asked");
    }
    Decision::rotate(Action::Bootstrap, Cause::First, "there is no key yet")
}

/// Writes that leave the step as it is.
fn before_any_step(ring: &Ring, phase: Phase<'_>, evidence: &Evidence) -> Option<Decision> {
    if !evidence.rekey.is_empty() {
        let count = evidence.rekey.len();
        let reason = format!("{count} nodes lost SAs whose keys can't be used again");
        return Some(Decision::act(Action::Rekey, reason));
    }
    let permissive = ring.enforcement == Enforcement::Permissive;
    let stopping = matches!(phase, Phase::Stopping { .. });
    if permissive && !stopping && evidence.pending != ring.pending {
        let (before, now) = (ring.pending.len(), evidence.pending.len());
        let reason = format!("{now} nodes can't be encrypted to yet, of {before} before");
        return Some(Decision::act(Action::Pend, reason));
    }
    None
}

/// With `active` alone: the next rotation where it is due, else `enforce` where that is wanted.
fn steady(
    ring: &Ring,
    active: &Generation,
    enforce: Option<Gate<'_>>,
    evidence: &Evidence,
    now: Timestamp,
    settings: &Settings,
) -> Decision {
    let time = match due(ring, active, evidence, now, settings) {
        Ok((cause, reason)) => return Decision::rotate(Action::Stage, cause, reason),
        Err(time) => time,
    };
    let idle = || Decision::wait(time, format!("generation {} is active, nothing is due", active.id));
    let decision = enforce.map_or_else(idle, Gate::decide);
    Decision { wake_in: decision.wake_in.min(time), ..decision }
}
