//! Which KeyRotations wait, which generation serves which, and what their status says.
//!
//! All that wait when a generation is staged are served by it. Which ones these were is known by this process until it is
//! in their status. A process that is killed in between costs one more rotation, never one that is not made.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use secureoverlay_keyring::{
    condition::{
        ConditionStatus::{False, True},
        stamp,
    },
    key_rotation::{COMPLETE, FAILED, KeyRotationStatus, MAX_WAITING, WaitingFor},
    keyring::{KeyRing, Role},
    settings::EnforcementGoal,
    suite::Suite,
    uid::Uid,
};
use secureoverlay_rotation::{Action, Cause, Decision, Names, Wait};

use super::{Due, Facts, ObjectReference, ObjectWrite, RotationObject, condition, seconds};

/// Between two tries to delete one object.
const DELETE_AGAIN: Duration = Duration::from_secs(60);
/// Writes of one evaluation: operators may create as many objects as they like.
const BATCH: usize = 50;

/// The generation that serves a KeyRotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Served {
    generation: u64,
    cause: Cause,
    suite: Suite,
}

/// A generation that is about to be staged, and the KeyRotations that it will serve.
#[derive(Debug)]
struct Attempt {
    generation: Uid,
    served: Served,
    rotations: BTreeSet<Uid>,
}

/// Remembers what the objects do not say yet.
#[derive(Debug, Default)]
pub(crate) struct RotationTracker {
    objects: Vec<RotationObject>,
    attempt: Option<Attempt>,
    served: BTreeMap<Uid, Served>,
    /// Made by this process for a rotation that is due.
    own: BTreeSet<Uid>,
    /// Statuses of this process that were not seen in the objects yet, and when they were written.
    written: BTreeMap<Uid, (Instant, KeyRotationStatus)>,
    deleted: BTreeMap<Uid, Instant>,
    /// What became of the generation that was dropped last.
    dropped: Option<(u64, String)>,
    /// What the last removal left behind.
    left: Option<(u64, String)>,
}

impl RotationTracker {
    /// Takes in what was read; those that were deleted while they were under way, and their generation.
    pub(crate) fn handle_objects(&mut self, objects: Vec<RotationObject>) -> Vec<(ObjectReference, u64)> {
        let there: BTreeSet<Uid> = objects.iter().map(|object| object.reference.uid).collect();
        let gone = self.objects.iter().filter(|object| !there.contains(&object.reference.uid));
        let under_way = |object: &RotationObject| {
            let status = self.status(object);
            Some((object.reference.clone(), status.generation.filter(|_| !status.is_finished())?))
        };
        let gone = gone.filter_map(under_way).collect();
        let seen = objects.iter().filter(|object| object.status.generation.is_some());
        for object in seen {
            self.served.remove(&object.reference.uid);
        }
        self.written.retain(|uid, _| there.contains(uid));
        self.deleted.retain(|uid, _| there.contains(uid));
        self.objects = objects;
        gone
    }

    /// An object was made for a rotation that is due.
    pub(crate) fn handle_created(&mut self, object: RotationObject) {
        self.own.insert(object.reference.uid);
        self.objects.push(object);
    }

    /// The status as this process knows it.
    fn status<'s>(&'s self, object: &'s RotationObject) -> &'s KeyRotationStatus {
        let newer = self.written.get(&object.reference.uid).map(|(_, status)| status);
        newer.filter(|_| !object.status.is_finished()).unwrap_or(&object.status)
    }

    /// Those that no generation serves yet.
    fn waiting(&self) -> impl Iterator<Item = &RotationObject> {
        self.objects.iter().filter(|object| {
            let status = self.status(object);
            let served = status.generation.is_some() || self.served.contains_key(&object.reference.uid);
            !served && !status.is_finished()
        })
    }

    /// Whether one waits, however it came to be.
    pub(crate) fn waits(&self) -> bool {
        self.waiting().next().is_some()
    }

    /// The name of one that asks for a rotation. One that this process made for a rotation that is due does not, as long
    /// as that is due.
    pub(crate) fn asks(&self) -> Option<&str> {
        let mut asking = self.waiting().filter(|object| !self.own.contains(&object.reference.uid));
        asking.next().map(|object| object.reference.name.as_str())
    }

    /// Whether the rotation under way goes on without nodes that do not respond: whichever unfinished one says so.
    pub(crate) fn skips(&self) -> bool {
        let mut unfinished = self.objects.iter().filter(|object| !self.status(object).is_finished());
        unfinished.any(|object| object.spec.skip_unresponsive)
    }

