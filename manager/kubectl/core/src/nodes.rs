//! `nodes`: a line for each node.

use std::collections::BTreeMap;

use secureoverlay_keyring::node_encryption::NodeEncryptionStatus;
use serde::Serialize;

use crate::{
    Exit,
    assess::{Assessment, Effect, Issue},
    node::by_node,
    snapshot::{Report, Snapshot},
    table::table,
};

/// A node in the table.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row<'s> {
    /// Its name.
    pub name: &'s str,
    /// What its agent says that it does; absent where nothing is reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// What is seen of its agent's Pod.
    pub agent: String,
    /// The rest of the report, without what is meant for the manager.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<NodeEncryptionStatus>,
    /// What is wrong with it, the worst first.
    pub issues: Vec<&'s Issue>,
}

/// The rows, and how the command ends.
#[must_use]
pub fn rows<'s>(snapshot: &'s Snapshot, assessment: &'s Assessment, problems: bool) -> (Vec<Row<'s>>, Exit) {
    let reports = snapshot.reports.as_deref().unwrap_or_default().iter();
    let reports: BTreeMap<&str, &Report> = reports.map(|report| (report.name.as_str(), report)).collect();
    let agents = snapshot.agents.as_deref().map(by_node);
    let mut issues: BTreeMap<&str, Vec<&Issue>> = BTreeMap::new();
    for issue in &assessment.issues {
        issues.entry(issue.node.as_deref().unwrap_or_default()).or_default().push(issue);
    }
    let mut rows: Vec<Row<'_>> = Vec::new();
    for node in snapshot.nodes.as_deref().unwrap_or_default() {
        let issues = issues.get(node.name.as_str()).cloned().unwrap_or_default();
        if problems && issues.is_empty() {
            continue;
        }
        let status = reports.get(node.name.as_str()).and_then(|report| report.status.as_ref().ok());
        let agent = match &agents {
            Ok(agents) => agents.get(node.name.as_str()).map_or_else(|| "none".to_owned(), |pod| pod.state()),
            Err(_) => "unknown".to_owned(),
        };
        rows.push(Row {
            name: &node.name,
            state: status.map(|status| format!("{:?}", status.state)),
            agent,
            status: status.map(|status| NodeEncryptionStatus { acknowledgement: None, ..status.clone() }),
            issues,
        });
    }
    rows.sort_by_key(|row| row.name);
    let unread = snapshot.nodes.is_err() || snapshot.reports.is_err() || snapshot.agents.is_err();
    let worst = rows.iter().filter_map(|row| row.issues.first()).map(|issue| issue.effect).min();
    let exit = match worst {
        Some(Effect::Plaintext) => Exit::Finding,
        Some(Effect::Unknown) => Exit::Unknown,
        _ if unread || snapshot.nodes.as_ref().is_ok_and(Vec::is_empty) => Exit::Unknown,
        Some(Effect::Attention) => Exit::Finding,
        Some(Effect::Note) | None => Exit::Good,
    };
    (rows, exit)
}

/// The table.
#[must_use]
pub fn text(rows: &[Row<'_>], wide: bool) -> String {
    let mut headings = vec!["NODE", "STATE", "KEY", "UNPROVEN", "MTU", "AGENT", "VERSION"];
    if wide {
        headings.extend([
            "PINNED",
            "OPEN",
            "HELD",
            "ADDRESSES",
            "KERNEL",
            "DURABILITY",
            "PROBLEM",
            "MESSAGE",
        ]);
    } else {
        headings.push("PROBLEM");
    }
    let cells = |row: &Row<'_>| {
        let none = NodeEncryptionStatus::default();
        let status = row.status.as_ref().unwrap_or(&none);
        let number = |value: u32| row.status.as_ref().map(|_| value.to_string()).unwrap_or_default();
        let mut cells = vec![
            row.name.to_owned(),
            row.state.clone().unwrap_or_else(|| "not known".to_owned()),
            status.key.map(|key| key.to_string()).unwrap_or_default(),
            number(status.pairs.unproven),
            status.mtu.as_ref().map(|mtu| mtu.tunnel.to_string()).unwrap_or_default(),
            row.agent.clone(),
            status.version.clone(),
        ];
        if wide {
            let addresses = status.node.addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
            let durability = row.status.as_ref().map(|status| format!("{:?}", status.node.durability));
            cells.extend([number(status.pairs.pinned), number(status.pairs.open), number(status.pairs.held)]);
            cells.extend([addresses.join(","), status.node.kernel.clone(), durability.unwrap_or_default()]);
        }
        cells.push(row.issues.iter().map(|issue| issue.reason.as_str()).collect::<Vec<_>>().join(","));
        if wide {
            cells.push(row.issues.first().map(|issue| issue.message.clone()).unwrap_or_default());
        }
        cells
    };
    table(&headings, &rows.iter().map(cells).collect::<Vec<_>>())
}
