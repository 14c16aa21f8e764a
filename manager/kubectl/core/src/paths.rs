//! `path`: both directions between two nodes, by what the agents of both say.

use std::{net::IpAddr, time::Duration};

use jiff::Timestamp;
use secureoverlay_keyring::inspection::{MtuRoom, OutboundPath, PathState, PeerPaths, SaCounters};
use serde::Serialize;

use crate::{Exit, table::table, text};

/// How long an answer to a probe may take.
pub const PROBE: Duration = Duration::from_secs(2);

/// Why an agent's answer is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It took too long.
    Late(String),
    /// Anything else.
    Other(String),
}

impl Missing {
    fn text(&self) -> &str {
        let (Self::Late(text) | Self::Other(text)) = self;
        text
    }

    /// How a command ends that lacks the answer.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Late(_) => Exit::TimedOut,
            Self::Other(_) => Exit::Unknown,
        }
    }
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

/// What the agent of a node says of its pairs with the other one.
pub type Said = Result<PeerPaths, Missing>;

/// One direction, by one pair of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Direction {
    /// The sending node.
    pub from: String,
    /// The receiving node.
    pub to: String,
    /// What the sender's kernel and agent say.
    #[serde(flatten)]
    pub outbound: OutboundPath,
    /// Packets that the receiver's SA of the same SPI has carried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received_packets: Option<u64>,
    /// Bytes likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received_bytes: Option<u64>,
    /// Bytes that the sender's tunnel leaves for ESP beyond what it needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu_headroom: Option<i64>,
}

/// Both directions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Paths {
    /// Every pair of addresses, first one way, then the other.
    pub directions: Vec<Direction>,
    /// What is not as it should be.
    pub problems: Vec<String>,
    /// What could not be told.
    pub unknown: Vec<String>,
    /// The exit status.
    pub exit_code: u8,
}

impl Paths {
    /// What the agents of both nodes say, each about the other one.
    #[must_use]
    pub fn new(names: [&str; 2], said: [&Said; 2]) -> Self {
        let (mut directions, mut problems, mut unknown) = (Vec::new(), Vec::new(), Vec::new());
        let mut exit = Exit::Good;
        for at in [0, 1] {
            let (from, to, other) = (names[at], names[1 - at], said[1 - at].as_ref().ok());
            match said[at] {
                Ok(paths) if !paths.looked => {
                    unknown.push(format!("the agent of {from} has not looked at its kernel yet"));
                    exit = Exit::Unknown;
                }
                Ok(paths) => one_way((from, to), paths, other, &mut directions, &mut problems),
                Err(missing) => {
                    unknown.push(format!("the agent of {from}: {missing}"));
                    exit = if exit == Exit::TimedOut { exit } else { missing.exit() };
                }
            }
        }
        let exit = if problems.is_empty() { exit } else { Exit::Finding };
        Self { directions, problems, unknown, exit_code: exit.code() }
    }

    /// How the command ends.
    #[must_use]
    pub fn exit(&self) -> Exit {
        [Exit::Good, Exit::Finding, Exit::Unknown, Exit::TimedOut]
            .into_iter()
            .find(|exit| exit.code() == self.exit_code)
            .unwrap_or(Exit::Unknown)
    }

    /// For people.
    #[must_use]
    pub fn text(&self, wide: bool) -> String {
        let mut headings =
            vec!["FROM", "TO", "STATE", "KEY", "SPI", "SENT", "RECEIVED", "PROVEN", "HEADROOM"];
        if wide {
            headings.extend(["SOURCE", "DESTINATION", "BYTES-SENT", "BYTES-RECEIVED", "CANDIDATE"]);
        }
        let rows: Vec<Vec<String>> = self.directions.iter().map(|direction| direction.row(wide)).collect();
        let mut text = if rows.is_empty() { String::new() } else { table(&headings, &rows) };
        let mut section = |heading: &str, lines: &[String]| {
            if !lines.is_empty() {
                let lines: String = lines.iter().map(|line| format!("  {}\n", text::clean(line))).collect();
                let gap = if text.is_empty() { "" } else { "\n" };
                text.push_str(&format!("{gap}{heading}\n{lines}"));
            }
        };
        section("Why", &self.problems);
        section("Could not tell", &self.unknown);
        text
    }
}

