//! The Secret's content replaced by things that are no key ring, while traffic runs.

use anyhow::{Context, Result};
use serde_json::json;

use super::cluster::until;
use super::overlay::{NAMESPACE, Overlay, PATIENCE};
use super::ring::{self, Ring};
use super::rotate_timed::Leftovers;
use super::{metrics, rotate_timed, wire, xfrm};
use crate::interface::metric;
use crate::lab::Lab;
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};

/// One way to spoil the ring.
struct Junk {
    name: &'static str,
    content: Vec<u8>,
    /// What the manager says of it, and the agents.
    said: &'static str,
    /// The agents too: of what is mended at once they need not.
    by_all: bool,
}

pub const SCENARIO: Scenario = Scenario {
    name: "junk",
    about: "what is no key ring changes nothing, and is said",
    tier: Tier::Gate,
    estimate: 45,
    alone: false,
    run: Run::Installed(run),
};

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    let ring = Ring::read(lab)?.context("there is no ring")?;
    let kernels = xfrm::dump(lab)?;

    let mut ways = 0;
    let watched = wire::watch(probe, "with junk in the Secret", || {
        for junk in ways_to_spoil(&ring, profile.seed()) {
            note(junk.name);
            spoil_and_mend(overlay, &junk, &ring, report)?;
            let changes = xfrm::changes(&kernels, &xfrm::dump(lab)?);
            report.check(changes.is_empty(), format!("{}: no kernel changed {changes:?}", junk.name));
            ways += 1;
        }
        Ok(())
    })?;
    watched.check_delivered(report);
    watched.check_encrypted(report);

    note("a rotation afterwards");
    let before = rotate_timed::steady(lab)?;
    ring::rotate_now(lab)?;
    rotate_timed::wait_rotated(lab, &before, Leftovers::Go)?;
    report.figure("seed", profile.seed());
    report.figure("ways", ways);
    report.figure("sent", watched.probes.sent);
    report.figure("lost", watched.probes.lost);
    report.figure("ipip", watched.wire.ipip);
    Ok(())
}

fn ways_to_spoil(ring: &Ring, seed: u64) -> Vec<Junk> {
    let twice_active = ring.changed(|ring| {
        let mut second = ring["generations"][0].clone();
        second["id"] = json!(second["id"].as_u64().unwrap_or_default() + 1);
        second["uid"] = json!("11111111-2222-4333-8444-555555555555");
        if let Some(generations) = ring["generations"].as_array_mut() {
            generations.push(second);
        }
    });
    let wrong_length = ring.changed(|ring| ring["generations"][0]["key"] = json!("dG9vIHNob3J0"));
    let unknown_suite = ring.changed(|ring| ring["generations"][0]["suite"] = json!("rot13"));
    // Of a program that is newer than this one: only the number tells that it must not be read.
    let later_version = ring.changed(|ring| ring["version"] = json!(2));
    let junk = |name, content, said| Junk { name, content, said, by_all: true };
    vec![
        junk("not YAML", b"{]: this is no YAML\n\t- [".to_vec(), "not a YAML document"),
        junk("wrong key length", wrong_length, "bytes long"),
        junk("two actives", twice_active, "comes too late: at most one"),
        junk("a later version", later_version, "has version 2; this program reads version 1: upgrade it"),
        junk("unknown suite", unknown_suite, "not a YAML document of the expected shape"),
        junk("a megabyte of noise", noise(seed, 1_000_000), "not UTF-8"),
        Junk { name: "empty", content: Vec::new(), said: "the last one is there again", by_all: false },
    ]
}

/// The same noise for the same seed (xorshift64).
fn noise(seed: u64, length: usize) -> Vec<u8> {
    // The one state that it never leaves is 0.
    let mut state = seed.max(1);
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn spoil_and_mend(overlay: &Overlay<'_>, junk: &Junk, ring: &Ring, report: &mut Report) -> Result<()> {
    let lab = overlay.lab;
    let spoilt_at = Ring::read(lab)?.context("there is no ring")?.revision();
    let mut talkers = overlay.managers()?;
    if junk.by_all {
        talkers.extend(overlay.agents()?);
    }
    // In the words of other junk too: each time anew.
    let before = said(lab, &talkers, junk.said)?;
    ring::write_document(lab, &junk.content)?;
    let complaint = until("those concerned to say what is wrong", PATIENCE / 2, || {
        let now = said(lab, &talkers, junk.said)?;
        Ok(before.iter().zip(&now).all(|(before, now)| now > before))
    });
    report.check(complaint.is_ok(), format!("{}: those concerned say so: {}", junk.name, junk.said));
    if junk.content.is_empty() {
        // What a second `kubectl apply` of MKE's manifest does: the manager still knows the ring, and puts it back.
        until("the manager to put the ring back", PATIENCE / 2, || {
            Ok(Ring::read(lab)?.is_some_and(|back| back.uids() == ring.uids() && back.revision() > spoilt_at))
        })?;
    } else {
        until("manager and agents to find the ring bad", PATIENCE / 2, || rings_are(lab, false))?;
        let untouched = ring::read_document(lab)?.as_deref() == Some(&junk.content);
        report.check(untouched, format!("{}: the manager overwrites nothing that it can't read", junk.name));
        ring::write_document(lab, &ring.changed(|_| ()))?;
    }
    until("manager and agents to have a good ring again", PATIENCE / 2, || rings_are(lab, true))
}

/// Whether manager and agents all find the ring good, or all bad.
pub fn rings_are(lab: &Lab, valid: bool) -> Result<bool> {
    let wanted = Some(if valid { 1.0 } else { 0.0 });
    for node in lab.nodes() {
        if metrics::of_agent(lab, &node.name, metric::AGENT_RING_VALID)? != wanted {
            return Ok(false);
        }
    }
    Ok(metrics::of_manager(lab, metric::MANAGER_RING_VALID)? == wanted)
}

/// How often each of these pods has said these words.
fn said(lab: &Lab, pods: &[(String, String)], words: &str) -> Result<Vec<usize>> {
    let count = |(pod, _): &(String, String)| {
        Ok(lab.kubectl(&["-n", NAMESPACE, "logs", pod])?.matches(words).count())
    };
    pods.iter().map(count).collect()
}
