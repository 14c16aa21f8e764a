//! Agents and manager at their most talkative, led through errors: no key is in anything that they give away.

use std::collections::BTreeSet;
use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;

use super::cluster::until;
use super::decrypt::private_key;
use super::junk::rings_are;
use super::overlay::{Manifest, NAMESPACE, Overlay, PATIENCE};
use super::processes::{AGENT, MANAGER, pids, signal};
use super::ring::{self, Ring};
use super::{dumpable, metrics, rotate_timed, xfrm};
use crate::interface::{IDENTITY, JOURNAL, LOG, STATE, STATE_DIRECTORY, metric};
use crate::lab::Lab;
use crate::needles::Needles;
use crate::progress::note;
use crate::scenario::{Profile, Report, Run, Scenario, Tier};
use crate::state::Node;

pub const SCENARIO: Scenario = Scenario {
    name: "leaks",
    about: "no key in logs, metrics, command lines, environments or core files, whatever goes wrong",
    tier: Tier::Gate,
    estimate: 90,
    alone: false,
    run: Run::Cluster(run),
};

const LOGS: &str = "cat /var/log/pods/kube-system_ucp-secureoverlay-*/*/*";
/// Every file of ordinary size that a program of the node can have written; some are written meanwhile, which tar says by 1.
const FILES: &str = "{ find /run /tmp /etc /root /opt /var/tmp /var/log /var/lib -xdev -type f -size -1024k -print0 2> /dev/null \
                     || true; } | { tar --create --file=- --null --files-from=- --ignore-failed-read --warning=none \
                     || [ $? = 1 ]; }";

fn run(lab: &Lab, report: &mut Report, _: Profile) -> Result<()> {
    let overlay = Overlay::new(lab, Manifest::Ours);
    overlay.apply_with(LOG, "trace")?;
    overlay.wait_encrypting()?;
    overlay.wait_rolled_out()?;
    rotate_timed::wait_steady(lab)?;
    let mut needles = Needles::default();
    gather(lab, &mut needles)?;

    note("Secrets that hold the keys and are no ring");
    spoil(lab)?;
    note("netlink refusals");
    refuse(lab)?;
    note("an API server that is away");
    lab.stop_api()?;
    std::thread::sleep(Duration::from_secs(3));
    lab.start_api()?;
    note("an agent started anew, and a rotation");
    restart_agent(lab)?;
    rotate_timed::wait_steady(lab)?;
    let first = Ring::read(lab)?.and_then(|ring| ring.generation("active"));
    ring::rotate_now(lab)?;
    until("the keys to rotate", PATIENCE, || {
        gather(lab, &mut needles)?;
        let now = Ring::read(lab)?.context("there is no ring")?;
        Ok(now.is_steady() && now.generation("active") > first)
    })?;
    report.figure("secrets", needles.secrets());
    report.figure("forms", needles.forms());
    // Two of the ring and one of each pair for each generation, in the kernel with and without salt; one of each node.
    let nodes = lab.nodes().len();
    let least = 2 * (2 + 2 * nodes * (nodes - 1)) + nodes;
    report
        .check(needles.secrets() >= least, format!("{} secrets known, at least {least}", needles.secrets()));

    let mut bytes = 0;
    let mut leaked = 0;
    for (what, text) in outputs(lab)? {
        report.figure(&format!("{what}_bytes"), text.len());
        report.check(!text.is_empty(), format!("{what}: there is something to search"));
        let found = needles.find(&text);
        let forms: Vec<&str> = found.iter().map(|(form, _)| *form).collect();
        report.check(found.is_empty(), format!("{what}: no key in it {forms:?}"));
        if what == "logs" {
            let traced = text.windows(5).filter(|word| word == b"TRACE" || word == b"DEBUG").count();
            report.figure("debug_lines", traced);
            report.check(traced > 0, "the logs are verbose");
            report.check(finds_what_is_planted(&needles, &text), "planted keys are found, in every form");
        }
        bytes += text.len();
        leaked += found.len();
    }
    report.figure("searched_bytes", bytes);
    report.expect("leaked", leaked as u64, 0);
    private_keys_stay(lab, report)?;
    dumpable::check(lab, report)?;
    overlay.disable_and_check(report)
}

