//! Lives of a node, drawn at random.

use super::*;

/// A step in the life of a node: rings, peers, stages and interference.
#[derive(Clone, Debug)]
struct Step {
    enforcement: Enforcement,
    turns: i16,
    boots: Vec<(u8, u8)>,
    stage: Stage,
    restart: bool,
    refuse: BTreeSet<usize>,
    dies_after: Option<usize>,
    lose: BTreeSet<usize>,
    foreign: Option<u8>,
    minutes: u64,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let stage = prop_oneof![4 => Just(Stage::Normal), 1 => Just(Stage::Optional), 1 => Just(Stage::Silent), 1 => Just(Stage::Gone)];
    let enforcement = prop_oneof![Just(Enforcement::Permissive), Just(Enforcement::Enforcing)];
    let boots = prop::collection::btree_map(2..6u8, 0..3u8, 0..4).prop_map(|map| map.into_iter().collect());
    let few = || prop::collection::btree_set(0..40usize, 0..6);
    // An older ring may be restored.
    let turns = prop_oneof![6 => 0..4i16, 1 => -5..0i16];
    let faults = (
        any::<bool>(),
        few(),
        prop::option::weighted(0.2, 0..30usize),
        few(),
        prop::option::weighted(0.2, 2..6u8),
    );
    let step =
        (enforcement, turns, boots, stage, faults, 0..20u64).prop_map(
            |(enforcement, turns, boots, stage, (restart, refuse, dies_after, lose, foreign), minutes)| {
                Step { enforcement, turns, boots, stage, restart, refuse, dies_after, lose, foreign, minutes }
            },
        );
    prop::collection::vec(step, 1..12)
}

/// Ring number `n` of a rotation that goes round and round, with this node's incarnations.
fn rotation(n: i16, enforcement: Enforcement, incarnations: &BTreeMap<Uid, u32>) -> Ring {
    use Role::{Active, Retiring, Staged};
    let base = u8::try_from(n / 3 + 1).unwrap();
    let roles = match n % 3 {
        0 => vec![(base, Active)],
        1 => vec![(base, Active), (base + 1, Staged)],
        _ => vec![(base, Retiring), (base + 1, Active)],
    };
    let mut ring = ring(enforcement, &roles);
    for generation in &mut ring.generations {
        generation.incarnations =
            incarnations.get(&generation.uid).map(|&n| (uid(1), n)).into_iter().collect();
    }
    ring
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever rings, peers, refusals, deaths, losses and foreign entries come: the model's invariants hold after
    /// every single operation (no outbound key twice, for one), what is foreign stays as it is, and once the faults
    /// stop and the manager gives the incarnations that are asked for, the kernel holds the plan.
    #[test]
    fn any_history_converges(history in steps()) {
        let directory = tempfile::tempdir().unwrap();
        let journal = || Journal::open(directory.path(), uid(101));
        let mut kernel = kernel();
        let (mut memory, mut known, mut incarnations) = (Memory::default(), journal(), BTreeMap::new());
        let (mut now, mut turn, mut boots) = (Instant::now(), 0, [0; 6]);
        for step in history {
            now += Duration::from_secs(step.minutes * 60);
            turn = (turn + step.turns).max(0);
            // A peer's boot ID is never one that it had before.
            step.boots.iter().for_each(|(n, reboots)| boots[usize::from(*n)] += reboots);
            let present: Vec<_> = step.boots.iter().map(|(n, _)| (*n, boots[usize::from(*n)])).collect();
            let plan_with = |incarnations: &BTreeMap<Uid, u32>| {
                let ring = rotation(turn, step.enforcement, incarnations);
                probing(&ring, &peers(&present), step.stage)
            };
            let mut plan = plan_with(&incarnations);
            if let Some(n) = step.foreign.filter(|n| !kernel.policies.contains_key(&out(*n))) {
                kernel.add_foreign_policy(out(n));
                let free = plan.states.keys().find(|id| !kernel.states.contains_key(id)).copied();
                free.into_iter().for_each(|id| kernel.add_foreign_state(id));
            }
            let foreign = kernel.foreign();
            let ours = kernel.states.values().filter(|sa| sa.owner == Owner::Ours).map(|sa| sa.id);
            let lost: Vec<SaId> = ours.enumerate().filter(|(at, _)| step.lose.contains(at)).map(|(_, id)| id).collect();
            lost.into_iter().for_each(|id| kernel.take_away(id));
            if step.restart {
                (memory, known) = (Memory::default(), journal());
            }
            (kernel.refuse, kernel.dies_after, kernel.done) = (step.refuse, step.dies_after, 0);
            let limits = Limits::default();
            let mut reconciler = Reconciler { kernel: &mut kernel, journal: known, limits, memory };
            reconciler.run(&plan, now).unwrap();
            (memory, known) = (reconciler.memory, reconciler.journal);
            if step.dies_after.is_some() {
                (memory, known) = (Memory::default(), journal());
            }
            (kernel.refuse, kernel.dies_after) = (BTreeSet::new(), None);
            let mut reconciler = Reconciler { kernel: &mut kernel, journal: known, limits, memory };
            let mut outcome = reconciler.run(&plan, now).unwrap();
            if !outcome.burnt.is_empty() {
                incarnations.extend(outcome.burnt.iter().map(|(generation, burnt)| (*generation, burnt + 1)));
                plan = plan_with(&incarnations);
                outcome = reconciler.run(&plan, now).unwrap();
            }
            prop_assert!(outcome.failed.is_empty(), "{:?}", outcome.failed);
            let again = reconciler.run(&plan, now).unwrap();
            prop_assert_eq!(again.changed, 0);
            prop_assert_eq!(&again.burnt, &BTreeMap::new(), "one new incarnation heals");
            (memory, known) = (reconciler.memory, reconciler.journal);
            prop_assert_eq!(kernel.foreign(), foreign);
            for (id, planned) in &plan.states {
                let needless = planned.role == Role::Retiring && planned.direction == Direction::Out;
                let is_foreign = again.findings.contains(&Finding::ForeignState(*id));
                prop_assert!(kernel.states.contains_key(id) || needless || is_foreign, "{} is missing", id);
            }
        }
    }
}
