//! What the next write of the ring is: the rules of `docs/rotation.md`, section 5, from the top.
//!
//! Up: all nodes receive and prove, then all send, then all enforce. Down: the same backwards. Enforcing is never lowered
//! because of a blocker that comes later: that is only reported.

use std::time::Duration;

use secureoverlay_keyring::{
    keyring::{Enforcement, Generation, KeyRing},
    settings::EnforcementGoal,
};

use crate::{
    AckIdState, Action, Cause, Decision, History, Inputs, Installation, LOOK_AGAIN, Phase, Step, ack_round,
    schedule::due, step::Gate,
};

/// A step waits so long for acknowledgements of Ready nodes before they are renewed, and so long again each time.
const RENEW_AFTER: [Duration; 6] = [
    Duration::from_secs(120),
    Duration::from_secs(240),
    Duration::from_secs(480),
    Duration::from_secs(960),
    Duration::from_secs(1920),
    Duration::from_secs(3600),
];
/// An acknowledgement under an older `ackId` may be of a node that has booted since.
const ENFORCE_WITHIN: Duration = Duration::from_secs(300);

/// Decides the next write.
#[must_use]
pub fn decide(inputs: &Inputs<'_>) -> Decision {
    if inputs.history == History::WentBack {
        return Decision::wait(LOOK_AGAIN, "the history of the API server went back: it has to be restarted");
    }
    if let Some(decision) = by_installation(inputs).or_else(|| restore(inputs)) {
        return decision;
    }
    let phase = Phase::of(inputs.ring);
    let decision = match inputs.ring {
        Some(ring) if phase != Phase::Off => with_keys(ring, phase, inputs),
        ring => without_keys(ring, inputs),
    };
    let decision = renew(decision, inputs);
    match inputs.ring {
        Some(ring) if decision.action == Action::Wait => update(decision, ring, inputs),
        _ => decision,
    }
}

/// A ring lives as long as the DaemonSet that it was made for.
fn by_installation(inputs: &Inputs<'_>) -> Option<Decision> {
    match inputs.installation {
        Installation::Unknown => None,
        // Being removed, or orphaned: then its pods go on, and must find their keys.
        Installation::Absent => {
            Some(Decision::wait(LOOK_AGAIN, "the agents' DaemonSet is not there: nothing is rotated"))
        }
        Installation::Present(uid) => {
            inputs.ring?.installation.filter(|other| *other != uid)?;
            let why = "the key ring was made for another DaemonSet of the agents";
            Some(match inputs.settings.enforcement {
                EnforcementGoal::Off => Decision::act(Action::Disable, why),
                // In one write: a ring that is off in between would switch orphaned agents off.
                EnforcementGoal::Auto | EnforcementGoal::Permissive => bootstrap(inputs, Cause::First, why),
            })
        }
    }
}

/// The Secret was emptied, or holds an older ring.
fn restore(inputs: &Inputs<'_>) -> Option<Decision> {
    let last = inputs.last?;
    let lost = inputs
        .ring
        .is_none_or(|ring| ring.revision < last.revision && ring.highest_id() <= last.highest_id());
    lost.then(|| Decision::act(Action::Restore, "the Secret has lost the last key ring"))
}

fn bootstrap(inputs: &Inputs<'_>, cause: Cause, why: impl Into<String>) -> Decision {
    Decision::rotate(Action::Bootstrap, cause, inputs.settings.cipher_suite, why)
}

/// Without a ring, or with one that is off.
fn without_keys(ring: Option<&KeyRing>, inputs: &Inputs<'_>) -> Decision {
    if inputs.settings.enforcement != EnforcementGoal::Off {
        return bootstrap(inputs, Cause::First, "there is no key yet");
    }
    match (ring, &inputs.evidence.claim) {
        (Some(_), Some(claim)) => bootstrap(inputs, Cause::Restored, claim.to_string()),
        // Without a ring, nodes go on with what they hold: only a ring takes them to off.
        (None, _) if inputs.evidence.any_receivable => {
            bootstrap(inputs, Cause::First, "nodes hold keys, and there is no key ring to switch them off by")
        }
        _ => Decision::wait(Duration::MAX, "encryption is off, as asked"),
    }
}

