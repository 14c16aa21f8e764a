//! What the manager says of what it does: in the log, in Events, in metrics.

use secureoverlay_keyring::duration::HumanDuration;
use secureoverlay_keyring::keyring::{Enforcement, Generation, KeyRing, KeyRingError};
use secureoverlay_keyring::uid::Uid;
use secureoverlay_manager_core::{
    notification::{AppliedDecision, EventReason, Notification},
    operator::{EncryptionObject, ObjectReference, ObjectWrite},
    orphans::Deletion,
    wait_report::WaitReport,
};
use secureoverlay_rotation::{Action, Cause, Exclusions, Names, Phase};

use crate::{
    io::{
        outbox::{Notice, Outbox, Subject},
        store::SecretRead,
    },
    telemetry::metrics::Metrics,
};

/// Says what changes, once.
pub struct Reporter {
    metrics: Metrics,
    outbox: Outbox,
    /// Key of the start-up taint.
    startup_taint: Option<String>,
    /// What was said of a ring that can't be read.
    unreadable: Option<String>,
    /// What was said of settings that are invalid.
    invalid: Option<String>,
    /// It was said that the history of the API server went back.
    went_back: bool,
    /// UID of the Secret, which Events are about where there is no object of the operator's.
    secret: Option<String>,
    /// UID of the ClusterEncryption; `None` where there is none.
    encryption: Option<Option<Uid>>,
    /// The KeyRotation that is under way.
    rotation: Option<ObjectReference>,
}

impl Reporter {
    /// `startup_taint`: its key, where there is one.
    #[must_use]
    pub const fn new(metrics: Metrics, outbox: Outbox, startup_taint: Option<String>) -> Self {
        Self {
            metrics,
            outbox,
            startup_taint,
            unreadable: None,
            invalid: None,
            went_back: false,
            secret: None,
            encryption: None,
            rotation: None,
        }
    }

    /// The Secret was read.
    pub fn read(&mut self, ring: &Result<KeyRing, KeyRingError>, read: &SecretRead) {
        if self.secret != read.uid {
            self.secret.clone_from(&read.uid);
        }
        match ring {
            Ok(ring) => self.readable(Some(ring)),
            Err(KeyRingError::Empty) => self.readable(None),
            Err(error) => self.unreadable(error),
        }
    }

    /// The ClusterEncryption was read, or is not there.
    pub fn objects(&mut self, encryption: Option<&EncryptionObject>) {
        self.encryption = encryption.map(|encryption| encryption.uid);
        let invalid = encryption.and_then(|encryption| encryption.settings.as_ref().err());
        if self.invalid.as_ref() != invalid {
            if let Some(error) = invalid {
                tracing::warn!(
                    error,
                    "the ClusterEncryption is invalid; the last good settings stay in force"
                );
                self.event(
                    EventReason::InvalidSettings,
                    format!("{error}. The last good settings stay in force"),
                );
            }
            self.invalid = invalid.cloned();
        }
    }

    /// What the controller tells.
    pub fn tell(&mut self, notification: Notification) {
        match notification {
            Notification::Applied(applied) => self.applied(&applied),
            Notification::Waits(report) => self.waits(report),
            Notification::Counted(counts) => self.metrics.count(counts),
            Notification::ExclusionsRefused(exclusions) => self.refused(&exclusions),
            Notification::UnderWay(rotation) => self.rotation = rotation,
            Notification::RotationDeleted { rotation, generation } => {
                let note = format!(
                    "deleted while under way: generation {generation} is kept, and the rotation goes on"
                );
                tracing::warn!(name = rotation.name, generation, "a KeyRotation was {note}");
                let about = Subject::KeyRotation(rotation);
                self.outbox.put(Notice::Event { reason: EventReason::RotationDeleted, note, about });
            }
            Notification::TaintStuck { node } => tracing::warn!(
                node,
                taint = self.startup_taint.as_deref().unwrap_or_default(),
                "the start-up taint stays: not all pairs of the node are proven; see its NodeEncryption and the log of its agent"
            ),
        }
    }

    /// A node's start-up taint is to go.
    pub fn remove_taint(&self, node: String) {
        if let Some(key) = self.startup_taint.clone() {
            self.outbox.put(Notice::RemoveTaint { node, key });
        }
    }

    /// An object whose Node is gone is to go.
    pub fn delete(&self, deletion: Deletion) {
        self.outbox.put(Notice::Delete(deletion));
    }

    /// An object of the operator's is to be written.
    pub fn write(&self, write: ObjectWrite) {
        self.outbox.put(Notice::Write(write));
    }

    /// The store of the API server went back, and the API server was not restarted.
    pub fn history_went_back(&mut self) {
        if !std::mem::replace(&mut self.went_back, true) {
            let text = "the store of the API server went back, as after a restored backup, and its caches do not know: \
                        restart the API servers. Nothing is rotated until then";
            tracing::warn!("{text}");
            self.event(EventReason::ApiServerHistoryWentBack, text.to_owned());
        }
    }

    /// The API server can be built on.
    pub const fn history_is_consistent(&mut self) {
        self.went_back = false;
    }

    fn refused(&self, exclusions: &Exclusions) {
        let conflicts: Vec<String> = exclusions
            .conflicts
            .iter()
            .take(5)
            .map(|(node, address)| format!("{address} of {node} is an included node's address, too"))
            .collect();
        let mut text = conflicts.join("; ");
        if exclusions.left_out > 0 {
            text.push_str(&format!(" {} exclusions do not fit into the key ring", exclusions.left_out));
        }
        tracing::warn!("not excluded: {text}");
        self.event(EventReason::ExclusionRefused, format!("not excluded: {text}"));
    }

