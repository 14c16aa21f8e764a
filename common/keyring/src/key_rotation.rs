//! `KeyRotation`: one replacement of the key. Creating one asks for it, and its status tells how it goes.
//!
//! What is written here is what `kubectl explain keyrotation` shows.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    condition::{Condition, ConditionStatus},
    suite::Suite,
};

/// The condition of a rotation that came to its end.
pub const COMPLETE: &str = "Complete";
/// The condition of a rotation that did not.
pub const FAILED: &str = "Failed";
/// Most names in [`WaitingFor::nodes`].
pub const MAX_WAITING: usize = 20;

/// How the key is to be replaced. Creating a KeyRotation replaces it; several that wait are served by one new key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct KeyRotationSpec {
    /// Go on without nodes that do not respond. May be set at any time, and counts for the rotation under way. Pairs of nodes
    /// that have not proven the new key stay on the old one, and are held back when that is removed, an hour after it was
    /// replaced (--not-ready-timeout of the manager).
    pub skip_unresponsive: bool,
}

/// How it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct KeyRotationStatus {
    /// Number of the new key; absent until it is made.
    pub generation: Option<u64>,
    /// Why it was made: Request, Schedule, Suite, Exhausted, Clock, First or Restored.
    #[schemars(length(max = 32))]
    pub cause: String,
    /// Its cipher.
    #[schemars(with = "Suite")]
    pub suite: Option<Suite>,
    /// When its steps were done.
    pub phase_times: PhaseTimes,
    /// The step that nodes have not done yet; absent where none is waited for.
    pub waiting_for: Option<WaitingFor>,
    /// Complete: every node sends with the new key, and the old one is gone. Failed: the new key was dropped.
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
}

/// When the steps of a rotation were done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PhaseTimes {
    /// The new key was made: nodes learn to receive with it, and prove it.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub staged: Option<Timestamp>,
    /// Nodes send with it from then on.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub activated: Option<Timestamp>,
    /// The old key was removed.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub retired: Option<Timestamp>,
}

/// A step that nodes have not done yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WaitingFor {
    /// receive: to receive with the new key, and to have proven it. switch: to send with it, and no longer with the old one.
    #[schemars(length(max = 32))]
    pub step: String,
    /// Since when nodes are missing.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub since: Timestamp,
    /// How many nodes have done it.
    pub done: u32,
    /// How many nodes are waited for, with those.
    pub total: u32,
    /// The nodes that have not, the first 20 by name.
    #[schemars(length(max = 20), inner(length(max = 253)))]
    pub nodes: Vec<String>,
}

impl KeyRotationStatus {
    /// Whether the rotation is over, well or not.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.holds(COMPLETE) || self.holds(FAILED)
    }

    /// Whether a condition is True.
    #[must_use]
    pub fn holds(&self, kind: &str) -> bool {
        self.condition(kind).is_some_and(|condition| condition.status == ConditionStatus::True)
    }

    /// The condition of this type.
    #[must_use]
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.r#type == kind)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json, to_value};

    use super::*;

    #[test]
    fn what_is_absent_is_written_as_null_so_that_a_patch_removes_it() {
        let written = to_value(KeyRotationStatus::default()).unwrap();
        for field in ["generation", "suite", "waitingFor"] {
            assert!(written.as_object().unwrap()[field].is_null(), "{field}");
        }
        assert_eq!(from_value::<KeyRotationStatus>(json!({})).unwrap(), KeyRotationStatus::default());
        assert_eq!(from_value::<KeyRotationStatus>(written).unwrap(), KeyRotationStatus::default());
    }

    #[test]
    fn rotation_is_finished_by_either_condition() {
        for (kind, status, finished) in [
            (COMPLETE, "True", true),
            (FAILED, "True", true),
            (COMPLETE, "False", false),
            (FAILED, "Unknown", false),
            ("Ready", "True", false),
        ] {
            let condition = json!({
                "type": kind, "status": status, "reason": "A", "lastTransitionTime": "2026-11-20T03:00:00Z",
            });
            let status: KeyRotationStatus = from_value(json!({"conditions": [condition]})).unwrap();
            assert_eq!(status.is_finished(), finished, "{kind} {status:?}");
        }
    }
}
