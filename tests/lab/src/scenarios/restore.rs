//! etcd is put back to before three rotations: no key is installed twice, nothing is lost, and the cluster heals without a
//! person; where the API server was not restarted, that is said, and it heals after the restart.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::cluster::{until, until_healed};
use super::enforcing;
use super::ledger::Ledger;
use super::probe::Probe;
use super::processes::{MANAGER, signal_everywhere};
use super::ring::Ring;
use super::rotate_timed::Leftovers;
use super::wire::Watched;
use super::{manager, rotate_timed, wire};
use crate::lab::Lab;
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};
use crate::store::Backup;

pub const SCENARIO: Scenario = Scenario {
    name: "restore",
    about: "etcd put back to before three rotations: nothing lost, no key used twice, healed without a person",
    tier: Tier::Gate,
    estimate: 120,
    alone: false,
    run: Run::Installed(run),
};

const ROTATIONS: u64 = 3;
/// From the restart of the API server until all is well.
const HEALED: Duration = Duration::from_secs(300);
/// Until it is said that the API server has to be restarted.
const SAID: Duration = Duration::from_secs(300);
/// What is said then.
const WENT_BACK: &str = "ApiServerHistoryWentBack";

/// What happens beside the restored store.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The API server is restarted; the manager goes on and knows the ring of before.
    Restart,
    /// The manager is killed meanwhile: its successor knows nothing but what it reads.
    RestartAndNewManager,
    /// Nothing at first: the API server's caches do not know.
    WithoutRestart,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::RestartAndNewManager => "restart_and_new_manager",
            Self::WithoutRestart => "without_restart",
        }
    }
}

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    let gate: &[Way] = &[Way::RestartAndNewManager];
    let ways = profile.pick(gate, &[Way::Restart, Way::RestartAndNewManager, Way::WithoutRestart]);
    let (mut ledger, mut healed, mut said_after) = (Ledger::default(), BTreeMap::new(), None);
    let (mut sent, mut lost, mut clear) = (0, 0, 0);
    let mut count = |watched: &Watched, report: &mut Report| {
        watched.check_delivered(report);
        watched.check_encrypted(report);
        sent += watched.probes.sent;
        lost += watched.probes.lost;
        clear += watched.wire.ipip;
    };
    for way in ways {
        note(format!("a backup, {ROTATIONS} rotations, and the backup restored: {}", way.name()));
        ledger.observe(lab)?;
        let (backup, newest) = back_up_and_rotate(lab)?;
        ledger.observe(lab)?;
        if *way == Way::WithoutRestart {
            let (watched, after) = without_restart(lab, probe, &backup)?;
            count(&watched, report);
            report.check(after <= SAID, format!("{WENT_BACK} is said after {after:?}, at most {SAID:?}"));
            said_after = Some(after.as_secs());
        }
        let mut took = Duration::MAX;
        let watched = wire::watch(probe, &format!("restored, {}", way.name()), || {
            lab.stop_api()?;
            if *way != Way::WithoutRestart {
                lab.put_store_back(&backup)?;
            }
            if *way == Way::RestartAndNewManager {
                ensure!(signal_everywhere(lab, MANAGER, "-KILL")? == 1, "the manager was not killed");
            }
            lab.start_api()?;
            let begun = Instant::now();
            until_healed("the cluster to heal", HEALED, || lacks(lab, newest))?;
            took = begun.elapsed();
            Ok(())
        })?;
        count(&watched, report);
        report.check(took < HEALED, format!("{}: healed after {took:?}, at most {HEALED:?}", way.name()));
        healed.insert(way.name(), took.as_secs());
        overlay.wait_rolled_out()?;
        enforcing::wait_proven(lab)?;
    }
    note("a rotation afterwards");
    let before = rotate_timed::steady(lab)?;
    manager::rotate(lab, &["--wait"])?;
    rotate_timed::wait_rotated(lab, &before, Leftovers::Stay)?;
    report.figure("healed_s", healed);
    report.figure("said_after_s", said_after);
    report.figure("sent", sent);
    report.expect_none("lost", lost);
    report.expect("plaintext_packets", clear, 0);
    ledger.report(lab, report)
}

/// A backup, and the id of the generation that is active three rotations later.
fn back_up_and_rotate(lab: &Lab) -> Result<(Backup, u64)> {
    let mut before = rotate_timed::steady(lab)?;
    let backup = lab.back_up_store()?;
    for _ in 0..ROTATIONS {
        manager::rotate(lab, &["--wait"])?;
        before = rotate_timed::wait_rotated(lab, &before, Leftovers::Stay)?;
    }
    Ok((backup, before.generation()))
}

/// The store goes back under an API server that goes on: until that is said nothing else happens.
fn without_restart(lab: &Lab, probe: &Probe, backup: &Backup) -> Result<(Watched, Duration)> {
    let before = manager::event_count(lab, WENT_BACK)?;
    let mut after = Duration::MAX;
    let watched = wire::watch(probe, "restored without a restart", || {
        lab.put_store_back(backup)?;
        let begun = Instant::now();
        until("the history to be found out", SAID, || {
            thread::sleep(Duration::from_secs(1));
            Ok(manager::event_count(lab, WENT_BACK).is_ok_and(|count| count > before))
        })?;
        after = begun.elapsed();
        Ok(())
    })?;
    Ok((watched, after))
}

/// What is lacking until the ring is at least as new as the newest one before, all nodes enforce it, and all pairs are
/// proven with it.
fn lacks(lab: &Lab, newest: u64) -> Option<String> {
    let ring = Ring::read(lab).ok().flatten();
    if !ring.is_some_and(|ring| ring.is_steady() && ring.generation("active").is_some_and(|id| id >= newest))
    {
        return Some(format!("the ring is not at generation {newest} or later"));
    }
    enforcing::lacks(lab)
}
