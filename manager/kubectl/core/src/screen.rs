//! `status`: one screen that says whether all is encrypted, what is not and why, and what to do next.

use std::fmt::Write as _;

use jiff::Timestamp;
use secureoverlay_keyring::cluster_encryption::{ActiveKey, NodeSummary};
use serde::Serialize;

use crate::{
    assess::{Assessment, Effect, Issue, Verdict},
    cluster,
    snapshot::{Pod, Rotation, Snapshot},
    table::{Style, Tone},
    text, version,
};

/// Groups of issues, and commands, that are shown.
const GROUPS: usize = 12;
const COMMANDS: usize = 3;
/// Names that are shown of each group.
const NAMES: usize = 6;

/// What `status -o json` shows.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Document<'s> {
    /// The verdict.
    #[serde(flatten)]
    pub assessment: &'s Assessment,
    /// What is wanted: Auto, Permissive or Off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<String>,
    /// How far the key ring enforces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enforcement: Option<&'s str>,
    /// The key in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_key: Option<ActiveKey>,
    /// When the next rotation is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_rotation_time: Option<Timestamp>,
    /// The manager's counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeSummary>,
    /// KeyRotations that are not over.
    pub rotations: Vec<&'s str>,
}

/// The same as the screen, for programs.
#[must_use]
pub fn document<'s>(snapshot: &'s Snapshot, assessment: &'s Assessment) -> Document<'s> {
    let status = cluster::status(snapshot);
    let rotations = snapshot.rotations.as_deref().unwrap_or_default().iter();
    Document {
        assessment,
        goal: goal(snapshot),
        enforcement: status.map(|status| status.enforcement.as_str()),
        active_key: status.and_then(|status| status.active_key),
        next_rotation_time: status.and_then(|status| status.next_rotation_time),
        nodes: status.and_then(|status| status.nodes),
        rotations: rotations.filter(|it| !it.is_finished()).map(|it| it.name.as_str()).collect(),
    }
}

fn goal(snapshot: &Snapshot) -> Option<String> {
    snapshot.encryption.as_ref().ok()?.as_ref()?.goal()
}

/// The screen.
#[must_use]
pub fn screen(snapshot: &Snapshot, assessment: &Assessment, style: Style) -> String {
    let (tone, word) = match assessment.verdict {
        Verdict::Encrypted => (Tone::Good, "ENCRYPTED"),
        Verdict::Attention => (Tone::Warn, "ATTENTION"),
        Verdict::NotAllEncrypted => (Tone::Bad, "NOT ALL ENCRYPTED"),
        Verdict::Off => (Tone::Bad, "OFF"),
        Verdict::Unknown => (Tone::Warn, "COULD NOT TELL"),
    };
    let mut out = format!("{}: {}\n\n", style.paint(tone, word), assessment.headline);
    for (name, line) in facts(snapshot) {
        let _ = writeln!(out, "{name:12}{line}");
    }
    let groups = groups(&assessment.issues);
    if !groups.is_empty() {
        let _ = writeln!(out, "\n{}", style.paint(Tone::Bold, "Why"));
    }
    for group in groups.iter().take(GROUPS) {
        let first = group[0];
        let (tone, word) = match first.effect {
            Effect::Plaintext => (Tone::Bad, "plaintext"),
            Effect::Unknown => (Tone::Warn, "unknown  "),
            Effect::Attention => (Tone::Warn, "attention"),
            Effect::Note => (Tone::Bold, "note     "),
        };
        let named: Vec<&str> = group.iter().filter_map(|issue| issue.node.as_deref()).collect();
        let of = if named.is_empty() { "cluster".to_owned() } else { text::names(&named, NAMES) };
        let _ = writeln!(out, "  {}  {of}: {} [{}]", style.paint(tone, word), first.message, first.reason);
    }
    if groups.len() > GROUPS {
        let rest = groups.len() - GROUPS;
        let _ = writeln!(out, "  and {} more: kubectl secureoverlay nodes --problems", text::count(rest));
    }
    let next = next(&groups);
    if !next.is_empty() {
        let _ = writeln!(out, "\n{}", style.paint(Tone::Bold, "Next"));
        for command in next {
            let _ = writeln!(out, "  {command}");
        }
    }
    out
}

