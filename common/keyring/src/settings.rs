//! The settings in force. They are in the ring, so that deleting `ClusterEncryption` changes nothing.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::suite::Suite;

/// Longest text of [`RotationSchedule::Cron`]'s expression, in bytes.
pub const MAX_EXPRESSION: usize = 256;
/// Longest name of a time zone, in bytes.
pub const MAX_TIME_ZONE: usize = 64;
/// Longest duration: ten years. What is longer is a mistake, and sums with it might overflow.
pub const MAX_DURATION: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Most finished rotations that are kept.
pub const MAX_HISTORY: u32 = 1000;

/// How far encryption is wanted to go; how far it went is [`crate::keyring::Enforcement`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum EnforcementGoal {
    /// Not at all: nothing is encrypted.
    Off,
    /// Encrypted where both ends are ready, plaintext accepted.
    Permissive,
    /// Up to enforcing, as soon as every node can guarantee it.
    #[default]
    Auto,
}

/// What becomes of the encryption when SecureOverlay is removed.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum DeletionPolicy {
    /// The agents take SAs and policies out of their kernels.
    #[default]
    Disable,
    /// SAs and policies stay in the kernels.
    KeepKernelState,
}

/// When rotations are due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RotationSchedule {
    /// So long after the last activation.
    Interval(Duration),
    /// By a cron expression, which this crate does not read.
    Cron {
        /// The expression.
        expression: String,
        /// IANA name of the time zone that it is in.
        time_zone: String,
    },
}

/// When rotations are due, how often at most, and how many finished ones are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawRotation", into = "RawRotation")]
pub struct RotationSettings {
    /// When they are due.
    pub schedule: RotationSchedule,
    /// Between two rotations, whatever asks for them.
    pub minimum_interval: Duration,
    /// Finished `KeyRotation` objects that are kept.
    pub history_limit: u32,
}

/// `ClusterEncryption.spec` with every default filled in, or what the manager's flags say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// How far to go.
    pub enforcement: EnforcementGoal,
    /// Suite of new generations.
    pub cipher_suite: Suite,
    /// When to rotate.
    pub rotation: RotationSettings,
    /// What becomes of the encryption at the end.
    pub deletion_policy: DeletionPolicy,
}

/// Settings that contradict themselves or are out of bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSettings {
    /// Both or neither.
    #[error("rotation: exactly one of interval and schedule is needed")]
    Schedule,
    /// A time zone without a cron expression, or the reverse.
    #[error("rotation: timeZone goes with schedule")]
    TimeZone,
    /// Empty or too long.
    #[error("rotation: schedule has 1 to {MAX_EXPRESSION} bytes, timeZone 1 to {MAX_TIME_ZONE}")]
    Text,
    /// Zero, or longer than ten years.
    #[error("rotation: interval must be greater than zero; it and minimumInterval at most ten years")]
    Duration,
    /// More than can be kept.
    #[error("rotation: historyLimit is at most {MAX_HISTORY}")]
    History,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRotation {
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "jiff::fmt::serde::unsigned_duration::friendly::compact::optional"
    )]
    interval: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    schedule: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time_zone: Option<String>,
    #[serde(with = "jiff::fmt::serde::unsigned_duration::friendly::compact::required")]
    minimum_interval: Duration,
    history_limit: u32,
}

impl RotationSettings {
    /// Checks the bounds that a document is refused for.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), InvalidSettings> {
        match &self.schedule {
            RotationSchedule::Interval(interval) => {
                if interval.is_zero() || *interval > MAX_DURATION {
                    return Err(InvalidSettings::Duration);
                }
            }
            RotationSchedule::Cron { expression, time_zone } => {
                let fits = |text: &str, max| !text.trim().is_empty() && text.len() <= max;
                if !fits(expression, MAX_EXPRESSION) || !fits(time_zone, MAX_TIME_ZONE) {
                    return Err(InvalidSettings::Text);
                }
            }
        }
        if self.minimum_interval > MAX_DURATION {
            return Err(InvalidSettings::Duration);
        }
        if self.history_limit > MAX_HISTORY {
            return Err(InvalidSettings::History);
        }
        Ok(())
    }
}

