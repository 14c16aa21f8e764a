//! `lab run`: scenarios in one lab or in several beside each other, and what they found.

use std::thread;

use anyhow::{Result, anyhow, ensure};
use clap::Args;

use crate::cache::kubernetes::Kubernetes;
use crate::cli::NODES;
use crate::host;
use crate::interrupt;
use crate::lab::{self, Lab};
use crate::lanes::{self, Beside};
use crate::place::Place;
use crate::plan::{self, Plan};
use crate::product;
use crate::progress::note;
use crate::runner::{self, Verdict, run_all};
use crate::scenario::{Profile, Scenario};
use crate::state::Lock;

/// Arguments of `lab run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Their names; `all` names every one of the gate.
    #[arg(required = true)]
    scenarios: Vec<String>,
    #[command(flatten)]
    profile: Profile,
    /// How many labs to make and to use at the same time. A lab that runs already is used alone.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=4))]
    lanes: u8,
    /// Repeat everything so often in one lab, and tell how often it failed and why.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    times: u16,
    /// A shell command to run at low priority until it ends, beside everything but what judges gaps or speed.
    #[arg(long, value_name = "COMMAND")]
    beside: Option<String>,
    /// Keep the lab that was made for this.
    #[arg(long)]
    keep: bool,
    /// Version of Kubernetes; otherwise that of the lab that runs, or today's.
    #[arg(long)]
    kubernetes: Option<Kubernetes>,
}

/// Runs them all and returns the exit status.
pub fn run(args: &RunArgs) -> Result<i32> {
    let chosen = plan::named(&args.scenarios, args.profile.full)?;
    let profile = args.profile.seeded();
    plan::ensure_case(&chosen, profile.case())?;
    note(format!("seed {}", profile.seed()));
    let running = Lab::attach()?.is_some();
    let repeated = args.times > 1;
    let one = running || args.keep || repeated;
    let mut plan = Plan::new(&chosen, if one { 1 } else { lanes_that_fit(args.lanes, args.kubernetes)? });
    if repeated {
        for list in plan.lanes.iter_mut().chain([&mut plan.alone, &mut plan.last]) {
            *list = list.repeat(args.times.into());
        }
    }
    let kept = running || args.keep;
    let mut made = if kept { Vec::new() } else { lanes::places(plan.lanes.len())? };
    for place in &made {
        // Not one that another command makes or changes at this moment.
        Lock::take(place)?;
    }
    made.extend(args.beside.as_ref().map(|_| lanes::beside()).transpose()?);
    interrupt::remove_on_interrupt(made)?;

    let beside = args.beside.as_deref().map(Beside::start).transpose()?;
    let mut verdicts = Vec::new();
    let mut here = Vec::new();
    if let [lane] = &plan.lanes[..] {
        here.clone_from(lane);
    } else {
        prepare(args.kubernetes)?;
        verdicts = lanes::run(&plan.lanes, profile, args.kubernetes)?;
        // Lanes end at an interrupt too: no lab is to be made for those that run alone while that removes all.
        interrupt::let_it_finish();
    }
    verdicts.extend(in_one_lab(&here, beside, &plan.alone, profile, args.kubernetes, kept)?);
    verdicts.extend(run_all(None, &plan.last, profile));
    if repeated {
        runner::repetitions(&verdicts).iter().for_each(|line| println!("{line}"));
    }
    Ok(i32::from(!runner::conclude(&verdicts)))
}

/// What a lane's process does: its scenarios, in a lab that it leaves running.
pub fn lane(scenarios: &[String], profile: Profile, kubernetes: Option<Kubernetes>) -> Result<i32> {
    let chosen = plan::named(scenarios, profile.full)?;
    let verdicts = in_one_lab(&chosen, None, &[], profile, kubernetes, true)?;
    Ok(i32::from(!verdicts.iter().all(Verdict::ok)))
}

/// Runs scenarios in this process's lab, and those that run alone when what is beside has ended.
fn in_one_lab(
    first: &[&Scenario],
    beside: Option<Beside>,
    alone: &[&Scenario],
    profile: Profile,
    kubernetes: Option<Kubernetes>,
    kept: bool,
) -> Result<Vec<Verdict>> {
    let act = |lab: Option<&Lab>| -> Result<Vec<Verdict>> {
        let mut verdicts = run_all(lab, first, profile);
        if let Some(beside) = beside {
            verdicts.extend(beside.finish()?);
        }
        verdicts.extend(run_all(lab, alone, profile));
        Ok(verdicts)
    };
    let lock = Lock::take(Place::here())?;
    let running = Lab::attach()?;
    if running.is_none() && !first.iter().chain(alone).any(|scenario| scenario.needs_cluster()) {
        return act(None);
    }
    if let (Some(lab), Some(wanted)) = (&running, kubernetes) {
        let version = lab.release().version;
        let same = wanted.release().version == version;
        ensure!(same, "the lab that runs is of Kubernetes {version}; `cargo lab down` removes it");
    }
    let up = || Lab::up_with_programs(&lock, NODES, kubernetes.unwrap_or_default());
    let lab = running.map_or_else(up, Ok)?;
    let outcome = lab.load_images().and_then(|()| act(Some(&lab)));
    if !kept {
        lab.down(&lock)?;
    }
    outcome
}

/// As many lanes as asked for, or as many as this machine holds.
fn lanes_that_fit(wanted: u8, kubernetes: Option<Kubernetes>) -> Result<usize> {
    host::must_be_root()?;
    for lanes in (2..=wanted).rev() {
        match host::must_be_large_enough(NODES, lanes, kubernetes.unwrap_or_default().release()) {
            Ok(()) => return Ok(lanes.into()),
            Err(error) => note(format!("not {lanes} labs beside each other: {error:#}")),
        }
    }
    Ok(1)
}

/// What two lanes must not do at the same time: installing, fetching and building what they share.
fn prepare(kubernetes: Option<Kubernetes>) -> Result<()> {
    host::must_be_able_to_run_guests()?;
    host::install_tools()?;
    thread::scope(|scope| {
        let programs = scope.spawn(product::programs);
        lab::parts(kubernetes.unwrap_or_default(), true)?;
        programs.join().map_err(|_| anyhow!("building the programs failed"))?.map(drop)
    })
}
