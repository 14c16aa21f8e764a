//! `uninstall --check`: which nodes a deletion would leave with SAs, policies and blocks.

use secureoverlay_keyring::{node_encryption::NodeState, settings::DeletionPolicy};
use serde::Serialize;

use crate::{
    Exit,
    node::by_node,
    snapshot::{Pod, Snapshot},
    table::table,
    text,
};

/// A node that would keep what its kernel holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stranded {
    /// Its name.
    pub node: String,
    /// Why its agent would not take it out.
    pub why: String,
    /// What that means for its pods.
    pub effect: &'static str,
}

/// What a deletion would leave behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Removal {
    /// Nodes that would be stranded.
    pub stranded: Vec<Stranded>,
    /// `deletionPolicy: KeepKernelState`: no agent takes anything out.
    pub keeps_kernel_state: bool,
    /// What could not be read.
    pub unknown: Vec<String>,
    #[serde(skip)]
    total: usize,
}

impl Removal {
    /// That of a cluster.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        let errors = [
            snapshot.nodes.as_ref().err(),
            snapshot.agents.as_ref().err(),
            snapshot.reports.as_ref().err(),
            snapshot.encryption.as_ref().err(),
        ];
        let spec = snapshot.encryption.as_ref().ok().and_then(Option::as_ref).map(|object| &object.spec);
        let policy = spec.and_then(|spec| spec.as_ref().ok()).map(|spec| spec.deletion_policy);
        let nodes = snapshot.nodes.as_deref().unwrap_or_default();
        let reports = snapshot.reports.as_deref().unwrap_or_default();
        let mut stranded = Vec::new();
        if let Ok(agents) = snapshot.agents.as_deref().map(by_node) {
            for node in nodes.iter().filter(|node| node.is_linux()) {
                let pod = agents.get(node.name.as_str()).copied();
                let Some(why) = why(node.ready, pod) else { continue };
                let report = reports.iter().find(|report| report.name == node.name);
                let state = report.and_then(|report| report.status.as_ref().ok()).map(|status| status.state);
                let effect = match state {
                    Some(NodeState::Enforcing) => {
                        "it enforces: its pods reach no other node until it boots or `cleanup` runs"
                    }
                    Some(NodeState::Off) => "it reports that encryption is off: nothing should be left",
                    _ => "its pods may reach no other node until it boots or `cleanup` runs",
                };
                stranded.push(Stranded { node: node.name.clone(), why, effect });
            }
        }
        stranded.sort_by(|a, b| a.node.cmp(&b.node));
        Self {
            stranded,
            keeps_kernel_state: policy == Some(DeletionPolicy::KeepKernelState),
            unknown: errors.into_iter().flatten().cloned().collect(),
            total: nodes.len(),
        }
    }

    /// How the command ends.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match (
            self.stranded.is_empty() && !self.keeps_kernel_state,
            self.unknown.is_empty() && self.total > 0,
        ) {
            (false, _) => Exit::Finding,
            (true, true) => Exit::Good,
            (true, false) => Exit::Unknown,
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let unknown: String = self.unknown.iter().map(|error| format!("could not tell: {error}\n")).collect();
        let nodes = text::plural(self.total, "node");
        match self.exit() {
            Exit::Good => {
                format!("A deletion leaves nothing in the kernels: the agents of all {nodes} are Ready.\n")
            }
            Exit::Finding if self.keeps_kernel_state => format!(
                "deletionPolicy is KeepKernelState: a deletion takes nothing out of the kernels of {nodes}. They keep \
                 encrypting with the keys that they have until they boot (docs/operations/remove.md).\n{unknown}"
            ),
            Exit::Finding => {
                let row = |it: &Stranded| vec![it.node.clone(), it.why.clone(), it.effect.to_owned()];
                let rows: Vec<Vec<String>> = self.stranded.iter().map(row).collect();
                let count = text::count(rows.len());
                let table = table(&["NODE", "WHY", "EFFECT"], &rows);
                format!(
                    "A deletion would strand {count} of {nodes}:\n\n{table}{unknown}\nRepair their agents first, or boot the \
                     nodes afterwards, or run `cleanup` on them (docs/operations/remove.md).\n"
                )
            }
            Exit::Unknown | Exit::TimedOut if unknown.is_empty() => {
                "could not tell: there are no Nodes\n".to_owned()
            }
            Exit::Unknown | Exit::TimedOut => unknown,
        }
    }
}

/// Why an agent would not take everything out.
fn why(node_ready: bool, pod: Option<&Pod>) -> Option<String> {
    match pod {
        _ if !node_ready => Some("the Node is not Ready".to_owned()),
        None => Some("no agent runs".to_owned()),
        Some(pod) if pod.ending => Some("its agent is being replaced".to_owned()),
        Some(pod) if !pod.ready => Some(format!("its agent is {}", pod.not_ready())),
        Some(_) => None,
    }
}