fn with_keys(ring: &KeyRing, phase: Phase<'_>, inputs: &Inputs<'_>) -> Decision {
    let evidence = inputs.evidence;
    let goal = inputs.settings.enforcement;
    if let Some(claim) = &evidence.claim {
        return bootstrap(inputs, Cause::Restored, claim.to_string());
    }
    if ring.enforcement == Enforcement::Enforcing && goal != EnforcementGoal::Auto {
        return Decision::act(Action::RELAX, "plaintext is to be accepted, as asked");
    }
    let off = goal == EnforcementGoal::Off;
    let gate = |step, generation| Gate::new(step, generation, evidence);
    let accept = |generation| off.then(|| gate(Step::AcceptPlaintext, generation));
    match phase {
        Phase::Empty | Phase::Off => without_keys(Some(ring), inputs),
        Phase::Bootstrapping { staged } => {
            by_acks(accept(staged).and_then(Gate::ready).or_else(|| alone(staged, inputs)), inputs)
                .unwrap_or_else(|| wait_for(gate(Step::Receive, staged), evidence.step_wait))
        }
        Phase::Resuming { retiring, staged } => match accept(retiring) {
            Some(accept) => by_acks(accept.ready(), inputs).unwrap_or_else(|| accept.wait()),
            None => by_acks(alone(staged, inputs), inputs)
                .unwrap_or_else(|| wait_for(gate(Step::Receive, staged), evidence.step_wait)),
        },
        Phase::Staged { active, staged } => {
            let accept = accept(active);
            let receive = gate(Step::Receive, staged);
            by_acks(accept.and_then(Gate::ready).or_else(|| receive.ready()), inputs)
                .or_else(|| beside(staged, inputs))
                .unwrap_or_else(|| {
                    let skip =
                        if inputs.requests.skip_unresponsive { evidence.step_wait } else { Duration::MAX };
                    let left = evidence.limit.unwrap_or(Duration::MAX).min(skip);
                    wait_for(accept.unwrap_or(receive), left)
                })
        }
        Phase::Draining { retiring, active } => {
            let switch = gate(Step::Switch, active);
            by_acks(switch.ready(), inputs).unwrap_or_else(|| draining(retiring, switch, off, inputs))
        }
        Phase::Stopping { retiring } if off => {
            let stop = gate(Step::StopSending, retiring);
            by_acks(stop.ready(), inputs).unwrap_or_else(|| stop.wait())
        }
        Phase::Stopping { .. } => {
            let (suite, why) = (inputs.settings.cipher_suite, "no generation can be sent with");
            Decision::rotate(Action::Stage, Cause::First, suite, why)
        }
        Phase::Steady { active } => match accept(active) {
            Some(accept) => by_acks(accept.ready(), inputs).unwrap_or_else(|| accept.wait()),
            None => steady(ring, active, inputs),
        },
    }
}

/// A staged generation beside no active one: it is activated soon, because it can never be dropped, and nothing is
/// removed by it.
fn alone(staged: &Generation, inputs: &Inputs<'_>) -> Option<Decision> {
    let evidence = inputs.evidence;
    Gate::new(Step::Receive, staged, evidence).ready().or_else(|| {
        (evidence.step_wait.is_zero() && evidence.any_counts).then(|| {
            let why = format!("generation {} stands alone, and was waited for long enough", staged.id);
            Decision::act(Action::Activate, why)
        })
    })
}

/// A staged generation beside an active one, once it was waited for long enough.
fn beside(staged: &Generation, inputs: &Inputs<'_>) -> Option<Decision> {
    let evidence = inputs.evidence;
    if inputs.requests.skip_unresponsive && evidence.step_wait.is_zero() && evidence.limit.is_some() {
        let why =
            format!("generation {} is activated without nodes that do not respond, as asked", staged.id);
        return Some(Decision::act(Action::Activate, why));
    }
    evidence.limit.is_some_and(|left| left.is_zero()).then(|| {
        let why = format!("generation {} could not be proven in time: it is dropped", staged.id);
        Decision {
            wait: Gate::new(Step::Receive, staged, evidence).missing(),
            ..Decision::act(Action::RemoveStaged, why)
        }
    })
}

fn draining(retiring: &Generation, switch: Gate<'_>, off: bool, inputs: &Inputs<'_>) -> Decision {
    let skip = inputs.requests.skip_unresponsive || off;
    match inputs.evidence.limit.filter(|_| skip) {
        Some(Duration::ZERO) => {
            let why = format!(
                "generation {} is removed though nodes may still send with it, as asked",
                retiring.id
            );
            Decision { wait: switch.missing(), ..Decision::act(Action::RemoveRetired, why) }
        }
        left => wait_for(switch, left.unwrap_or(Duration::MAX)),
    }
}

