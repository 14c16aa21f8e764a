//! When the SAs of a pair are pinged, and which pair comes next.

use std::{collections::BTreeSet, time::Duration};

use super::{MISSED, MISSES};
use crate::{Time, pair::PairId};

/// Pauses after pings that got no answer; the last one repeats.
pub(super) const RETRIES: [Duration; 5] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];
/// Pauses differ by so much of themselves, so that agents that began together do not go on together.
const JITTER: f64 = 0.2;

/// When one SA of a pair is pinged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    /// The SA.
    pub spi: Option<u32>,
    /// When the next ping is due.
    pub due: Time,
    /// Pings without an answer in a row.
    pub misses: u32,
    /// When the last ping was sent that has no answer yet.
    pub sent: Option<Time>,
    /// When a probe of the peer came for the first time since a ping was missed: its agent is alive.
    heard: Option<Time>,
    /// Pings that were sent after that, and missed.
    deaf: u32,
}

impl Schedule {
    pub const IDLE: Self = Self { spi: None, due: Time::ZERO, misses: 0, sent: None, heard: None, deaf: 0 };

    pub fn set(&mut self, spi: Option<u32>, due: Time) {
        if self.spi != spi {
            *self = Self { spi, due, ..Self::IDLE };
        }
    }

    /// A ping leaves. `steady`: the next one waits until this one counts as missed, so that three misses in a row take a
    /// while. `drawn` is a random number from 0 to 1.
    pub fn sent(&mut self, now: Time, steady: bool, drawn: f64) {
        if let Some(before) = self.sent {
            self.misses = self.misses.saturating_add(1);
            self.deaf += u32::from(self.heard.is_some_and(|heard| heard <= before));
        }
        self.sent = Some(now);
        let last = RETRIES.len() - 1;
        let at = if steady { last } else { usize::try_from(self.misses).unwrap_or(usize::MAX).min(last) };
        self.due = now + RETRIES[at].mul_f64(1.0 - JITTER + 2.0 * JITTER * drawn);
    }

    pub fn answered(&mut self, due: Time) {
        *self = Self { spi: self.spi, due, ..Self::IDLE };
    }

    /// A probe of the peer came.
    pub fn hear(&mut self, now: Time) {
        if self.heard.is_none() && (self.misses > 0 || self.overdue(now)) {
            self.heard = Some(now);
        }
    }

    fn overdue(&self, now: Time) -> bool {
        self.sent.is_some_and(|sent| sent + MISSED <= now)
    }

    /// Enough pings in a row were missed.
    pub fn missed(&self, now: Time) -> bool {
        self.misses + u32::from(self.overdue(now)) >= MISSES
    }

    /// The peer is alive, and enough pings that were sent after its sign of life were missed.
    pub fn is_deaf(&self, now: Time) -> bool {
        let last = self.sent.is_some_and(|sent| self.heard.is_some_and(|heard| heard <= sent));
        self.deaf + u32::from(last && self.overdue(now)) >= MISSES
    }

    /// When a ping that was just sent makes enough, if it is missed.
    pub fn deadline(&self) -> Option<Time> {
        self.sent.filter(|_| self.misses + 1 >= MISSES).map(|sent| sent + MISSED)
    }
}

/// How urgent a ping is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rank {
    /// Of a pair that is held or open.
    Unproven = 0,
    /// Of another candidate.
    Candidate = 1,
    /// Of a pinned SA.
    Recheck = 2,
}

const RANKS: [Rank; 3] = [Rank::Unproven, Rank::Candidate, Rank::Recheck];

/// A place in the queue of one rank: the one that waits longest comes first.
pub(super) type Place = (Time, u32, PairId);

/// The place of a pair that is due then. Of those that are due at once, every node has another one first.
pub(super) fn place(due: Time, pair: PairId) -> Place {
    let bytes = pair.src.addr16().into_iter().chain(pair.dst.addr16());
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (due, hash, pair)
}

/// What is to be pinged, and what is to be looked at because a ping may have been missed.
#[derive(Debug, Default)]
pub(super) struct Queue {
    ranks: [BTreeSet<Place>; 3],
    deadlines: BTreeSet<(Time, PairId)>,
}

impl Queue {
    pub fn clear_pings(&mut self) {
        self.ranks.iter_mut().for_each(BTreeSet::clear);
    }

    pub fn insert(&mut self, rank: Rank, place: Place) {
        self.ranks[rank as usize].insert(place);
    }

