//! How old the keys are, as of each scrape: a manager that died must be noticed from what every node shows.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Unit,
};
use secureoverlay_keyring::keyring::KeyRing;

/// A rotation that is later than this is worth an alert at night.
pub const LATE: Duration = Duration::from_secs(600);

/// When what of the ring came. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Ages(Arc<Mutex<Option<Times>>>);

#[derive(Clone, Copy, Debug)]
struct Times {
    revision: u64,
    seen: Timestamp,
    active: Option<Timestamp>,
    next_rotation: Option<Timestamp>,
}

impl Ages {
    /// Takes the ring that counts at `now`.
    pub fn ring(&self, ring: Option<&KeyRing>, now: Timestamp) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *times = ring.map(|ring| Times {
            revision: ring.revision,
            seen: times.filter(|times| times.revision == ring.revision).map_or(now, |times| times.seen),
            active: ring.active().map(|active| active.role_since),
            next_rotation: ring.next_rotation.filter(|_| ring.active().is_some()),
        });
    }

    fn at(&self, now: Timestamp) -> Vec<(&'static str, &'static str, f64)> {
        let times = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(times) = times else { return Vec::new() };
        let since = |at: Timestamp| now.duration_since(at).max(SignedDuration::ZERO).as_secs_f64();
        let mut ages =
            vec![("ring_age", "Since when this agent has had the ring's revision", since(times.seen))];
        ages.extend(times.active.map(|at| {
            (
                "active_generation_age",
                "For how long the generation that is sent with has been active",
                since(at),
            )
        }));
        let overdue = times.next_rotation.map_or(0.0, since);
        ages.push(("rotation_overdue", "For how long a rotation has been due, 0 if none is", overdue));
        ages
    }
}

/// For how long the next rotation has been due, where that is too long.
#[must_use]
pub fn late(ring: &KeyRing, now: Timestamp) -> Option<Duration> {
    ring.active()?;
    let overdue = Duration::try_from(now.duration_since(ring.next_rotation?)).ok()?;
    (overdue > LATE).then_some(overdue)
}

impl Collector for Ages {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for (name, help, seconds) in self.at(Timestamp::now()) {
            let metric = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?;
            ConstGauge::new(seconds).encode(metric)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn ring(revision: u64, active: bool) -> KeyRing {
        let role = if active { "active" } else { "staged" };
        let text = format!(
            "version: 1\nrevision: {revision}\nackId: 0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b60\nsettings: {{enforcement: Auto, \
             cipherSuite: aes128gcm8, rotation: {{interval: 12h, minimumInterval: 5m, historyLimit: 10}}, deletionPolicy: \
             Disable}}\nenforcement: permissive\nnextRotation: 1970-01-01T01:00:00Z\n\
             generations:\n- {{id: 1, uid: 0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b61, role: {role}, suite: aes128gcm8, traffic: ipip, identities: announced, \
             key: AAECAwQFBgcICQoLDA0ODw==, spiSeed: EBESExQVFhcYGRobHB0eHw==, createdAt: 1970-01-01T00:00:00Z, \
             roleSince: 1970-01-01T00:01:40Z}}\n"
        );
        KeyRing::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn ages_grow_and_a_due_rotation_is_overdue() {
        let ages = Ages::default();
        let seconds = |now| ages.at(at(now)).into_iter().map(|(_, _, seconds)| seconds).collect::<Vec<_>>();
        assert!(seconds(5).is_empty());
        ages.ring(Some(&ring(7, true)), at(1000));
        ages.ring(Some(&ring(7, true)), at(2000));
        assert_eq!(seconds(3000), [2000.0, 2900.0, 0.0]);
        assert_eq!(seconds(3660), [2660.0, 3560.0, 60.0]);
        ages.ring(Some(&ring(8, false)), at(4000));
        assert_eq!(seconds(4100), [100.0, 0.0], "with nothing in use nothing is overdue");
        assert_eq!(seconds(3000), [0.0, 0.0], "the clock went back");
    }

    #[test]
    fn late_is_more_than_ten_minutes() {
        let late = |now, active| late(&ring(7, active), at(now)).map(|overdue| overdue.as_secs());
        assert_eq!([late(3000, true), late(4200, true), late(4201, true)], [None, None, Some(601)]);
        assert_eq!(late(9999, false), None);
    }

    #[test]
    fn they_are_encoded_with_their_unit() {
        let ages = Ages::default();
        ages.ring(Some(&ring(7, true)), at(1000));
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ages));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for name in ["ring_age_seconds ", "active_generation_age_seconds ", "rotation_overdue_seconds "] {
            assert!(text.lines().any(|line| line.starts_with(name)), "{text}");
        }
    }
}
