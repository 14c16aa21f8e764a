//! Keys change under traffic, by the timed rules.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::overlay::PATIENCE;
use super::ring::Ring;
use super::{settings, wire, xfrm};
use crate::interface::manager::{ACKNOWLEDGED, PROPAGATION_DELAY, ROTATION_MODE, TIMED};
use crate::lab::Lab;
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};
use crate::wait::wait_until;

const ROTATIONS: u64 = 3;

/// Three rotations.
pub const SCENARIO: Scenario = Scenario {
    name: "rotate-timed",
    about: "keys rotate under traffic by the timed rules",
    tier: Tier::Gate,
    estimate: 120,
    alone: true,
    run: Run::Installed(run),
};

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;

    note("the same traffic without a rotation");
    let baseline = wire::baseline(probe, report, profile.lasting(10, 60))?;

    let (interval, delay, rotations) = profile.pick((12, 4, ROTATIONS), (60, 20, 2 * ROTATIONS));
    let delay = Duration::from_secs(delay);
    note(format!("{rotations} rotations, one every {interval} s"));
    let mut before = steady(lab)?;
    let (mut done, mut staged_for) = (0, Duration::MAX);
    let rotated = wire::watch(probe, "while rotating", || {
        overlay.configure_manager(&[
            &format!("{ROTATION_MODE}={TIMED}"),
            &format!("{PROPAGATION_DELAY}={}s", delay.as_secs()),
        ])?;
        settings::edit(lab, &json!({"rotation": {"interval": format!("{interval}s")}}))?;
        for _ in 0..rotations {
            before = wait_rotated(lab, &before, Leftovers::Go)?;
            done += 1;
            let waited = Ring::read(lab)?.and_then(|ring| ring.staged_for());
            staged_for = staged_for.min(waited.context("there is no key in use")?);
        }
        Ok(())
    })?;
    rotated.check_delivered(report);
    rotated.check_encrypted(report);
    rotated.check_gap(report, &baseline);
    report.figure("staged_for_s", staged_for.as_secs());
    // By the manager's clock, which is not the one of its ring's timestamps.
    report.check(
        staged_for + Duration::from_millis(100) >= delay,
        format!("a key was used after {staged_for:?}, and nodes are given {delay:?} to follow"),
    );
    report.figure("rotations", done);
    report.figure("sent", rotated.probes.sent);
    report.figure("lost", rotated.probes.lost);
    report.figure("max_gap_ms", rotated.probes.longest_gap_ms);
    report.figure("baseline_gap_ms", baseline.longest_gap_ms);
    settings::edit(lab, &json!({"rotation": {"interval": "12h"}}))?;
    overlay
        .configure_manager(&[&format!("{ROTATION_MODE}={ACKNOWLEDGED}"), &format!("{PROPAGATION_DELAY}-")])?;
    wait_steady(lab)
}

/// SAs of earlier generations in a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// There must be none.
    Go,
    /// An agent that was killed in the middle may not know why they are there: it keeps them until the generations that
    /// it found in the ring are gone.
    Stay,
}

/// A cluster between two rotations.
#[derive(Debug)]
pub struct Steady {
    generation: u64,
    sends_with: BTreeMap<String, BTreeMap<String, String>>,
    /// SPIs of all SAs in all kernels.
    held: BTreeSet<String>,
}

impl Steady {
    /// The number of the one generation.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// By node, the SPI that it sends with: one to all peers.
    pub fn spis(&self) -> BTreeMap<&str, &str> {
        let nodes = self.sends_with.iter();
        nodes
            .filter_map(|(node, spis)| Some((node.as_str(), spis.values().next()?.split('(').next()?)))
            .collect()
    }

