//! Keeps this node's NodeEncryption object as it should be. Whether that works never disturbs anything else.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
};
use secureoverlay_common::uid::Uid;
use secureoverlay_daemon::{
    access,
    client::describe,
    node_encryption::{NodeEncryption, NodeEncryptionStatus},
};
use serde_json::{Map, Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use crate::{metrics::Metrics, rights::Patience, status::Wanted};

/// How often something is written though nothing has changed.
const HEARTBEAT: Duration = Duration::from_secs(600);
/// How often it is looked at whether the object is still there and says what was written, at most.
const LOOK: Duration = Duration::from_secs(60);
/// Over how long nodes spread what stops their traffic until the manager has heard it.
const HURRY: Duration = Duration::from_secs(2);
/// Clusters with fewer nodes need not take care.
const FEW: usize = 50;
/// What the API server shall have to take from all agents together.
const WRITES_A_SECOND: u32 = 100;
/// Between two writes of one agent.
const PAUSE: Duration = Duration::from_millis(200);
/// Before another attempt after a failure; doubles.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest pause between attempts.
const RETRY_LAST: Duration = Duration::from_secs(60);
/// The field of the status that is the manager's.
const MANAGERS: &str = "awaited";

/// Writes what is `wanted` into the object named `name` for as long as somebody wants something.
pub async fn write(
    client: Client,
    name: String,
    mut wanted: watch::Receiver<Option<Wanted>>,
    metrics: Metrics,
) {
    let share = share(&name);
    let mut writer = Writer::new(client, name);
    let (mut patience, mut retry, mut failing) = (Patience::default(), RETRY_FIRST, false);
    let mut written: Option<(Wanted, Instant)> = None;
    let (mut changed_at, mut looked_at) = (None, Instant::now());
    loop {
        let Some(want) = wanted.borrow_and_update().clone() else {
            if wanted.changed().await.is_err() {
                return;
            }
            continue;
        };
        let before = written.as_ref().map(|(written, _)| written);
        let changed = before != Some(&want);
        let spread = match spread(want.peers) {
            spread if changed && lost_keys(&want, before) => spread.min(HURRY),
            spread => spread,
        };
        // Not at once: what comes and goes all the time would never be written.
        changed_at = changed_at.filter(|at: &Instant| changed || at.elapsed() < spread);
        let next_look = looked_at + LOOK.max(2 * spread).mul_f64(0.9 + 0.2 * share);
        let at = if changed {
            let earliest = written.as_ref().map(|(_, at)| *at + spread.max(PAUSE));
            let own = *changed_at.get_or_insert_with(Instant::now) + spread.mul_f64(share);
            earliest.map_or(own, |earliest| own.max(earliest))
        } else {
            let last = written.as_ref().map_or_else(Instant::now, |(_, at)| *at);
            last + HEARTBEAT.mul_f64(0.9 + 0.2 * share)
        };
        tokio::select! {
            biased;
            result = wanted.changed() => match result {
                Ok(()) => continue,
                Err(_) => return,
            },
            () = sleep_until(at) => {}
            () = sleep_until(next_look), if !changed => {
                looked_at = Instant::now();
                if !writer.is_as_written().await {
                    tracing::info!("this node's NodeEncryption is gone, or not as it was written: writing it anew");
                    written = None;
                }
                continue;
            }
        }
        let outcome = writer.write(&want, Timestamp::now()).await;
        metrics.acknowledgement(outcome.name());
        match outcome {
            Outcome::Written => {
                if failing {
                    tracing::info!("this node's NodeEncryption is written again");
                }
                looked_at = Instant::now();
                (written, changed_at, failing) = (Some((want, looked_at)), None, false);
                (patience, retry) = (Patience::default(), RETRY_FIRST);
            }
            Outcome::Refused => {
                if !failing {
                    tracing::info!(
                        "this agent may not write NodeEncryptions: a manager that goes by every node's word waits for \
                         this node; asking again from time to time"
                    );
                }
                failing = true;
                sleep(patience.pause()).await;
            }
            Outcome::Failed(error) => {
                if failing {
                    tracing::debug!(error, "still cannot write this node's NodeEncryption");
                } else {
                    tracing::warn!(
                        error,
                        "cannot write this node's NodeEncryption, so rotations wait for this node; trying on"
                    );
                }
                failing = true;
                sleep(retry.mul_f64(0.5 + share)).await;
                retry = (2 * retry).min(RETRY_LAST);
            }
        }
    }
}

/// Whether it tells of keys that can't be used any more, for the first time.
fn lost_keys(want: &Wanted, before: Option<&Wanted>) -> bool {
    let burnt = |wanted: &'_ Wanted| wanted.status.acknowledgement.as_ref().map(|said| said.burnt.clone());
    burnt(want).is_some_and(|now| !now.is_empty() && before.and_then(burnt) != Some(now))
}

/// This node's place among all, from 0 to 1: the same for ever, so that the nodes never come all at once.
fn share(name: &str) -> f64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    f64::from((hasher.finish() >> 32) as u32) / f64::from(u32::MAX)
}

