//! Every decision, found by trying all of them: `testdata/transitions.txt` lists them, `docs/design.md` draws them.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::LazyLock,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::{
    ring::{Generation, Ring, Role, SPI_SEED_LEN},
    secret::SecretBytes,
};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;
const INTERVAL: Duration = Duration::from_secs(12 * 3600);
const READINESS: &[&str] = &["ready", "after", "waiting", "unknown"];
/// What a decision may depend on beside ring and goal, in the order in which it is looked at, with all values. Where the
/// last value is the usual one, a `true` says so: it goes without saying.
const VARIABLES: [(&str, &[&str], bool); 9] = [
    ("installation", &["absent", "other", "same"], true),
    ("rekey", &["yes", "no"], true),
    ("pending", &["changed", "unchanged"], true),
    ("none_enforcing", READINESS, false),
    ("drained", READINESS, false),
    ("staged_acked", READINESS, false),
    ("due", &["request", "restored", "suite", "clock", "schedule", "no"], true),
    ("can_enforce", READINESS, false),
    ("all_enforcing", &["no", "yes"], false),
];
pub(super) const GOALS: [(&str, EnforcementGoal); 3] = [
    ("off", EnforcementGoal::Off),
    ("permissive", EnforcementGoal::Permissive),
    ("auto", EnforcementGoal::Auto),
];

/// Values of the variables, by name.
type Values = BTreeMap<&'static str, &'static str>;

/// Where writes lead, by all that this may depend on.
type Targets = BTreeMap<(&'static str, [&'static str; 3]), String>;

/// What is decided under these conditions, whatever the other variables are.
pub(super) struct Line {
    pub(super) conditions: Vec<(&'static str, &'static str)>,
    /// The write, and where it leads; `None` for a wait.
    pub(super) write: Option<(Action, String)>,
    pub(super) text: String,
}

/// All rings that differ for a decision: one for each phase, and for each enforcement that it may have.
pub(super) fn rings() -> Vec<Option<Ring>> {
    use Role::{Active, Retiring, Staged};
    let mut rings = vec![None, Some(ring(Enforcement::Off, &[]))];
    for roles in
        [&[Staged][..], &[Active], &[Active, Staged], &[Retiring, Active], &[Retiring], &[Retiring, Staged]]
    {
        rings.push(Some(ring(Enforcement::Permissive, roles)));
        if roles.contains(&Active) {
            rings.push(Some(ring(Enforcement::Enforcing, roles)));
        }
    }
    rings
}

fn uid(n: u8) -> Uid {
    Uid::from_random([n; 16])
}

fn ring(enforcement: Enforcement, roles: &[Role]) -> Ring {
    let generation = |(id, role): (u8, &Role)| Generation {
        id: id.into(),
        uid: uid(id),
        role: *role,
        suite: Suite::default(),
        key: SecretBytes::copy_from(&[id; 16]),
        spi_seed: SecretBytes::copy_from(&[id; SPI_SEED_LEN]),
        created_at: NOW,
        role_since: NOW,
        incarnations: BTreeMap::new(),
    };
    let generations = (1..).zip(roles).map(generation).collect();
    let ring = Ring { enforcement, generations, ..Ring::off(1, Some(uid(90))) };
    assert_eq!(Ring::parse(ring.to_yaml().as_bytes()).as_ref(), Ok(&ring));
    ring
}

/// The phase of a ring, and whether it enforces.
pub(super) fn state(ring: Option<&Ring>) -> String {
    let enforcing = ring.is_some_and(|ring| ring.enforcement == Enforcement::Enforcing);
    format!("{}{}", crate::phase::Phase::of(ring).name(), if enforcing { ", enforcing" } else { "" })
}

/// All decisions for a ring and a goal.
pub(super) struct Section {
    pub(super) state: String,
    pub(super) goal: &'static str,
    pub(super) lines: Vec<Line>,
}