/// Each node's private key is in one file of the node, and in none of another.
fn private_keys_stay(lab: &Lab, report: &mut Report) -> Result<()> {
    let mut needles = Needles::default();
    for node in lab.nodes() {
        needles.add(private_key(lab, node)?.private().expose());
    }
    let (mut files, mut holders) = (0, BTreeSet::new());
    for node in lab.nodes() {
        let packed = bytes(lab, &node.name, FILES)?;
        for entry in tar::Archive::new(packed.as_slice()).entries().context("reading a node's files")? {
            let mut entry = entry.context("reading a node's files")?;
            let (path, mut content) =
                (entry.path().context("a file's path")?.display().to_string(), Vec::new());
            entry.read_to_end(&mut content).with_context(|| format!("reading {path} of {}", node.name))?;
            files += 1;
            if !needles.find(&content).is_empty() {
                holders.insert(format!("{}:/{}", node.name, path.trim_start_matches('/')));
            }
        }
    }
    let identities = lab.nodes().iter().map(|node| format!("{}:{IDENTITY}", node.name)).collect();
    report.figure("files_searched", files);
    report.figure("files_with_a_private_key", holders.len());
    report.check(holders == identities, format!("private keys are in the identity files alone: {holders:?}"));
    for node in lab.nodes() {
        let mode = lab.exec_ok(&node.name, &["stat", "-c", "%a %u", STATE_DIRECTORY, IDENTITY])?;
        report.check(mode.trim() == "700 0\n600 0", format!("{}: modes and owners {mode:?}", node.name));
    }
    Ok(())
}

/// Adds the keys that are in the ring, in the kernels and in the nodes' directories now.
pub fn gather(lab: &Lab, needles: &mut Needles) -> Result<()> {
    if let Some(ring) = Ring::read(lab)? {
        ring.secrets().iter().for_each(|secret| needles.add(secret));
    }
    for node in lab.nodes() {
        needles.add(private_key(lab, node)?.private().expose());
        let dump = node.exec_ok(&["ip", "xfrm", "state"])?;
        for line in dump.lines().filter(|line| line.contains("aead")) {
            let key = line.split_whitespace().find_map(|word| word.strip_prefix("0x"));
            let key = key.context("an SA without key")?.as_bytes();
            let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
            let key: Vec<u8> = key.chunks(2).filter_map(byte).collect();
            needles.add(&key);
            // Without the salt.
            needles.add(&key[..key.len().saturating_sub(4)]);
        }
    }
    Ok(())
}

/// Puts documents into the Secret that hold all of the ring's keys and can't be read, then the ring again.
fn spoil(lab: &Lab) -> Result<()> {
    let ring = Ring::read(lab)?.context("there is no ring")?;
    let good = ring.changed(|_| ());
    let bad = [
        [good.as_slice(), b"\n]: ["].concat(),
        [good.as_slice(), b"\xff"].concat(),
        good[..good.len() - 2].to_vec(),
        ring.changed(|ring| ring["version"] = json!(99)),
        ring.changed(|ring| ring["generations"][0]["suite"] = ring["generations"][0]["key"].clone()),
        ring.changed(|ring| ring["generations"][0]["id"] = ring["generations"][0]["key"].clone()),
        ring.changed(|ring| ring["generations"][0]["uid"] = ring["generations"][0]["spiSeed"].clone()),
        ring.changed(|ring| {
            let key = ring["generations"][0]["key"].as_str().unwrap_or_default().to_owned();
            ring["generations"][0]["key"] = json!(format!("{key}{key}"));
        }),
    ];
    for document in &bad {
        ring::write_document(lab, document)?;
        wait_valid(lab, false)?;
        // Between two bad ones a good one, so that each is seen to be refused.
        ring::write_document(lab, &good)?;
        wait_valid(lab, true)?;
    }
    Ok(())
}

fn wait_valid(lab: &Lab, valid: bool) -> Result<()> {
    let what = format!("manager and agents to find the ring {}", if valid { "good" } else { "bad" });
    until(&what, PATIENCE, || rings_are(lab, valid))
}

