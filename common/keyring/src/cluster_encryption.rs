//! `ClusterEncryption`: the settings of the cluster as operators write them, and what has come of them.
//!
//! What is written here is what `kubectl explain clusterencryption` shows.

use std::time::Duration;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    condition::Condition,
    duration,
    settings::{DeletionPolicy, EnforcementGoal, RotationSchedule, RotationSettings, Settings},
    suite::Suite,
};

/// The only name that the object can have.
pub const NAME: &str = "default";

/// How far pod traffic is encrypted, with which cipher, and when keys are replaced. An edit takes effect within seconds
/// and loses no packet. An edit that contradicts itself changes nothing: the last good settings stay in force, and the
/// condition Stalled says what is wrong. Deleting the object changes nothing either.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterEncryptionSpec {
    /// How far encryption goes. Auto: encrypted, and plaintext is refused as soon as every pair of nodes has proven its
    /// keys and nothing speaks against it. Permissive: encrypted where both nodes are ready, plaintext is accepted. Off:
    /// encryption is taken back step by step.
    pub enforcement: EnforcementGoal,
    /// Cipher of the keys that are made from now on. aes128gcm8 is what MKE used. aes128gcm16 and aes256gcm16 need 8 bytes
    /// more in each packet: lower the tunnel's MTU first. A change makes a new key at once.
    pub cipher_suite: Suite,
    /// When keys are replaced.
    pub rotation: RotationSpec,
    /// What becomes of encryption when the agents are deleted. Disable: agents take their SAs and policies out of the
    /// kernels. KeepKernelState: they stay until the node boots.
    pub deletion_policy: DeletionPolicy,
}

/// When keys are replaced. Exactly one of interval and schedule is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RotationSpec {
    /// For how long a key is used before the next one takes its place, such as 12h or 1h30m. At least minimumInterval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        with = "String",
        length(min = 2, max = 32),
        regex(pattern = "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$")
    )]
    pub interval: Option<String>,
    /// When a key is replaced, as a cron expression: minute, hour, day of month, month, day of week. "0 3 * * 0" is
    /// Sundays at three in the morning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 9, max = 256))]
    pub schedule: Option<String>,
    /// The clock that schedule means: UTC, or a name like Europe/Berlin. UTC where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 64))]
    pub time_zone: Option<String>,
    /// The least time between two rotations, whatever asks for them.
    #[serde(default = "minimum_interval")]
    #[schemars(length(min = 2, max = 32), regex(pattern = "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"))]
    pub minimum_interval: String,
    /// How many finished KeyRotations are kept. The oldest ones are deleted.
    #[serde(default = "history_limit")]
    #[schemars(range(min = 0, max = 1000))]
    pub history_limit: u32,
}

/// What has come of the settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterEncryptionStatus {
    /// The metadata.generation of the object that the manager has read.
    pub observed_generation: Option<u64>,
    /// Ready: everything is as spec wants it. Reconciling: on the way there. Stalled: it does not get there by itself; the
    /// message says what to do. Encrypted: every Ready node that is not excluded encrypts to every other. Enforced: these
    /// nodes refuse plaintext. ESPReachable: they reach each other by ESP. CoverageComplete: no route of theirs leads pod
    /// traffic around the tunnel.
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
    /// How far the key ring enforces: off, permissive or enforcing.
    #[schemars(length(max = 16))]
    pub enforcement: String,
    /// The key that nodes send with; absent where there is none.
    pub active_key: Option<ActiveKey>,
    /// When the next rotation is due.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub next_rotation_time: Option<Timestamp>,
    /// How many nodes there are, by what they do. Absent where nodes do not report (rotation by time).
    pub nodes: Option<NodeSummary>,
}

/// The key that nodes send with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ActiveKey {
    /// Its number: the one in status.generation of its KeyRotation.
    pub generation: u64,
    /// Its cipher.
    pub suite: Suite,
    /// Since when it is in use.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub active_since: Timestamp,
}

/// How many nodes there are, by what they do. A node may count in several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSummary {
    /// All Node objects.
    pub total: u32,
    /// Ready nodes that encrypt to every other node that takes part.
    pub encrypting: u32,
    /// Ready nodes that refuse plaintext.
    pub enforcing: u32,
    /// Ready nodes that take part, and do neither, or say nothing: pod traffic of theirs may be in the clear.
    pub plaintext: u32,
    /// Nodes with the label that excludes them: pod traffic with them is in the clear.
    pub excluded: u32,
    /// Ready nodes without a Ready Pod of the agent for a minute.
    pub stale: u32,
    /// Ready nodes that have not proven every pair with the active key.
    pub unproven: u32,
    /// Nodes whose tunnel leaves no room for ESP.
    pub mtu_too_large: u32,
    /// Nodes with a route that leads pod traffic around the tunnel.
    pub bypass: u32,
}

