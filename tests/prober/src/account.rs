//! What a receiver knows of one sender's packets in one run.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Packets of one direction in one run, at most: bounds the receiver's memory (512 KiB a sender).
pub const MAX_PACKETS: u32 = 1 << 22;

/// Accounting of one direction, packet by packet.
#[derive(Clone, Debug, Default)]
pub struct Account {
    seen: Vec<u64>,
    received: u32,
    duplicated: u32,
    reordered: u32,
    lowest: Option<u32>,
    highest: Option<u32>,
    last: Option<Arrival>,
    /// The gap that the last arrival ended: the next one may yet explain it.
    open: Gap,
    longest_gap: Gap,
    latest: Duration,
    paused: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Arrival {
    at: Duration,
    late: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Gap {
    length: Duration,
    before: u32,
    /// How late the packet at its beginning was, and the one at its end.
    late: (Duration, Duration),
}

impl Gap {
    /// Without what the sender was later than at the gap's beginning. A sender that falls behind by 80 ms explains 80 ms of
    /// silence; one that catches up explains nothing. One that was stopped while it sent a packet says so in the `next`.
    fn explained(self, next: Duration) -> Self {
        let (first, last) = self.late;
        Self { length: self.length.saturating_sub(last.max(next).saturating_sub(first)), ..self }
    }

    fn longer(self, other: Self) -> Self {
        if other.length > self.length { other } else { self }
    }
}

/// The figures of an [`Account`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// Different packets that arrived.
    pub received: u32,
    /// Arrivals of a packet that was there already.
    pub duplicated: u32,
    /// Packets that arrived after one with a higher number.
    pub reordered: u32,
    /// Lowest and highest number that arrived.
    pub range: Option<(u32, u32)>,
    /// Longest time between two arrivals, less what the sender itself was later than before, and less the time for which the
    /// receiver did not run, in microseconds.
    pub longest_gap_us: u64,
    /// Number of the packet that ended the longest gap.
    pub longest_gap_before: u32,
    /// The most that the sender was behind its schedule, in microseconds.
    pub sender_late_us: u64,
    /// The longest time between two arrivals for which the receiver did not run, in microseconds.
    pub receiver_paused_us: u64,
}

impl Account {
    /// Counts packet `seq`, sent `late` behind schedule, that arrived at `at` (any fixed origin). `paused` says for how much
    /// of the time between two others the receiver did not run.
    /// Numbers from [`MAX_PACKETS`] on are left out; no sender sends them.
    pub fn arrive(
        &mut self,
        seq: u32,
        late: Duration,
        at: Duration,
        paused: impl FnOnce(Duration, Duration) -> Duration,
    ) {
        if seq >= MAX_PACKETS {
            return;
        }
        let (word, bit) = (seq as usize / 64, 1 << (seq % 64));
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        if self.seen[word] & bit != 0 {
            self.duplicated += 1;
            return;
        }
        self.seen[word] |= bit;
        self.received += 1;
        self.latest = self.latest.max(late);
        self.lowest = Some(self.lowest.map_or(seq, |lowest| lowest.min(seq)));
        match self.highest {
            Some(highest) if seq < highest => self.reordered += 1,
            _ => self.highest = Some(seq),
        }
        self.longest_gap = self.longest_gap.longer(self.open.explained(late));
        if let Some(last) = self.last {
            let paused = paused(last.at, at);
            self.paused = self.paused.max(paused);
            let length = at.saturating_sub(last.at).saturating_sub(paused);
            self.open = Gap { length, before: seq, late: (last.late, late) };
        }
        self.last = Some(Arrival { at, late });
    }

