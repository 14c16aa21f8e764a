//! Removal or restart? Whether encryption is being uninstalled, or only this process ends.
//!
//! A wrong "removal" would switch encryption off on one node while its peers go on, so everything short of proof is
//! a restart, and a restart leaves the kernel as it is.

use std::time::{Duration, Instant};

use secureoverlay_keyring::uid::Uid;

/// Refusals that it takes in the mode without access to DaemonSets: a healthy API server refuses a valid token for
/// moments after its own start.
const REFUSALS: u32 = 4;
/// The time over which they must extend.
const REFUSED_FOR: Duration = Duration::from_millis(1500);
/// For how long it is asked again when an answer says nothing. MKE's manifest gives a pod 10 s to end; the question about
/// the DaemonSet before this takes up to 2 of them, and the removal itself 4.
pub const UNCLEAR_FOR: Duration = Duration::from_secs(3);

/// Our DaemonSet, as the API shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// It is there.
    Present {
        /// `metadata.uid`.
        uid: Option<Uid>,
        /// It has a `deletionTimestamp`.
        deleting: bool,
        /// It has the finalizer `orphan`: it goes, its pods stay.
        orphaning: bool,
    },
    /// The API says that there is none.
    Absent,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Take everything of ours out of the kernel.
    Removal,
    /// Leave the kernel as it is.
    Restart,
}

/// The fold over what the API showed of our DaemonSet.
#[derive(Debug, Default)]
pub struct Watched {
    existed: bool,
    orphaned: bool,
}

impl Watched {
    /// Takes a sighting by the watch. `Some(Removal)` when it proves that we are being removed.
    pub fn sight(&mut self, sighting: Sighting) -> Option<Verdict> {
        let verdict = match sighting {
            Sighting::Present { orphaning: true, .. } => {
                self.orphaned = true;
                Verdict::Restart
            }
            Sighting::Present { deleting: true, .. } => Verdict::Removal,
            Sighting::Present { .. } => {
                // After an orphaning, a new DaemonSet may have adopted this pod.
                self.orphaned = false;
                Verdict::Restart
            }
            // Without having seen it, its absence says nothing: this pod may have been started by hand.
            Sighting::Absent if self.existed && !self.orphaned => Verdict::Removal,
            Sighting::Absent => Verdict::Restart,
        };
        self.existed |= matches!(sighting, Sighting::Present { .. });
        (verdict == Verdict::Removal).then_some(verdict)
    }

    /// The DaemonSet went without its pods.
    #[must_use]
    pub const fn orphaned(&self) -> bool {
        self.orphaned
    }

    /// The process before this one has seen that.
    pub const fn remember_orphaned(&mut self) {
        self.orphaned = true;
    }

    /// The verdict at SIGTERM, when the API was asked once more; `None` where it gave no answer about the DaemonSet.
    pub fn at_the_end(&mut self, answer: Option<Sighting>) -> Verdict {
        match answer {
            Some(Sighting::Absent) if !self.orphaned => Verdict::Removal,
            Some(sighting) => self.sight(sighting).unwrap_or(Verdict::Restart),
            None => Verdict::Restart,
        }
    }
}

/// What the API answers to "get my own Node", an access that this agent had before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Granted.
    Granted,
    /// 401 or 403, while the API server said at the same time that it is ready.
    Refused,
    /// Anything else.
    Unclear,
}

/// Proof of a removal where DaemonSets can't be read: the role that came with it is gone, steadily.
#[derive(Debug)]
pub struct Refusals {
    begun: Instant,
    /// Since when it is refused, and how often it was since then.
    row: Option<(Instant, u32)>,
}