fn minimum_interval() -> String {
    "5m".to_owned()
}

fn history_limit() -> u32 {
    RotationSettings::default().history_limit
}

impl Default for RotationSpec {
    fn default() -> Self {
        Self {
            interval: Some("12h".to_owned()),
            schedule: None,
            time_zone: None,
            minimum_interval: minimum_interval(),
            history_limit: history_limit(),
        }
    }
}

impl ClusterEncryptionSpec {
    /// The settings that it comes to. Whether a cron expression can be read is not checked here.
    ///
    /// # Errors
    /// A sentence for the operator. Repeats what the definition refuses: older API servers may not know all its rules.
    pub fn settings(&self) -> Result<Settings, String> {
        let Self { enforcement, cipher_suite, rotation, deletion_policy } = self;
        let minimum_interval = parse("minimumInterval", &rotation.minimum_interval)?;
        let schedule = match (&rotation.interval, &rotation.schedule, &rotation.time_zone) {
            (Some(interval), None, None) => {
                let interval = parse("interval", interval)?;
                if interval < minimum_interval {
                    return Err("spec.rotation: interval must be at least minimumInterval".to_owned());
                }
                RotationSchedule::Interval(interval)
            }
            (None, Some(expression), zone) => {
                let (expression, zone) = (expression.clone(), zone.as_deref().unwrap_or("UTC"));
                RotationSchedule::Cron { expression, time_zone: zone.to_owned() }
            }
            (Some(_), None, Some(_)) => return Err("spec.rotation: timeZone goes with schedule".to_owned()),
            (Some(_), Some(_), _) | (None, None, _) => {
                return Err("spec.rotation: exactly one of interval and schedule is needed".to_owned());
            }
        };
        let rotation = RotationSettings { schedule, minimum_interval, history_limit: rotation.history_limit };
        rotation.check().map_err(|error| format!("spec.{error}"))?;
        Ok(Settings {
            enforcement: *enforcement,
            cipher_suite: *cipher_suite,
            rotation,
            deletion_policy: *deletion_policy,
        })
    }
}

fn parse(field: &str, text: &str) -> Result<Duration, String> {
    duration::parse(text).map_err(|error| format!("spec.rotation: {field}: {error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn settings(spec: Value) -> Result<Settings, String> {
        from_value::<ClusterEncryptionSpec>(spec).map_err(|error| error.to_string())?.settings()
    }

    #[test]
    fn empty_spec_is_the_default_settings() {
        assert_eq!(settings(json!({})), Ok(Settings::default()));
        assert_eq!(ClusterEncryptionSpec::default().settings(), Ok(Settings::default()));
    }

    #[test]
    fn schedule_is_in_utc_unless_a_time_zone_is_named() {
        for (zone, expected) in [(None, "UTC"), (Some("Europe/Berlin"), "Europe/Berlin")] {
            let mut rotation = json!({"schedule": "0 3 * * 0"});
            if let Some(zone) = zone {
                rotation["timeZone"] = json!(zone);
            }
            let found = settings(json!({"rotation": rotation})).unwrap().rotation.schedule;
            let expression = "0 3 * * 0".to_owned();
            assert_eq!(found, RotationSchedule::Cron { expression, time_zone: expected.to_owned() });
        }
    }

    #[test]
    fn contradictions_are_refused_in_words() {
        for (rotation, word) in [
            (json!({}), "exactly one"),
            (json!({"interval": "1h", "schedule": "0 3 * * 0"}), "exactly one"),
            (json!({"interval": "1h", "timeZone": "UTC"}), "timeZone"),
            (json!({"interval": "1m"}), "at least minimumInterval"),
            (json!({"interval": "soon"}), "interval: not a duration"),
            (json!({"interval": "0s", "minimumInterval": "0s"}), "greater than zero"),
            (json!({"interval": "1h", "minimumInterval": "-5m"}), "minimumInterval"),
            (json!({"interval": "12h", "historyLimit": 1001}), "historyLimit"),
        ] {
            let error = settings(json!({ "rotation": rotation })).unwrap_err();
            assert!(error.contains(word) && error.starts_with("spec.rotation"), "{rotation}: {error}");
        }
        for spec in [json!({"enforcement": "enforcing"}), json!({"cipherSuite": "rot13"}), json!([5])] {
            assert!(settings(spec.clone()).is_err(), "{spec}");
        }
    }
}
