//! The verdict on a cluster.

use std::collections::BTreeSet;

use secureoverlay_keyring::settings::EnforcementGoal;
use serde::Serialize;

use crate::{
    Exit, cluster,
    node::{self, Context},
    snapshot::Snapshot,
    text,
};

/// What an issue means for pod traffic, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Effect {
    /// Pod traffic is or may be in the clear.
    Plaintext,
    /// Whether it is encrypted can't be told.
    Unknown,
    /// Nothing is known to be in the clear; something else is not as it should be.
    Attention,
    /// Worth knowing, and no reason to act.
    Note,
}

/// Something that is not as it should be, or not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Issue {
    /// What it means.
    pub effect: Effect,
    /// What it is, in one word.
    pub reason: String,
    /// The Node that it is about; absent where it is about the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What is known of it.
    pub message: String,
    /// The command that comes next.
    pub next: String,
}

impl Issue {
    /// One about the cluster.
    pub(crate) fn cluster(effect: Effect, reason: &str, message: &str, next: &str) -> Self {
        let (message, next) = (text::short(&text::clean(message)), next.to_owned());
        Self { effect, reason: reason.to_owned(), node: None, message, next }
    }
}

/// The state of the cluster in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Verdict {
    /// Every node encrypts to every other, and all is as it should be.
    Encrypted,
    /// Nothing is known to be in the clear; something else is not as it should be.
    Attention,
    /// Pod traffic is or may be in the clear.
    NotAllEncrypted,
    /// Encryption is off, as asked.
    Off,
    /// It could not be told.
    Unknown,
}

/// What a snapshot comes to.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Assessment {
    /// The verdict.
    pub verdict: Verdict,
    /// The exit status that goes with it.
    pub exit_code: u8,
    /// The verdict in a sentence.
    pub headline: String,
    /// All issues, the worst first.
    pub issues: Vec<Issue>,
}

impl Assessment {
    /// How a command ends that shows it.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self.verdict {
            Verdict::Encrypted => Exit::Good,
            Verdict::Attention | Verdict::NotAllEncrypted | Verdict::Off => Exit::Finding,
            Verdict::Unknown => Exit::Unknown,
        }
    }

    /// Those about this node.
    pub fn of_node<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Issue> {
        self.issues.iter().filter(move |issue| issue.node.as_deref() == Some(node))
    }
}

/// Judges a cluster.
#[must_use]
pub fn assess(snapshot: &Snapshot) -> Assessment {
    let off = is_off(snapshot);
    let context = Context::new(snapshot);
    let nodes = snapshot.nodes.as_deref().unwrap_or_default();
    let mut issues: Vec<Issue> = nodes.iter().flat_map(|node| node::issues(node, &context)).collect();
    if off {
        issues.retain(|issue| issue.effect != Effect::Plaintext);
    }
    issues.extend(cluster::issues(snapshot, &issues, off));
    // A node says more than the manager does of all of them.
    let rank = |issue: &Issue| (issue.effect, issue.node.is_none());
    issues.sort_by(|a, b| (rank(a), &a.node, &a.reason).cmp(&(rank(b), &b.node, &b.reason)));
    let verdict = match issues.first().map(|issue| issue.effect) {
        Some(Effect::Plaintext) => Verdict::NotAllEncrypted,
        Some(Effect::Unknown) => Verdict::Unknown,
        _ if off => Verdict::Off,
        Some(Effect::Attention) => Verdict::Attention,
        Some(Effect::Note) | None => Verdict::Encrypted,
    };
    let headline = headline(verdict, &issues, snapshot);
    let mut assessment = Assessment { verdict, exit_code: 0, headline, issues };
    assessment.exit_code = assessment.exit().code();
    assessment
}

/// Off is wanted, and the key ring is.
fn is_off(snapshot: &Snapshot) -> bool {
    let Ok(Some(encryption)) = &snapshot.encryption else { return false };
    let goal = encryption.spec.as_ref().map(|spec| spec.enforcement);
    goal == Ok(EnforcementGoal::Off)
        && encryption.status.as_ref().is_ok_and(|status| status.enforcement == "off")
}

fn headline(verdict: Verdict, issues: &[Issue], snapshot: &Snapshot) -> String {
    let total = snapshot.nodes.as_ref().map_or(0, Vec::len);
    let first = issues.first().map_or_else(String::new, |issue| {
        let of = issue.node.as_ref().map_or_else(String::new, |node| format!("{node}: "));
        format!("{of}{}", issue.message)
    });
    match verdict {
        Verdict::Encrypted => {
            let enforcing = cluster::status(snapshot).is_some_and(|status| status.enforcement == "enforcing");
            let nodes = match total {
                1 => "the only node encrypts to every other that comes".to_owned(),
                _ => format!("all {} nodes encrypt to each other", text::count(total)),
            };
            let rest = if enforcing {
                " and refuse plaintext"
            } else {
                "; plaintext is accepted, as asked (enforcement Permissive)"
            };
            format!("{nodes}{}", if total == 1 { "" } else { rest })
        }
        Verdict::Attention => format!("nothing is known to be in the clear, but: {first}"),
        Verdict::NotAllEncrypted => {
            let clear = issues.iter().filter(|issue| issue.effect == Effect::Plaintext);
            let named: BTreeSet<&str> = clear.filter_map(|issue| issue.node.as_deref()).collect();
            match named.len() {
                0 => first,
                some => {
                    let (some, total) = (text::count(some), text::plural(total, "node"));
                    format!("pod traffic of {some} of {total} is or may be in the clear")
                }
            }
        }
        Verdict::Off => "encryption is off, as asked: all pod traffic is in the clear".to_owned(),
        Verdict::Unknown => first,
    }
}