/// With `active` alone: the next rotation where it is due, else enforcing where that is wanted.
fn steady(ring: &KeyRing, active: &Generation, inputs: &Inputs<'_>) -> Decision {
    let time = match due(ring, active, inputs) {
        Ok((cause, suite, why)) => return Decision::rotate(Action::Stage, cause, suite, why),
        Err(time) => time,
    };
    let wanted = inputs.settings.enforcement == EnforcementGoal::Auto;
    if !wanted || ring.enforcement != Enforcement::Permissive {
        return Decision::wait(time, format!("generation {} is active, nothing is due", active.id));
    }
    let enforce = Gate::new(Step::Enforce, active, inputs.evidence);
    let young = |age: Duration| age <= ENFORCE_WITHIN + ack_round(inputs.evidence.nodes);
    let decision = match (enforce.ready(), inputs.evidence.ack_id) {
        (Some(_), AckIdState::Own { age }) if !young(age) => Decision::act(
            Action::RenewAckId,
            "every pair is proven; nodes that have booted since have to say so again",
        ),
        (ready, _) => by_acks(ready, inputs).unwrap_or_else(|| enforce.wait()),
    };
    Decision { wake_in: decision.wake_in.min(time), ..decision }
}

/// A step that rests on acknowledgements, under an `ackId` that this process did not draw last, needs them anew.
fn by_acks(step: Option<Decision>, inputs: &Inputs<'_>) -> Option<Decision> {
    let step = step?;
    Some(match inputs.evidence.ack_id {
        AckIdState::Unused | AckIdState::Own { .. } => step,
        AckIdState::Foreign { pause: Duration::ZERO, .. } => {
            let why = format!("acknowledgements are asked for anew before the next step: {}", step.reason);
            Decision::act(Action::RenewAckId, why)
        }
        AckIdState::Foreign { pause, .. } => {
            Decision::wait(pause, "another process has renewed the acknowledgements")
        }
    })
}

/// Waits, but not longer than what is `left` of a time that has not passed yet.
fn wait_for(gate: Gate<'_>, left: Duration) -> Decision {
    let decision = gate.wait();
    let left = if left.is_zero() { Duration::MAX } else { left };
    Decision { wake_in: decision.wake_in.min(left), ..decision }
}

/// Acknowledgements may have been deleted, or put back by a backup: they are asked for anew beside a wait.
fn renew(decision: Decision, inputs: &Inputs<'_>) -> Decision {
    let age = match inputs.evidence.ack_id {
        AckIdState::Own { age } | AckIdState::Foreign { age, pause: Duration::ZERO } => age,
        AckIdState::Unused | AckIdState::Foreign { .. } => return decision,
    };
    if decision.action != Action::Wait || inputs.ring.is_none() {
        return decision;
    }
    if let Some(node) = &inputs.evidence.ack_deleted {
        let reason = format!("the NodeEncryption of {node} is gone, though an agent runs there");
        return Decision { wait: decision.wait, ..Decision::act(Action::RenewAckId, reason) };
    }
    let Some(wait) = decision.wait.as_ref().filter(|wait| wait.any_ready) else { return decision };
    let count = inputs.pace.renewed.filter(|(key, _)| *key == wait.key()).map_or(0, |(_, count)| count);
    let Some(after) = RENEW_AFTER.get(count) else { return decision };
    let after = *after + ack_round(inputs.evidence.nodes);
    match after.checked_sub(age.min(wait.waited)).filter(|left| !left.is_zero()) {
        Some(left) => Decision { wake_in: decision.wake_in.min(left), ..decision },
        None => {
            let reason = "nodes have not acknowledged for long: they are asked again";
            Decision { wait: decision.wait, ..Decision::act(Action::RenewAckId, reason) }
        }
    }
}

/// Brings settings and exclusions up to date.
fn update(decision: Decision, ring: &KeyRing, inputs: &Inputs<'_>) -> Decision {
    if ring.settings == *inputs.settings && ring.excluded == *inputs.excluded {
        return decision;
    }
    if !inputs.pace.update_in.is_zero() {
        return Decision { wake_in: decision.wake_in.min(inputs.pace.update_in), ..decision };
    }
    Decision { wait: decision.wait, ..Decision::act(Action::Update, "settings or exclusions have changed") }
}