impl Default for RotationSettings {
    fn default() -> Self {
        Self {
            schedule: RotationSchedule::Interval(Duration::from_secs(12 * 3600)),
            minimum_interval: Duration::from_secs(300),
            history_limit: 10,
        }
    }
}

impl TryFrom<RawRotation> for RotationSettings {
    type Error = InvalidSettings;

    fn try_from(raw: RawRotation) -> Result<Self, InvalidSettings> {
        let schedule = match (raw.interval, raw.schedule, raw.time_zone) {
            (Some(interval), None, None) => RotationSchedule::Interval(interval),
            (None, Some(expression), Some(time_zone)) => RotationSchedule::Cron { expression, time_zone },
            (Some(_), None, Some(_)) | (None, Some(_), None) => return Err(InvalidSettings::TimeZone),
            (Some(_), Some(_), _) | (None, None, _) => return Err(InvalidSettings::Schedule),
        };
        let (minimum_interval, history_limit) = (raw.minimum_interval, raw.history_limit);
        let settings = Self { schedule, minimum_interval, history_limit };
        settings.check()?;
        Ok(settings)
    }
}

impl From<RotationSettings> for RawRotation {
    fn from(settings: RotationSettings) -> Self {
        let (interval, schedule, time_zone) = match settings.schedule {
            RotationSchedule::Interval(interval) => (Some(interval), None, None),
            RotationSchedule::Cron { expression, time_zone } => (None, Some(expression), Some(time_zone)),
        };
        let RotationSettings { minimum_interval, history_limit, .. } = settings;
        Self { interval, schedule, time_zone, minimum_interval, history_limit }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json, to_value};

    use super::*;

    fn rotation(change: &[(&str, Value)]) -> Result<RotationSettings, String> {
        let mut raw = json!({"interval": "12h", "minimumInterval": "5m", "historyLimit": 10});
        for (field, value) in change {
            match value {
                Value::Null => drop(raw.as_object_mut().unwrap().remove(*field)),
                value => raw[*field] = value.clone(),
            }
        }
        from_value(raw).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_written_as_operators_write_them() {
        let written = to_value(Settings::default()).unwrap();
        let expected = json!({
            "enforcement": "Auto", "cipherSuite": "aes128gcm8",
            "rotation": {"interval": "12h", "minimumInterval": "5m", "historyLimit": 10},
            "deletionPolicy": "Disable",
        });
        assert_eq!(written, expected);
        assert_eq!(from_value::<Settings>(written).unwrap(), Settings::default());
    }

    #[test]
    fn cron_expression_needs_its_time_zone() {
        let cron = rotation(&[
            ("interval", Value::Null),
            ("schedule", json!("0 3 * * *")),
            ("timeZone", json!("Europe/Zurich")),
        ])
        .unwrap();
        assert_eq!(from_value::<RotationSettings>(to_value(&cron).unwrap()).unwrap(), cron);
        assert!(rotation(&[("interval", Value::Null), ("schedule", json!("0 3 * * *"))]).is_err());
    }

    #[test]
    fn settings_out_of_bounds_are_refused() {
        for change in [
            ("interval", json!("0s")),
            ("interval", json!("-1h")),
            ("interval", json!("11y")),
            ("interval", json!("200000h")),
            ("interval", json!("yesterday")),
            ("interval", Value::Null),
            ("schedule", json!("0 3 * * *")),
            ("timeZone", json!("UTC")),
            ("minimumInterval", json!("200000h")),
            ("minimumInterval", Value::Null),
            ("historyLimit", json!(1001)),
            ("historyLimit", json!(-1)),
        ] {
            assert!(rotation(std::slice::from_ref(&change)).is_err(), "{change:?}");
        }
        let long = |len: usize| {
            rotation(&[
                ("interval", Value::Null),
                ("schedule", json!("*".repeat(len))),
                ("timeZone", json!("UTC")),
            ])
        };
        assert!(long(MAX_EXPRESSION).is_ok() && long(MAX_EXPRESSION + 1).is_err() && long(0).is_err());
    }
}
