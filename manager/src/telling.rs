//! What the manager says of what it does: in the log, in Events, in metrics.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use secureoverlay_common::{
    names::ENFORCE,
    phase::Phase,
    ring::{Enforcement, Generation, Ring, RingError},
    rotation::{Action, Cause, Decision, Names, Wait},
};
use secureoverlay_daemon::duration::Human;

use crate::{
    metrics::Metrics,
    notices::{Notice, Outbox, Reason},
    store::Requests,
    waiting::Waiting,
};

/// A write that was done.
pub struct Act<'a> {
    /// What it was.
    pub decision: &'a Decision,
    /// The ring before.
    pub before: Option<&'a Ring>,
    /// The ring in the Secret now.
    pub after: &'a Ring,
    /// What was asked for.
    pub requests: Requests,
    /// The nodes that got new incarnations.
    pub rekeyed: BTreeSet<String>,
    /// The nodes that are pending now, and were not before.
    pub pending: BTreeSet<String>,
    /// How long the next step is away, where time decides.
    pub delay: Option<Duration>,
}

/// Says what changes, once.
pub struct Teller {
    metrics: Metrics,
    outbox: Outbox,
    waiting: Waiting,
    /// What was said of a ring that can't be read.
    unreadable: Option<String>,
    /// What was said of an enforcement that nobody understands.
    nonsense: Option<String>,
    /// UID of the Secret, which Events are about.
    secret: Option<String>,
}

impl Teller {
    /// `limit`: how long nodes that are not ready are waited for.
    #[must_use]
    pub const fn new(metrics: Metrics, outbox: Outbox, limit: Duration) -> Self {
        Self { metrics, outbox, waiting: Waiting::new(limit), unreadable: None, nonsense: None, secret: None }
    }

    /// The Secret as of now.
    pub fn secret(&mut self, uid: Option<&str>) {
        if self.secret.as_deref() != uid {
            self.secret = uid.map(str::to_owned);
        }
    }

    /// Somebody asks for an enforcement that is none, or no longer does.
    pub fn asked(&mut self, nonsense: Option<&str>) {
        if self.nonsense.as_deref() != nonsense {
            if let Some(value) = nonsense {
                let value: String = value.chars().take(40).collect();
                tracing::warn!(
                    "the annotation {ENFORCE}={value:?} of the Secret counts for nothing: \
                     permissive, enforcing and off are understood"
                );
            }
            self.nonsense = nonsense.map(str::to_owned);
        }
    }

    /// The Secret holds no ring.
    pub fn unreadable(&mut self, error: &RingError) {
        self.metrics.unreadable();
        let text = error.to_string();
        if self.unreadable.as_ref() != Some(&text) {
            self.event(
                Reason::RingUnreadable,
                format!("{text}. Nodes go on with the keys they hold; the Secret is left as it is until this is mended"),
            );
            self.unreadable = Some(text);
        }
    }

    /// The Secret holds `ring`, or nothing yet.
    pub fn readable(&mut self, ring: Option<&Ring>) {
        self.metrics.show(ring);
        self.unreadable = None;
    }

    /// The ring was put back into a Secret that was emptied.
    pub fn restored(&self, ring: &Ring) {
        self.metrics.restored.inc();
        let text = "the Secret was emptied, as re-applying MKE's manifest does: the ring is back as it was, nothing was rotated";
        tracing::warn!(revision = ring.revision, "{text}");
        self.event(Reason::RingRestored, text.to_owned());
    }

    /// What the rotation waits for, or a change of enforcement. `shown` is what the nodes' objects say about that.
    pub fn waits(
        &mut self,
        wait: Option<&Wait>,
        shown: impl FnOnce() -> BTreeMap<String, String>,
        now: Instant,
    ) {
        let words = self.waiting.words(wait, shown, now);
        self.metrics.waits(words.count, words.waited);
        if let Some((reason, note)) = words.event {
            match reason {
                Reason::RotationStalled => tracing::warn!("the rotation is stalled: {note}"),
                Reason::EnforcementStalled => tracing::warn!("{note}"),
                _ => tracing::info!("{note}"),
            }
            self.event(reason, note);
        }
        for (node, what) in words.awaited {
            self.outbox.put(Notice::Awaited { node, what });
        }
    }

