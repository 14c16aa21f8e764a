//! Every decision, found by trying all of them: `testdata/transitions.txt` lists them, `docs/rotation.md` draws them.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::LazyLock,
    time::Duration,
};

use jiff::SignedDuration;
use secureoverlay_keyring::{
    keyring::{Enforcement, Excluded, Identities, KeyRing, Role},
    settings::{EnforcementGoal, Settings},
    suite::Suite,
};

use crate::{
    testing::{NOW, ring, uid},
    *,
};

const INTERVAL: Duration = Duration::from_secs(12 * 3600);
const READINESS: &[&str] = &["ready", "waiting"];
/// What a decision may depend on beside ring and goal, in the order in which it is looked at, with all values. Where the
/// last value is the usual one, a `true` says so: it goes without saying.
const VARIABLES: [(&str, &[&str], bool); 15] = [
    ("history", &["back", "consistent"], true),
    ("installation", &["absent", "other", "same"], true),
    ("ring", &["lost", "kept"], true),
    ("claim", &["yes", "no"], true),
    ("holds_keys", &["yes", "no"], true),
    ("ack_id", &["foreign", "old", "own"], true),
    ("none_enforcing", READINESS, false),
    ("drained", &["ready", "after", "waiting"], false),
    ("staged_acked", READINESS, false),
    ("step_wait", &["over, none acknowledged", "over", "running"], true),
    ("skip", &["yes", "no"], true),
    ("limit", &["over", "running"], true),
    ("due", &["request", "suite", "exhausted", "clock", "schedule", "no"], true),
    ("can_enforce", READINESS, false),
    ("most_enforcing", &["no", "yes"], false),
];
/// Variables that come before everything else, in any phase.
const ANY_PHASE: [&str; 4] = ["history", "installation", "ring", "claim"];
pub(super) const GOALS: [(&str, EnforcementGoal); 3] = [
    ("off", EnforcementGoal::Off),
    ("permissive", EnforcementGoal::Permissive),
    ("auto", EnforcementGoal::Auto),
];

/// Values of the variables, by name.
type Values = BTreeMap<&'static str, &'static str>;

/// What is decided under these conditions, whatever the other variables are.
pub(super) struct Line {
    pub(super) conditions: Vec<(&'static str, &'static str)>,
    /// The write, and where it leads; `None` for a wait.
    pub(super) write: Option<(Action, String)>,
    pub(super) text: String,
}