/// Every ring with every goal.
pub(super) static SECTIONS: LazyLock<Vec<Section>> = LazyLock::new(|| {
    let section = |ring: &Option<Ring>, (goal, of): (&'static str, EnforcementGoal)| {
        let lines = branch(ring.as_ref(), of, 0, &mut Values::new(), &mut Targets::new());
        Section { state: state(ring.as_ref()), goal, lines }
    };
    rings().iter().flat_map(|ring| GOALS.map(|goal| section(ring, goal))).collect()
});

/// Tries all values of the variables from this one on; a variable that makes no difference is left out.
fn branch(
    ring: Option<&Ring>,
    goal: EnforcementGoal,
    at: usize,
    values: &mut Values,
    targets: &mut Targets,
) -> Vec<Line> {
    let Some((name, all, _)) = VARIABLES.get(at) else { return vec![decided(ring, goal, values, targets)] };
    // What comes before everything else is tried with fewer values of the rest.
    let unusual = |name, usual| values.get(name).is_some_and(|value| *value != usual);
    let few = unusual("installation", "same") || unusual("rekey", "no");
    let tried = all.iter().filter(|value| !few || !["after", "unknown"].contains(value));
    let mut branches = Vec::new();
    for value in tried {
        values.insert(name, value);
        branches.push((*value, branch(ring, goal, at + 1, values, targets)));
    }
    let texts = |lines: &[Line]| -> Vec<_> {
        lines.iter().map(|line| (line.conditions.clone(), line.text.clone())).collect()
    };
    if branches.windows(2).all(|pair| texts(&pair[0].1) == texts(&pair[1].1)) {
        return branches.swap_remove(0).1;
    }
    let with = |(value, lines): (&'static str, Vec<Line>)| {
        lines.into_iter().map(move |mut line| {
            line.conditions.insert(0, (name, value));
            line
        })
    };
    branches.into_iter().flat_map(with).collect()
}

fn decided(ring: Option<&Ring>, goal: EnforcementGoal, values: &Values, targets: &mut Targets) -> Line {
    let readiness = |name| match values[name] {
        "ready" => Readiness::Ready,
        "after" => Readiness::After(Duration::from_secs(5)),
        "waiting" => Readiness::Waiting { nodes: ["node-2".into()].into(), look_in: Duration::from_secs(60) },
        _ => Readiness::Unknown,
    };
    let is = |name, value| values[name] == value;
    let evidence = Evidence {
        none_enforcing: readiness("none_enforcing"),
        can_enforce: readiness("can_enforce"),
        all_enforcing: is("all_enforcing", "yes"),
        pending: if is("pending", "changed") { [uid(7)].into() } else { BTreeSet::new() },
        requested: is("due", "request").then(|| "asked for".into()),
        rekey: if is("rekey", "yes") { [(uid(7), [(uid(1), 1)].into())].into() } else { BTreeMap::new() },
        newest: if is("due", "restored") { 9 } else { 0 },
        ..Evidence::of(readiness("staged_acked"), readiness("drained"))
    };
    let installation = match values["installation"] {
        "absent" => Installation::Absent,
        "other" => Installation::Present(uid(91)),
        _ => Installation::Present(uid(90)),
    };
    let schedule = RotationSchedule::Every(if is("due", "schedule") { Duration::ZERO } else { INTERVAL });
    let suite = if is("due", "suite") { Suite::Aes256Gcm16 } else { Suite::default() };
    let now = if is("due", "clock") { NOW - SignedDuration::from_hours(24) } else { NOW };
    let settings = Settings { schedule, suite, goal };
    let decision = decide(ring, installation, &evidence, now, &settings);
    let mut drawn = 100;
    let fill = |bytes: &mut [u8]| {
        drawn += 1;
        bytes.fill(drawn);
        Ok::<_, Infallible>(())
    };
    let depends = ["installation", "pending", "all_enforcing"].map(|name| values[name]);
    let write = (decision.action != Action::Wait).then(|| {
        let target = targets.entry((decision.action.name(), depends)).or_insert_with(|| {
            let Ok(next) = apply(ring, decision.action, installation, &evidence, now, &settings, fill);
            assert_eq!(Ring::parse(next.to_yaml().as_bytes()).as_ref(), Ok(&next), "{values:?}");
            state(Some(&next))
        });
        (decision.action, target.clone())
    });
    Line { conditions: Vec::new(), text: text(&decision, write.as_ref()), write }
}

