//! Conditions, as they are everywhere in the status of Kubernetes' objects.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest message of a condition, in characters.
pub const MAX_MESSAGE: usize = 1200;

/// A condition, as everywhere in Kubernetes, with limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which one.
    #[schemars(length(max = 64))]
    pub r#type: String,
    /// Whether it is so.
    pub status: ConditionStatus,
    /// Why, in one word.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// Why, and what to do.
    #[serde(default)]
    #[schemars(length(max = 1200))]
    pub message: String,
    /// When the status changed last.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub last_transition_time: Timestamp,
}

/// Whether a condition is so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It is.
    True,
    /// It is not.
    False,
    /// That is not known.
    #[default]
    Unknown,
}

/// Sets the transition times: that of `before` where the status is the same, else `now` in whole seconds.
pub fn stamp(conditions: &mut [Condition], before: &[Condition], now: Timestamp) {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    for condition in conditions {
        let same = |other: &&Condition| other.r#type == condition.r#type && other.status == condition.status;
        condition.last_transition_time =
            before.iter().find(same).map_or(now, |other| other.last_transition_time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transition_time_stays_while_the_status_does() {
        let condition = |status, second| Condition {
            r#type: "Ready".to_owned(),
            status,
            reason: "Encrypting".to_owned(),
            message: String::new(),
            last_transition_time: Timestamp::from_second(second).unwrap(),
        };
        let before = [condition(ConditionStatus::True, 100)];
        for (status, expected) in [(ConditionStatus::True, 100), (ConditionStatus::False, 200)] {
            let mut after = [condition(status, 0)];
            stamp(&mut after, &before, Timestamp::from_millisecond(200_700).unwrap());
            assert_eq!(after[0].last_transition_time.as_millisecond(), expected * 1000);
        }
    }
}
