//! The ring after a write.

use secureoverlay_keyring::{
    derivation::collisions,
    keyring::{Enforcement, Generation, KeyRing, KeyRingError, MAX_ID, Role, SPI_SEED_LEN, Traffic},
    secret::SecretBytes,
    settings::EnforcementGoal,
    uid::Uid,
};

use crate::{Action, Decision, Inputs, Installation, Phase};

/// The SPI seed is drawn this often at most: with 5,000 nodes 1 draw in 40 has a collision.
const SEED_DRAWS: usize = 20;

/// A ring to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The ring.
    pub ring: KeyRing,
    /// Senders whose SPIs are those of another one, in spite of all draws of the seed.
    pub collisions: usize,
}

/// A ring could not be made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError<E> {
    /// No random bytes.
    #[error(transparent)]
    Random(E),
    /// It would be refused by everyone who reads it.
    #[error("failed to make the next key ring: {0}")]
    Invalid(#[from] KeyRingError),
}

/// Carries out `decision`, which [`decide`](crate::decide) made of the same `inputs`. `fill` writes random bytes.
///
/// # Errors
/// What `fill` returns; what makes the ring invalid.
pub fn apply<E>(
    inputs: &Inputs<'_>,
    decision: &Decision,
    mut fill: impl FnMut(&mut [u8]) -> Result<(), E>,
) -> Result<Applied, ApplyError<E>> {
    let action = decision.action;
    let mut uuid = || {
        let mut random = [0; 16];
        fill(&mut random).map_err(ApplyError::Random)?;
        Ok::<_, ApplyError<E>>(Uid::from_random(random))
    };
    let revision =
        inputs.ring.into_iter().chain(inputs.last).map(|ring| ring.revision).max().unwrap_or(0) + 1;
    let kept = if action == Action::Restore { inputs.last } else { inputs.ring };
    let installation = match inputs.installation {
        Installation::Present(uid) => Some(uid),
        Installation::Unknown | Installation::Absent => kept.and_then(|ring| ring.installation),
    };
    let emptied = matches!(action, Action::Bootstrap | Action::Disable);
    let mut next = match kept.filter(|_| !emptied) {
        Some(ring) => ring.clone(),
        None => KeyRing::off(revision, uuid()?, installation, inputs.settings.clone()),
    };
    if !matches!(action, Action::Wait | Action::Update) {
        next.ack_id = uuid()?;
    }
    let mut collisions = 0;
    let now = inputs.now;
    match action {
        Action::Bootstrap | Action::Stage => {
            let generation;
            (generation, collisions) =
                fresh(&next, inputs, decision, &mut fill).map_err(ApplyError::Random)?;
            next.generations.push(generation);
            if next.enforcement == Enforcement::Off {
                next.enforcement = Enforcement::Permissive;
            }
        }
        Action::Activate => activate(&mut next, inputs),
        Action::RemoveRetired => next.generations.retain(|generation| generation.role != Role::Retiring),
        Action::RemoveStaged => next.generations.retain(|generation| generation.role != Role::Staged),
        Action::SetEnforcement(level) => next.enforcement = level,
        Action::StopSending => {
            let alone = matches!(Phase::of(inputs.ring), Phase::Bootstrapping { .. });
            // A kernel may still send with a generation that the ring has lost: something must retire.
            next.generations.retain(|generation| alone || generation.role != Role::Staged);
            for generation in next.generations.iter_mut().filter(|it| it.role != Role::Retiring) {
                (generation.role, generation.role_since) = (Role::Retiring, now);
            }
            next.next_rotation = None;
        }
        Action::Wait | Action::Disable | Action::Restore | Action::RenewAckId | Action::Update => {}
    }
    next.revision = revision;
    next.installation = installation;
    next.settings.clone_from(inputs.settings);
    next.excluded.clone_from(inputs.excluded);
    next.check()?;
    Ok(Applied { ring: next, collisions })
}

fn activate(ring: &mut KeyRing, inputs: &Inputs<'_>) {
    for generation in &mut ring.generations {
        let role = match generation.role {
            Role::Staged => Role::Active,
            Role::Active | Role::Retiring => Role::Retiring,
        };
        if role != generation.role {
            (generation.role, generation.role_since) = (role, inputs.now);
        }
    }
    ring.next_rotation = Some(inputs.times.next);
    // What nodes have enforced beside a ring begun anew, they go on enforcing.
    let as_before = inputs.evidence.most_enforcing && inputs.settings.enforcement == EnforcementGoal::Auto;
    if as_before && matches!(Phase::of(Some(ring)), Phase::Steady { .. }) {
        ring.enforcement = Enforcement::Enforcing;
    }
}

/// The next generation, with the best of some seeds, and the collisions that this leaves.
fn fresh<E>(
    next: &KeyRing,
    inputs: &Inputs<'_>,
    decision: &Decision,
    fill: &mut impl FnMut(&mut [u8]) -> Result<(), E>,
) -> Result<(Generation, usize), E> {
    let known = inputs.ring.into_iter().chain(inputs.last).map(KeyRing::highest_id).max().unwrap_or(0);
    let known = known.max(inputs.evidence.believed_id);
    let seconds = u64::try_from(inputs.now.as_second()).unwrap_or(0);
    let suite = decision.rotation.map_or(inputs.settings.cipher_suite, |rotation| rotation.suite);
    let mut uid = [0; 16];
    fill(&mut uid)?;
    let mut generation = Generation {
        id: known.saturating_add(1).max(seconds).min(MAX_ID),
        uid: Uid::from_random(uid),
        role: Role::Staged,
        suite,
        traffic: Traffic::Ipip,
        identities: inputs.identities,
        key: SecretBytes::try_fill(suite.key_len(), &mut *fill)?,
        spi_seed: SecretBytes::try_fill(SPI_SEED_LEN, &mut *fill)?,
        created_at: inputs.now,
        role_since: inputs.now,
    };
    let count = |generation: &Generation| {
        let all = next.generations.iter().chain([generation]);
        collisions(all, inputs.evidence.senders.iter().copied()).len()
    };
    let mut best = count(&generation);
    for _ in 1..SEED_DRAWS {
        if best == 0 {
            break;
        }
        let other =
            Generation { spi_seed: SecretBytes::try_fill(SPI_SEED_LEN, &mut *fill)?, ..generation.clone() };
        let collisions = count(&other);
        if collisions < best {
            (best, generation) = (collisions, other);
        }
    }
    Ok((generation, best))
}