impl Direction {
    fn row(&self, wide: bool) -> Vec<String> {
        let OutboundPath { state, source, destination, sa, generation, candidate, .. } = &self.outbound;
        let hex = |spi: u32| format!("0x{spi:08x}");
        let show = |value: Option<u64>| value.map(text::number).unwrap_or_default();
        let proven = match (self.outbound.proven_seconds_ago, state) {
            (Some(seconds), _) => format!("{} ago", span(seconds)),
            (None, PathState::Pinned) => "before the agent started".to_owned(),
            (None, _) => String::new(),
        };
        let mut row = vec![
            self.from.clone(),
            self.to.clone(),
            format!("{state:?}"),
            generation.map(|id| id.to_string()).unwrap_or_default(),
            sa.as_ref().map(|sa| hex(sa.spi)).unwrap_or_default(),
            show(sa.as_ref().map(|sa| sa.packets)),
            show(self.received_packets),
            proven,
            self.mtu_headroom.map(|room| format!("{room} B")).unwrap_or_default(),
        ];
        if wide {
            row.extend([
                source.to_string(),
                destination.to_string(),
                show(sa.as_ref().map(|sa| sa.bytes)),
                show(self.received_bytes),
                candidate.map(hex).unwrap_or_default(),
            ]);
        }
        row
    }
}

fn span(seconds: u64) -> String {
    let end = Timestamp::from_second(i64::try_from(seconds).unwrap_or(i64::MAX));
    text::span(Timestamp::UNIX_EPOCH, end.unwrap_or(Timestamp::MAX))
}

/// One direction: what the sender says, and the receiver's SAs.
fn one_way(
    (from, to): (&str, &str),
    paths: &PeerPaths,
    receiver: Option<&PeerPaths>,
    directions: &mut Vec<Direction>,
    problems: &mut Vec<String>,
) {
    let mtu_headroom = paths.mtu.as_ref().map(MtuRoom::headroom);
    if let Some(room) = paths.mtu.as_ref().filter(|room| room.headroom() < 0) {
        problems.push(format!(
            "{from}: the MTU of {} is {}, at most {} leaves room for ESP: large packets do not fit",
            room.interface, room.tunnel, room.limit
        ));
    }
    if paths.outbound.is_empty() {
        problems.push(match paths.announced {
            true => format!("{from} has no pair with {to} (encryption may be off): its traffic is in the clear, or blocked"),
            false => format!("{from} knows no {to}: that node has not announced itself"),
        });
    }
    for outbound in &paths.outbound {
        let (state, sa) = (outbound.state, outbound.sa.as_ref());
        let inbound = receiver.zip(sa).map(|(receiver, sa)| {
            let same = |it: &&_| identity(it) == identity(sa);
            receiver.inbound.iter().find(same)
        });
        let way = format!("{from} → {to}");
        match state {
            PathState::Pinned => {
                let late = outbound.awaited_seconds.filter(|waited| *waited >= PROBE.as_secs());
                if let Some(waited) = late {
                    problems.push(format!(
                        "{way}: a probe by the SA in use has had no answer for {}",
                        span(waited)
                    ));
                }
                if inbound == Some(None) {
                    problems.push(format!("{way}: {to} does not hold the SA that {from} sends with"));
                }
            }
            PathState::Open => problems.push(format!(
                "{way}: no SA is proven: in the clear while plaintext is accepted, else blocked"
            )),
            PathState::Held => problems.push(format!("{way}: the SA in use is missing: nothing leaves")),
            PathState::Excluded => problems.push(format!("{way}: one of both is excluded: in the clear")),
        }
        let inbound = inbound.flatten();
        directions.push(Direction {
            from: from.to_owned(),
            to: to.to_owned(),
            outbound: outbound.clone(),
            received_packets: inbound.map(|sa| sa.packets),
            received_bytes: inbound.map(|sa| sa.bytes),
            mtu_headroom,
        });
    }
}