fn text(decision: &Decision, write: Option<&(Action, String)>) -> String {
    if let Some((action, next)) = write {
        let cause = decision.cause.map_or_else(String::new, |cause| format!(" ({cause:?})").to_lowercase());
        // The wait beside such a write is the one without it.
        return format!("{}{cause} -> {next}", action.name());
    }
    let time = match decision.wake_in {
        Duration::MAX => String::new(),
        time => format!(" {time:?}"),
    };
    let step = decision.wait.as_ref().map_or_else(String::new, |wait| {
        let nodes = wait.nodes.iter().map(|node| format!(", {node}"));
        format!(": {} {}{}", wait.step.name(), wait.id, nodes.collect::<String>())
    });
    format!("wait{time}{step}")
}

/// The arrows of the diagram: source, write, target, and what it takes. Left out are writes that stay where they are, and
/// those because of another installation.
pub(super) fn arrows() -> Vec<String> {
    type Seen = (BTreeSet<&'static str>, Vec<BTreeMap<&'static str, &'static str>>);
    let mut arrows: BTreeMap<(usize, &'static str, &str), Seen> = BTreeMap::new();
    for (at, section) in SECTIONS.iter().enumerate() {
        for line in &section.lines {
            let Some((action, next)) = &line.write else { continue };
            let conditions: BTreeMap<_, _> = line.conditions.iter().copied().collect();
            let usual = conditions.get("installation").is_none_or(|value| *value == "same");
            if usual && *next != section.state {
                // The sections of one ring follow each other.
                let (goals, paths) = arrows.entry((at / GOALS.len(), action.name(), next)).or_default();
                goals.insert(section.goal);
                paths.push(conditions);
            }
        }
    }
    let id = |state: &str| state.replace(", ", "_");
    let arrow = |((at, action, next), (goals, paths)): ((usize, &str, &str), Seen)| {
        let takes: Vec<String> = goal_label(&goals)
            .into_iter()
            .chain(VARIABLES.iter().filter_map(|variable| label(variable, &paths)))
            .collect();
        let takes = if takes.is_empty() { String::new() } else { format!(" when {}", takes.join(" and ")) };
        format!("    {} --> {}: {action}{takes}", id(&SECTIONS[at * GOALS.len()].state), id(next))
    };
    arrows.into_iter().map(arrow).collect()
}

fn goal_label(goals: &BTreeSet<&str>) -> Option<String> {
    let missing: Vec<&str> =
        GOALS.iter().map(|(name, _)| *name).filter(|name| !goals.contains(name)).collect();
    match (&missing[..], goals.first()) {
        ([], _) | (_, None) => None,
        ([missing], _) => Some(format!("goal is not {missing}")),
        (_, Some(only)) => Some(format!("goal is {only}")),
    }
}

/// What all paths of an arrow say of a variable, unless it is the usual.
fn label(
    (name, all, has_usual): &(&'static str, &'static [&'static str], bool),
    paths: &[BTreeMap<&'static str, &'static str>],
) -> Option<String> {
    let values = paths.iter().map(|path| path.get(name).copied()).collect::<Option<BTreeSet<&str>>>()?;
    let is =
        |wanted: &[&str]| values.len() == wanted.len() && wanted.iter().all(|value| values.contains(value));
    match all {
        _ if is(all) || (*has_usual && is(&all[all.len() - 1..])) => None,
        _ if is(&["ready"]) || is(&["yes"]) || (*has_usual && is(&all[..all.len() - 1])) => {
            Some((*name).to_owned())
        }
        _ if is(&["no"]) => Some(format!("not {name}")),
        _ => Some(format!("{name} is {}", values.into_iter().collect::<Vec<_>>().join(" or "))),
    }
}

mod compare;