    /// The one that is under way, or will be next.
    pub(crate) fn current(&self) -> Option<&ObjectReference> {
        let unfinished = self.objects.iter().filter(|object| !self.status(object).is_finished());
        let first = unfinished.min_by_key(|object| {
            let waits =
                self.status(object).generation.is_none() && !self.served.contains_key(&object.reference.uid);
            (waits, object.created, object.reference.name.as_str())
        });
        first.map(|object| &object.reference)
    }

    /// `ring` is about to be written.
    pub(crate) fn handle_writing(&mut self, decision: &Decision, ring: &KeyRing) {
        let newest = ring.generations.iter().max_by_key(|generation| generation.id);
        if let (Some(rotation), Some(newest)) = (decision.rotation, newest) {
            let served = Served { generation: newest.id, cause: rotation.cause, suite: newest.suite };
            let rotations = self.waiting().map(|object| object.reference.uid).collect();
            self.attempt = Some(Attempt { generation: newest.uid, served, rotations });
        }
    }

    /// A ring was read: what was attempted may have come true, whatever the answer was.
    pub(crate) fn observe(&mut self, ring: &KeyRing) {
        let done = |attempt: &Attempt| ring.generations.iter().any(|it| it.uid == attempt.generation);
        if let Some(attempt) = self.attempt.take_if(|attempt| done(attempt)) {
            let Attempt { served, rotations, .. } = attempt;
            self.own.clear();
            self.served.extend(rotations.into_iter().map(|uid| (uid, served)));
        }
    }

    /// `decision` was carried out on `before`.
    pub(crate) fn handle_written(&mut self, decision: &Decision, before: Option<&KeyRing>) {
        let missing = |text: &str| {
            let nodes = decision.wait.as_ref().map(|wait| &wait.nodes).filter(|nodes| !nodes.is_empty());
            nodes.map_or_else(String::new, |nodes| format!("{text}{}", Names(nodes)))
        };
        let with = |role| before.and_then(|ring| ring.with_role(role)).map(|generation| generation.id);
        match decision.action {
            Action::RemoveStaged => {
                self.dropped = with(Role::Staged).map(|id| (id, missing(" by ")));
            }
            Action::RemoveRetired => {
                self.left = with(Role::Active).map(|id| (id, missing("; held back until proven: pairs of ")));
            }
            _ => {}
        }
    }

    /// Adds what is to be written.
    pub(super) fn due(&mut self, facts: &Facts<'_>, due: &mut Due) {
        let now = facts.now.monotonic;
        if facts.ring.is_err() {
            return;
        }
        if facts
            .decision
            .is_some_and(|decision| decision.action == Action::Wait && decision.rotation.is_none())
        {
            // What it was made for is not due any more: it asks for a rotation like any other.
            self.own.clear();
        }
        let mut statuses = Vec::new();
        for object in &self.objects {
            let (uid, before) = (object.reference.uid, self.status(object));
            let status = self.advance(before, self.served.get(&uid), facts);
            if status == object.status {
                continue;
            }
            let written = self.written.get(&uid).map(|(at, _)| *at);
            if due.writes.len() < BATCH && due.paced(written, now) {
                due.writes.push(ObjectWrite::RotationStatus {
                    rotation: object.reference.clone(),
                    resource_version: object.resource_version.clone(),
                    status: Box::new(status.clone()),
                });
                statuses.push((uid, (now, status)));
            }
        }
        self.written.extend(statuses);
        self.prune(facts.settings.rotation.history_limit, now, due);
    }

    /// The oldest finished ones go. Only what the API server has as finished is.
    fn prune(&mut self, limit: u32, now: Instant, due: &mut Due) {
        let mut finished: Vec<_> = self.objects.iter().filter(|object| object.status.is_finished()).collect();
        finished.sort_by_key(|object| (object.created, object.reference.name.as_str()));
        let surplus = finished.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
        for object in finished.into_iter().take(surplus.min(BATCH)) {
            let again = |at: &Instant| now.saturating_duration_since(*at) < DELETE_AGAIN;
            if !self.deleted.get(&object.reference.uid).is_some_and(again) {
                self.deleted.insert(object.reference.uid, now);
                due.writes.push(ObjectWrite::DeleteRotation(object.reference.clone()));
            }
        }
    }