    /// The figures so far.
    #[must_use]
    pub fn received(&self) -> Received {
        let longest_gap = self.longest_gap.longer(self.open.explained(Duration::ZERO));
        Received {
            received: self.received,
            duplicated: self.duplicated,
            reordered: self.reordered,
            range: self.lowest.zip(self.highest),
            longest_gap_us: micros(longest_gap.length),
            longest_gap_before: longest_gap.before,
            sender_late_us: micros(self.latest),
            receiver_paused_us: micros(self.paused),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Packets as (number, late, arrived), in milliseconds.
    fn account(packets: &[(u32, u64, u64)]) -> Received {
        let mut account = Account::default();
        for &(seq, late, at) in packets {
            account.arrive(seq, ms(late), ms(at), |_, _| ms(0));
        }
        account.received()
    }

    #[test]
    fn counts_a_clean_run() {
        let figures = account(&[(0, 0, 1), (1, 0, 6), (2, 0, 11)]);
        assert_eq!(
            figures,
            Received {
                received: 3,
                range: Some((0, 2)),
                longest_gap_us: 5000,
                longest_gap_before: 1,
                ..Received::default()
            }
        );
    }

    #[test]
    fn a_lost_packet_is_a_gap() {
        let figures = account(&[(0, 0, 0), (1, 0, 5), (4, 0, 20)]);
        assert_eq!((figures.received, figures.range), (3, Some((0, 4))));
        assert_eq!((figures.longest_gap_us, figures.longest_gap_before), (15_000, 4));
    }

    #[test]
    fn duplicates_are_counted_apart_and_end_no_gap() {
        let figures = account(&[(0, 0, 0), (0, 0, 9), (1, 0, 10), (0, 0, 11)]);
        assert_eq!((figures.received, figures.duplicated, figures.reordered), (2, 2, 0));
        assert_eq!(figures.longest_gap_us, 10_000);
    }

    #[test]
    fn reordered_packets_are_counted_once_and_are_not_lost() {
        let figures = account(&[(1, 0, 5), (0, 0, 6), (3, 0, 15), (2, 0, 16)]);
        assert_eq!((figures.received, figures.reordered, figures.range), (4, 2, Some((0, 3))));
    }

    #[test]
    fn the_senders_lateness_is_subtracted_once() {
        // The sender stalls for 80 ms before packet 1, then catches up with 2 and 3.
        let figures = account(&[(0, 0, 0), (1, 80, 85), (2, 75, 85), (3, 70, 85), (4, 0, 90)]);
        assert_eq!((figures.longest_gap_us, figures.sender_late_us), (5000, 80_000));
        // A sender that stays equally late explains no later gap.
        let figures = account(&[(0, 80, 80), (1, 80, 85), (2, 80, 185)]);
        assert_eq!((figures.longest_gap_us, figures.longest_gap_before), (100_000, 2));
    }

    #[test]
    fn a_sender_that_was_stopped_while_it_sent_says_so_in_the_next_packet() {
        let figures = account(&[(0, 0, 0), (1, 0, 85), (2, 75, 85), (3, 70, 85), (4, 0, 90)]);
        assert_eq!((figures.longest_gap_us, figures.longest_gap_before), (10_000, 1));
        let figures = account(&[(0, 0, 0), (1, 0, 5), (2, 0, 90)]);
        assert_eq!(
            (figures.longest_gap_us, figures.longest_gap_before),
            (85_000, 2),
            "nothing explains it yet"
        );
    }

    #[test]
    fn the_receivers_own_pause_is_subtracted_and_told() {
        let mut account = Account::default();
        for (seq, at, paused) in [(0, 0, 0), (1, 105, 90), (2, 105, 0), (3, 125, 5)] {
            account.arrive(seq, ms(0), ms(at), |_, _| ms(paused));
        }
        let figures = account.received();
        assert_eq!((figures.longest_gap_us, figures.longest_gap_before), (15_000, 1));
        assert_eq!(figures.receiver_paused_us, 90_000);
    }

    #[test]
    fn numbers_out_of_bounds_and_clocks_that_stand_still_do_no_harm() {
        let figures = account(&[(u32::MAX, 0, 0), (MAX_PACKETS, 0, 1), (5, 9, 3), (6, 0, 2)]);
        assert_eq!((figures.received, figures.longest_gap_us), (2, 0));
    }
}
