//! The simulator notices what is wrong, forgets nothing, and does the same thing twice.

use secureoverlay_sim::{
    fault::Scenario,
    run::{self, Kept},
    variant::Variant,
};

/// Worlds in which a variant must show itself.
const WORLDS: u64 = 60;

/// The program does this with all of them, and fails unless each is caught: `make sim`.
#[test]
fn wrong_variant_is_caught() {
    let variant = Variant::PinUnanswered;
    let caught = run::catch(variant, &[], 1, WORLDS);
    assert_eq!(caught.violation.map(|violation| violation.invariant), Some(9), "{variant:?}");
}

#[test]
fn seed_is_a_world() {
    let mut scenario = Scenario::new(2);
    scenario.end = scenario.end.min(std::time::Duration::from_secs(600));
    let [one, two] = [(), ()].map(|()| run::run(&scenario, None, true));
    assert!(!one.story.is_empty() && one.story == two.story, "the same seed went another way");
}

#[test]
fn world_without_faults_converges_and_is_idle() {
    let run = run::run(&Scenario::calm(2), None, false);
    assert_eq!(run.violation, None);
    assert!(run.tally.rotations > 1 && run.tally.packets["encrypted"] > 100);
}

#[test]
fn failure_is_shrunk_to_what_matters() {
    let variant = Some(Variant::UnpinLost);
    let scenario = Scenario::provoking(1, Variant::UnpinLost);
    let violation = run::run(&scenario, variant, false).violation.expect("it is caught in this world");
    let keep = run::shrink(&scenario, variant, &violation);
    assert!(keep.len() < scenario.faults.len() / 2, "{keep:?}");
    let again = run::run(&scenario.only(&keep), variant, false).violation.expect("it still fails");
    assert!(again.alike(&violation), "{again:?}");
}

#[test]
fn kept_world_is_the_same_whatever_is_drawn_for_its_seed() {
    let scenario = Scenario::provoking(3, Variant::RemoveUnmoved);
    let kept = Kept { why: "a test".into(), variant: Some(Variant::RemoveUnmoved), scenario };
    let text = format!("# comment\n{}\n\n", serde_json::to_string(&kept).unwrap());
    assert_eq!(run::kept(&text).unwrap(), [kept]);
    assert!(run::kept("12").unwrap_err().contains("not a kept world"));
    let scenario = run::named("7:3, 5").unwrap();
    assert_eq!(scenario.faults, [3, 5].map(|at| Scenario::new(7).faults[at]));
    assert!(run::named("twelve").is_none() && run::named("7:x").is_none());
}

#[test]
fn kept_world_shows_what_it_was_kept_for() {
    for kept in run::kept(include_str!("../seeds")).unwrap() {
        let held = run::run(&kept.scenario, None, false).violation;
        assert_eq!(held, None, "{}", kept.why);
        if let Some(variant) = kept.variant {
            assert!(run::run(&kept.scenario, Some(variant), false).violation.is_some(), "{}", kept.why);
        }
    }
}
