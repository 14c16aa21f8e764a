//! Which objects are written while something happens: what every agent of a large cluster would be sent.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::ring::Ring;
use crate::lab::Lab;

/// What agents write.
const KINDS: [&str; 2] = ["encryptionpeers", "nodeencryptions"];
/// How long an event may be on its way to a watch.
const LATE: Duration = Duration::from_secs(1);

/// A watch of all objects that agents write, and the ring's revision when it began.
#[derive(Debug)]
pub struct Writes {
    watches: Vec<Watch>,
    revision: u64,
}

/// What was written meanwhile.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Writes of the key ring.
    pub ring: u64,
    /// Writes of agents' objects, by `KIND/NAME`.
    pub objects: BTreeMap<String, u64>,
    /// Each object and status that was written, as JSON, for people.
    pub statuses: Vec<(String, String)>,
}

#[derive(Debug)]
struct Watch {
    kubectl: Child,
    lines: Option<JoinHandle<Vec<String>>>,
}

impl Writes {
    /// Begins to count.
    pub fn watch(lab: &Lab) -> Result<Self> {
        let watches = KINDS.into_iter().map(|kind| Watch::start(lab, kind)).collect::<Result<_>>()?;
        Ok(Self { watches, revision: revision(lab)? })
    }

    /// What was written since.
    pub fn stop(self, lab: &Lab) -> Result<Written> {
        thread::sleep(LATE);
        let mut written =
            Written { ring: revision(lab)?.saturating_sub(self.revision), ..Written::default() };
        for (kind, watch) in KINDS.into_iter().zip(self.watches) {
            for (name, status) in watch.stop()?.iter().filter_map(|line| written_object(line)) {
                *written.objects.entry(format!("{kind}/{name}")).or_default() += 1;
                written.statuses.push((format!("{kind}/{name}"), status.to_owned()));
            }
        }
        Ok(written)
    }
}

impl Written {
    /// Adds what was written during something else.
    pub fn add(&mut self, more: Self) {
        self.ring += more.ring;
        self.statuses.extend(more.statuses);
        for (object, count) in more.objects {
            *self.objects.entry(object).or_default() += count;
        }
    }

    /// Writes of agents' objects but those of this node.
    pub fn of_others(&self, node: &str) -> u64 {
        self.objects
            .iter()
            .filter(|(object, _)| object.rsplit('/').next() != Some(node))
            .map(|(_, count)| count)
            .sum()
    }
}

impl Watch {
    fn start(lab: &Lab, kind: &str) -> Result<Self> {
        let line = r#"-o=jsonpath={.type} {.object.metadata.name} {.object.status}{"\n"}"#;
        let mut kubectl = lab
            .kubectl_command()
            .args(["get", kind, "--watch-only", "--output-watch-events", line])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting kubectl")?;
        let from = kubectl.stdout.take().context("no pipe from kubectl")?;
        let read = move || BufReader::new(from).lines().map_while(Result::ok).collect();
        Ok(Self { kubectl, lines: Some(thread::spawn(read)) })
    }

    fn stop(mut self) -> Result<Vec<String>> {
        self.kubectl.kill().context("ending kubectl")?;
        self.kubectl.wait().context("waiting for kubectl")?;
        let lines = self.lines.take().context("the watch has ended")?;
        lines.join().map_err(|_| anyhow!("reading kubectl failed"))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Ended already unless the scenario failed in the middle.
        drop(self.kubectl.kill());
        drop(self.kubectl.wait());
    }
}

fn revision(lab: &Lab) -> Result<u64> {
    Ok(Ring::read(lab)?.context("there is no ring")?.revision())
}

/// Name and status of the object that an event says was written; one that is deleted is not.
fn written_object(line: &str) -> Option<(&str, &str)> {
    let (kind, rest) = line.split_once(' ')?;
    let object = rest.split_once(' ').unwrap_or((rest, ""));
    ["ADDED", "MODIFIED"].contains(&kind).then_some(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_of_a_node_are_told_from_those_of_others() {
        let objects = [("encryptionpeers/n1", 2), ("nodeencryptions/n1", 3), ("nodeencryptions/n2", 1)];
        let objects = objects.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
        let written = Written { objects, ..Written::default() };
        assert_eq!((written.of_others("n1"), written.of_others("n2"), written.of_others("n")), (1, 5, 6));
    }

    #[test]
    fn deleted_object_is_not_written() {
        assert_eq!(written_object("MODIFIED node1 {\"a\": 1}"), Some(("node1", "{\"a\": 1}")));
        assert_eq!(written_object("ADDED node1 "), Some(("node1", "")));
        assert_eq!(written_object("DELETED node1 {}"), None);
        assert_eq!(written_object(""), None);
    }
}
