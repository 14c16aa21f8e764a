//! What processes and the API server have used so far.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::process::Recorded;

/// Clock ticks of `/proc/PID/stat` in a second (`USER_HZ`).
const TICKS: f64 = 100.0;

/// Seconds of processor time that a process has used.
pub fn cpu(process: &Recorded) -> Result<f64> {
    let path = format!("/proc/{}/stat", process.pid);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    // The name before it is in parentheses and may hold anything.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().skip(11);
    let ticks: Vec<f64> = fields.take(2).filter_map(|ticks| ticks.parse().ok()).collect();
    Ok(ticks.iter().sum::<f64>() / TICKS)
}

/// MiB that a process has in memory.
pub fn rss_mib(process: &Recorded) -> Result<f64> {
    let path = format!("/proc/{}/status", process.pid);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    let kib: f64 = line.and_then(|kib| kib.trim().parse().ok()).context("no VmRSS")?;
    Ok(kib / 1024.0)
}

/// Bytes that each process has received by its TCP connections that are open: from the API server, TLS included.
pub fn received(lab: &Lab) -> Result<BTreeMap<i32, u64>> {
    let text = lab.in_network(&[
        "ss",
        "--tcp",
        "--info",
        "--processes",
        "--numeric",
        "--no-header",
        "dport",
        "=",
        ":443",
    ])?;
    Ok(by_process(&text))
}

/// A connection takes a line with its process and another with its counters.
fn by_process(text: &str) -> BTreeMap<i32, u64> {
    let number = |line: &str, before: &str| -> Option<u64> {
        let digits: String = line.split_once(before)?.1.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    let (mut all, mut pid) = (BTreeMap::new(), None);
    for line in text.lines() {
        pid = number(line, "pid=").and_then(|pid| i32::try_from(pid).ok()).or(pid);
        if let (Some(bytes), Some(pid)) = (number(line, "bytes_received:"), pid) {
            *all.entry(pid).or_default() += bytes;
        }
    }
    all
}

/// What the API server has been asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Writes {
    /// Writes of the key ring and of our own objects: by agents and manager alone.
    pub ours: u64,
    /// Writes of Events: by the manager alone, as no kubelet and no controller runs.
    pub events: u64,
}

/// The writes that the API server has answered so far.
pub fn writes(lab: &Lab) -> Result<Writes> {
    Ok(count(&lab.kubectl(&["get", "--raw", "/metrics"])?))
}

fn count(text: &str) -> Writes {
    let mut writes = Writes::default();
    for line in text.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
        let has = |label: &str, value: &str| line.contains(&format!("{label}=\"{value}\""));
        let write = ["POST", "PUT", "PATCH", "APPLY", "DELETE"].iter().any(|verb| has("verb", verb));
        let value = line.rsplit_once(' ').and_then(|(_, value)| value.parse::<f64>().ok());
        let (true, Some(value)) = (write, value) else { continue };
        // A counter of requests is a whole number.
        let value = value as u64;
        if has("group", "secureoverlay.io") || has("resource", "secrets") {
            writes.ours += value;
        } else if has("resource", "events") {
            writes.events += value;
        }
    }
    writes
}

/// The value of a metric, by its whole name.
pub fn metric(page: &str, name: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_all_connections_of_a_process() {
        let text = "ESTAB 0 0 10.0.0.1:4 10.96.0.1:443 users:((\"a\",pid=7,fd=9))\n\t cubic bytes_sent:5 bytes_received:30 x\n\
                    ESTAB 0 0 10.0.0.1:5 10.96.0.1:443 users:((\"b\",pid=8,fd=9))\n\t cubic bytes_received:2\n\
                    ESTAB 0 0 10.0.0.1:6 10.96.0.1:443 users:((\"a\",pid=7,fd=10))\n\t bytes_received:12\n";
        assert_eq!(by_process(text), [(7, 42), (8, 2)].into());
    }

    #[test]
    fn writes_are_told_from_reads_and_from_those_of_others() {
        let line = |group: &str, resource: &str, verb: &str, value: u32| {
            format!(
                "apiserver_request_total{{code=\"200\",group=\"{group}\",resource=\"{resource}\",verb=\"{verb}\"}} {value}\n"
            )
        };
        let text = line("secureoverlay.io", "nodeencryptions", "PATCH", 3)
            + &line("secureoverlay.io", "nodeencryptions", "WATCH", 50)
            + &line("", "secrets", "PUT", 4)
            + &line("", "nodes", "PATCH", 60)
            + &line("events.k8s.io", "events", "POST", 2);
        assert_eq!(count(&text), Writes { ours: 7, events: 2 });
    }

    #[test]
    fn metric_is_found_by_its_whole_name() {
        let page = "# HELP a\nab 5\na 2.5\n";
        assert_eq!(metric(page, "a"), Some(2.5));
        assert_eq!(metric(page, "b"), None);
    }
}