impl Refusals {
    /// Nothing was answered yet.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self { begun: now, row: None }
    }

    /// Takes one more answer; `None` where it takes another to tell.
    pub fn note(&mut self, access: Access, now: Instant) -> Option<Verdict> {
        match access {
            Access::Granted => Some(Verdict::Restart),
            // A busy API server answers late, and one that has just started is about to refuse what it will grant: what
            // was refused before such an answer does not count.
            Access::Unclear => {
                self.row = None;
                (now.duration_since(self.begun) >= UNCLEAR_FOR).then_some(Verdict::Restart)
            }
            Access::Refused => {
                let (first, count) = self.row.map_or((now, 1), |(first, count)| (first, count + 1));
                self.row = Some((first, count));
                let steady = count >= REFUSALS && now.duration_since(first) >= REFUSED_FOR;
                steady.then_some(Verdict::Removal)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRESENT: Sighting = Sighting::Present { uid: None, deleting: false, orphaning: false };
    const DELETING: Sighting = Sighting::Present { uid: None, deleting: true, orphaning: false };
    const ORPHANING: Sighting = Sighting::Present { uid: None, deleting: true, orphaning: true };

    #[test]
    fn only_a_deletion_of_what_existed_is_a_removal() {
        let table: [(&[Sighting], bool); 9] = [
            (&[PRESENT], false),
            (&[Sighting::Absent], false),
            (&[PRESENT, Sighting::Absent], true),
            (&[PRESENT, DELETING], true),
            (&[DELETING], true),
            (&[PRESENT, ORPHANING], false),
            (&[PRESENT, ORPHANING, Sighting::Absent], false),
            (&[PRESENT, ORPHANING, Sighting::Absent, PRESENT], false),
            (&[PRESENT, ORPHANING, Sighting::Absent, PRESENT, Sighting::Absent], true),
        ];
        for (sightings, removal) in table {
            let mut watched = Watched::default();
            let verdicts: Vec<_> = sightings.iter().map(|&sighting| watched.sight(sighting)).collect();
            assert_eq!(verdicts.last().unwrap().is_some(), removal, "{sightings:?}");
            assert!(verdicts[..verdicts.len() - 1].iter().all(Option::is_none), "{sightings:?}");
        }
    }

    #[test]
    fn at_the_end_only_a_clear_answer_counts() {
        let table = [
            (Some(Sighting::Absent), Verdict::Removal),
            (Some(DELETING), Verdict::Removal),
            (Some(PRESENT), Verdict::Restart),
            (Some(ORPHANING), Verdict::Restart),
            (None, Verdict::Restart),
        ];
        for (answer, verdict) in table {
            assert_eq!(Watched::default().at_the_end(answer), verdict, "{answer:?}");
        }
        let mut orphan = Watched::default();
        orphan.sight(ORPHANING);
        assert_eq!(orphan.at_the_end(Some(Sighting::Absent)), Verdict::Restart);
    }

    fn refusals(answers: &[(Access, u64)]) -> Option<Verdict> {
        let start = Instant::now();
        let mut refusals = Refusals::new(start);
        answers.iter().find_map(|&(access, at)| refusals.note(access, start + Duration::from_millis(at)))
    }

    #[test]
    fn refusals_count_when_they_are_steady() {
        use Access::{Granted, Refused, Unclear};
        let long = [(Refused, 0), (Refused, 500), (Refused, 1000), (Refused, 1500)];
        assert_eq!(refusals(&long), Some(Verdict::Removal));
        assert_eq!(refusals(&long[..3]), None);
        assert_eq!(
            refusals(&[(Refused, 0), (Refused, 10), (Refused, 20), (Refused, 30), (Refused, 40)]),
            None
        );
        assert_eq!(refusals(&[(Refused, 0), (Granted, 500), (Refused, 1000)]), Some(Verdict::Restart));
        assert_eq!(refusals(&[(Refused, 0), (Unclear, 500), (Refused, 1000), (Refused, 1500)]), None);
    }

    #[test]
    fn an_unclear_answer_is_asked_again() {
        use Access::{Granted, Refused, Unclear};
        let late = |answer| (answer, u64::try_from(UNCLEAR_FOR.as_millis()).unwrap());
        assert_eq!(refusals(&[(Unclear, 0), (Unclear, 2500)]), None);
        assert_eq!(refusals(&[(Unclear, 0), (Granted, 500)]), Some(Verdict::Restart));
        assert_eq!(refusals(&[(Unclear, 0), late(Unclear)]), Some(Verdict::Restart), "not for ever");
        assert_eq!(refusals(&[(Refused, 0), (Refused, 2500), late(Unclear)]), Some(Verdict::Restart));
        let slow_at_first =
            [(Unclear, 0), (Refused, 2500), (Refused, 3000), (Refused, 3500), (Refused, 4000)];
        assert_eq!(refusals(&slow_at_first), Some(Verdict::Removal));
        assert_eq!(refusals(&slow_at_first[..4]), None);
    }
}
