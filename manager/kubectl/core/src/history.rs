//! `history`: KeyRotations, the newest first.

use jiff::Timestamp;
use secureoverlay_keyring::key_rotation::{COMPLETE, FAILED, KeyRotationStatus};

use crate::{Exit, progress::Progress, snapshot::Rotation, table::table, text};

/// What became of a rotation, in a word.
#[must_use]
pub fn result(rotation: &Rotation) -> &'static str {
    match &rotation.status {
        Err(_) => "Unreadable",
        Ok(status) if status.holds(COMPLETE) => "Complete",
        Ok(status) if status.holds(FAILED) => "Failed",
        Ok(KeyRotationStatus { generation: None, .. }) => "Waiting",
        Ok(status) if status.phase_times.activated.is_some() => "Draining",
        Ok(_) => "Staged",
    }
}

/// The table, and how the command ends: a finding where the newest one that is over has failed.
#[must_use]
pub fn history(rotations: &[Rotation], now: Timestamp, wide: bool) -> (String, Exit) {
    let mut all: Vec<&Rotation> = rotations.iter().collect();
    all.sort_by(|a, b| (b.created, &b.name).cmp(&(a.created, &a.name)));
    let newest = all.iter().find(|rotation| rotation.is_finished());
    let exit =
        if newest.is_some_and(|newest| result(newest) == "Failed") { Exit::Finding } else { Exit::Good };
    let rows: Vec<Vec<String>> = all.iter().map(|rotation| row(rotation, now, wide)).collect();
    let mut headings = vec!["NAME", "KEY", "CAUSE", "SUITE", "RESULT", "AGE", "TOOK"];
    if wide {
        headings.push("DETAIL");
    }
    (table(&headings, &rows), exit)
}

fn row(rotation: &Rotation, now: Timestamp, wide: bool) -> Vec<String> {
    let unreadable = KeyRotationStatus::default();
    let status = rotation.status.as_ref().unwrap_or(&unreadable);
    let times = &status.phase_times;
    let took = times.staged.zip(times.retired).map(|(from, to)| text::span(from, to));
    let mut row = vec![
        rotation.name.clone(),
        status.generation.map(|id| id.to_string()).unwrap_or_default(),
        status.cause.clone(),
        status.suite.map(|suite| suite.to_string()).unwrap_or_default(),
        result(rotation).to_owned(),
        rotation.created.map(|at| text::span(at, now)).unwrap_or_default(),
        took.unwrap_or_default(),
    ];
    if wide {
        row.push(match &rotation.status {
            Ok(status) => Progress::of(status, now).line,
            Err(error) => error.clone(),
        });
    }
    row
}
