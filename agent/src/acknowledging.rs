//! What this node says of itself, from what it has brought its kernel to.

use std::collections::BTreeSet;

use secureoverlay_common::{
    acknowledgement::Acknowledgement,
    ring::{Enforcement, Ring},
    uid::Uid,
    wire::End,
};

use crate::reconcile::Outcome;

/// An acknowledgement has room for so many obstacles.
const OBSTACLES: usize = 20;
/// Characters of each.
const OBSTACLE: usize = 300;

/// What a run that applied `ring`, if any, at the node `local` amounts to. `newest` is the highest id of a generation
/// that was seen in this installation, `unreachable` whom ESP does not reach.
#[must_use]
pub fn acknowledge(
    ring: Option<&Ring>,
    local: &End,
    installation: Option<Uid>,
    newest: u64,
    unreachable: Option<BTreeSet<Uid>>,
    outcome: &Outcome,
) -> Acknowledgement {
    let generations = ring.iter().flat_map(|ring| &ring.generations);
    let received = generations.filter(|generation| outcome.receives.contains(&generation.uid));
    Acknowledgement {
        node: local.node,
        boot: local.boot,
        installation,
        receives: received.map(|generation| (generation.uid, generation.incarnations.clone())).collect(),
        sends: outcome.sends,
        silent: outcome.silent,
        revision: ring.map_or(0, |ring| ring.revision),
        encrypts: outcome.encrypts,
        burnt: outcome.burnt.clone(),
        spent: outcome.spent.clone(),
        newest,
        enforcement: match ring {
            _ if outcome.insists => Enforcement::Enforcing,
            Some(_) => Enforcement::Permissive,
            None => Enforcement::Off,
        },
        obstacles: BTreeSet::new(),
        unreachable,
        oversized: false,
    }
}

/// What an acknowledgement says of all these obstacles: the first ones in the order of their texts, and how many more
/// there are.
#[must_use]
pub fn obstacles<'o>(all: impl Iterator<Item = &'o String>) -> BTreeSet<String> {
    let all: BTreeSet<&str> = all.map(String::as_str).collect();
    let room = if all.len() > OBSTACLES { OBSTACLES - 1 } else { OBSTACLES };
    let more = all.len().saturating_sub(room);
    let last = (more > 0).then(|| format!("{more} more, see the log of this node's agent"));
    all.into_iter().take(room).map(short).chain(last).collect()
}

fn short(text: &str) -> String {
    if text.chars().count() <= OBSTACLE {
        return text.to_owned();
    }
    text.chars().take(OBSTACLE - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use secureoverlay_common::{
        ring::{Enforcement, Generation, Role, SPI_SEED_LEN},
        secret::SecretBytes,
        suite::Suite,
    };

    use super::*;

    fn uid(n: u8) -> Uid {
        Uid::from_random([n; 16])
    }

    #[test]
    fn there_is_room_for_some_obstacles() {
        let of = |count: usize, length: usize| -> BTreeSet<String> {
            (0..count).map(|n| format!("{n:02} {}", "ä".repeat(length))).collect()
        };
        for few in [of(0, 0), of(1, 0), of(20, 297)] {
            assert_eq!(obstacles(few.iter()), few);
        }
        let many = obstacles(of(21, 298).iter());
        assert_eq!(many.len(), 20);
        assert!(many.iter().all(|text| text.chars().count() <= 300), "{many:?}");
        assert!(many.contains("2 more, see the log of this node's agent"), "{many:?}");
        assert!(many.first().unwrap().ends_with("ää…"), "{many:?}");
    }

    #[test]
    fn only_what_the_run_achieved_is_said_with_the_rings_incarnations() {
        let generation = |id: u8, role| Generation {
            id: id.into(),
            uid: uid(200 + id),
            role,
            suite: Suite::Aes128Gcm8,
            key: SecretBytes::copy_from(&[id; 16]),
            spi_seed: SecretBytes::copy_from(&[id; SPI_SEED_LEN]),
            created_at: Timestamp::UNIX_EPOCH,
            role_since: Timestamp::UNIX_EPOCH,
            incarnations: [(uid(7), u32::from(id))].into(),
        };
        let ring = Ring {
            enforcement: Enforcement::Permissive,
            generations: vec![generation(1, Role::Active), generation(2, Role::Staged)],
            ..Ring::off(1, None)
        };
        let local = End { addr: [192, 0, 2, 1].into(), node: uid(1), boot: uid(101) };
        let outcome = Outcome {
            receives: [uid(202), uid(99)].into(),
            sends: Some(uid(201)),
            burnt: [(uid(201), 4)].into(),
            spent: [uid(201)].into(),
            ..Outcome::default()
        };
        let said = acknowledge(Some(&ring), &local, Some(uid(77)), 9, Some([uid(3)].into()), &outcome);
        let expected = Acknowledgement {
            node: uid(1),
            boot: uid(101),
            installation: Some(uid(77)),
            receives: [(uid(202), [(uid(7), 2)].into())].into(),
            sends: Some(uid(201)),
            silent: false,
            revision: 1,
            encrypts: false,
            burnt: [(uid(201), 4)].into(),
            spent: [uid(201)].into(),
            newest: 9,
            enforcement: Enforcement::Permissive,
            obstacles: BTreeSet::new(),
            unreachable: Some([uid(3)].into()),
            oversized: false,
        };
        assert_eq!(said, expected);
        let silent = acknowledge(None, &local, None, 9, None, &Outcome::default());
        assert!(!silent.silent, "a run that says nothing of it");
        assert!(silent.receives.is_empty() && silent.sends.is_none() && silent.newest == 9);
    }
}