    /// A write was done.
    pub fn acted(&self, act: &Act<'_>) {
        let id = |generation: Option<&Generation>| generation.map_or(0, |generation| generation.id);
        let (revision, reason) = (act.after.revision, act.decision.reason.as_str());
        let (before, after) = (Phase::of(act.before), act.after.phase());
        let (staged, active) = (id(after.staged()), id(after.active()));
        let when = |condition: &str| {
            act.delay.map_or_else(|| format!("when {condition}"), |delay| format!("in {}", Human(delay)))
        };
        match act.decision.action {
            Action::Wait => {}
            Action::Bootstrap | Action::Stage => {
                let asked = act.requests.rotate;
                self.metrics.started(act.decision.cause.unwrap_or(Cause::First), asked);
                let text =
                    format!("staged generation {staged}, activating {}", when("every node receives it"));
                tracing::info!(revision, generation = staged, reason, "{text}");
                self.event(Reason::RotationStarted, format!("{text} ({reason})"));
            }
            Action::Activate => match after.retiring() {
                None => {
                    let text = format!("activated generation {active}");
                    tracing::info!(revision, generation = active, reason, "{text}");
                    self.event(Reason::KeyActivated, text);
                    self.event(
                        Reason::RotationCompleted,
                        format!("generation {active} is the first one in use{}", next(act.after)),
                    );
                    if act.after.enforcement == Enforcement::Enforcing {
                        self.enforced(act, Reason::Enforcing, "plaintext goes on being turned away");
                    }
                }
                Some(old) => {
                    let text = format!(
                        "activated generation {active}, dropping generation {} {}",
                        old.id,
                        when("nobody sends with it")
                    );
                    tracing::info!(revision, generation = active, reason, "{text}");
                    self.event(Reason::KeyActivated, text);
                }
            },
            Action::RemoveRetired => {
                self.metrics.rotations.inc();
                let old = id(before.retiring());
                let text = format!("dropped generation {old}{}", next(act.after));
                tracing::info!(revision, generation = old, reason, "{text}");
                self.event(Reason::RotationCompleted, text);
            }
            Action::Rekey => {
                self.metrics.rekeys.inc();
                let text = format!("new incarnations for nodes that lost SAs: {}", Names(&act.rekeyed));
                tracing::info!(revision, reason, "{text}");
                self.event(Reason::NodesRekeyed, text);
            }
            Action::Reset => tracing::info!(revision, reason, "emptied the ring, encryption is off"),
            Action::Pend => {
                let count = act.after.pending.len();
                tracing::info!(revision, reason, new = %Names(&act.pending), "{count} nodes are pending");
                if !act.pending.is_empty() {
                    let text = "are spoken to in the clear until they receive the generation in use, ESP reaches them and their tunnel has room for it";
                    self.event(Reason::NodesPending, format!("{} {text}", Names(&act.pending)));
                }
            }
            Action::SetEnforcement(Enforcement::Enforcing) => {
                self.enforced(act, Reason::Enforcing, "insisting: plaintext is turned away from now on");
            }
            Action::SetEnforcement(Enforcement::Permissive) => {
                self.enforced(act, Reason::Relented, "relented: plaintext is accepted again");
            }
            Action::StopSending => {
                let old = id(after.retiring());
                let off = when("nobody encrypts any more");
                let text = format!("nobody is to send with generation {old} any more, switching off {off}");
                self.enforced(act, Reason::SwitchingOff, &text);
            }
            Action::Disable | Action::SetEnforcement(Enforcement::Off) => {
                self.enforced(act, Reason::SwitchedOff, "switched off: nothing is encrypted");
            }
        }
    }

    fn enforced(&self, act: &Act<'_>, reason: Reason, text: &str) {
        let (revision, why) = (act.after.revision, act.decision.reason.as_str());
        tracing::info!(revision, reason = why, "{text}");
        self.event(reason, format!("{text} ({why})"));
    }

    fn event(&self, reason: Reason, note: String) {
        self.outbox.put(Notice::Event { reason, note, secret: self.secret.clone() });
    }
}

fn next(ring: &Ring) -> String {
    ring.next_rotation.map_or_else(String::new, |at| format!(", next rotation at {at:.0}"))
}