    /// The status that follows from `before`.
    fn advance(
        &self,
        before: &KeyRotationStatus,
        served: Option<&Served>,
        facts: &Facts<'_>,
    ) -> KeyRotationStatus {
        let Ok(Some(ring)) = facts.ring else { return before.clone() };
        if before.is_finished() {
            return before.clone();
        }
        let mut status = before.clone();
        if let (None, Some(served)) = (status.generation, served) {
            status.generation = Some(served.generation);
            status.cause = format!("{:?}", served.cause);
            status.suite = Some(served.suite);
        }
        let end = match status.generation {
            None if facts.settings.enforcement == EnforcementGoal::Off => {
                End::Failed("EncryptionOff", "encryption is off: no key is made".to_owned())
            }
            None => End::NotYet("Waiting", "waits for its key to be made".to_owned()),
            Some(id) => self.under_way(&mut status, id, ring, facts),
        };
        if !matches!(end, End::NotYet("Staged" | "Draining", _)) {
            status.waiting_for = None;
        }
        let (complete, failed, reason, message) = match &end {
            End::NotYet(reason, message) => (False, False, *reason, message),
            End::Complete(message) => (True, False, COMPLETE, message),
            End::Failed(reason, message) => (False, True, *reason, message),
        };
        let unless = if failed == True { message.as_str() } else { "" };
        let mut conditions = vec![
            condition(COMPLETE, complete, reason, message),
            condition(FAILED, failed, if failed == True { reason } else { "NotFailed" }, unless),
        ];
        stamp(&mut conditions, &before.conditions, facts.now.wall);
        status.conditions = conditions;
        status
    }

    /// How far the generation is.
    fn under_way(&self, status: &mut KeyRotationStatus, id: u64, ring: &KeyRing, facts: &Facts<'_>) -> End {
        let generation = ring.generations.iter().find(|generation| generation.id == id);
        let Some(generation) = generation else { return self.gone(status, id, ring, facts) };
        let times = &mut status.phase_times;
        times.staged.get_or_insert(seconds(generation.created_at));
        match generation.role {
            Role::Staged => {
                status.waiting_for = waiting_for(status.waiting_for.take(), id, facts);
                End::NotYet("Staged", format!("generation {id} is on its way to every node"))
            }
            Role::Active if ring.with_role(Role::Retiring).is_some() => {
                times.activated.get_or_insert(seconds(generation.role_since));
                status.waiting_for = waiting_for(status.waiting_for.take(), id, facts);
                End::NotYet("Draining", format!("nodes move to generation {id}"))
            }
            Role::Active | Role::Retiring => {
                if generation.role == Role::Active {
                    times.activated.get_or_insert(seconds(generation.role_since));
                }
                times.retired.get_or_insert(seconds(facts.now.wall));
                self.complete(id)
            }
        }
    }

    fn complete(&self, id: u64) -> End {
        let left = self.left.as_ref().filter(|(of, _)| *of == id).map_or("", |(_, text)| text.as_str());
        End::Complete(format!("generation {id} is in use, and the one before it is gone{left}"))
    }

    /// The generation is not in the ring any more.
    fn gone(&self, status: &mut KeyRotationStatus, id: u64, ring: &KeyRing, facts: &Facts<'_>) -> End {
        let dropped = self.dropped.as_ref().filter(|(of, _)| *of == id);
        if let Some((_, by)) = dropped {
            let text = format!(
                "generation {id} was not proven in time{by}: it was dropped, traffic goes on as before"
            );
            return End::Failed("NotProven", text);
        }
        // It was in use: a later one has replaced it while no manager looked.
        if status.phase_times.activated.is_some() {
            status.phase_times.retired.get_or_insert(seconds(facts.now.wall));
            return self.complete(id);
        }
        if facts.settings.enforcement == EnforcementGoal::Off {
            let text = format!("encryption was switched off before generation {id} was in use");
            return End::Failed("EncryptionOff", text);
        }
        let text = format!("generation {id} left the key ring before it was in use");
        let reason = if ring.highest_id() < id { "NotProven" } else { "KeyRingReplaced" };
        End::Failed(reason, text)
    }
}

/// What the condition Complete says.
enum End {
    NotYet(&'static str, String),
    Complete(String),
    Failed(&'static str, String),
}

/// What is waited for, where that is about this generation. Since when stays as it was said first.
fn waiting_for(before: Option<WaitingFor>, id: u64, facts: &Facts<'_>) -> Option<WaitingFor> {
    let decision = facts.decision?;
    let wait: &Wait = decision.wait.as_ref().filter(|wait| wait.id == id)?;
    let step = wait.step.name();
    let waited = jiff::SignedDuration::try_from(wait.waited).unwrap_or_default();
    let since = facts.now.wall.checked_sub(waited).unwrap_or(facts.now.wall);
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Some(WaitingFor {
        since: before.filter(|before| before.step == step).map_or(seconds(since), |before| before.since),
        step: step.to_owned(),
        done: number(wait.total.saturating_sub(wait.nodes.len())),
        total: number(wait.total),
        nodes: wait.nodes.iter().take(MAX_WAITING).cloned().collect(),
    })
}
