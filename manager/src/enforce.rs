//! `ucp-secureoverlay-mgr enforce`: tells the manager how far to insist on encryption, and follows it there.
//!
//! As `rotate`, it only writes an annotation, with the rights that the manager has.

use std::{fmt, time::Duration};

use anyhow::bail;
use clap::ValueEnum;
use kube::Client;
use secureoverlay_common::{
    phase::Phase,
    ring::{Enforcement, Ring},
    rotation::EnforcementGoal,
};
use secureoverlay_daemon::client;
use tokio::time::{Instant, sleep};

use crate::{
    USER_AGENT,
    asking::{self, Awaited, LOOK, NOT_TAKEN_UP, Reader, TAKEN_UP},
    store::Store,
};

/// What to say when it is not insisted yet.
const NOT_INSISTED: &str = "not yet: a manager that goes by time, as under MKE's manifest, never insists. One that goes by \
     the nodes' word says what it waits for in Events of the Secret and in the column AWAITED (kubectl get nodeencryptions)";
/// What to say when nobody makes a key.
const NO_KEY: &str = "nothing is to be encrypted; a node that still holds a key from before, of a ring that was wiped, goes on with it";

/// What `--enforcement` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Enforce {
    /// Up to enforcing, once nothing speaks against it
    Auto,
    /// Plaintext is accepted
    Permissive,
    /// Nothing is encrypted
    Off,
}

impl From<Enforce> for EnforcementGoal {
    fn from(enforce: Enforce) -> Self {
        match enforce {
            Enforce::Auto => Self::Auto,
            Enforce::Permissive => Self::Permissive,
            Enforce::Off => Self::Off,
        }
    }
}

impl fmt::Display for Enforce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Permissive => "permissive",
            Self::Off => "off",
        })
    }
}

/// Flags of the command.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Args {
    /// How far: what is asked for counts until something else is, whatever the manager is started with
    #[arg(value_enum, value_name = "GOAL")]
    pub goal: Asked,
    /// Stay until it is so, and tell how it goes
    #[arg(long)]
    pub wait: bool,
}

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Asked {
    /// What the manager was started with
    Auto,
    /// Encrypted where both ends are ready, plaintext accepted
    Permissive,
    /// Plaintext turned away, as soon as nothing speaks against it
    Enforcing,
    /// Nothing encrypted
    Off,
}

impl Asked {
    /// What the annotation says; `None` where there is to be none.
    #[must_use]
    pub const fn enforcement(self) -> Option<Enforcement> {
        match self {
            Self::Auto => None,
            Self::Permissive => Some(Enforcement::Permissive),
            Self::Enforcing => Some(Enforcement::Enforcing),
            Self::Off => Some(Enforcement::Off),
        }
    }
}

/// Asks, and waits where that is wanted.
///
/// # Errors
/// Where the request can't be made, or what became of it can't be seen.
pub async fn enforce(args: &Args) -> anyhow::Result<()> {
    let asked = args.goal.enforcement();
    if asked.is_none() && args.wait {
        bail!(
            "`auto` leaves it to the manager, whose setting is not seen from here: there is nothing to wait for"
        );
    }
    let client = client::connect(USER_AGENT).await?;
    ask(&Store::new(client.clone()), asked).await?;
    match asked {
        None => println!("what the manager was started with counts again"),
        Some(enforcement) => println!("asked for {}", enforcement.name()),
    }
    match asked.filter(|_| args.wait) {
        Some(enforcement) => follow(&client, enforcement).await,
        None => Ok(()),
    }
}

/// Writes the request beside the ring, or takes it off.
///
/// # Errors
/// Where the Secret can't be read or written, or holds no ring.
pub async fn ask(store: &Store, enforcement: Option<Enforcement>) -> anyhow::Result<()> {
    asking::ask(store, async |_, held| Ok((store.enforce(held, enforcement).await?, ()))).await
}

async fn follow(client: &Client, asked: Enforcement) -> anyhow::Result<()> {
    let (store, start) = (Store::new(client.clone()), Instant::now());
    let mut reader = Reader::new(&store);
    let (mut first, mut said, mut awaited, mut hinted) = (None, String::new(), Awaited::default(), false);
    loop {
        let (ring, _) = reader.read().await?;
        let ring = ring.as_ref();
        let state = describe(ring);
        if state != said {
            println!("{state}");
        }
        let revision = ring.map(|ring| ring.revision);
        let unchanged = *first.get_or_insert(revision) == revision;
        let waited = start.elapsed();
        if reached(ring, asked, waited) {
            if ring.is_none() {
                println!("{NO_KEY}");
            }
            return Ok(());
        }
        if let Some(hint) = hint(asked, unchanged, waited).filter(|_| !hinted) {
            eprintln!("{hint}");
            hinted = true;
        }
        said = state;
        awaited.tell(client).await;
        sleep(LOOK).await;
    }
}

