//! The judgement over a measurement: every direction between every pair of pods.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::control::PodReport;

/// A sender that is later than this shows that the machine was too busy to lose packets by itself only.
const BUSY_MS: u64 = 1000;

/// One direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Direction {
    /// The sending pod.
    pub from: String,
    /// The receiving pod.
    pub to: String,
    /// Packets sent.
    pub sent: u32,
    /// Different packets received.
    pub received: u32,
    /// Sent and not received.
    pub lost: u32,
    /// Received once more.
    pub duplicated: u32,
    /// Received after one with a higher number.
    pub reordered: u32,
    /// Longest silence in milliseconds, without what the sender or the receiver caused itself; packets missing at the beginning or the end
    /// count as silence too.
    pub longest_gap_ms: u64,
    /// The most that the sender was behind its schedule, in milliseconds.
    pub sender_late_ms: u64,
    /// The longest that the receiver did not run between two packets, in milliseconds.
    pub receiver_paused_ms: u64,
}

/// A whole measurement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// All directions, in order of their names.
    pub directions: Vec<Direction>,
    /// Sum over all directions.
    pub sent: u64,
    /// Sum over all directions.
    pub received: u64,
    /// Sum over all directions.
    pub lost: u64,
    /// Sum over all directions.
    pub duplicated: u64,
    /// The longest of all directions.
    pub longest_gap_ms: u64,
    /// The worst of all senders.
    pub sender_late_ms: u64,
    /// The worst of all receivers.
    pub receiver_paused_ms: u64,
    /// Datagrams that were lost in a socket, not in the network.
    pub overruns: u64,
    /// Why the figures prove nothing; empty if they are good.
    pub invalid: Vec<String>,
}

impl Summary {
    /// Judges the last reports of all pods of a run, by name.
    #[must_use]
    pub fn of(reports: &BTreeMap<String, PodReport>) -> Self {
        let mut summary = Self::default();
        if reports.len() < 2 {
            summary.invalid.push(format!("{} pods: no direction to measure", reports.len()));
        }
        for (from, sender) in reports {
            if sender.sent.running {
                summary.invalid.push(format!("{from} has not stopped sending"));
            }
            if sender.overruns > 0 {
                summary.overruns += sender.overruns;
                summary.invalid.push(format!("{from} lost {} datagrams in its socket", sender.overruns));
            }
            for (to, receiver) in reports.iter().filter(|(to, _)| *to != from) {
                let direction = judge(from, to, sender, receiver, &mut summary.invalid);
                summary.add(direction);
            }
        }
        // Where a sender could not send for so long, neither could others do their part: who lost it is not known.
        if summary.lost > 0 && summary.sender_late_ms > BUSY_MS {
            let (lost, late) = (summary.lost, summary.sender_late_ms);
            summary
                .invalid
                .push(format!("{lost} lost while the machine was too busy: a sender was {late} ms late"));
        }
        summary
    }

    fn add(&mut self, direction: Direction) {
        self.sent += u64::from(direction.sent);
        self.received += u64::from(direction.received);
        self.lost += u64::from(direction.lost);
        self.duplicated += u64::from(direction.duplicated);
        self.longest_gap_ms = self.longest_gap_ms.max(direction.longest_gap_ms);
        self.sender_late_ms = self.sender_late_ms.max(direction.sender_late_ms);
        self.receiver_paused_ms = self.receiver_paused_ms.max(direction.receiver_paused_ms);
        self.directions.push(direction);
    }
}

fn judge(
    from: &str,
    to: &str,
    sender: &PodReport,
    receiver: &PodReport,
    invalid: &mut Vec<String>,
) -> Direction {
    let sends_here = sender.sent.peers.iter().any(|peer| peer == to);
    let sent = if sends_here { sender.sent.packets } else { 0 };
    if sent == 0 {
        invalid.push(format!("{from} sent nothing to {to}"));
    }
    let got = receiver.received.get(from).cloned().unwrap_or_default();
    if got.received > sent {
        invalid.push(format!("{to} received {} packets of the {sent} that {from} sent", got.received));
    }
    // Numbers are places in the schedule: what is missing at either end is a silence of so many periods.
    let missing = match got.range {
        Some((lowest, highest)) => lowest.max(sent.saturating_sub(highest.saturating_add(1))),
        None => sent,
    };
    let gap_us = got.longest_gap_us.max(u64::from(missing) * sender.sent.period_us);
    Direction {
        from: from.to_owned(),
        to: to.to_owned(),
        sent,
        received: got.received,
        lost: sent.saturating_sub(got.received),
        duplicated: got.duplicated,
        reordered: got.reordered,
        longest_gap_ms: gap_us / 1000,
        sender_late_ms: got.sender_late_us / 1000,
        receiver_paused_ms: got.receiver_paused_us / 1000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{account::Received, control::Sent};

    fn pod(peer: &str, packets: u32, got: Received) -> PodReport {
        PodReport {
            sent: Sent { packets, peers: vec![peer.into()], period_us: 5000, ..Sent::default() },
            received: BTreeMap::from([(peer.to_owned(), got)]),
            overruns: 0,
        }
    }

    fn all(received: u32) -> Received {
        Received { received, range: Some((0, received - 1)), longest_gap_us: 7000, ..Received::default() }
    }

    fn summary(a: PodReport, b: PodReport) -> Summary {
        Summary::of(&BTreeMap::from([("a".to_owned(), a), ("b".to_owned(), b)]))
    }

    #[test]
    fn a_clean_run_is_valid() {
        let summary = summary(pod("b", 10, all(20)), pod("a", 20, all(10)));
        assert_eq!((summary.sent, summary.received, summary.lost, summary.longest_gap_ms), (30, 30, 0, 7));
        assert_eq!(summary.invalid, Vec::<String>::new());
        assert_eq!(summary.directions.len(), 2);
    }

    #[test]
    fn what_is_missing_at_the_ends_is_a_gap() {
        let tail = Received { range: Some((0, 9)), ..all(10) };
        let head = Received { range: Some((6, 19)), ..all(14) };
        assert_eq!(
            summary(pod("b", 10, all(20)), pod("a", 20, tail.clone())).directions[0].longest_gap_ms,
            7
        );
        assert_eq!(summary(pod("b", 50, all(20)), pod("a", 20, tail)).directions[0].longest_gap_ms, 200);
        assert_eq!(summary(pod("b", 20, all(20)), pod("a", 20, head)).directions[0].longest_gap_ms, 30);
        let silent = summary(pod("b", 20, all(20)), pod("a", 20, Received::default()));
        assert_eq!((silent.lost, silent.longest_gap_ms), (20, 100));
        assert!(silent.invalid.is_empty(), "a total loss is a result: {:?}", silent.invalid);
    }

    #[test]
    fn a_run_that_proves_nothing_says_so() {
        let mut overrun = pod("b", 10, all(20));
        overrun.overruns = 3;
        let mut running = pod("b", 10, all(20));
        running.sent.running = true;
        for (a, why) in [
            (pod("b", 0, all(20)), "a sent nothing to b"),
            (pod("c", 10, all(20)), "a sent nothing to b"),
            (pod("b", 9, all(20)), "b received 10 packets of the 9"),
            (overrun, "a lost 3 datagrams"),
            (running, "a has not stopped"),
        ] {
            let summary = summary(a, pod("a", 20, all(10)));
            assert!(summary.invalid.iter().any(|line| line.starts_with(why)), "{why}: {:?}", summary.invalid);
        }
        assert!(!Summary::of(&BTreeMap::new()).invalid.is_empty());
    }
}
