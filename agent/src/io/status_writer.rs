//! Keeps this node's NodeEncryption object as it should be. Nothing is written while nothing changes.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use jiff::Timestamp;
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
};
use secureoverlay_agent_core::agent::GATEWAY_UNKNOWN;
use secureoverlay_k8s::{
    access,
    client::describe,
    node_encryption::{Condition, NodeEncryption, NodeEncryptionStatus, stamp},
};
use secureoverlay_keyring::uid::Uid;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    io::rights::Patience,
    telemetry::{metrics::Metrics, status::DesiredStatus},
};

/// Clusters with fewer nodes need not take care.
const FEW: usize = 50;
/// What the API server shall have to take from all agents together.
const WRITES_A_SECOND: u32 = 100;
/// Between two writes of one agent.
const PAUSE: Duration = Duration::from_millis(200);
/// Pairs with a node that joins or boots are proven within this time, also on busy nodes: nothing is written about them
/// before.
const UNPROVEN: Duration = Duration::from_secs(30);
/// Before another attempt after a failure; doubles.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest pause between attempts.
const RETRY_LAST: Duration = Duration::from_secs(60);

/// Writes what is `wanted` into the object named `name` until the sender is dropped.
pub async fn write(
    client: Client,
    name: String,
    mut wanted: watch::Receiver<Option<DesiredStatus>>,
    metrics: Metrics,
) {
    let share = share(&name);
    let mut writer = Writer::new(client, name);
    let (mut patience, mut retry, mut failing) = (Patience::default(), RETRY_FIRST, false);
    let mut written: Option<(DesiredStatus, Instant)> = None;
    let mut changed_at = None;
    loop {
        let wanted_now = wanted.borrow_and_update().clone();
        let want = match wanted_now {
            Some(want) if written.as_ref().is_none_or(|(written, _)| !says_the_same(written, &want)) => want,
            _ => {
                changed_at = None;
                if wanted.changed().await.is_err() {
                    return;
                }
                continue;
            }
        };
        let spread = spread(want.peers);
        // Each node has its own place in time. Not counted anew with each change: what changes all the time would never
        // be written.
        let pause = written
            .as_ref()
            .filter(|(written, _)| only_pairs_differ(written, &want) && !all_proven(&want))
            .map_or(Duration::ZERO, |_| UNPROVEN);
        let own = *changed_at.get_or_insert_with(Instant::now) + pause + spread.mul_f64(share);
        let at = written.as_ref().map_or(own, |(_, at)| own.max(*at + spread.max(PAUSE)));
        tokio::select! {
            biased;
            () = sleep_until(at) => {}
            result = wanted.changed() => match result {
                Ok(()) => continue,
                Err(_) => return,
            },
        }
        let outcome = writer.write(&want, Timestamp::now()).await;
        metrics.status_write(outcome.name());
        match outcome {
            Outcome::Written => {
                if failing {
                    tracing::info!("this node's NodeEncryption is written again");
                }
                (written, changed_at, failing) = (Some((want, Instant::now())), None, false);
                (patience, retry) = (Patience::default(), RETRY_FIRST);
            }
            Outcome::Refused => {
                if !failing {
                    tracing::info!(
                        "this agent may not write NodeEncryptions: a manager that waits for acknowledgements waits for \
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

/// Whether nothing has to be written: counts alone change with every node that comes.
fn says_the_same(written: &DesiredStatus, want: &DesiredStatus) -> bool {
    let counted = |status: &DesiredStatus| {
        let mut status = status.status.clone();
        (status.pairs, status.kernel) = Default::default();
        status
    };
    (written.node, written.renewal) == (want.node, want.renewal) && counted(written) == counted(want)
}

/// Whether only pairs that are not proven differ, and what follows from those.
fn only_pairs_differ(written: &DesiredStatus, want: &DesiredStatus) -> bool {
    let without_pairs = |status: &DesiredStatus| {
        let mut status = status.status.clone();
        (status.pairs, status.kernel, status.conditions) = Default::default();
        status.findings.retain(|finding| finding.reason != GATEWAY_UNKNOWN);
        if let Some(ack) = &mut status.acknowledgement {
            ack.unproven_pairs.clear();
            ack.proven_generations.clear();
            ack.all_pairs_proven = false;
            // Routes to a node are there before it announces itself.
            (ack.unknown_gateways, ack.no_peers) = Default::default();
        }
        status
    };
    (written.node, written.renewal) == (want.node, want.renewal)
        && without_pairs(written) == without_pairs(want)
}

/// Whether there is nothing left to wait for: good news is written at once.
fn all_proven(status: &DesiredStatus) -> bool {
    status.status.acknowledgement.as_ref().is_some_and(|ack| {
        ack.all_pairs_proven && !ack.no_peers && ack.unknown_gateways == Default::default()
    })
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
    /// The object as the API server last showed it.
    known: Option<Known>,
}

struct Known {
    /// UID of the Node that owns it.
    node: Uid,
    /// Its own UID.
    uid: Option<String>,
    conditions: Vec<Condition>,
}

impl Writer {
    fn new(client: Client, name: String) -> Self {
        // Without a type: whatever another program wrote into the object can be read, and replaced.
        let api = Api::all_with(client.clone(), &ApiResource::erase::<NodeEncryption>(&()));
        Self { client, api, name, allowed: false, known: None }
    }

    async fn write(&mut self, want: &DesiredStatus, now: Timestamp) -> Outcome {
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
    async fn try_write(&mut self, want: &DesiredStatus, now: Timestamp) -> Result<bool, kube::Error> {
        let group = NodeEncryption::group(&());
        if !self.allowed {
            let resource = "nodeencryptions/status";
            self.allowed =
                access::allowed(&self.client, "patch", &group, resource, Some(&self.name), None).await?;
        }
        if !self.allowed {
            return Ok(false);
        }
        let known = match self.known.take().filter(|known| known.node == want.node) {
            Some(known) => known,
            None => known(want.node, &self.own(want.node).await?),
        };
        let mut status = want.status.clone();
        stamp(&mut status.conditions, &known.conditions, now);
        let conditions = status.conditions.clone();
        let patch = Patch::Merge(json!({ "metadata": { "uid": known.uid }, "status": whole(&status)? }));
        self.api.patch_status(&self.name, &PatchParams::default(), &patch).await?;
        self.known = Some(Known { conditions, ..known });
        Ok(true)
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

fn known(node: Uid, object: &DynamicObject) -> Known {
    let conditions = object.data.get("status").and_then(|status| status.get("conditions"));
    let conditions = conditions.and_then(|conditions| serde_json::from_value(conditions.clone()).ok());
    Known { node, uid: object.metadata.uid.clone(), conditions: conditions.unwrap_or_default() }
}

/// The status as a merge patch (RFC 7386) that leaves nothing of what was there: what is absent is removed by name.
fn whole(status: &NodeEncryptionStatus) -> Result<Value, kube::Error> {
    let mut whole = json!({ "acknowledgement": { "activeGeneration": null }, "key": null, "mtu": null });
    let status = serde_json::to_value(status).map_err(kube::Error::SerdeError)?;
    merge(&mut whole, status);
    Ok(whole)
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (field, value) in from {
                merge(into.entry(field).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

#[cfg(test)]
mod tests;
