//! `ucp-secureoverlay-mgr rotate`: asks the manager for a new key, and follows what becomes of it.
//!
//! It needs what the manager itself has, `get` and `update` of the Secret, so that it works in the manager's pod as from
//! a workstation. Nothing is rotated here: the request is an annotation, and the manager answers it.

use anyhow::bail;
use kube::Client;
use secureoverlay_common::{
    phase::Phase,
    ring::{Enforcement, Ring},
    uid::Uid,
};
use secureoverlay_daemon::client;
use secureoverlay_manager_core::snapshot::OperatorRequests;
use tokio::time::{Instant, sleep};

use crate::{
    USER_AGENT,
    asking::{self, Awaited, LOOK, NOT_TAKEN_UP, Reader, TAKEN_UP},
    store::Store,
};

/// Flags of the command.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Args {
    /// Stay until the new key is in use and the old one is gone, and tell how it goes
    #[arg(long)]
    pub wait: bool,
    /// Go on without nodes that don't answer: 30 seconds a step is all that they get. They lose the packets of those
    /// that have gone on, until they catch up. While a rotation is under way, only that one is pressed on. A manager that
    /// goes by time waits for nobody, and takes no notice
    #[arg(long)]
    pub force: bool,
}

/// What is asked for, and how one knows that it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goal {
    requests: OperatorRequests,
    /// The generation that is to be replaced; `None` where the end of the rotation under way is all.
    replace: Option<Option<Uid>>,
}

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

/// Asks, and waits where that is wanted.
///
/// # Errors
/// Where the request can't be made, or what became of it can't be seen.
pub async fn rotate(args: &Args) -> anyhow::Result<()> {
    let client = client::connect(USER_AGENT).await?;
    let goal = ask(&Store::new(client.clone()), args.force).await?;
    match (goal.replace, goal.requests.press_on) {
        (None, _) => println!("a rotation is under way and goes on without the nodes that it waits for"),
        (Some(_), false) => println!("asked for a rotation"),
        (Some(_), true) => println!("asked for a rotation that goes on without nodes that don't answer"),
    }
    if args.wait { follow(&client, goal).await } else { Ok(()) }
}

/// Writes the request beside the ring.
///
/// # Errors
/// Where the Secret can't be read or written, or holds no ring.
pub async fn ask(store: &Store, force: bool) -> anyhow::Result<Goal> {
    asking::ask(store, async |ring, held| {
        let goal = Goal::new(ring.as_ref(), force);
        Ok((store.request(held, goal.requests).await?, goal))
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
    let (mut said, mut awaited, mut hinted) = (None, Awaited::default(), false);
    loop {
        let (ring, held) = reader.read().await?;
        let progress = goal.progress(ring.as_ref(), held.requests);
        if progress == Progress::Asked && held.requests.enforce == Some(Enforcement::Off) {
            if goal.requests.rotate {
                bail!("encryption is asked to be off, so no key is made: `enforce auto` first");
            }
            if ring.is_none_or(|ring| ring.enforcement == Enforcement::Off) {
                println!("encryption is off, no key is left");
                return Ok(());
            }
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
        if progress == Progress::Asked && !hinted && start.elapsed() > TAKEN_UP {
            eprintln!("{NOT_TAKEN_UP}");
            hinted = true;
        }
        awaited.tell(client).await;
        sleep(LOOK).await;
    }
}

impl Goal {
    fn new(ring: Option<&Ring>, force: bool) -> Self {
        if force && under_way(Phase::of(ring)) {
            return Self {
                requests: OperatorRequests { press_on: true, ..OperatorRequests::default() },
                replace: None,
            };
        }
        let active = ring.and_then(Ring::active).map(|active| active.uid);
        Self {
            requests: OperatorRequests { rotate: true, press_on: force, enforce: None },
            replace: Some(active),
        }
    }

    /// Where the rotation is, by the ring and the requests in the Secret.
    #[must_use]
    pub fn progress(&self, ring: Option<&Ring>, pending: OperatorRequests) -> Progress {
        match Phase::of(ring) {
            Phase::Draining { active, .. } => Progress::Draining(active.id),
            Phase::Bootstrapping { staged }
            | Phase::Staged { staged, .. }
            | Phase::Resuming { staged, .. } => Progress::Staged(staged.id),
            Phase::Steady { active } => {
                let newer = self.replace.is_none_or(|before| before != Some(active.uid));
                // Still there, it is about to be answered by one more rotation.
                if newer && !(self.requests.rotate && pending.rotate) {
                    Progress::Done(active.id)
                } else {
                    Progress::Asked
                }
            }
            Phase::Empty | Phase::Off | Phase::Stopping { .. } => Progress::Asked,
        }
    }
}

/// Whether a rotation, the first key included, has begun and not ended.
const fn under_way(phase: Phase<'_>) -> bool {
    match phase {
        Phase::Empty | Phase::Off | Phase::Steady { .. } => false,
        Phase::Bootstrapping { .. }
        | Phase::Staged { .. }
        | Phase::Draining { .. }
        | Phase::Stopping { .. }
        | Phase::Resuming { .. } => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn ring(roles: &[(u64, &str)]) -> Ring {
        testing::ring(Enforcement::Permissive, roles)
    }

    const NONE: OperatorRequests = OperatorRequests { rotate: false, press_on: false, enforce: None };
    const ROTATE: OperatorRequests = OperatorRequests { rotate: true, press_on: false, enforce: None };

    #[test]
    fn a_rotation_is_followed_to_its_end() {
        let goal = Goal::new(Some(&ring(&[(1, "active")])), false);
        assert_eq!(goal.requests, ROTATE);
        let progress = |roles: &[(u64, &str)], pending| goal.progress(Some(&ring(roles)), pending);
        assert_eq!(progress(&[(1, "active")], ROTATE), Progress::Asked);
        assert_eq!(progress(&[(1, "active"), (2, "staged")], NONE), Progress::Staged(2));
        assert_eq!(progress(&[(1, "retiring"), (2, "active")], NONE), Progress::Draining(2));
        assert_eq!(progress(&[(2, "active")], NONE), Progress::Done(2));
        assert_eq!(
            progress(&[(1, "active")], NONE),
            Progress::Asked,
            "taken off by somebody: nothing was rotated"
        );
    }

    #[test]
    fn a_request_during_a_rotation_is_for_another_one() {
        let goal = Goal::new(Some(&ring(&[(1, "active"), (2, "staged")])), false);
        assert_eq!(goal.requests, ROTATE);
        assert_eq!(
            goal.progress(Some(&ring(&[(2, "active")])), ROTATE),
            Progress::Asked,
            "the one before it"
        );
        assert_eq!(goal.progress(Some(&ring(&[(3, "active")])), NONE), Progress::Done(3));
    }

    #[test]
    fn force_presses_on_what_is_under_way() {
        for roles in [[(1, "active"), (2, "staged")], [(1, "retiring"), (2, "active")]] {
            let goal = Goal::new(Some(&ring(&roles)), true);
            assert_eq!(goal.requests, OperatorRequests { press_on: true, ..OperatorRequests::default() });
            assert_eq!(goal.progress(Some(&ring(&[(2, "active")])), NONE), Progress::Done(2));
        }
        let goal = Goal::new(Some(&ring(&[(1, "active")])), true);
        assert_eq!(goal.requests, OperatorRequests { rotate: true, press_on: true, enforce: None });
        assert_eq!(Goal::new(None, false).progress(None, ROTATE), Progress::Asked);
    }
}
