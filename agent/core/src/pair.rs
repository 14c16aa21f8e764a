//! What is sent with between this node and one address of a peer: a pure function of what the ring and the peer offer,
//! and of what was proven.
//!
//! No pod traffic is pinned to an SA that was not answered. A pair is *open* (no policy), *pinned* (a policy pins an SA
//! that is there), *held* (a policy pins an SA that is not there: the kernel drops what it selects) or *excluded*.
//! Nothing that this module decides leads from pinned or held to open.

use std::collections::{BTreeMap, BTreeSet};

use secureoverlay_keyring::address::NodeAddress;

/// This node's address, and one of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PairId {
    /// The source that the kernel chooses.
    pub src: NodeAddress,
    /// The peer's.
    pub dst: NodeAddress,
}

/// What is known of a pair: by its SPIs, which tell the SAs to one destination apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PairState {
    /// The SPI that the kernel's policy pins.
    pub pin: Option<u32>,
    /// SAs that the peer has answered by.
    pub proven: BTreeSet<u32>,
    /// Which claim to the address is tried, where there is more than one.
    pub turn: usize,
    /// The pinned SA gives no answer: another claim may take its place.
    pub yields: bool,
}

/// Everything that is known of all pairs.
pub type PairStates = BTreeMap<PairId, PairState>;

/// The SPIs that a claim offers to send with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Of the active generation.
    pub active: Option<u32>,
    /// Of the staged generation.
    pub staged: Option<u32>,
}

/// What to do for a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PairPlan {
    /// What to send pod traffic with.
    pub pin: Option<u32>,
    /// What is to be proven next.
    pub candidate: Option<u32>,
    /// What the claim that has the address, or is tried for it, offers.
    pub offer: Offer,
}

impl PairPlan {
    /// Decides, given all claims to the address.
    #[must_use]
    pub fn new(state: &PairState, offers: &[Offer]) -> Self {
        let pinned = |offer: &Offer| state.pin.is_some() && [offer.active, offer.staged].contains(&state.pin);
        let holder = offers.iter().position(pinned);
        // The others are tried in turn, one that gives no answers yields to them.
        let others: Vec<usize> = (0..offers.len()).filter(|at| holder != Some(*at)).collect();
        let turn = || Some(others[state.turn.checked_rem(others.len())?]);
        let chosen = if state.yields { turn().or(holder) } else { holder.or_else(turn) };
        let Some(offer) = chosen.map(|at| offers[at]) else {
            return Self { pin: state.pin, ..Self::default() };
        };
        let proven = |spi: &u32| state.proven.contains(spi);
        let pin = offer.active.filter(proven).or(state.pin);
        let candidate = [offer.active, offer.staged].into_iter().flatten().find(|spi| !proven(spi));
        Self { pin, candidate, offer }
    }

    /// What probes at the two ports go with: the pinned SA, and the candidate. Each falls back to the other, so that
    /// this node can answer on both ports if it has any SA. `held`: the pinned SA is not there.
    #[must_use]
    pub fn probes(&self, held: bool) -> [Option<u32>; 2] {
        let pin = self.pin.filter(|_| !held);
        [pin.or(self.candidate), self.candidate.or(pin)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Offer = Offer { active: Some(1), staged: Some(2) };

    fn state(pin: Option<u32>, proven: &[u32]) -> PairState {
        PairState { pin, proven: proven.iter().copied().collect(), ..PairState::default() }
    }

    #[test]
    fn nothing_is_pinned_that_was_not_answered() {
        for (text, state, pin, candidate) in [
            ("nothing proven", state(None, &[]), None, Some(1)),
            ("the active one", state(None, &[1]), Some(1), Some(2)),
            ("the staged one alone", state(None, &[2]), None, Some(1)),
            ("both", state(Some(1), &[1, 2]), Some(1), None),
            ("a new target", state(Some(9), &[9]), Some(9), Some(1)),
            ("a new target, proven", state(Some(9), &[9, 1]), Some(1), Some(2)),
        ] {
            let plan = PairPlan::new(&state, &[NEW]);
            assert_eq!((plan.pin, plan.candidate), (pin, candidate), "{text}");
        }
    }

    #[test]
    fn pin_stays_when_nothing_is_offered() {
        assert_eq!(PairPlan::new(&state(Some(9), &[9]), &[]).pin, Some(9));
        assert_eq!(PairPlan::new(&state(Some(9), &[9]), &[Offer::default()]).pin, Some(9));
    }

    #[test]
    fn pinned_claim_yields_only_when_it_stops_answering_and_another_answers() {
        let other = Offer { active: Some(5), staged: Some(6) };
        let mut pinned = state(Some(1), &[1, 2]);
        pinned.turn = 1;
        assert_eq!(PairPlan::new(&pinned, &[NEW, other]).candidate, None);
        pinned.yields = true;
        let plan = PairPlan::new(&pinned, &[NEW, other]);
        assert_eq!((plan.pin, plan.candidate), (Some(1), Some(5)));
        pinned.proven.insert(5);
        assert_eq!(PairPlan::new(&pinned, &[NEW, other]).pin, Some(5));
    }

    #[test]
    fn probes_go_with_the_other_sa_where_one_is_missing() {
        let plan = |pin, candidate| PairPlan { pin, candidate, offer: NEW };
        assert_eq!(plan(Some(1), Some(2)).probes(false), [Some(1), Some(2)]);
        assert_eq!(plan(Some(1), None).probes(false), [Some(1), Some(1)]);
        assert_eq!(plan(None, Some(2)).probes(false), [Some(2), Some(2)]);
        assert_eq!(plan(Some(1), Some(2)).probes(true), [Some(2), Some(2)]);
        assert_eq!(plan(Some(1), None).probes(true), [None, None]);
    }
}