/// All rings that differ for a decision: one for each phase, and for each enforcement that it may have.
pub(super) fn rings() -> Vec<Option<KeyRing>> {
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

/// The phase of a ring, and whether it enforces.
pub(super) fn state(ring: Option<&KeyRing>) -> String {
    let enforcing = ring.is_some_and(|ring| ring.enforcement == Enforcement::Enforcing);
    format!("{}{}", Phase::of(ring).name(), if enforcing { ", enforcing" } else { "" })
}

/// All decisions for a ring and a goal.
pub(super) struct Section {
    pub(super) state: String,
    pub(super) goal: &'static str,
    pub(super) lines: Vec<Line>,
}

/// Every ring with every goal.
pub(super) static SECTIONS: LazyLock<Vec<Section>> = LazyLock::new(|| {
    let section = |ring: &Option<KeyRing>, (goal, of): (&'static str, EnforcementGoal)| {
        let lines = branch(ring.as_ref(), of, 0, &mut Values::new());
        Section { state: state(ring.as_ref()), goal, lines }
    };
    rings().iter().flat_map(|ring| GOALS.map(|goal| section(ring, goal))).collect()
});

fn is_usual(name: &str, value: &str) -> bool {
    VARIABLES.iter().any(|(other, all, has)| *has && *other == name && all.last() == Some(&value))
}

/// Whether there is anything for this variable to say in a phase.
fn is_relevant(name: &str, ring: Option<&KeyRing>) -> bool {
    let phase = Phase::of(ring);
    let keys = phase.retiring().or(phase.active()).or(phase.staged()).is_some();
    match name {
        "claim" => ring.is_some(),
        "holds_keys" => phase == Phase::Empty,
        "ack_id" | "none_enforcing" => keys,
        "drained" => matches!(phase, Phase::Draining { .. } | Phase::Stopping { .. }),
        "staged_acked" | "step_wait" => phase.staged().is_some(),
        "skip" | "limit" => matches!(phase, Phase::Staged { .. } | Phase::Draining { .. }),
        "due" | "can_enforce" => matches!(phase, Phase::Steady { .. }),
        "most_enforcing" => matches!(phase, Phase::Bootstrapping { .. }),
        _ => true,
    }
}

/// Tries all values of the variables from this one on; a variable that makes no difference is left out.
fn branch(ring: Option<&KeyRing>, goal: EnforcementGoal, at: usize, values: &mut Values) -> Vec<Line> {
    let Some((name, all, _)) = VARIABLES.get(at) else { return vec![decided(ring, goal, values)] };
    let first = ANY_PHASE.iter().any(|name| values.get(name).is_some_and(|value| !is_usual(name, value)));
    let tried = if !first && is_relevant(name, ring) { all } else { &all[all.len() - 1..] };
    let skipped = match Phase::of(ring) {
        Phase::Steady { .. } => "",
        Phase::Staged { .. } => "over, none acknowledged",
        _ => "old",
    };
    let mut branches = Vec::new();
    for value in tried.iter().filter(|value| **value != skipped) {
        values.insert(name, value);
        branches.push((*value, branch(ring, goal, at + 1, values)));
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

fn decided(ring: Option<&KeyRing>, goal: EnforcementGoal, values: &Values) -> Line {
    let unmet = || Unmet {
        nodes: ["node-2".into()].into(),
        total: 3,
        any_ready: false,
        waited: Duration::ZERO,
        look_in: Duration::from_secs(60),
    };
    let readiness = |name| match values[name] {
        "ready" => Readiness::Ready,
        "after" => Readiness::After(Duration::from_secs(5)),
        _ => Readiness::Waiting(unmet()),
    };
    let is = |name, value| values[name] == value;
    let left = |name| if is(name, "running") { Duration::from_secs(30) } else { Duration::ZERO };
    let evidence = Evidence {
        staged_acked: readiness("staged_acked"),
        drained: readiness("drained"),
        can_enforce: readiness("can_enforce"),
        none_enforcing: readiness("none_enforcing"),
        most_enforcing: is("most_enforcing", "yes"),
        any_counts: !is("step_wait", "over, none acknowledged"),
        any_receivable: is("holds_keys", "yes"),
        claim: is("claim", "yes").then(|| Claim { nodes: ["node-1".into()].into(), most: true }),
        exhausted: is("due", "exhausted").then(|| "node-1".into()),
        believed_id: if is("claim", "yes") { 9 } else { 0 },
        ack_id: match values["ack_id"] {
            "own" => AckIdState::Own { age: Duration::ZERO },
            "old" => AckIdState::Own { age: Duration::from_secs(3600) },
            _ => AckIdState::Foreign { age: Duration::ZERO, pause: Duration::ZERO },
        },
        step_wait: left("step_wait"),
        limit: Some(left("limit")),
        ..Evidence::unknown()
    };
    let last = ring.map_or_else(|| testing::ring(Enforcement::Permissive, &[Role::Active]), KeyRing::clone);
    let last = KeyRing { revision: 7, ..last };
    let mut settings = Settings { enforcement: goal, ..Settings::default() };
    if is("due", "suite") {
        settings.cipher_suite = Suite::Aes256Gcm16;
    }
    let requests = Requests {
        rotate: is("due", "request").then(|| "asked for".into()),
        skip_unresponsive: is("skip", "yes"),
    };
    let now = if is("due", "clock") { NOW - SignedDuration::from_hours(24) } else { NOW };
    let interval = if is("due", "schedule") { Duration::ZERO } else { INTERVAL };
    // Settings that differ are an update wherever nothing else is to be done: that is not listed.
    let written = ring.map(|ring| KeyRing { settings: settings.clone(), ..ring.clone() });
    let inputs = Inputs {
        ring: written.as_ref(),
        last: is("ring", "lost").then_some(&last),
        installation: match values["installation"] {
            "absent" => Installation::Absent,
            "other" => Installation::Present(uid(91)),
            _ => Installation::Present(uid(90)),
        },
        evidence: &evidence,
        settings: &settings,
        excluded: &Excluded::default(),
        requests: &requests,
        identities: Identities::Announced,
        times: RotationTimes::interval(interval, NOW, now),
        pace: Pace::default(),
        history: if is("history", "back") { History::WentBack } else { History::Consistent },
        now,
    };
    let decision = decide(&inputs);
    let mut drawn = 100;
    let fill = |bytes: &mut [u8]| {
        drawn += 1;
        bytes.fill(drawn);
        Ok::<_, Infallible>(())
    };
    let write = (decision.action != Action::Wait).then(|| {
        let next = apply(&inputs, &decision, fill).unwrap().ring;
        (decision.action, state(Some(&next)))
    });
    Line { conditions: Vec::new(), text: text(&decision, write.as_ref()), write }
}

fn text(decision: &Decision, write: Option<&(Action, String)>) -> String {
    if let Some((action, next)) = write {
        let cause = decision
            .rotation
            .map_or_else(String::new, |rotation| format!(" ({:?})", rotation.cause).to_lowercase());
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

/// The arrows of the diagram: source, write, target, and what it takes. Left out are writes that stay where they are,
/// and those that any phase can have: another installation, a lost or an older ring.
pub(super) fn arrows() -> Vec<String> {
    type Seen = (BTreeSet<&'static str>, Vec<BTreeMap<&'static str, &'static str>>);
    let mut arrows: BTreeMap<(usize, &'static str, &str), Seen> = BTreeMap::new();
    for (at, section) in SECTIONS.iter().enumerate() {
        for line in &section.lines {
            let Some((action, next)) = &line.write else { continue };
            let conditions: BTreeMap<_, _> = line.conditions.iter().copied().collect();
            let usual =
                ANY_PHASE.iter().all(|name| conditions.get(name).is_none_or(|value| is_usual(name, value)));
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
            .chain(VARIABLES.iter().filter(|(name, ..)| *name != "ack_id").filter_map(|it| label(it, &paths)))
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
