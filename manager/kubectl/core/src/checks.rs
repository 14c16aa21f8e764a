//! `check`: what the check of each node says, and what passed on the wire.

use secureoverlay_keyring::inspection::{CheckReport, CheckVerdict, WireCounts};
use serde::Serialize;

use crate::{Exit, paths::Missing, table::table, text};

/// The check of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeCheck {
    /// Its name.
    pub node: String,
    /// What was found.
    #[serde(flatten)]
    pub report: Option<CheckReport>,
    /// Why there is nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(skip)]
    missing: Option<Exit>,
}

/// The check of all nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Checks {
    /// By name.
    pub nodes: Vec<NodeCheck>,
    /// The exit status.
    pub exit_code: u8,
    #[serde(skip)]
    exit: Exit,
}

impl Checks {
    /// Judges. `installed`: readable packets are a finding; before an installation they are what there is.
    #[must_use]
    pub fn new(
        found: impl IntoIterator<Item = (String, Result<CheckReport, Missing>)>,
        installed: bool,
    ) -> Self {
        let mut nodes: Vec<NodeCheck> = found.into_iter().map(NodeCheck::new).collect();
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        let reports = || nodes.iter().filter_map(|it| it.report.as_ref());
        let failed = |report: &CheckReport| {
            let readable = report.capture.as_ref().is_some_and(|counts| counts.readable.total() > 0);
            report.items.iter().any(|item| item.verdict == CheckVerdict::Fail) || (installed && readable)
        };
        let captures = || reports().filter_map(|report| report.capture.as_ref());
        // A wire on which nothing passes tells nothing.
        let silent =
            captures().next().is_some() && captures().all(|it| it.esp == 0 && it.readable.total() == 0);
        let exit = match nodes.iter().find_map(|it| it.missing) {
            _ if reports().any(failed) => Exit::Finding,
            Some(_) if nodes.iter().any(|it| it.missing == Some(Exit::TimedOut)) => Exit::TimedOut,
            Some(missing) => missing,
            None if nodes.is_empty() || silent || reports().any(|report| report.blind) => Exit::Unknown,
            None => Exit::Good,
        };
        Self { nodes, exit_code: exit.code(), exit }
    }

    /// How the command ends.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        self.exit
    }

    /// For people: what is not well; `wide` shows everything.
    #[must_use]
    pub fn text(&self, wide: bool) -> String {
        if self.nodes.is_empty() {
            return "could not tell: there is no Linux node\n".to_owned();
        }
        let mut rows = Vec::new();
        let mut well = 0;
        for NodeCheck { node, report, error, .. } in &self.nodes {
            if let Some(error) = error {
                rows.push(vec![node.clone(), "unknown".to_owned(), "check".to_owned(), error.clone()]);
            }
            let items = report.iter().flat_map(|report| &report.items);
            let before = rows.len();
            for item in items.filter(|item| wide || item.verdict != CheckVerdict::Ok) {
                rows.push(vec![
                    node.clone(),
                    item.verdict.name().to_owned(),
                    item.what.clone(),
                    item.text.clone(),
                ]);
            }
            well += usize::from(error.is_none() && rows.len() == before);
        }
        let mut text = String::new();
        if !rows.is_empty() {
            text.push_str(&table(&["NODE", "VERDICT", "CHECK", "FOUND"], &rows));
            text.push('\n');
        }
        if let Some(line) = wire(self.nodes.iter().filter_map(|it| it.report.as_ref()?.capture.as_ref())) {
            text.push_str(&line);
        }
        let nodes = text::plural(self.nodes.len(), "node");
        let rest = if wide { String::new() } else { format!(", {} without a remark", text::count(well)) };
        text.push_str(&format!("{nodes} checked{rest}: {}\n", self.headline()));
        text
    }

    fn headline(&self) -> &'static str {
        match self.exit {
            Exit::Good => "nothing stands in the way",
            Exit::Finding => "what FAILs or is readable needs attention",
            Exit::TimedOut => "not all answered in time",
            Exit::Unknown => "not everything could be seen",
        }
    }
}

impl NodeCheck {
    fn new((node, found): (String, Result<CheckReport, Missing>)) -> Self {
        match found {
            Ok(report) => Self { node, report: Some(report), error: None, missing: None },
            Err(missing) => {
                let (error, exit) = (Some(missing.to_string()), Some(missing.exit()));
                Self { node, report: None, error, missing: exit }
            }
        }
    }
}

fn wire<'c>(counts: impl Iterator<Item = &'c WireCounts>) -> Option<String> {
    let all: Vec<&WireCounts> = counts.collect();
    let esp: u64 = all.iter().map(|it| it.esp).sum();
    let readable: u64 = all.iter().map(|it| it.readable.total()).sum();
    (!all.is_empty()).then(|| {
        format!(
            "On the wire: {} readable packets, {} ESP packets\n",
            text::number(readable),
            text::number(esp)
        )
    })
}

#[cfg(test)]
mod tests {
    use secureoverlay_keyring::inspection::{CheckItem, Readable};

    use super::*;

    fn report(verdict: CheckVerdict, wire: Option<(u64, u64)>) -> CheckReport {
        let item = CheckItem { verdict, what: "mtu".into(), text: "1480 of tunl0\u{1b}[2J".into() };
        let capture = wire.map(|(esp, ipip)| WireCounts {
            esp,
            readable: Readable { ipip, ..Readable::default() },
            ..WireCounts::default()
        });
        CheckReport { items: vec![item], blind: false, capture }
    }

    #[test]
    fn exit_status_says_the_worst() {
        use CheckVerdict::{Fail, Ok as Well, Warn};
        let late = || Err(Missing::Late("no answer".into()));
        let none = || Err(Missing::Other("no agent".into()));
        let blind = || Ok(CheckReport { blind: true, ..report(Well, None) });
        let of = |verdict, wire| Ok(report(verdict, wire));
        for (found, installed, exit) in [
            (vec![of(Well, None), of(Warn, None)], true, Exit::Good),
            (vec![of(Well, None), of(Fail, None), late()], true, Exit::Finding),
            (vec![of(Well, None), none()], true, Exit::Unknown),
            (vec![none(), late()], true, Exit::TimedOut),
            (vec![blind()], true, Exit::Unknown),
            (vec![], true, Exit::Unknown),
            (vec![of(Well, Some((9, 0)))], true, Exit::Good),
            (vec![of(Well, Some((9, 0))), of(Well, Some((9, 1)))], true, Exit::Finding),
            (vec![of(Well, Some((0, 7)))], false, Exit::Good),
            (vec![of(Well, Some((0, 0)))], true, Exit::Unknown),
        ] {
            let nodes = found.into_iter().enumerate().map(|(at, found)| (format!("node{at}"), found));
            let checks = Checks::new(nodes, installed);
            assert!(checks.exit() == exit && !checks.text(true).contains('\u{1b}'), "{}", checks.text(true));
        }
    }

    #[test]
    fn text_shows_what_is_not_well() {
        let found = [
            ("node2".to_owned(), Ok(report(CheckVerdict::Fail, Some((5, 1200))))),
            ("node1".to_owned(), Ok(report(CheckVerdict::Ok, Some((5, 0))))),
        ];
        let text = Checks::new(found, true).text(false);
        assert!(text.contains("node2   FAIL      mtu     1480 of tunl0"), "{text}");
        assert!(text.contains("On the wire: 1,200 readable packets, 10 ESP packets\n"), "{text}");
        assert!(
            text.ends_with(
                "2 nodes checked, 1 without a remark: what FAILs or is readable needs attention\n"
            )
        );
    }
}