/// Over how long the nodes spread what all of them have to say at once.
fn spread(peers: usize) -> Duration {
    if peers < FEW {
        return Duration::ZERO;
    }
    Duration::from_secs(1) * u32::try_from(peers).unwrap_or(u32::MAX) / WRITES_A_SECOND
}

enum Outcome {
    Written,
    Refused,
    Failed(String),
}

impl Outcome {
    const fn name(&self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::Refused => "refused",
            Self::Failed(_) => "failed",
        }
    }
}

impl From<kube::Error> for Outcome {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 403 => Self::Refused,
            error => Self::Failed(describe(&error)),
        }
    }
}

struct Writer {
    client: Client,
    api: Api<DynamicObject>,
    name: String,
    allowed: bool,
    /// The object's owner and status as the API server last showed them.
    known: Option<(Uid, Value)>,
}

impl Writer {
    fn new(client: Client, name: String) -> Self {
        // Without a type: whatever somebody else wrote into the object can be read, and replaced.
        let api = Api::all_with(client.clone(), &ApiResource::erase::<NodeEncryption>(&()));
        Self { client, api, name, allowed: false, known: None }
    }

    async fn write(&mut self, want: &Wanted, now: Timestamp) -> Outcome {
        match self.try_write(want, now).await {
            Ok(true) => Outcome::Written,
            Ok(false) => Outcome::Refused,
            Err(error) => {
                // It may be gone, or be another one.
                (self.allowed, self.known) = (false, None);
                error.into()
            }
        }
    }

    /// Whether this agent may.
    async fn try_write(&mut self, want: &Wanted, now: Timestamp) -> Result<bool, kube::Error> {
        let group = NodeEncryption::group(&());
        if !self.allowed {
            let resource = "nodeencryptions/status";
            self.allowed =
                access::allowed(&self.client, "patch", &group, resource, Some(&self.name), None).await?;
        }
        if !self.allowed {
            return Ok(false);
        }
        let known = match self.known.take() {
            Some((owner, status)) if owner == want.node => status,
            _ => own_part(self.own(want.node).await?),
        };
        let status = stamped(want.status.clone(), &known, now);
        let status = serde_json::to_value(status).map_err(kube::Error::SerdeError)?;
        let patch = Patch::Merge(json!({ "status": change(&known, &status) }));
        let object = self.api.patch_status(&self.name, &PatchParams::default(), &patch).await?;
        self.known = Some((want.node, own_part(object)));
        Ok(true)
    }

    /// Whether the object is there as it was written last; where it can't be read, it is taken for so.
    async fn is_as_written(&mut self) -> bool {
        // Nobody knows what became of the last attempt.
        let Some((_, known)) = &self.known else { return false };
        let Ok(object) = self.api.get_opt(&self.name).await else { return true };
        let as_written = object.is_some_and(|object| own_part(object) == *known);
        if !as_written {
            self.known = None;
        }
        as_written
    }

    /// Makes the object belong to our Node, and creates it where there is none.
    async fn own(&self, node: Uid) -> Result<DynamicObject, kube::Error> {
        let owners = json!([{ "apiVersion": "v1", "kind": "Node", "name": self.name, "uid": node }]);
        let patch = Patch::Merge(json!({ "metadata": { "ownerReferences": owners } }));
        match self.api.patch(&self.name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            result => return result,
        }
        let resource = ApiResource::erase::<NodeEncryption>(&());
        let mut object = DynamicObject::new(&self.name, &resource).data(json!({ "spec": {} }));
        object.metadata.owner_references =
            Some(serde_json::from_value(owners).map_err(kube::Error::SerdeError)?);
        self.api.create(&PostParams::default(), &object).await
    }
}

/// The status of an object, without what is the manager's.
fn own_part(mut object: DynamicObject) -> Value {
    let mut status = object.data.get_mut("status").map_or_else(|| json!({}), Value::take);
    if let Some(fields) = status.as_object_mut() {
        fields.remove(MANAGERS);
    }
    status
}

/// With the time, and the times since when its conditions are what they are.
fn stamped(mut status: NodeEncryptionStatus, known: &Value, now: Timestamp) -> NodeEncryptionStatus {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let before: Vec<Condition> = known
        .get("conditions")
        .and_then(|conditions| serde_json::from_value(conditions.clone()).ok())
        .unwrap_or_default();
    for condition in &mut status.conditions {
        let same = |other: &&Condition| other.type_ == condition.type_ && other.status == condition.status;
        condition.last_transition_time.0 =
            before.iter().find(same).map_or(now, |other| other.last_transition_time.0);
    }
    status.heartbeat = Some(now);
    status
}

/// The merge patch (RFC 7386) from one value to another. What is no longer there has to be taken out by name: a
/// generation that stays in `receives` would be a lie.
fn change(from: &Value, to: &Value) -> Value {
    let (Value::Object(from), Value::Object(to)) = (from, to) else { return to.clone() };
    let gone = from.keys().filter(|key| !to.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let changed = to.iter().filter(|(key, value)| from.get(*key) != Some(value));
    let changed = changed.map(|(key, value)| {
        (key.clone(), from.get(key).map_or_else(|| value.clone(), |before| change(before, value)))
    });
    Value::Object(gone.chain(changed).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests;
