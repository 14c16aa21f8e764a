//! How a rotation goes.

use jiff::Timestamp;
use secureoverlay_keyring::{
    condition::ConditionStatus,
    key_rotation::{COMPLETE, FAILED, KeyRotationStatus},
};

use crate::{Exit, text};

/// Names of nodes that are shown.
const NAMES: usize = 3;
/// Characters of a bar.
const BAR: usize = 20;

/// How a rotation goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// In a line. It holds no time that passes by itself, so that a line is printed once.
    pub line: String,
    /// How it ended.
    pub end: Option<Exit>,
    /// What nodes are waited for.
    waiting: Option<Waiting>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Waiting {
    done: u32,
    total: u32,
    /// For how long.
    waited: String,
    names: String,
}

impl Progress {
    /// That of a status.
    #[must_use]
    pub fn of(status: &KeyRotationStatus, now: Timestamp) -> Self {
        let Some(complete) = status.condition(COMPLETE) else {
            return Self { line: "waiting for the manager".to_owned(), waiting: None, end: None };
        };
        let failed = status.condition(FAILED).filter(|failed| failed.status == ConditionStatus::True);
        let end = match (complete.status, failed) {
            (ConditionStatus::True, _) => Some(Exit::Good),
            (_, Some(_)) => Some(Exit::Finding),
            _ => None,
        };
        let mut line = text::short(failed.map_or(&complete.message, |failed| &failed.message));
        let waiting =
            status.waiting_for.as_ref().filter(|waiting| end.is_none() && !waiting.nodes.is_empty());
        let waiting = waiting.map(|waiting| {
            let names: Vec<&str> = waiting.nodes.iter().take(NAMES).map(String::as_str).collect();
            let more = waiting.total.saturating_sub(waiting.done) as usize > names.len();
            let names = format!("{}{}", names.join(", "), if more { " …" } else { "" });
            Waiting {
                done: waiting.done,
                total: waiting.total,
                waited: text::span(waiting.since, now),
                names,
            }
        });
        if let Some(Waiting { done, total, names, .. }) = &waiting {
            line.push_str(&format!(
                ": {}/{}, waiting for {names}",
                text::number(*done),
                text::number(*total)
            ));
        }
        Self { line, end, waiting }
    }

    /// With a bar, and how long nodes are waited for: to be drawn again and again in one line of a terminal.
    #[must_use]
    pub fn bar(&self, width: usize) -> String {
        let Some(Waiting { done, total, waited, names }) = &self.waiting else {
            return cut(&self.line, width);
        };
        let filled = BAR * (*done).min(*total) as usize / (*total).max(1) as usize;
        let (full, empty) = ("█".repeat(filled), "░".repeat(BAR - filled));
        let (done, total) = (text::number(*done), text::number(*total));
        cut(&format!("{full}{empty} {done}/{total}, waiting {waited} for {names}"), width)
    }
}

/// One line of a terminal, and no more.
fn cut(line: &str, width: usize) -> String {
    if line.chars().count() <= width {
        return line.to_owned();
    }
    let mut text: String = line.chars().take(width.saturating_sub(1)).collect();
    text.push('…');
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn rotation_is_told_in_a_line_with_its_end() {
        let condition = |kind: &str, status: &str, message: &str| {
            json!({
                "type": kind, "status": status, "reason": "R", "message": message,
                "lastTransitionTime": "2026-11-30T12:00:00Z",
            })
        };
        let now = "2026-11-30T12:00:12Z".parse().unwrap();
        let staged = condition("Complete", "False", "generation 7 is on its way to every node");
        let waiting = |nodes: &[&str], done, total| json!({"step": "receive", "since": "2026-11-30T12:00:00Z", "done": done, "total": total, "nodes": nodes});
        for (status, line, bar, end) in [
            (json!({}), "waiting for the manager", "waiting for the manager", None),
            (
                json!({"conditions": [staged], "waitingFor": waiting(&["a", "b", "c", "d"], 4981, 5000)}),
                "generation 7 is on its way to every node: 4,981/5,000, waiting for a, b, c …",
                "███████████████████░ 4,981/5,000, waiting 12s for a, b, c …",
                None,
            ),
            (
                json!({"conditions": [staged], "waitingFor": waiting(&["a"], 0, 1)}),
                "generation 7 is on its way to every node: 0/1, waiting for a",
                "░░░░░░░░░░░░░░░░░░░░ 0/1, waiting 12s for a",
                None,
            ),
            (
                json!({"conditions": [condition("Complete", "True", "generation 7 is in use")]}),
                "generation 7 is in use",
                "generation 7 is in use",
                Some(Exit::Good),
            ),
            (
                json!({"conditions": [condition("Complete", "False", "x"), condition("Failed", "True", "dropped")]}),
                "dropped",
                "dropped",
                Some(Exit::Finding),
            ),
        ] {
            let progress = Progress::of(&from_value(status).unwrap(), now);
            assert_eq!((progress.line.as_str(), progress.end), (line, end));
            assert_eq!(progress.bar(200), bar);
        }
        let status = json!({"conditions": [staged], "waitingFor": waiting(&["a"], 9, 5)});
        let progress = Progress::of(&from_value(status).unwrap(), now);
        assert_eq!(progress.bar(24), "████████████████████ 9/…", "done above total, and a narrow terminal");
    }
}
