//! How far encryption is insisted on, and the way down to "off".
//!
//! ```text
//! permissive ──nothing against it──▶ enforcing ──not wanted──▶ permissive
//!
//! permissive ──off wanted, nobody insists──▶ silenced (retiring alone) ──nobody sends──▶ off
//! ```
//!
//! Up: all receive, then all send, then all insist. Down: the same backwards. What insists is never lowered because
//! something speaks against it later: that is only told.

use std::time::Duration;

use jiff::Timestamp;

use super::{Action, Answer, Cause, Decision, Facts, Goal};
use crate::ring::{Enforcement, Generation, Ring, Role};

/// Without a key in `ring`.
pub(super) fn begin(ring: Option<&Ring>, facts: &Facts, goal: Goal) -> Decision {
    // Without a ring, nodes that know one go on with what they hold: only a ring takes them down the ladder.
    let leftover = ring.is_none() && facts.newest > 0;
    if goal == Goal::Off && !leftover {
        return Decision::wait(Duration::MAX, "encryption is off, as asked");
    }
    Decision::rotate(Action::Begin, Cause::First, "there is no key yet")
}

/// What comes before any rotation.
pub(super) fn first(ring: &Ring, facts: &Facts, goal: Goal) -> Option<Decision> {
    let has = |role| ring.with_role(role).is_some();
    let (retiring, active, staged) = (has(Role::Retiring), has(Role::Active), has(Role::Staged));
    let silenced = !active && !staged;
    if ring.enforcement == Enforcement::Enforcing {
        return (goal != Goal::Auto)
            .then(|| Decision::act(Action::Relent, "plaintext is to be accepted, as asked"));
    }
    if !silenced && facts.pending != ring.pending {
        let (before, now) = (ring.pending.len(), facts.pending.len());
        let reason = format!("{now} nodes can't be encrypted to yet, of {before} before");
        return Some(Decision::act(Action::Pend, reason));
    }
    if goal != Goal::Off || (retiring && active) {
        return None;
    }
    // Beside a first generation, nodes go on insisting as before it, until it is active.
    if ring.is_first() && matches!(facts.nobody_insists, Answer::Awaits { .. }) {
        return None;
    }
    let (answer, awaited, action, reason) = if silenced {
        (&facts.nobody_sends, "every node stops to encrypt", Action::Quit, "nobody encrypts any more")
    } else {
        (
            &facts.nobody_insists,
            "every node accepts plaintext again",
            Action::Silence,
            "every node accepts plaintext",
        )
    };
    let wait = answer.wait(format_args!("encryption is to be off: {awaited}"));
    Some(wait.unwrap_or_else(|| Decision::act(action, format!("encryption is to be off, and {reason}"))))
}

/// With `active` alone, and nothing due before `time` is over.
pub(super) fn steady(
    ring: &Ring,
    active: &Generation,
    facts: &Facts,
    goal: Goal,
    time: Duration,
) -> Decision {
    let id = active.id;
    if goal != Goal::Auto || ring.enforcement == Enforcement::Enforcing {
        return Decision::wait(time, format!("generation {id} is active, nothing is due"));
    }
    if facts.may_insist == Answer::In(Duration::MAX) {
        let why = "it is not insisted on: nodes don't say what they do";
        return Decision::wait(time, format!("generation {id} is active, nothing is due; {why}"));
    }
    let against = facts.obstacle.as_ref().map_or_else(String::new, |obstacle| format!(" ({obstacle})"));
    match facts.may_insist.wait(format_args!("generation {id} is active, not insisted on yet{against}")) {
        None => Decision::act(Action::Insist, "every node encrypts, and nothing speaks against insisting"),
        Some(wait) => Decision { wake_in: wait.wake_in.min(time), ..wait },
    }
}

/// Carries out what this module decides.
pub(super) fn apply(ring: &mut Ring, action: Action, facts: &Facts, now: Timestamp) {
    match action {
        Action::Pend => ring.pending.clone_from(&facts.pending),
        Action::Insist => {
            ring.enforcement = Enforcement::Enforcing;
            ring.pending.clear();
        }
        Action::Relent => ring.enforcement = Enforcement::Permissive,
        Action::Silence => silence(ring, now),
        Action::Quit => *ring = Ring::off(ring.revision, ring.installation),
        Action::Wait
        | Action::Begin
        | Action::Stage
        | Action::Activate
        | Action::Drop
        | Action::Rekey
        | Action::Reset => {}
    }
}

/// The generation in use retires. Where there is none, the staged one does: a kernel may still send with one that the
/// ring has lost.
fn silence(ring: &mut Ring, now: Timestamp) {
    let has = |role| ring.with_role(role).is_some();
    let keep_staged = !has(Role::Active) && !has(Role::Retiring);
    ring.generations.retain(|generation| keep_staged || generation.role != Role::Staged);
    for generation in ring.generations.iter_mut().filter(|generation| generation.role != Role::Retiring) {
        generation.role = Role::Retiring;
        generation.role_since = now;
    }
    ring.next_rotation = None;
}
