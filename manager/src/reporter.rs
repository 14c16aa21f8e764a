//! What the manager says of what it does: in the log, in Events, in metrics.

use secureoverlay_common::{
    duration::Human,
    names::ENFORCE,
    phase::Phase,
    ring::{Enforcement, Generation, Ring, RingError},
    rotation::{Action, Cause, Names},
};
use secureoverlay_manager_core::{
    notification::{AppliedDecision, EventReason, Notification},
    wait_report::WaitReport,
};

use crate::{
    metrics::Metrics,
    outbox::{Notice, Outbox},
    store::Held,
};

/// Says what changes, once.
pub struct Reporter {
    metrics: Metrics,
    outbox: Outbox,
    /// Key of the start-up taint.
    startup_taint: Option<String>,
    /// What was said of a ring that can't be read.
    unreadable: Option<String>,
    /// What was said of a requested enforcement that does not exist.
    nonsense: Option<String>,
    /// UID of the Secret, which Events are about.
    secret: Option<String>,
}

impl Reporter {
    /// `startup_taint`: its key, where there is one.
    #[must_use]
    pub const fn new(metrics: Metrics, outbox: Outbox, startup_taint: Option<String>) -> Self {
        Self { metrics, outbox, startup_taint, unreadable: None, nonsense: None, secret: None }
    }

    /// The Secret was read.
    pub fn read(&mut self, ring: &Result<Ring, RingError>, held: &Held) {
        if self.secret != held.uid {
            self.secret.clone_from(&held.uid);
        }
        match ring {
            Ok(ring) => self.readable(Some(ring)),
            Err(RingError::Empty) => self.readable(None),
            Err(error) => return self.unreadable(error),
        }
        self.asked(held.nonsense());
    }

    /// What the controller tells.
    pub fn tell(&mut self, notification: Notification) {
        match notification {
            Notification::Applied(applied) => self.applied(&applied),
            Notification::Restored { revision } => self.restored(revision),
            Notification::Waits(report) => self.waits(report),
            Notification::Counted(counts) => self.metrics.count(counts),
            Notification::TaintStuck { node } => tracing::warn!(
                node,
                taint = self.startup_taint.as_deref().unwrap_or_default(),
                "still has the start-up taint: it does not say that it encrypts to all others; look at its NodeEncryption and at \
                 the log of its agent"
            ),
        }
    }

    /// A node's start-up taint is to go.
    pub fn remove_taint(&self, node: String) {
        if let Some(key) = self.startup_taint.clone() {
            self.outbox.put(Notice::RemoveTaint { node, key });
        }
    }

    fn asked(&mut self, nonsense: Option<&str>) {
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

    fn unreadable(&mut self, error: &RingError) {
        self.metrics.unreadable();
        let text = error.to_string();
        if self.unreadable.as_ref() != Some(&text) {
            self.event(
                EventReason::RingUnreadable,
                format!("{text}. Nodes go on with the keys they hold; the Secret is left as it is until this is mended"),
            );
            self.unreadable = Some(text);
        }
    }

    fn readable(&mut self, ring: Option<&Ring>) {
        self.metrics.show(ring);
        self.unreadable = None;
    }

    fn restored(&self, revision: u64) {
        self.metrics.restored.inc();
        let text = "the Secret was emptied, as re-applying MKE's manifest does: the ring is back as it was, nothing was rotated";
        tracing::warn!(revision, "{text}");
        self.event(EventReason::RingRestored, text.to_owned());
    }

    fn waits(&self, report: WaitReport) {
        self.metrics.waits(report.count, report.waited);
        if let Some((reason, note)) = report.event {
            match reason {
                EventReason::RotationStalled => tracing::warn!("the rotation is stalled: {note}"),
                EventReason::EnforcementStalled => tracing::warn!("{note}"),
                _ => tracing::info!("{note}"),
            }
            self.event(reason, note);
        }
        for (node, what) in report.awaited {
            self.outbox.put(Notice::Awaited { node, what });
        }
    }

    fn applied(&self, act: &AppliedDecision) {
        let id = |generation: Option<&Generation>| generation.map_or(0, |generation| generation.id);
        let (revision, reason) = (act.after.revision, act.decision.reason.as_str());
        let (before, after) = (Phase::of(act.before.as_ref()), act.after.phase());
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
                self.event(EventReason::RotationStarted, format!("{text} ({reason})"));
            }
            Action::Activate => match after.retiring() {
                None => {
                    let text = format!("activated generation {active}");
                    tracing::info!(revision, generation = active, reason, "{text}");
                    self.event(EventReason::KeyActivated, text);
                    self.event(
                        EventReason::RotationCompleted,
                        format!("generation {active} is the first one in use{}", next(&act.after)),
                    );
                    if act.after.enforcement == Enforcement::Enforcing {
                        self.enforced(act, EventReason::Enforcing, "plaintext goes on being turned away");
                    }
                }
                Some(old) => {
                    let text = format!(
                        "activated generation {active}, dropping generation {} {}",
                        old.id,
                        when("nobody sends with it")
                    );
                    tracing::info!(revision, generation = active, reason, "{text}");
                    self.event(EventReason::KeyActivated, text);
                }
            },
            Action::RemoveRetired => {
                self.metrics.rotations.inc();
                let old = id(before.retiring());
                let text = format!("dropped generation {old}{}", next(&act.after));
                tracing::info!(revision, generation = old, reason, "{text}");
                self.event(EventReason::RotationCompleted, text);
            }
            Action::Rekey => {
                self.metrics.rekeys.inc();
                let text = format!("new incarnations for nodes that lost SAs: {}", Names(&act.rekeyed));
                tracing::info!(revision, reason, "{text}");
                self.event(EventReason::NodesRekeyed, text);
            }
            Action::Reset => tracing::info!(revision, reason, "emptied the ring, encryption is off"),
            Action::Pend => {
                let count = act.after.pending.len();
                tracing::info!(revision, reason, new = %Names(&act.pending), "{count} nodes are pending");
                if !act.pending.is_empty() {
                    let text = "are spoken to in the clear until they receive the generation in use, ESP reaches them and their tunnel has room for it";
                    self.event(EventReason::NodesPending, format!("{} {text}", Names(&act.pending)));
                }
            }
            Action::SetEnforcement(Enforcement::Enforcing) => {
                self.enforced(act, EventReason::Enforcing, "insisting: plaintext is turned away from now on");
            }
            Action::SetEnforcement(Enforcement::Permissive) => {
                self.enforced(act, EventReason::Relented, "relented: plaintext is accepted again");
            }
            Action::StopSending => {
                let old = id(after.retiring());
                let off = when("nobody encrypts any more");
                let text = format!("nobody is to send with generation {old} any more, switching off {off}");
                self.enforced(act, EventReason::SwitchingOff, &text);
            }
            Action::Disable | Action::SetEnforcement(Enforcement::Off) => {
                self.enforced(act, EventReason::SwitchedOff, "switched off: nothing is encrypted");
            }
        }
    }

    fn enforced(&self, act: &AppliedDecision, reason: EventReason, text: &str) {
        let (revision, why) = (act.after.revision, act.decision.reason.as_str());
        tracing::info!(revision, reason = why, "{text}");
        self.event(reason, format!("{text} ({why})"));
    }

    fn event(&self, reason: EventReason, note: String) {
        self.outbox.put(Notice::Event { reason, note, secret: self.secret.clone() });
    }
}

fn next(ring: &Ring) -> String {
    ring.next_rotation.map_or_else(String::new, |at| format!(", next rotation at {at:.0}"))
}
