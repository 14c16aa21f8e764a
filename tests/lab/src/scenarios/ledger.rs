//! Which outbound keys the nodes' kernels were given, over a whole scenario: what they hold and what the agents' journals
//! say, compared. A key that was installed twice repeats nonces.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use anyhow::Result;

use super::xfrm;
use crate::interface::JOURNAL;
use crate::lab::Lab;
use crate::scenario::Report;
use crate::state::Node;

/// The lines of a node's journal before and after its SAs are shown, so that a key of which one is forgotten meanwhile is
/// seen in the other.
const SHOW: &str =
    "cat JOURNAL 2> /dev/null; echo; echo ====; ip -s xfrm state; echo ====; cat JOURNAL 2> /dev/null; true";

/// All outbound keys that were seen.
#[derive(Debug, Default)]
pub struct Ledger {
    /// For each key, hashed, the node that sends with it, and when it was installed there.
    installed: BTreeMap<String, (String, String)>,
    /// For each node the keys that its journals named.
    journaled: BTreeMap<String, BTreeSet<String>>,
    twice: BTreeSet<String>,
    unjournaled: BTreeSet<String>,
}

impl Ledger {
    /// Looks at all nodes that run.
    pub fn observe(&mut self, lab: &Lab) -> Result<()> {
        for node in lab.nodes() {
            if lab.is_on(&node.name)? {
                let shown = lab.exec_ok(&node.name, &["sh", "-c", &SHOW.replace("JOURNAL", JOURNAL)])?;
                self.note(&node.name, &addresses(node), &shown);
            }
        }
        Ok(())
    }

    fn note(&mut self, node: &str, own: &[Ipv4Addr], shown: &str) {
        let mut parts = shown.split("====");
        let (before, states, after) = (parts.next(), parts.next(), parts.next());
        for journal in [before, after].into_iter().flatten() {
            let mut once = BTreeSet::new();
            for key in journal.lines().filter_map(journaled_key) {
                if !once.insert(key) {
                    self.twice.insert(format!("{key} twice in the journal of {node}"));
                }
            }
            let others = self.journaled.iter().filter(|(other, _)| *other != node);
            let theirs = others.flat_map(|(_, keys)| keys).filter(|key| once.contains(key.as_str()));
            self.twice.extend(theirs.map(|key| format!("{key} in the journals of two nodes, one is {node}")));
            self.journaled.entry(node.to_owned()).or_default().extend(once.into_iter().map(str::to_owned));
        }
        for (key, added) in xfrm::parse(states.unwrap_or_default(), "").outbound(own) {
            if !self.journaled.get(node).is_some_and(|keys| keys.contains(&key)) {
                self.unjournaled.insert(format!("{key} on {node}"));
            }
            let now = (node.to_owned(), added);
            let first = self.installed.entry(key.clone()).or_insert_with(|| now.clone());
            if *first != now {
                self.twice.insert(format!(
                    "{key} first on {} at {}, then on {node} at {}",
                    first.0, first.1, now.1
                ));
            }
        }
    }

    /// The figures, after one more look.
    pub fn report(mut self, lab: &Lab, report: &mut Report) -> Result<()> {
        self.observe(lab)?;
        report.figure("outbound_keys", self.installed.len());
        report.check(!self.installed.is_empty(), "no outbound key was seen, which proves nothing");
        report.check(self.twice.is_empty(), format!("keys that were installed twice: {:?}", self.twice));
        report.check(self.unjournaled.is_empty(), format!("keys in no journal: {:?}", self.unjournaled));
        report.expect("keys_unjournaled", self.unjournaled.len() as u64, 0);
        report.expect("keys_installed_twice", self.twice.len() as u64, 0);
        Ok(())
    }
}

/// The addresses that a node may have on the bridge.
fn addresses(node: &Node) -> [Ipv4Addr; 2] {
    [node.ip, node.other_ip()]
}

/// The key that a journal's line says is used: `out GENERATION KEY PEER`.
fn journaled_key(line: &str) -> Option<&str> {
    let mut words = line.split(' ');
    (words.next() == Some("out")).then(|| words.nth(1)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [Ipv4Addr; 1] = [Ipv4Addr::new(10, 0, 0, 1)];

    /// A node that shows one outbound SA with this key, installed at this second, and these journals.
    fn shown(key: &str, second: u8, journals: [&str; 2]) -> String {
        let states = format!(
            "src 10.0.0.1 dst 10.0.0.2\n\tproto esp spi 0x101(257) reqid 1589644891(0x5ec00e5b) mode transport\n\
             \taead rfc4106(gcm(aes)) 0x{key} (160 bits) 64\n\tlifetime current:\n\t  add 2026-11-20 20:30:0{second} use -\n"
        );
        format!("{}\n\n====\n{states}====\n{}", journals[0], journals[1])
    }

    fn named(key: &str) -> String {
        let bytes: Vec<u8> =
            (0..key.len()).step_by(2).map(|at| u8::from_str_radix(&key[at..at + 2], 16).unwrap()).collect();
        let key = secureoverlay_keyring::secret::SecretBytes::copy_from(&bytes).fingerprint();
        format!("out 0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b61 {key:016x} n2")
    }

    fn ledger(looks: &[(&str, String)]) -> (usize, usize) {
        let mut ledger = Ledger::default();
        looks.iter().for_each(|(node, shown)| ledger.note(node, &OWN, shown));
        (ledger.twice.len(), ledger.unjournaled.len())
    }

    #[test]
    fn key_is_installed_once_however_often_it_is_seen() {
        let (one, two) = ("00".repeat(20), "11".repeat(20));
        let (first, second) = (named(&one), named(&two));
        let look = |key: &str, second: u8, journal: &str| shown(key, second, [journal, journal]);
        assert_eq!(ledger(&[("n1", look(&one, 1, &first)), ("n1", look(&one, 1, &first))]), (0, 0));
        let both = format!("{first}\n{second}");
        assert_eq!(ledger(&[("n1", look(&one, 1, &first)), ("n1", look(&two, 2, &both))]), (0, 0));
        assert_eq!(ledger(&[("n1", look(&one, 1, &first)), ("n1", look(&one, 2, &first))]), (1, 0), "again");
        let twice = format!("{first}\n{first}");
        assert_eq!(ledger(&[("n1", look(&one, 1, &twice))]), (1, 0), "in one journal");
        let other = ledger(&[("n1", look(&one, 1, &first)), ("n3", look(&one, 1, &first))]);
        assert_eq!(other.1, 0);
        assert!(other.0 >= 1, "on two nodes");
    }

    #[test]
    fn key_in_no_journal_is_told() {
        let one = "00".repeat(20);
        assert_eq!(ledger(&[("n1", shown(&one, 1, ["", ""]))]), (0, 1));
        assert_eq!(
            ledger(&[("n1", shown(&one, 1, [&named(&one), ""]))]),
            (0, 0),
            "its generation went meanwhile"
        );
    }
}
