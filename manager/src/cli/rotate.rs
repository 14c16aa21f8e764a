//! `ucp-secureoverlay-mgr rotate`: asks the manager for a new key, and follows what becomes of it.
//!
//! Nothing is rotated here. Under our manifest the request is a KeyRotation. Under MKE's, whose manager may read and write
//! Secrets and nothing else, it is an annotation of the Secret with the ring. Both work in the manager's pod, with its
//! rights, as from a workstation.

use anyhow::{Context, bail};
use kube::{
    Api, Client,
    api::{ListParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use secureoverlay_k8s::{
    client::{self, describe},
    key_rotation::{KeyRotation, KeyRotationSpec},
};
use secureoverlay_keyring::{
    key_rotation::{COMPLETE, FAILED, KeyRotationSpec as Spec, KeyRotationStatus},
    keyring::{Enforcement, KeyRing},
    uid::Uid,
};
use secureoverlay_rotation::Phase;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    USER_AGENT,
    cli::follow::{self, AWAY, LOOK, NOT_TAKEN_UP, Reader, TAKEN_UP, WAITING},
    config::{RotateArgs, SettingsSource},
    io::store::Store,
};

/// Asks, and waits where that is wanted. `settings`: how the manager is asked, where that is known.
///
/// # Errors
/// Where the request can't be made, or what became of it can't be seen, or the rotation failed.
pub async fn rotate(args: &RotateArgs, settings: Option<SettingsSource>) -> anyhow::Result<()> {
    let client = client::connect(USER_AGENT).await?;
    let asked = match settings {
        Some(SettingsSource::Flags) => None,
        Some(SettingsSource::Object) => {
            Some(ask_by_object(&client, args).await.map_err(|error| refused(&error))?)
        }
        None => match ask_by_object(&client, args).await {
            Ok(name) => Some(name),
            // No such kind of object, or no right to make one: as under MKE's manifest.
            Err(kube::Error::Api(status)) if [403, 404].contains(&status.code) => None,
            Err(error) => return Err(refused(&error)),
        },
    };
    match asked {
        Some(name) => {
            println!("keyrotation.secureoverlay.io/{name}");
            if args.wait { follow_object(&client, &name).await } else { Ok(()) }
        }
        None if args.skip_unresponsive => {
            bail!(
                "--skip-unresponsive needs KeyRotation objects, which this cluster or these rights do not have"
            )
        }
        None => {
            let goal = ask(&Store::new(client.clone())).await?;
            println!("asked for a rotation, by an annotation of the Secret");
            if args.wait { follow(&client, goal).await } else { Ok(()) }
        }
    }
}

fn refused(error: &kube::Error) -> anyhow::Error {
    anyhow::anyhow!("failed to create a KeyRotation: {}", describe(error))
}

/// Makes a KeyRotation, or tells the one under way to skip; its name.
async fn ask_by_object(client: &Client, args: &RotateArgs) -> Result<String, kube::Error> {
    let all = Api::<KeyRotation>::all(client.clone());
    if args.skip_unresponsive {
        let there = all.list(&ListParams::default()).await?.items;
        let under_way = there.into_iter().find(|object| {
            object.status.as_ref().is_some_and(|status| status.generation.is_some() && !status.is_finished())
        });
        if let Some(name) = under_way.and_then(|object| object.metadata.name) {
            let patch = Patch::Merge(json!({"spec": {"skipUnresponsive": true}}));
            all.patch(&name, &PatchParams::default(), &patch).await?;
            return Ok(name);
        }
    }
    let spec = KeyRotationSpec(Spec { skip_unresponsive: args.skip_unresponsive });
    let mut object = KeyRotation::new("", spec);
    object.metadata = ObjectMeta { generate_name: Some("rotate-".to_owned()), ..ObjectMeta::default() };
    let made = all.create(&PostParams::default(), &object).await?;
    Ok(made.metadata.name.unwrap_or_default())
}

/// Tells how a KeyRotation goes until it is over.
async fn follow_object(client: &Client, name: &str) -> anyhow::Result<()> {
    let (all, start) = (Api::<KeyRotation>::all(client.clone()), Instant::now());
    let (mut said, mut hinted, mut failing) = (String::new(), false, None);
    loop {
        let status = match all.get_opt(name).await {
            Ok(Some(object)) => object.status.unwrap_or_default(),
            Ok(None) => bail!("the KeyRotation {name} was deleted"),
            Err(error) => {
                if failing.get_or_insert_with(Instant::now).elapsed() > AWAY {
                    return Err(error).context("the API server does not answer");
                }
                sleep(LOOK).await;
                continue;
            }
        };
        failing = None;
        let now = tell(&status);
        if now != said {
            println!("{now}");
            said = now;
        }
        if status.holds(COMPLETE) {
            return Ok(());
        }
        if status.holds(FAILED) {
            bail!("the rotation failed");
        }
        if !hinted && status.conditions.is_empty() && start.elapsed() > TAKEN_UP {
            eprintln!("{NOT_TAKEN_UP}");
            hinted = true;
        }
        sleep(LOOK).await;
    }
}

/// Where it is, in a line.
fn tell(status: &KeyRotationStatus) -> String {
    let Some(complete) = status.condition(COMPLETE) else { return "waiting for the manager".to_owned() };
    let waiting = status.waiting_for.as_ref().filter(|waiting| !waiting.nodes.is_empty()).map(|waiting| {
        let shown: Vec<&str> = waiting.nodes.iter().take(5).map(String::as_str).collect();
        format!(" ({} of {} nodes, waiting for {})", waiting.done, waiting.total, shown.join(", "))
    });
    format!("{}{}", complete.message, waiting.unwrap_or_default())
}

/// What is to be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goal(Option<Uid>);

/// Where a rotation is, with the number of the new generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing has happened yet.
    Asked,
    /// Every node gets it.
    Staged(u64),
    /// It is in use, and the old one is still received.
    Draining(u64),
    /// It is the only one.
    Done(u64),
}

