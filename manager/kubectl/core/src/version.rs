//! `version`: of this program, the manager and the agents.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{Exit, snapshot::Snapshot, text};

/// Versions, and how many run each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Versions {
    /// This program's.
    pub client: String,
    /// The manager's, by the tag of its image.
    pub manager: BTreeMap<String, usize>,
    /// The agents', as they report it.
    pub agents: BTreeMap<String, usize>,
    /// What could not be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

impl Versions {
    /// Those of a cluster.
    #[must_use]
    pub fn of(snapshot: &Snapshot, client: &str) -> Self {
        let tag = |image: &str| {
            let name = image.rsplit('/').next().unwrap_or(image);
            name.split('@')
                .next()
                .and_then(|name| name.split_once(':'))
                .map_or("by digest", |(_, tag)| tag)
                .to_owned()
        };
        let pods = snapshot.managers.as_deref().unwrap_or_default();
        let manager = pods.iter().filter(|pod| !pod.ending).map(|pod| tag(&pod.image));
        let reports = snapshot.reports.as_deref().unwrap_or_default().iter();
        let agents = reports.map(|report| report.status.as_ref().map_or("", |status| &status.version));
        let agents =
            agents.map(|version| if version.is_empty() { "not reported" } else { version }.to_owned());
        let errors = [snapshot.managers.as_ref().err(), snapshot.reports.as_ref().err()];
        Self {
            client: client.to_owned(),
            manager: counted(manager),
            agents: counted(agents),
            unknown: errors.into_iter().flatten().cloned().collect(),
        }
    }

    /// A finding where versions differ.
    #[must_use]
    pub fn exit(&self) -> Exit {
        let all: std::collections::BTreeSet<&str> = self
            .manager
            .keys()
            .chain(self.agents.keys())
            .map(String::as_str)
            .chain([self.client.as_str()])
            .collect();
        match all.len() {
            _ if !self.unknown.is_empty() || self.manager.is_empty() || self.agents.is_empty() => {
                Exit::Unknown
            }
            1 => Exit::Good,
            _ => Exit::Finding,
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let skew = match self.exit() {
            Exit::Finding => {
                "\nVersions differ: finish the upgrade, or use the plugin of the manager's image.\n"
            }
            _ => "",
        };
        let unknown: String = self.unknown.iter().map(|error| format!("could not tell: {error}\n")).collect();
        format!(
            "client    {}\nmanager   {}\nagents    {}\n{unknown}{skew}",
            self.client,
            listed(&self.manager),
            listed(&self.agents)
        )
    }
}

/// The agents' versions in a line.
pub(crate) fn summary(snapshot: &Snapshot) -> String {
    let versions = Versions::of(snapshot, "");
    format!("agents {}; manager {}", listed(&versions.agents), listed(&versions.manager))
}

fn counted(versions: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for version in versions {
        *counts.entry(version).or_default() += 1;
    }
    counts
}

fn listed(versions: &BTreeMap<String, usize>) -> String {
    match versions.len() {
        0 => "not known".to_owned(),
        1 => versions.keys().next().cloned().unwrap_or_default(),
        _ => {
            let each: Vec<String> = versions
                .iter()
                .map(|(version, nodes)| format!("{version} ({})", text::count(*nodes)))
                .collect();
            each.join(", ")
        }
    }
}
