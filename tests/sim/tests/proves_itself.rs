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
    let caught = run::catch(variant, 1, WORLDS);
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
fn seeds_are_kept_in_lines() {
    let text = "# why\n12 # a whole world\n7:3, 5\n9:\n";
    let expected = [(12, None), (7, Some(vec![3, 5])), (9, Some(vec![]))];
    assert_eq!(run::kept(text).unwrap(), expected.map(|(seed, faults)| Kept { seed, faults }));
    assert!(run::kept("twelve").is_err() && run::kept("7:x").is_err());
    run::kept(include_str!("../seeds")).unwrap();
}