/// Puts something into the place of an inbound SA that a dump does not show, so that making the SA anew is refused.
fn refuse(lab: &Lab) -> Result<()> {
    let [node, peer, ..] = lab.nodes() else { return Ok(()) };
    let refused = || metrics::of_agent(lab, &node.name, metric::FAILED_CHANGES);
    let (before, whole) = (refused()?, our_states(lab, node)?);
    let spi = xfrm::dump(lab)?
        .get(&node.name)
        .and_then(|kernel| kernel.spis_between(peer.ip, node.ip).into_iter().next())
        .with_context(|| format!("no SA from {} on {}", peer.name, node.name))?;
    let id = format!("src {} dst {} proto esp", peer.ip, node.ip);
    let script = format!(
        "ip xfrm state delete {id} spi {spi} && \
         ip xfrm state allocspi {id} mode transport reqid 7 min {spi} max {spi}"
    );
    // Or the agent puts its SA back between the two.
    ensure!(signal(lab, &node.name, AGENT, "-STOP")? == 1, "no agent to be stopped on {}", node.name);
    let replaced = lab.exec_ok(&node.name, &["sh", "-c", &script]);
    signal(lab, &node.name, AGENT, "-CONT")?;
    replaced?;
    until("the kernel to refuse an SA", PATIENCE, || Ok(refused()? > before))?;
    // It may have gone by itself.
    lab.exec(&node.name, &["sh", "-c", &format!("ip xfrm state delete {id} spi {spi}")])?;
    until("the SA to be there again", PATIENCE, || Ok(our_states(lab, node)? == whole))
}

fn our_states(lab: &Lab, node: &Node) -> Result<usize> {
    Ok(xfrm::dump(lab)?.get(&node.name).map_or(0, xfrm::Kernel::our_states))
}

fn restart_agent(lab: &Lab) -> Result<()> {
    // Not the one of which a core is sought afterwards: who crashes twice is started anew after a pause.
    let node = &lab.nodes().last().context("a lab without nodes")?.name;
    let old = pids(lab, node, AGENT)?.pop().context("no agent")?;
    lab.exec_ok(node, &["kill", "-KILL", &old])?;
    until("the agent to be started anew", PATIENCE, || metrics::agent_is_ready(lab, node))
}

/// Everything that the programs give away, by kind.
fn outputs(lab: &Lab) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let mut logs = Vec::new();
    let mut processes = Vec::new();
    let mut files = Vec::new();
    for node in lab.nodes() {
        logs.extend(bytes(lab, &node.name, LOGS)?);
        files.extend(bytes(lab, &node.name, &format!("cat {STATE} {JOURNAL}"))?);
        for program in [AGENT, MANAGER] {
            for pid in pids(lab, &node.name, program)? {
                let files = format!("cat /proc/{pid}/cmdline /proc/{pid}/environ");
                processes.extend(bytes(lab, &node.name, &files)?);
            }
        }
    }
    let said = lab.kubectl(&["get", "events", "-A", "-o", "yaml"])?
        + &lab.kubectl(&["-n", NAMESPACE, "get", "pods,daemonsets,deployments", "-o", "yaml"])?
        + &lab.kubectl(&["get", "encryptionpeers,nodeencryptions", "-o", "yaml"])?;
    Ok(vec![
        ("logs", logs),
        ("processes", processes),
        ("pages", metrics::all_pages(lab)?),
        ("objects", said.into_bytes()),
        ("files", files),
    ])
}

/// A shell command's output as it is.
fn bytes(lab: &Lab, node: &str, command: &str) -> Result<Vec<u8>> {
    let text = lab.exec_ok(node, &["bash", "-c", &format!("set -o pipefail; {command} | base64 -w0")])?;
    ensure!(!text.is_empty(), "`{command}` on {node} printed nothing");
    BASE64.decode(text.trim()).with_context(|| format!("the output of `{command}` on {node}"))
}

/// Would the search find every form of every secret if it were in this text?
fn finds_what_is_planted(needles: &Needles, text: &[u8]) -> bool {
    let half = text.len() / 2;
    let mut planted = text[..half].to_vec();
    let mut places = BTreeSet::new();
    for form in needles.texts() {
        places.insert(planted.len());
        planted.extend_from_slice(form);
        planted.push(b'\n');
    }
    planted.extend_from_slice(&text[half..]);
    let found: BTreeSet<usize> = needles.find(&planted).into_iter().map(|(_, at)| at).collect();
    !places.is_empty() && places.is_subset(&found)
}
