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
fn a_wrong_variant_is_caught() {
    let variant = Variant::ActivateUnacknowledged;
    let caught = run::catch(variant, &[], 1, WORLDS);
    assert!(caught.violation.is_some(), "{variant:?} was not caught in {WORLDS} worlds");
}

#[test]
fn a_seed_is_a_world() {
    let scenario = Scenario::new(7);
    let [one, two] = [(), ()].map(|()| run::run(&scenario, None, true));
    assert!(!one.story.is_empty() && one.story == two.story, "the same seed went another way");
    assert_ne!(one.story, run::run(&Scenario::new(8), None, true).story);
}

#[test]
fn a_failure_is_shrunk_to_what_matters() {
    let (variant, scenario) = (Some(Variant::RecreateLost), Scenario::new(1));
    let violation = run::run(&scenario, variant, false).violation.expect("it is caught in this world");
    let keep = run::shrink(&scenario, variant, &violation);
    assert!(keep.len() < scenario.faults.len() / 4, "{keep:?}");
    let again = run::run(&scenario.only(&keep), variant, false).violation.expect("it still fails");
    assert!(again.alike(&violation), "{again:?}");
}

#[test]
fn a_kept_world_is_the_same_whatever_is_drawn_for_its_seed() {
    let scenario = Scenario::provoking(3, Variant::BelieveMissingNodes);
    let kept = Kept { why: "a test".into(), variant: Some(Variant::BelieveMissingNodes), scenario };
    let text = format!("# comment\n{}\n\n", serde_json::to_string(&kept).unwrap());
    assert_eq!(run::kept(&text).unwrap(), [kept]);
    assert!(run::kept("12").unwrap_err().contains("not a kept world"));
    let scenario = run::named("7:3, 5").unwrap();
    assert_eq!(scenario.faults, [3, 5].map(|at| Scenario::new(7).faults[at]));
    assert!(run::named("twelve").is_none() && run::named("7:x").is_none());
}

#[test]
fn a_kept_world_shows_what_it_was_kept_for() {
    for kept in run::kept(include_str!("../seeds")).unwrap() {
        let held = run::run(&kept.scenario, None, false).violation;
        assert_eq!(held, None, "{}", kept.why);
        if let Some(variant) = kept.variant {
            assert!(run::run(&kept.scenario, Some(variant), false).violation.is_some(), "{}", kept.why);
        }
    }
}
