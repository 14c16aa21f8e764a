//! `secureoverlay-sim --steps 100000 [--seed N] [--soak]`: see the library.

use std::{
    any::type_name,
    collections::BTreeMap,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use secureoverlay_agent_core::agent::Agent;
use secureoverlay_manager_core::controller::Controller;
use secureoverlay_sim::{
    disk::Store,
    fault::Scenario,
    run::{self, Caught, Kept, Sum},
    variant::Variant,
};

/// Seeds that failed once: they run first.
const KEPT: &str = include_str!("../seeds");
/// Worlds in which a wrong variant must show itself.
const WORLDS: u64 = 60;
/// Between two lines about progress.
const EVERY: Duration = Duration::from_secs(10);

/// Runs the real decisions in simulated clusters full of faults, and checks the invariants after every step.
#[derive(Parser)]
struct Options {
    /// Steps to take at least.
    #[arg(long, default_value_t = 100_000)]
    steps: u64,
    /// Run the world of this seed alone, and tell its story if it fails. `SEED:FAULT,FAULT` for some of its faults only.
    #[arg(long)]
    seed: Option<String>,
    /// The first of the seeds.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Faults of these kinds only, by their numbers; none: `none`.
    #[arg(long)]
    kinds: Option<String>,
    /// Go on until interrupted, or until something fails.
    #[arg(long)]
    soak: bool,
    /// Go on after a failure, and only list what fails.
    #[arg(long)]
    survey: bool,
    /// Lines of a story that are told.
    #[arg(long, default_value_t = 60)]
    tail: usize,
    /// Leave the wrong variants out.
    #[arg(long)]
    no_variants: bool,
    /// With `--seed`: the wrong variant to run, by its name.
    #[arg(long)]
    variant: Option<String>,
    /// With `--seed` and `--variant`: the world that is made to show the variant.
    #[arg(long)]
    provoke: bool,
}

fn main() -> ExitCode {
    match simulate(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn simulate(options: &Options) -> Result<bool> {
    let variant = options.variant.as_deref().map(named).transpose()?;
    let kept = run::kept(KEPT).map_err(anyhow::Error::msg)?;
    if let Some(text) = &options.seed {
        let provoked = |variant| Some(Scenario::provoking(text.parse().ok()?, variant));
        let scenario = match variant.filter(|_| options.provoke) {
            Some(variant) => provoked(variant),
            None if options.kinds.is_some() => text.parse().ok().map(|seed| drawn(options, seed)),
            None => run::named(text),
        };
        return Ok(one(&scenario.context("--seed takes SEED or SEED:FAULT,FAULT")?, variant, options.tail));
    }
    let begun = Instant::now();
    thread::scope(|scope| {
        // One world takes one core, and machines have more.
        let variants = scope.spawn(|| match options.no_variants {
            true => BTreeMap::new(),
            false => Variant::ALL.map(|variant| (variant, caught(variant, &kept, options.first))).into(),
        });
        let Some((sum, failed)) = worlds(&kept, options)? else { return Ok(false) };
        let variants = variants.join().map_err(|_| anyhow!("a wrong variant made this program panic"))?;
        report(&sum, &variants, failed, begun.elapsed());
        Ok(failed == 0 && variants.values().all(|caught| caught.violation.is_some()))
    })
}

/// As many worlds as it takes; `None` where one failed that was told.
fn worlds(kept: &[Kept], options: &Options) -> Result<Option<(Sum, usize)>> {
    let (mut sum, mut failed) = (Sum::default(), 0);
    for kept in kept {
        if !held(&kept.scenario, &mut sum) {
            println!("it is kept because: {}", kept.why);
            return Ok(None);
        }
    }
    let mut told = Instant::now();
    let mut seed = options.first;
    while options.soak || sum.steps < options.steps {
        let scenario = drawn(options, seed);
        if options.survey {
            failed += usize::from(survey(&scenario, &mut sum));
        } else if !held(&scenario, &mut sum) {
            return Ok(None);
        }
        seed = seed.checked_add(1).context("out of seeds")?;
        if told.elapsed() > EVERY {
            told = Instant::now();
            println!("{} steps in {} worlds, {} rotations", sum.steps, sum.worlds, sum.rotations);
        }
    }
    Ok(Some((sum, failed)))
}

/// The scenario of a seed.
fn drawn(options: &Options, seed: u64) -> Scenario {
    match options.kinds.as_deref() {
        None => Scenario::new(seed),
        Some("none") => Scenario::calm(seed),
        Some(kinds) => {
            let kinds: Vec<u64> = kinds.split(',').filter_map(|kind| kind.parse().ok()).collect();
            Scenario::of_kinds(seed, &kinds)
        }
    }
}

/// One line for a world that fails; whether it did.
fn survey(scenario: &Scenario, sum: &mut Sum) -> bool {
    let run = run::run(scenario, None, false);
    sum.add(&run.tally);
    if let Some(violation) = &run.violation {
        let at = violation.at.as_secs();
        println!("seed {} at {at} s: invariant {}: {}", scenario.seed, violation.invariant, violation.text);
    }
    run.violation.is_some()
}

fn named(name: &str) -> Result<Variant> {
    let found = Variant::ALL.into_iter().find(|variant| format!("{variant:?}") == name);
    found.with_context(|| format!("there is no variant {name}: {:?}", Variant::ALL))
}

fn caught(variant: Variant, kept: &[Kept], first: u64) -> Caught {
    let caught = run::catch(variant, kept, first, WORLDS);
    match &caught.violation {
        Some(violation) => println!(
            "{variant:?}: caught in world {}, invariant {}: {}",
            caught.worlds, violation.invariant, violation.text
        ),
        None => println!("{variant:?}: NOT CAUGHT in {} worlds", caught.worlds),
    }
    caught
}

/// Whether a world held; if not, it is shrunk and told.
fn held(scenario: &Scenario, sum: &mut Sum) -> bool {
    let run = run::run(scenario, None, false);
    sum.add(&run.tally);
    let Some(violation) = &run.violation else { return true };
    println!("seed {} violates invariant {}: {}", scenario.seed, violation.invariant, violation.text);
    println!("shrinking its {} faults ...", scenario.faults.len());
    let numbers = run::shrink(scenario, None, violation);
    let scenario = scenario.only(&numbers);
    for fault in &scenario.faults {
        println!("  {fault}");
    }
    let list: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    println!("to run it again: --seed {}:{}", scenario.seed, list.join(","));
    let kept = Kept { why: violation.text.clone(), variant: None, scenario: scenario.clone() };
    if let Ok(line) = serde_json::to_string(&kept) {
        println!("to keep it, add this line to tests/sim/seeds:\n{line}");
    }
    one(&scenario, None, 60);
    false
}

/// Runs one world; tells the end of its story if it fails.
fn one(scenario: &Scenario, variant: Option<Variant>, tail: usize) -> bool {
    let (run, seed) = (run::run(scenario, variant, true), scenario.seed);
    match &run.violation {
        None => {
            println!("seed {seed}: all invariants held for {} steps", run.tally.steps);
            true
        }
        Some(violation) => {
            for line in &run.story[run.story.len().saturating_sub(tail)..] {
                println!("  {line}");
            }
            let at = violation.at.as_secs_f64();
            println!("seed {seed}: invariant {} at {at:.3} s: {}", violation.invariant, violation.text);
            false
        }
    }
}

fn report(sum: &Sum, variants: &BTreeMap<Variant, Caught>, failed: usize, took: Duration) {
    println!(
        "{} steps in {} worlds, {:.1} days of their time: {} rotations",
        sum.steps,
        sum.worlds,
        sum.time.as_secs_f64() / 86_400.0,
        sum.rotations
    );
    for (kind, count) in &sum.faults {
        println!("  {count:6} {kind}");
    }
    let found = variants.values().filter(|caught| caught.violation.is_some()).count();
    println!(
        "{found} of {} wrong variants were caught; {failed} of {} worlds broke an invariant",
        variants.len(),
        sum.worlds
    );
    let variants: BTreeMap<String, serde_json::Value> = variants
        .iter()
        .map(|(variant, caught)| {
            let invariant = caught.violation.as_ref().map(|violation| violation.invariant);
            (
                format!("{variant:?}"),
                serde_json::json!({"caught": invariant.is_some(), "worlds": caught.worlds, "invariant": invariant}),
            )
        })
        .collect();
    let report = serde_json::json!({
        "controller": type_name::<Controller>(),
        "agent": type_name::<Agent<Store>>(),
        "worlds": sum.worlds,
        "steps": sum.steps,
        "simulated_seconds": sum.time.as_secs(),
        "rotations": sum.rotations,
        "actions": sum.actions,
        "packets": sum.packets,
        "faults": sum.faults,
        "violations": failed,
        "variants": variants,
        "seconds": took.as_secs_f64(),
    });
    println!("{report}");
}