/// What is known beside the verdict, in lines with a name.
fn facts(snapshot: &Snapshot) -> Vec<(&'static str, String)> {
    let unknown = || "could not tell".to_owned();
    let status = cluster::status(snapshot);
    let now = snapshot.now;
    let mut facts = Vec::new();
    if let Some(status) = status {
        let wanted = goal(snapshot).unwrap_or_else(unknown);
        let is = if status.enforcement.is_empty() { "not known" } else { status.enforcement.as_str() };
        facts.push(("Enforcement", format!("{is} (wanted: {wanted})")));
        let key = status.active_key.map_or_else(
            || "none in use".to_owned(),
            |key| {
                format!("{} {}, in use for {}", key.generation, key.suite, text::span(key.active_since, now))
            },
        );
        let next = status.next_rotation_time.map(|due| match due > now {
            true => format!("; next rotation in {}", text::span(now, due)),
            false => "; next rotation is due".to_owned(),
        });
        facts.push(("Key", key + &next.unwrap_or_default()));
    }
    let nodes = snapshot.nodes.as_ref().map_or_else(
        |_| unknown(),
        |nodes| {
            let counts = status.and_then(|status| status.nodes).map(counts);
            format!(
                "{}{}",
                text::count(nodes.len()),
                counts.map_or_else(String::new, |counts| format!(": {counts}"))
            )
        },
    );
    facts.push(("Nodes", nodes));
    facts.push(("Agents", snapshot.agents.as_ref().map_or_else(|_| unknown(), |pods| ready(pods))));
    facts.push(("Manager", snapshot.managers.as_ref().map_or_else(|_| unknown(), |pods| ready(pods))));
    facts.push(("Versions", version::summary(snapshot)));
    facts
        .push(("Rotation", snapshot.rotations.as_ref().map_or_else(|_| unknown(), |all| rotation(all, now))));
    facts
}

/// The manager's counts, without those that are 0 and mean no good.
fn counts(nodes: NodeSummary) -> String {
    let mut text =
        format!("{} encrypting, {} enforcing", text::number(nodes.encrypting), text::number(nodes.enforcing));
    for (count, name) in [
        (nodes.plaintext, "plaintext"),
        (nodes.excluded, "excluded"),
        (nodes.stale, "without a Ready agent"),
        (nodes.unproven, "unproven"),
        (nodes.mtu_too_large, "MTU too large"),
        (nodes.bypass, "with a bypass"),
    ] {
        if count > 0 {
            let _ = write!(text, ", {} {name}", text::number(count));
        }
    }
    text
}

fn ready(pods: &[Pod]) -> String {
    let pods: Vec<&Pod> = pods.iter().filter(|pod| !pod.ending).collect();
    let ready = pods.iter().filter(|pod| pod.ready).count();
    format!("{} of {} Ready", text::count(ready), text::count(pods.len()))
}

/// Those that are not over, or the last one.
fn rotation(all: &[Rotation], now: Timestamp) -> String {
    let unfinished: Vec<&Rotation> = all.iter().filter(|rotation| !rotation.is_finished()).collect();
    if let Some(current) = unfinished.iter().find(|rotation| rotation.is_under_way()).or(unfinished.first()) {
        let progress = current.status.as_ref().map(|status| crate::progress::Progress::of(status, now).line);
        let more = unfinished.len() - 1;
        let more = if more > 0 { format!("; {} more", text::count(more)) } else { String::new() };
        return format!("{}: {}{more}", current.name, progress.unwrap_or_else(Clone::clone));
    }
    let last = all.iter().max_by_key(|rotation| rotation.created);
    last.map_or_else(
        || "none under way".to_owned(),
        |last| {
            let result = crate::history::result(last);
            let ago = last.created.map_or_else(String::new, |at| format!(" {} ago", text::span(at, now)));
            format!("none under way; last: {} {result}, asked for{ago}", last.name)
        },
    )
}

/// Issues that say the same of several nodes, the worst first, and of those the one about most nodes.
fn groups(issues: &[Issue]) -> Vec<Vec<&Issue>> {
    let mut groups: Vec<Vec<&Issue>> = Vec::new();
    for issue in issues {
        let same = |group: &&mut Vec<&Issue>| {
            let first = group[0];
            (first.effect, &first.reason, first.node.is_some())
                == (issue.effect, &issue.reason, issue.node.is_some())
                && (issue.node.is_some() || first.message == issue.message)
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(issue),
            None => groups.push(vec![issue]),
        }
    }
    groups.sort_by_key(|group| (group[0].effect, group[0].node.is_none(), usize::MAX - group.len()));
    groups
}

/// The commands that come next, of the worst groups.
fn next<'i>(groups: &[Vec<&'i Issue>]) -> Vec<&'i str> {
    let mut commands: Vec<&str> = Vec::new();
    for issue in groups.iter().filter_map(|group| group.first()) {
        if issue.effect != Effect::Note
            && commands.len() < COMMANDS
            && !commands.contains(&issue.next.as_str())
        {
            commands.push(&issue.next);
        }
    }
    commands
}