    fn unreadable(&mut self, error: &KeyRingError) {
        self.metrics.unreadable();
        let text = error.to_string();
        if self.unreadable.as_ref() != Some(&text) {
            self.event(
                EventReason::KeyRingInvalid,
                format!(
                    "{text}. Nodes keep the keys they hold; the Secret is left as it is until it is repaired"
                ),
            );
            self.unreadable = Some(text);
        }
    }

    fn readable(&mut self, ring: Option<&KeyRing>) {
        self.metrics.show(ring);
        self.unreadable = None;
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
    }

    fn applied(&self, act: &AppliedDecision) {
        let id = |generation: Option<&Generation>| generation.map_or(0, |generation| generation.id);
        let (revision, reason) = (act.after.revision, act.decision.reason.as_str());
        let (before, after) = (Phase::of(act.before.as_ref()), Phase::of(Some(&act.after)));
        let (staged, active) = (id(after.staged()), id(after.active()));
        let when = |condition: &str| {
            act.delay
                .map_or_else(|| format!("when {condition}"), |delay| format!("in {}", HumanDuration(delay)))
        };
        self.exclusions(act.before.as_ref(), &act.after);
        match act.decision.action {
            Action::Wait => {}
            Action::Bootstrap | Action::Stage => {
                let cause = act.decision.rotation.map_or(Cause::First, |rotation| rotation.cause);
                self.metrics.started(cause);
                let text =
                    format!("staged generation {staged}, activating {}", when("every node has proven it"));
                tracing::info!(revision, generation = staged, reason, collisions = act.collisions, "{text}");
                let event = match cause {
                    Cause::Restored => EventReason::KeyRingReplaced,
                    _ => EventReason::RotationStarted,
                };
                self.event(event, format!("{text} ({reason})"));
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
                        self.enforced(act, EventReason::Enforcing, "plaintext stays refused");
                    }
                }
                Some(old) => {
                    let text = format!(
                        "activated generation {active}, removing generation {} {}",
                        old.id,
                        when("no node sends with it")
                    );
                    tracing::info!(revision, generation = active, reason, "{text}");
                    self.event(EventReason::KeyActivated, text);
                }
            },
            Action::RemoveRetired => {
                self.metrics.rotations.inc();
                let old = id(before.retiring());
                let text = format!("removed generation {old}{}", next(&act.after));
                tracing::info!(revision, generation = old, reason, "{text}");
                self.event(EventReason::RotationCompleted, text);
            }
            Action::RemoveStaged => {
                self.metrics.failed.inc();
                let missing = act.decision.wait.as_ref().map(|wait| Names(&wait.nodes).to_string());
                let old = id(before.staged());
                let text = format!(
                    "dropped generation {old}: not proven in time by {}. Traffic goes on as before",
                    missing.unwrap_or_default()
                );
                tracing::warn!(revision, generation = old, reason, "{text}");
                self.event(EventReason::RotationFailed, text);
            }
            Action::Restore => {
                self.metrics.restored.inc();
                let text = "the Secret was emptied, as re-applying MKE's manifest does, or put back to an older key ring: \
                            the last one is there again, nothing was rotated";
                tracing::warn!(revision, "{text}");
                self.event(EventReason::KeyRingRestored, text.to_owned());
            }
            Action::RenewAckId => tracing::info!(revision, reason, "renewed acknowledgements"),
            Action::Update => tracing::info!(revision, reason, "updated the key ring"),
            Action::SetEnforcement(Enforcement::Enforcing) => {
                self.enforced(act, EventReason::Enforcing, "enforcing: plaintext is refused from now on");
            }
            Action::SetEnforcement(Enforcement::Permissive) => {
                self.enforced(act, EventReason::EnforcementRelaxed, "plaintext is accepted again");
            }
            Action::StopSending => {
                let old = id(after.retiring());
                let off = when("no node sends encrypted packets any more");
                let text = format!("generation {old} is no longer to be sent with, switching off {off}");
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
        use EventReason as R;
        let of_a_rotation = matches!(
            reason,
            R::RotationStarted
                | R::KeyActivated
                | R::RotationCompleted
                | R::RotationFailed
                | R::RotationWaiting
                | R::RotationStalled
        );
        let about = match (self.rotation.clone().filter(|_| of_a_rotation), self.encryption) {
            (Some(rotation), _) => Subject::KeyRotation(rotation),
            (None, Some(uid)) => Subject::ClusterEncryption(uid),
            (None, None) => Subject::Secret(self.secret.clone()),
        };
        self.outbox.put(Notice::Event { reason, note, about });
    }

    /// All pod traffic with an excluded node is in the clear.
    fn exclusions(&self, before: Option<&KeyRing>, after: &KeyRing) {
        let none = std::collections::BTreeSet::new();
        let before = before.map_or(&none, |ring| &ring.excluded.nodes);
        let event = |reason, node: &String, note: &str| {
            let about = Subject::Node(node.clone());
            self.outbox.put(Notice::Event { reason, note: note.to_owned(), about });
        };
        for node in after.excluded.nodes.difference(before) {
            tracing::warn!(node, "excluded: its pod traffic is in the clear");
            event(EventReason::NodeExcluded, node, "pod traffic with this node is in the clear from now on");
        }
        for node in before.difference(&after.excluded.nodes) {
            tracing::info!(node, "takes part again");
            event(EventReason::NodeIncluded, node, "takes part in the encryption of pod traffic again");
        }
    }
}

fn next(ring: &KeyRing) -> String {
    ring.next_rotation.map_or_else(String::new, |at| format!(", next rotation at {at:.0}"))
}
