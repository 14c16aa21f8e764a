//! Keys change under traffic, by the timed rules.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::cluster::until;
use super::overlay::PATIENCE;
use super::ring::Ring;
use super::{wire, xfrm};
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
    let mut before = steady(lab, Leftovers::Go)?;
    let (mut done, mut staged_for) = (0, Duration::MAX);
    let rotated = wire::watch(probe, "while rotating", || {
        overlay.configure_manager(&[
            "SECUREOVERLAY_ACKNOWLEDGEMENTS=timed",
            &format!("SECUREOVERLAY_ROTATION_INTERVAL={interval}s"),
            &format!("SECUREOVERLAY_PROPAGATION_DELAY={}s", delay.as_secs()),
        ])?;
        for _ in 0..rotations {
            wait_rotated(lab, &before, Leftovers::Go)?;
            done += 1;
            let waited = Ring::read(lab)?.and_then(|ring| ring.staged_for());
            staged_for = staged_for.min(waited.context("there is no key in use")?);
            before =
                Steady::now(lab, Leftovers::Go)?.context("a rotation began the moment that one ended")?;
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
    overlay.configure_manager(&[
        "SECUREOVERLAY_ACKNOWLEDGEMENTS=required",
        "SECUREOVERLAY_ROTATION_INTERVAL-",
        "SECUREOVERLAY_PROPAGATION_DELAY-",
    ])?;
    wait_steady(lab)
}

/// SAs of earlier generations in a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftovers {
    /// There must be none.
    Go,
    /// An agent that was killed in the middle does not know why they are there, and keeps them for ten minutes.
    Stay,
}

/// A cluster between two rotations.
#[derive(Debug)]
pub struct Steady {
    generation: u64,
    sends_with: BTreeMap<String, BTreeMap<String, String>>,
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

    /// `None` while a rotation is going on, in the ring or in a kernel.
    fn now(lab: &Lab, leftovers: Leftovers) -> Result<Option<Self>> {
        let Some(ring) = Ring::read(lab)?.filter(Ring::is_steady) else { return Ok(None) };
        let kernels = xfrm::dump(lab)?;
        // One state each way for each peer.
        let wanted = 2 * (kernels.len() - 1);
        let clean = |states: usize| states == wanted || (states > wanted && leftovers == Leftovers::Stay);
        if !kernels.values().all(|kernel| clean(kernel.our_states())) {
            return Ok(None);
        }
        let sends_with = kernels.into_iter().map(|(node, kernel)| (node, kernel.sends_with())).collect();
        Ok(ring.generation("active").map(|generation| Self { generation, sends_with }))
    }
}

/// Waits for the end of a rotation that is going on.
pub fn wait_steady(lab: &Lab) -> Result<()> {
    steady(lab, Leftovers::Go).map(drop)
}

/// The cluster as it is, once no rotation is going on.
pub fn steady(lab: &Lab, leftovers: Leftovers) -> Result<Steady> {
    wait_until("a rotation to end", PATIENCE, || Steady::now(lab, leftovers))
}

/// Waits until a later generation alone is in the ring, and every node sends to every other with another SPI.
pub fn wait_rotated(lab: &Lab, before: &Steady, leftovers: Leftovers) -> Result<()> {
    until("the keys to rotate", PATIENCE, || {
        let Some(now) = Steady::now(lab, leftovers)? else { return Ok(false) };
        if now.generation <= before.generation {
            return Ok(false);
        }
        for (node, spis) in &before.sends_with {
            let new = now.sends_with.get(node).context("a node is missing")?;
            if spis.len() != new.len() || spis.iter().any(|(peer, spi)| new.get(peer) == Some(spi)) {
                bail!("generation {} is retired, but {node} sends with its SPIs: {new:?}", before.generation);
            }
        }
        Ok(true)
    })
}