/// Writes the request beside the ring.
///
/// # Errors
/// Where the Secret can't be read or written, or holds no ring.
pub async fn ask(store: &Store) -> anyhow::Result<Goal> {
    follow::ask(store, async |ring, read| {
        let active = ring.as_ref().and_then(KeyRing::active).map(|active| active.uid);
        Ok((store.request(read).await?, Goal(active)))
    })
    .await
}

/// Tells how the rotation goes until it is over.
///
/// # Errors
/// Where that can't be seen any more, or nothing will come of it.
pub async fn follow(client: &Client, goal: Goal) -> anyhow::Result<()> {
    let (store, start) = (Store::new(client.clone()), Instant::now());
    let mut reader = Reader::new(&store);
    let (mut said, mut hinted) = (None, false);
    loop {
        let (ring, read) = reader.read().await?;
        let progress = goal.progress(ring.as_ref(), read.rotate);
        if ring.as_ref().is_some_and(|ring| ring.enforcement == Enforcement::Off) {
            bail!("encryption is off, so no key is made: start the manager with another --enforcement first");
        }
        if said != Some(progress) {
            match progress {
                Progress::Asked => println!("waiting for the manager"),
                Progress::Staged(id) => println!("generation {id} is on its way to every node"),
                Progress::Draining(id) => println!("generation {id} is active, the old one is draining"),
                Progress::Done(id) => {
                    println!("generation {id} is active, no other is left");
                    return Ok(());
                }
            }
            said = Some(progress);
        }
        if !hinted && start.elapsed() > TAKEN_UP {
            eprintln!("{}", if progress == Progress::Asked { NOT_TAKEN_UP } else { WAITING });
            hinted = true;
        }
        sleep(LOOK).await;
    }
}

impl Goal {
    /// Where the rotation is, by the ring and by whether the request is still in the Secret.
    #[must_use]
    pub fn progress(&self, ring: Option<&KeyRing>, pending: bool) -> Progress {
        match Phase::of(ring) {
            Phase::Draining { active, .. } => Progress::Draining(active.id),
            Phase::Bootstrapping { staged }
            | Phase::Staged { staged, .. }
            | Phase::Resuming { staged, .. } => Progress::Staged(staged.id),
            // Still there, it is about to be answered by one more rotation.
            Phase::Steady { active } if self.0 != Some(active.uid) && !pending => Progress::Done(active.id),
            Phase::Steady { .. } | Phase::Empty | Phase::Off | Phase::Stopping { .. } => Progress::Asked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn ring(roles: &[(u64, &str)]) -> KeyRing {
        testing::ring(Enforcement::Permissive, roles)
    }

    fn goal(roles: &[(u64, &str)]) -> Goal {
        Goal(ring(roles).active().map(|active| active.uid))
    }

    #[test]
    fn a_rotation_is_followed_to_its_end() {
        let goal = goal(&[(1, "active")]);
        let progress = |roles: &[(u64, &str)], pending| goal.progress(Some(&ring(roles)), pending);
        assert_eq!(progress(&[(1, "active")], true), Progress::Asked);
        assert_eq!(progress(&[(1, "active"), (2, "staged")], false), Progress::Staged(2));
        assert_eq!(progress(&[(1, "retiring"), (2, "active")], false), Progress::Draining(2));
        assert_eq!(progress(&[(2, "active")], false), Progress::Done(2));
        assert_eq!(progress(&[(1, "active")], false), Progress::Asked, "taken off: nothing was rotated");
    }

    #[test]
    fn a_request_during_a_rotation_is_for_another_one() {
        let goal = goal(&[(1, "active"), (2, "staged")]);
        assert_eq!(goal.progress(Some(&ring(&[(2, "active")])), true), Progress::Asked, "the one before it");
        assert_eq!(goal.progress(Some(&ring(&[(3, "active")])), false), Progress::Done(3));
    }

    #[test]
    fn what_is_waited_for_is_told_in_a_line() {
        assert_eq!(tell(&KeyRotationStatus::default()), "waiting for the manager");
        let status = json!({
            "conditions": [{
                "type": "Complete", "status": "False", "reason": "Staged", "message": "generation 7 is on its way",
                "lastTransitionTime": "2026-11-20T03:00:00Z",
            }],
            "waitingFor": {
                "step": "receive", "since": "2026-11-20T03:00:00Z", "done": 1, "total": 3, "nodes": ["b", "c"],
            },
        });
        let expected = "generation 7 is on its way (1 of 3 nodes, waiting for b, c)";
        assert_eq!(tell(&serde_json::from_value(status).unwrap()), expected);
    }
}
