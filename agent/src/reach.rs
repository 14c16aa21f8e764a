//! Whom ESP reaches, as far as this node has tried.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use secureoverlay_common::uid::Uid;

use crate::{
    agent::Program,
    probing::{Probes, Verdicts},
    roster::Peers,
};

/// Of a long list of unreachable peers, so many are told to the manager.
const TOLD: usize = 100;
/// And so many are named to people.
const NAMED: usize = 5;

/// What is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// There is nothing to prove: no keys, nobody to talk to, or probing is off.
    #[default]
    NotProbed,
    /// This node can't probe, for the reason given.
    Unable(String),
    /// Not every peer has been judged.
    Trying,
    /// Every peer that is probed has been judged; these did not answer.
    Known(BTreeSet<Uid>),
}

/// Whom to try, and what came of it.
#[derive(Debug)]
pub struct Trial {
    probes: Option<Probes>,
    /// Whom ESP is to be tried with, also where the policies for it are not in place yet.
    wanted: BTreeSet<Uid>,
    verdicts: Result<Verdicts, String>,
}

impl Default for Trial {
    fn default() -> Self {
        Self { probes: None, wanted: BTreeSet::new(), verdicts: Ok(Verdicts::new()) }
    }
}

impl Trial {
    /// Takes which peers a run at `program` has planned probe policies for, and whether those are in place: only then
    /// they are probed. What was known when there was nothing to be probed is found out afresh.
    pub fn plan(&mut self, program: Option<&Program>, planned: &BTreeMap<IpAddr, bool>) {
        let Some(program) = program.filter(|_| !planned.is_empty()) else {
            *self = Self::default();
            return;
        };
        let of = |addr| Some(program.peers.get(addr)?.end.node);
        self.wanted = planned.keys().filter_map(of).collect();
        let ready = planned.iter().filter(|(_, ready)| **ready);
        self.probes = Some(Probes {
            local: program.local.addr,
            port: program.probe_port,
            peers: ready.filter_map(|(addr, _)| Some((*addr, of(addr)?))).collect(),
        });
    }

    /// Takes what the probes showed. What was on its way when the probing ended says nothing about the next time.
    pub fn take(&mut self, verdicts: Result<Verdicts, String>) {
        if self.probes.is_some() {
            self.verdicts = verdicts;
        }
    }

    /// Whom to probe now.
    #[must_use]
    pub const fn probes(&self) -> Option<&Probes> {
        self.probes.as_ref()
    }

    /// What is known.
    #[must_use]
    pub fn reach(&self) -> Reach {
        Reach::new(&self.wanted, &self.verdicts)
    }
}

impl Reach {
    /// What `verdicts` say of the peers that are `wanted`.
    #[must_use]
    pub fn new(wanted: &BTreeSet<Uid>, verdicts: &Result<Verdicts, String>) -> Self {
        match verdicts {
            _ if wanted.is_empty() => Self::NotProbed,
            Err(why) => Self::Unable(why.clone()),
            Ok(verdicts) if wanted.iter().all(|uid| verdicts.contains_key(uid)) => {
                Self::Known(wanted.iter().filter(|uid| verdicts.get(uid) == Some(&false)).copied().collect())
            }
            Ok(_) => Self::Trying,
        }
    }

    /// What the manager is told: peers out of reach, and nothing as long as that is being tried.
    #[must_use]
    pub fn told(&self) -> Option<BTreeSet<Uid>> {
        match self {
            Self::NotProbed | Self::Unable(_) => Some(BTreeSet::new()),
            Self::Trying => None,
            Self::Known(unreachable) => Some(unreachable.iter().take(TOLD).copied().collect()),
        }
    }

    /// Who is out of reach.
    #[must_use]
    pub const fn unreachable(&self) -> Option<&BTreeSet<Uid>> {
        match self {
            Self::Known(unreachable) => Some(unreachable),
            _ => None,
        }
    }

    /// Who is out of reach, in a sentence for people, if anybody is.
    #[must_use]
    pub fn problem(&self, peers: &Peers) -> Option<String> {
        let unreachable = self.unreachable().filter(|unreachable| !unreachable.is_empty())?;
        let named: Vec<String> = peers
            .values()
            .filter(|peer| unreachable.contains(&peer.end.node))
            .take(NAMED)
            .map(|peer| format!("{} ({})", peer.name, peer.end.addr))
            .collect();
        let more = unreachable.len().saturating_sub(named.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Some(format!(
            "ESP probes get no answer from {}{more}: no agent runs there yet, or the network between drops IP protocol 50",
            named.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use secureoverlay_common::wire::End;

    use super::*;
    use crate::roster::Peer;

    fn uid(n: u8) -> Uid {
        Uid::from_random([n; 16])
    }

    #[test]
    fn nothing_is_known_before_every_peer_was_judged() {
        let wanted = BTreeSet::from([uid(2), uid(3)]);
        let reach = |verdicts: &[(u8, bool)]| {
            Reach::new(&wanted, &Ok(verdicts.iter().map(|&(n, reached)| (uid(n), reached)).collect()))
        };
        for verdicts in [&[][..], &[(2, false)], &[(3, true), (4, false)]] {
            assert_eq!((reach(verdicts), reach(verdicts).told()), (Reach::Trying, None));
        }
        let known = reach(&[(2, false), (3, true), (4, false)]);
        assert_eq!(known.told(), Some([uid(2)].into()), "4 is none of those that count");
        assert_eq!(reach(&[(2, true), (3, true)]).told(), Some(BTreeSet::new()));
    }

    #[test]
    fn who_does_not_probe_has_nothing_against_anybody() {
        let late = Ok([(uid(2), false)].into());
        assert_eq!(Reach::new(&BTreeSet::new(), &late), Reach::NotProbed);
        let unable = Reach::new(&[uid(2)].into(), &Err("the port is taken".into()));
        assert_eq!(unable, Reach::Unable("the port is taken".into()));
        for reach in [Reach::NotProbed, unable] {
            assert_eq!((reach.told(), reach.problem(&Peers::new())), (Some(BTreeSet::new()), None));
        }
    }

    #[test]
    fn long_lists_are_cut() {
        let all: Vec<u8> = (1..=150).collect();
        let peer = |&n: &u8| {
            let end = End { addr: [192, 0, 2, n].into(), node: uid(n), boot: uid(n) };
            (end.addr, Peer { name: format!("node-{n}"), end, excluded: false, new: false })
        };
        let peers: Peers = all.iter().map(peer).collect();
        let reach = Reach::Known(all.iter().map(|&n| uid(n)).collect());
        assert_eq!(reach.told().map(|told| told.len()), Some(TOLD));
        let problem = reach.problem(&peers).unwrap();
        assert!(problem.contains("node-1 (192.0.2.1), ") && problem.contains(" and 145 more: "), "{problem}");
        assert!(!problem.contains("node-6 "), "{problem}");
        assert!(!Reach::Known([uid(2)].into()).problem(&peers).unwrap().contains("more"));
        assert_eq!(Reach::Known(BTreeSet::new()).problem(&peers), None);
    }
}