    pub fn remove(&mut self, rank: Rank, place: &Place) {
        self.ranks[rank as usize].remove(place);
    }

    /// What to ping now.
    pub fn due(&self, now: Time) -> Option<(Rank, PairId)> {
        RANKS.into_iter().find_map(|rank| {
            let (due, _, pair) = self.ranks[rank as usize].first()?;
            (*due <= now).then_some((rank, *pair))
        })
    }

    /// When the next ping is due.
    pub fn next_ping(&self) -> Option<Time> {
        self.ranks.iter().filter_map(|rank| rank.first()).map(|(due, ..)| *due).min()
    }

    pub fn add_deadline(&mut self, at: Time, pair: PairId) {
        self.deadlines.insert((at, pair));
    }

    pub fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// A pair one of whose pings may have been missed by now.
    pub fn pop_deadline(&mut self, now: Time) -> Option<PairId> {
        let first = *self.deadlines.first().filter(|(at, _)| *at <= now)?;
        self.deadlines.remove(&first);
        Some(first.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::address;

    fn pair(src: u8, dst: u8) -> PairId {
        PairId { src: address(src), dst: address(dst) }
    }

    #[test]
    fn pauses_grow_and_differ_by_a_fifth() {
        let mut schedule = Schedule { spi: Some(1), ..Schedule::IDLE };
        let mut now = Time::from_secs(100);
        for (drawn, milliseconds) in
            [(0.5, 250), (0.5, 500), (0.0, 800), (1.0, 2400), (0.5, 5000), (0.0, 4000), (1.0, 6000)]
        {
            schedule.sent(now, false, drawn);
            assert_eq!((schedule.due - now).as_millis(), milliseconds);
            now = schedule.due;
        }
        schedule.answered(now);
        schedule.sent(now, true, 0.5);
        assert_eq!((schedule.due - now).as_secs(), 5);
    }

    #[test]
    fn peer_is_deaf_once_three_pings_after_its_sign_of_life_were_missed() {
        let at = Time::from_secs;
        let mut schedule = Schedule { spi: Some(1), ..Schedule::IDLE };
        schedule.hear(at(99));
        for second in [100, 105, 110] {
            schedule.sent(at(second), true, 0.5);
        }
        assert!(schedule.missed(at(112)) && !schedule.is_deaf(at(112)), "it was heard before, not since");
        schedule.hear(at(113));
        for second in [115, 120] {
            schedule.sent(at(second), true, 0.5);
            assert!(!schedule.is_deaf(at(second + 2)));
        }
        schedule.sent(at(125), true, 0.5);
        assert!(!schedule.is_deaf(at(126)) && schedule.is_deaf(at(127)));
        schedule.answered(at(200));
        assert!(!schedule.is_deaf(at(300)) && !schedule.missed(at(300)));
    }

    #[test]
    fn urgent_pairs_come_first_and_among_them_the_one_that_waits_longest() {
        let at = Time::from_secs;
        let mut queue = Queue::default();
        queue.insert(Rank::Recheck, place(at(1), pair(1, 2)));
        queue.insert(Rank::Unproven, place(at(5), pair(1, 3)));
        queue.insert(Rank::Unproven, place(at(4), pair(1, 4)));
        assert_eq!(queue.next_ping(), Some(at(1)));
        assert_eq!(queue.due(at(0)), None);
        assert_eq!(queue.due(at(3)), Some((Rank::Recheck, pair(1, 2))));
        assert_eq!(queue.due(at(9)), Some((Rank::Unproven, pair(1, 4))));
        queue.remove(Rank::Unproven, &place(at(4), pair(1, 4)));
        assert_eq!(queue.due(at(9)), Some((Rank::Unproven, pair(1, 3))));
    }

    #[test]
    fn nodes_that_begin_together_ping_in_different_orders() {
        let first = |own: u8| {
            let mut queue = Queue::default();
            for peer in (1..100).filter(|peer| *peer != own) {
                queue.insert(Rank::Unproven, place(Time::ZERO, pair(own, peer)));
            }
            queue.due(Time::ZERO).unwrap().1.dst
        };
        let mut firsts = std::collections::BTreeMap::new();
        for own in 1..100 {
            *firsts.entry(first(own)).or_insert(0) += 1;
        }
        assert!(firsts.values().all(|count| *count < 20), "{firsts:?}");
    }
}