/// What tells an SA apart.
fn identity(sa: &SaCounters) -> (IpAddr, IpAddr, u32) {
    (sa.source, sa.destination, sa.spi)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sa(source: u8, destination: u8, packets: u64) -> SaCounters {
        let address = |last: u8| [192, 0, 2, last].into();
        SaCounters {
            source: address(source),
            destination: address(destination),
            spi: 0x1000 + u32::from(source),
            packets,
            bytes: packets * 100,
        }
    }

    fn said(node: u8, peer: u8) -> PeerPaths {
        let outbound = OutboundPath {
            state: PathState::Pinned,
            source: sa(node, peer, 0).source,
            destination: sa(node, peer, 0).destination,
            sa: Some(sa(node, peer, 5000)),
            generation: Some(7),
            proven_seconds_ago: Some(65),
            awaited_seconds: None,
            candidate: None,
        };
        PeerPaths {
            announced: true,
            looked: true,
            outbound: vec![outbound],
            inbound: vec![sa(peer, node, 4990)],
            mtu: Some(MtuRoom { interface: "tunl0".into(), tunnel: 1450, limit: 1452 }),
            ..PeerPaths::default()
        }
    }

    fn paths(a: &Said, b: &Said) -> Paths {
        Paths::new(["node1", "node2"], [a, b])
    }

    #[test]
    fn good_path_shows_both_directions_and_ends_well() {
        let found = paths(&Ok(said(1, 2)), &Ok(said(2, 1)));
        assert_eq!(
            found.text(false),
            "FROM    TO      STATE    KEY   SPI          SENT    RECEIVED   PROVEN     HEADROOM\n\
             node1   node2   Pinned   7     0x00001001   5,000   4,990      1m5s ago   2 B\n\
             node2   node1   Pinned   7     0x00001002   5,000   4,990      1m5s ago   2 B\n"
        );
        assert!(found.exit() == Exit::Good && found.text(true).contains("192.0.2.1"));
    }

    #[test]
    fn every_fault_is_a_finding_and_a_missing_answer_is_none() {
        let with = |change: &dyn Fn(&mut PeerPaths)| {
            let mut said = said(1, 2);
            change(&mut said);
            Ok(said)
        };
        let late = || Err(Missing::Late("no answer".into()));
        let other = || Err(Missing::Other("no agent".into()));
        let good = || Ok(said(2, 1));
        let state = |state| with(&move |said: &mut PeerPaths| said.outbound[0].state = state);
        for (text, a, b, exit) in [
            ("no SA is proven", state(PathState::Open), good(), Exit::Finding),
            ("nothing leaves", state(PathState::Held), good(), Exit::Finding),
            ("excluded", state(PathState::Excluded), late(), Exit::Finding),
            (
                "no answer for 3s",
                with(&|said| said.outbound[0].awaited_seconds = Some(3)),
                good(),
                Exit::Finding,
            ),
            ("does not hold", good_without_inbound(), good(), Exit::Finding),
            ("at most 1452", with(&|said| said.mtu.as_mut().unwrap().tunnel = 1480), good(), Exit::Finding),
            (
                "has not announced",
                with(&|said| (said.announced, said.outbound) = (false, vec![])),
                good(),
                Exit::Finding,
            ),
            ("may be off", with(&|said| said.outbound.clear()), good(), Exit::Finding),
            ("not looked", with(&|said| said.looked = false), good(), Exit::Unknown),
            ("no agent", other(), good(), Exit::Unknown),
            ("no answer", late(), other(), Exit::TimedOut),
        ] {
            let found = paths(&a, &b);
            assert!(
                found.exit() == exit && found.text(false).contains(text),
                "{text}: {}",
                found.text(false)
            );
        }
        let answered_soon = paths(&with(&|said| said.outbound[0].awaited_seconds = Some(1)), &good());
        assert_eq!(answered_soon.exit(), Exit::Good);
    }

    /// What node1 says when node2 sends with an SA that node1 lacks.
    fn good_without_inbound() -> Said {
        Ok(PeerPaths { inbound: vec![], ..said(1, 2) })
    }

    #[test]
    fn hostile_names_show_no_escape_sequences() {
        let found =
            Paths::new(["a\u{1b}[2J", "b"], [&Ok(said(1, 2)), &Err(Missing::Other("x\u{1b}c".into()))]);
        assert!(!found.text(true).contains('\u{1b}'));
    }
}