    /// `None` while a rotation is going on, or a node does not send to every other.
    fn now(lab: &Lab) -> Result<Option<Self>> {
        let Some(ring) = Ring::read(lab)?.filter(Ring::is_steady) else { return Ok(None) };
        let Some(generation) = ring.generation("active") else { return Ok(None) };
        let kernels = xfrm::dump(lab)?;
        let nodes = lab.nodes();
        let whole = nodes.iter().all(|node| xfrm::sends_to_all(&kernels, node, nodes));
        // An address that a node had lately keeps its policies for ten minutes.
        let current = |peer: &String| nodes.iter().any(|node| *peer == format!("{}/32", node.ip));
        let spis = |kernel: &xfrm::Kernel| {
            kernel.sends_with().into_iter().filter(|(peer, _)| current(peer)).collect()
        };
        let sends_with = kernels.iter().map(|(node, kernel)| (node.clone(), spis(kernel))).collect();
        let held = kernels.values().flat_map(xfrm::Kernel::spis).collect();
        Ok(whole.then_some(Self { generation, sends_with, held }))
    }

    /// Whether this is a later cluster: another generation in the ring, and other SPIs sent with.
    fn follows(&self, before: &Self, leftovers: Leftovers) -> Result<bool> {
        if self.generation <= before.generation {
            return Ok(false);
        }
        for (node, spis) in &before.sends_with {
            let new = self.sends_with.get(node).context("a node is missing")?;
            if spis.len() != new.len() || spis.iter().any(|(peer, spi)| new.get(peer) == Some(spi)) {
                bail!("generation {} is retired, but {node} sends with its SPIs: {new:?}", before.generation);
            }
        }
        let sent_with = before.sends_with.values().flat_map(BTreeMap::values);
        let mut left =
            sent_with.filter_map(|spi| spi.split('(').next()).filter(|spi| self.held.contains(*spi));
        Ok(leftovers == Leftovers::Stay || left.next().is_none())
    }
}

/// Waits for the end of a rotation that is going on.
pub fn wait_steady(lab: &Lab) -> Result<()> {
    steady(lab).map(drop)
}

/// The cluster as it is, once no rotation is going on.
pub fn steady(lab: &Lab) -> Result<Steady> {
    wait_until("a rotation to end", PATIENCE, || Steady::now(lab))
}

/// Waits until a later generation alone is in the ring, and every node sends to every other with another SPI.
pub fn wait_rotated(lab: &Lab, before: &Steady, leftovers: Leftovers) -> Result<Steady> {
    wait_until("the keys to rotate", PATIENCE, || {
        let Some(now) = Steady::now(lab)? else { return Ok(None) };
        Ok(now.follows(before, leftovers)?.then_some(now))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(generation: u64, spis: [&str; 2], held: &[&str]) -> Steady {
        let to = |peer: &str, spi: &str| BTreeMap::from([(format!("{peer}/32"), format!("{spi}(1)"))]);
        let sends_with = [("n1".to_owned(), to("n2", spis[0])), ("n2".to_owned(), to("n1", spis[1]))].into();
        Steady { generation, sends_with, held: held.iter().map(ToString::to_string).collect() }
    }

    #[test]
    fn cluster_has_rotated_when_no_spi_is_sent_with_or_held_any_more() {
        let before = cluster(7, ["0xa", "0xb"], &["0xa", "0xb"]);
        let follows = |now: &Steady, leftovers| now.follows(&before, leftovers);
        assert!(!follows(&before, Leftovers::Stay).unwrap());
        let now = cluster(8, ["0xc", "0xd"], &["0xc", "0xd"]);
        assert!(follows(&now, Leftovers::Go).unwrap());
        let left = cluster(8, ["0xc", "0xd"], &["0xb", "0xc", "0xd"]);
        assert!(!follows(&left, Leftovers::Go).unwrap() && follows(&left, Leftovers::Stay).unwrap());
        assert!(
            follows(&cluster(8, ["0xc", "0xb"], &[]), Leftovers::Stay).is_err(),
            "an old SPI is sent with"
        );
    }
}
