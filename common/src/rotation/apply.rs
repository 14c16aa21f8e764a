//! The ring after a write.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use jiff::Timestamp;

use super::{Action, EnforcementGoal, Evidence, Installation, LAST_ID, Settings};
use crate::{
    phase::Phase,
    ring::{Enforcement, Generation, Ring, Role, SPI_SEED_LEN},
    secret::SecretBytes,
    suite::Suite,
    uid::Uid,
    wire,
};

/// A seed with which no two nodes share an SPI is drawn this often at most: with 5,000 nodes 1 in 40 fails.
const SEED_DRAWS: usize = 20;

/// Carries out `action`, which [`decide`](super::decide) chose by the same `evidence`, on a copy of `ring`. `fill` writes
/// random bytes.
///
/// # Errors
/// What `fill` returns.
pub fn apply<E>(
    ring: Option<&Ring>,
    action: Action,
    installation: Installation,
    evidence: &Evidence,
    now: Timestamp,
    settings: &Settings,
    mut fill: impl FnMut(&mut [u8]) -> Result<(), E>,
) -> Result<Ring, E> {
    let mut next = ring.map_or_else(|| Ring::off(0, None), Ring::clone);
    next.revision += 1;
    if action == Action::Bootstrap {
        next = Ring::off(next.revision, next.installation);
    }
    if let Installation::Present(uid) = installation {
        next.installation = Some(uid);
    }
    match action {
        Action::Wait => {}
        Action::Bootstrap | Action::Stage => {
            let generation = fresh(&next, evidence, now, settings.suite, &mut fill)?;
            next.generations.push(generation);
            if next.enforcement == Enforcement::Off {
                next.enforcement = Enforcement::Permissive;
            }
        }
        Action::Activate => activate(&mut next, evidence, now, settings),
        Action::RemoveRetired => next.generations.retain(|generation| generation.role != Role::Retiring),
        Action::Rekey => rekey(&mut next, evidence),
        Action::Pend => next.pending.clone_from(&evidence.pending),
        Action::SetEnforcement(Enforcement::Permissive) => next.enforcement = Enforcement::Permissive,
        Action::SetEnforcement(Enforcement::Enforcing) => {
            next.enforcement = Enforcement::Enforcing;
            next.pending.clear();
        }
        Action::StopSending => stop_sending(&mut next, now),
        Action::Disable | Action::SetEnforcement(Enforcement::Off) => {
            next = Ring::off(next.revision, next.installation);
        }
        Action::Reset => next = Ring::off(next.revision, None),
    }
    Ok(next)
}

fn activate(ring: &mut Ring, evidence: &Evidence, now: Timestamp, settings: &Settings) {
    for generation in &mut ring.generations {
        generation.role = match generation.role {
            Role::Staged => Role::Active,
            Role::Active | Role::Retiring => Role::Retiring,
        };
        generation.role_since = now;
    }
    ring.next_rotation = Some(settings.schedule.next(now));
    ring.pending.clone_from(&evidence.pending);
    // What nodes have enforced beside a ring begun anew, they go on enforcing.
    let as_before =
        evidence.all_enforcing && ring.pending.is_empty() && settings.goal == EnforcementGoal::Auto;
    if as_before && matches!(ring.phase(), Phase::Steady { .. }) {
        ring.enforcement = Enforcement::Enforcing;
    }
}

/// The generation in use retires. Where there is none, the staged one does: a kernel may still send with one that the
/// ring has lost.
fn stop_sending(ring: &mut Ring, now: Timestamp) {
    let keep_staged = ring.phase().is_bootstrapping();
    ring.generations.retain(|generation| keep_staged || generation.role != Role::Staged);
    for generation in ring.generations.iter_mut().filter(|generation| generation.role != Role::Retiring) {
        generation.role = Role::Retiring;
        generation.role_since = now;
    }
    ring.next_rotation = None;
}

fn fresh<E>(
    ring: &Ring,
    evidence: &Evidence,
    now: Timestamp,
    suite: Suite,
    fill: &mut impl FnMut(&mut [u8]) -> Result<(), E>,
) -> Result<Generation, E> {
    let mut uid = [0; 16];
    fill(&mut uid)?;
    let mut generation = Generation {
        id: ring.newest().max(evidence.newest.min(LAST_ID)) + 1,
        uid: Uid::from_random(uid),
        role: Role::Staged,
        suite,
        key: SecretBytes::try_fill(suite.key_len(), &mut *fill)?,
        spi_seed: SecretBytes::try_fill(SPI_SEED_LEN, &mut *fill)?,
        created_at: now,
        role_since: now,
        incarnations: BTreeMap::new(),
    };
    for _ in 1..SEED_DRAWS {
        if distinct(ring.generations.iter().chain([&generation]), &evidence.senders) {
            break;
        }
        generation.spi_seed = SecretBytes::try_fill(SPI_SEED_LEN, &mut *fill)?;
    }
    Ok(generation)
}

/// Gives the nodes the incarnations that they need, or later ones where an SPI would be another's.
fn rekey(ring: &mut Ring, evidence: &Evidence) {
    for (node, needed) in &evidence.rekey {
        for at in 0..ring.generations.len() {
            let Some(&needed) = needed.get(&ring.generations[at].uid) else { continue };
            for incarnation in (needed..=u32::MAX).take(SEED_DRAWS) {
                ring.generations[at].incarnations.insert(*node, incarnation);
                if distinct(ring.generations.iter(), &evidence.senders) {
                    break;
                }
            }
        }
    }
}

/// Whether every SPI has one sender and one generation.
pub(super) fn distinct<'g>(
    mut generations: impl Iterator<Item = &'g Generation>,
    senders: &BTreeMap<Uid, IpAddr>,
) -> bool {
    let mut taken = BTreeSet::new();
    generations.all(|generation| {
        let derivation = wire::Derivation::new(generation);
        senders.iter().all(|(node, addr)| taken.insert(derivation.spi_of(*addr, node)))
    })
}