/// How far the ring is, for people.
fn describe(ring: Option<&Ring>) -> String {
    let Some(ring) = ring else { return "there is no key yet".to_owned() };
    let pending = match ring.pending.len() {
        0 => String::new(),
        count => format!(", {count} nodes pending"),
    };
    match ring.enforcement {
        Enforcement::Off => "off: nothing is encrypted".to_owned(),
        Enforcement::Enforcing => "enforcing: plaintext is turned away".to_owned(),
        Enforcement::Permissive => match ring.phase() {
            Phase::Steady { .. } | Phase::Staged { .. } | Phase::Draining { .. } => {
                format!("permissive: encrypted, plaintext is accepted{pending}")
            }
            Phase::Bootstrapping { .. } | Phase::Resuming { .. } => {
                format!("permissive: the first generation is on its way to every node{pending}")
            }
            Phase::Empty | Phase::Off | Phase::Stopping { .. } => {
                "permissive: nodes stop to encrypt".to_owned()
            }
        },
    }
}

/// Whether the ring is where it was asked to be, `waited` after that.
fn reached(ring: Option<&Ring>, asked: Enforcement, waited: Duration) -> bool {
    let off = asked == Enforcement::Off;
    match ring {
        Some(ring) => ring.enforcement == asked && (off || ring.active().is_some()),
        // Of a ring that was wiped, a manager makes another one first where it knows that nodes hold keys.
        None => off && waited > TAKEN_UP,
    }
}

/// What to say where it takes long. `unchanged`: the ring is as it was when it was asked for.
fn hint(asked: Enforcement, unchanged: bool, waited: Duration) -> Option<&'static str> {
    match asked {
        _ if waited <= TAKEN_UP => None,
        Enforcement::Enforcing => Some(NOT_INSISTED),
        Enforcement::Permissive | Enforcement::Off => unchanged.then_some(NOT_TAKEN_UP),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn ring(enforcement: Enforcement, roles: &[&str]) -> Ring {
        let roles: Vec<(u64, &str)> = (1..).zip(roles.iter().copied()).collect();
        testing::ring(enforcement, &roles)
    }

    #[test]
    fn a_way_is_followed_to_its_end() {
        use Enforcement::{Enforcing, Off, Permissive};
        let rings = [
            (None, None, "there is no key yet"),
            (Some(ring(Off, &[])), Some(Off), "off: nothing is encrypted"),
            (
                Some(ring(Permissive, &["staged"])),
                None,
                "permissive: the first generation is on its way to every node",
            ),
            (
                Some(ring(Permissive, &["active"])),
                Some(Permissive),
                "permissive: encrypted, plaintext is accepted",
            ),
            (
                Some(ring(Enforcing, &["retiring", "active"])),
                Some(Enforcing),
                "enforcing: plaintext is turned away",
            ),
            (Some(ring(Permissive, &["retiring"])), None, "permissive: nodes stop to encrypt"),
        ];
        for (ring, there, text) in rings {
            assert_eq!(describe(ring.as_ref()), text);
            for asked in Enforcement::ALL {
                let reached = reached(ring.as_ref(), asked, TAKEN_UP);
                assert_eq!(reached, there == Some(asked), "{text}, {asked:?}");
            }
        }
        let mut pending = ring(Permissive, &["active"]);
        pending.pending.insert("9d0f5a37-62a5-4d5f-8a3d-1c1ad0f2b001".parse().unwrap());
        assert!(describe(Some(&pending)).ends_with("accepted, 1 nodes pending"));
    }

    #[test]
    fn where_nobody_makes_a_key_it_is_off() {
        let long = TAKEN_UP + LOOK;
        for asked in Enforcement::ALL {
            assert_eq!(reached(None, asked, long), asked == Enforcement::Off, "{asked:?}");
        }
        assert!(!reached(Some(&ring(Enforcement::Permissive, &["active"])), Enforcement::Off, long));
    }

    #[test]
    fn nobody_waits_in_silence() {
        use Enforcement::{Enforcing, Off, Permissive};
        let long = TAKEN_UP + LOOK;
        for asked in [Off, Permissive, Enforcing] {
            assert_eq!(hint(asked, true, TAKEN_UP), None, "{asked:?}");
        }
        for unchanged in [false, true] {
            // By time the ring gets its generations, and stays permissive.
            assert!(hint(Enforcing, unchanged, long).unwrap().contains("never insists"));
            for asked in [Off, Permissive] {
                assert_eq!(hint(asked, unchanged, long), unchanged.then_some(NOT_TAKEN_UP));
            }
        }
    }

    #[test]
    fn what_is_asked_for_is_what_the_annotation_says() {
        for asked in Asked::value_variants() {
            let name = asked.to_possible_value().unwrap();
            let expected = asked.enforcement().map_or("auto", Enforcement::name);
            assert_eq!(name.get_name(), expected);
        }
        for enforce in Enforce::value_variants() {
            assert_eq!(enforce.to_possible_value().unwrap().get_name(), enforce.to_string());
        }
    }
}
