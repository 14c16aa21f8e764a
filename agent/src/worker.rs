//! The one thread that talks to the kernel, so that blocking there stops nothing else.

use std::{
    net::IpAddr,
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;

use crate::{
    agent::{Program, Target},
    journal::Journal,
    kernel::{Kernel, KernelError, LinkSocket, Switches},
    mtu,
    plan::{self, Plan, Sender, SpiCollision, Stage},
    probe_plan,
    reconcile::{Limits, Outcome, Reconciler},
    surroundings::{self, Neighbours, Surroundings},
};

/// How often MTUs and surroundings are looked at while nothing else is to do.
const MEASURE_EVERY: Duration = Duration::from_secs(10);
/// How often SAs and policies are counted: a flush of SAs is notified to nobody who may not see keys.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// After so many failing looks in a row, what was seen around the tunnel does not count any more.
const BLIND: usize = 3;

/// What the thread tells.
pub enum News {
    /// An attempt at a target is over.
    Attempt(Box<Attempted>),
    /// The MTUs of this node, or why they and what is around them can't be read.
    Mtu(Result<mtu::Facts, String>),
    /// What lets traffic past the policies.
    Surroundings(Box<Surroundings>),
    /// There are more or fewer SAs or policies than after the last attempt.
    Counts,
}

/// How an attempt went.
pub struct Attempted {
    /// The run, or why there was none.
    pub run: Result<Outcome, String>,
    /// SAs of the plan.
    pub states: usize,
    /// Policies of the plan.
    pub policies: usize,
    /// Pairs that can't be programmed.
    pub collisions: Vec<SpiCollision>,
    /// How long it took.
    pub took: Duration,
}

/// Brings the kernel to each target that comes in `targets`, until nobody can send one any more. `open` is called
/// until it succeeds; `journal` tells what earlier agents gave to the kernel.
pub fn work<K: Kernel>(
    mut open: impl FnMut() -> Result<K, KernelError>,
    mut measure: impl FnMut(&Program) -> Result<(mtu::Facts, Surroundings), KernelError>,
    (mut journal, limits): (Journal, Limits),
    targets: &Receiver<Target>,
    news: &UnboundedSender<News>,
) {
    let mut reconciler: Option<Reconciler<K>> = None;
    let mut current: Option<(Target, Plan)> = None;
    let mut counts = None;
    let mut measured = None;
    let (mut seen, mut failing) = (None::<Surroundings>, 0);
    let mut look = |target: Option<&Target>, measured: &mut Option<Instant>| {
        let Some(program) = target.and_then(|target| target.content.as_ref()) else {
            // What is said of the surroundings is forgotten then, too.
            seen = None;
            return Ok(());
        };
        if measured.is_some_and(|at| at.elapsed() < MEASURE_EVERY) {
            return Ok(());
        }
        *measured = Some(Instant::now());
        match measure(program) {
            Ok((mtu, surroundings)) => {
                seen = Some(surroundings.clone());
                failing = 0;
                news.send(News::Mtu(Ok(mtu)))?;
                news.send(News::Surroundings(Box::new(surroundings)))
            }
            Err(error) => {
                let error = error.to_string();
                failing += 1;
                // What was seen goes on counting for a while. That nothing was seen must not pass for nothing being there.
                if seen.is_none() || failing >= BLIND {
                    let unseen = seen.clone().unwrap_or_default().unseen(&error);
                    news.send(News::Surroundings(Box::new(unseen)))?;
                }
                news.send(News::Mtu(Err(error)))
            }
        }
    };
    loop {
        match targets.recv_timeout(COUNT_EVERY) {
            Ok(target) => {
                let begun = Instant::now();
                let plan = match &current {
                    Some((known, plan)) if *known == target => plan,
                    _ => {
                        let plan = make_plan(&target);
                        &current.insert((target, plan)).1
                    }
                };
                let run = match &mut reconciler {
                    Some(reconciler) => reconciler.run(plan, begun),
                    None => open().and_then(|kernel| {
                        let journal = std::mem::take(&mut journal);
                        reconciler.insert(Reconciler::with(kernel, journal, limits)).run(plan, begun)
                    }),
                };
                let attempted = Attempted {
                    run: run.map_err(|error| error.to_string()),
                    states: plan.states.len(),
                    policies: plan.policies.len(),
                    collisions: plan.collisions.clone(),
                    took: begun.elapsed(),
                };
                counts = attempted.run.as_ref().ok().and_then(|outcome| outcome.counts);
                // Before anything is said of the attempt: that nothing speaks against insisting is to be true.
                measured = None;
                let target = current.as_ref().map(|(target, _)| target);
                if look(target, &mut measured).is_err() {
                    return;
                }
                if news.send(News::Attempt(Box::new(attempted))).is_err() {
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                let now = reconciler.as_mut().and_then(Reconciler::counts);
                if now.is_some() && counts.is_some() && now != counts {
                    if news.send(News::Counts).is_err() {
                        return;
                    }
                    counts = now;
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if look(current.as_ref().map(|(target, _)| target), &mut measured).is_err() {
            return;
        }
    }
}

/// The plan for a target. On the way down without a program, the kernel's content is all that is known: what to take
/// away at each stage can be told from that.
#[must_use]
pub fn make_plan(target: &Target) -> Plan {
    match &target.content {
        Some(program) => {
            let mut plan = plan::desired(&program.ring, &program.local, &program.peers, target.stage);
            probe_plan::add(&mut plan, program, target.stage);
            plan
        }
        None => {
            let sender = match target.stage {
                Stage::Normal | Stage::Optional => Sender::AsBefore,
                Stage::Silent => Sender::Planned,
                Stage::Gone => Sender::Nothing,
            };
            Plan { sender, ..Plan::default() }
        }
    }
}

/// Reads from this node's kernel what MTUs matter, and what lets traffic past the policies.
///
/// # Errors
/// The kernel can't be asked, or its answer can't be read.
pub fn measure(program: &Program) -> Result<(mtu::Facts, Surroundings), KernelError> {
    let peers = program.peers.values().filter(|peer| !peer.excluded);
    let peers: Neighbours<'_> = peers.map(|peer| (peer.end.addr, peer.name.as_str())).collect();
    let facts = look_around(peers.keys().copied())?;
    let local = program.local.addr;
    let mtu = mtu::Facts::new(&facts, local, &peers);
    Ok((mtu, Surroundings::new(&facts, Some(local), &peers)))
}

/// Reads what there is around the tunnel to `peers`.
///
/// # Errors
/// The kernel can't be asked, or its answer can't be read.
pub fn look_around(peers: impl Iterator<Item = IpAddr>) -> Result<surroundings::Facts, KernelError> {
    let mut socket = LinkSocket::open()?;
    let (links, ways) = (socket.links()?, socket.ways()?);
    let mut routes = Vec::new();
    for peer in peers {
        routes.extend(socket.route_to(peer)?.ok().map(|route| (peer, route)));
    }
    let (all, unread) = Switches::of_all();
    Ok(surroundings::Facts { links, routes, ways, all, unread })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use secureoverlay_common::{ring::Ring, uid::Uid, wire::End};
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::model_kernel::ModelKernel;

    /// What is told of the surroundings when each target is followed by a look that goes like this.
    fn told(run: &[(Stage, bool, Result<&str, ()>)]) -> Vec<Vec<String>> {
        let uid = |n| Uid::from_random([n; 16]);
        let local = End { addr: [192, 0, 2, 1].into(), node: uid(1), boot: uid(101) };
        let ring = Arc::new(Ring::off(1, None));
        let program = Program { ring, local, peers: Arc::default(), probe_port: 0 };
        let (targets, jobs) = mpsc::channel();
        for &(stage, content, _) in run {
            targets.send(Target { stage, content: content.then(|| program.clone()) }).unwrap();
        }
        drop(targets);
        let mut looks = run.iter().filter(|(_, content, _)| *content).map(|(.., look)| *look);
        let measure = |_: &Program| match looks.next().expect("no look without a target") {
            Ok(around) => {
                let around = [around.to_owned()].into();
                Ok((mtu::Facts::default(), Surroundings { around, ..Surroundings::default() }))
            }
            Err(()) => Err(KernelError::NoAnswer { doing: "reading the routes" }),
        };
        let (reports, mut news) = unbounded_channel();
        let mut kernel = ModelKernel { local: Some(local.addr), ..ModelKernel::default() };
        let mut kernel = Some(&mut kernel);
        let open = || Ok(kernel.take().expect("it is opened once"));
        work(open, measure, Default::default(), &jobs, &reports);
        drop(reports);
        let mut all = Vec::new();
        while let Ok(news) = news.try_recv() {
            if let News::Surroundings(surroundings) = news {
                all.push(surroundings.obstacles().into_iter().collect());
            }
        }
        all
    }

    fn blind(all: &[String]) -> bool {
        all.iter().any(|text| text.contains("can't be seen"))
    }

    #[test]
    fn what_was_seen_counts_until_three_looks_in_a_row_have_failed() {
        let on = |look| (Stage::Normal, true, look);
        let fail = on(Err(()));
        let all = told(&[on(Ok("a")), fail, fail, on(Ok("b")), fail, fail]);
        assert_eq!(all, [["a"], ["b"]]);
        let all = told(&[on(Ok("a")), fail, fail, fail, fail, on(Ok("b"))]);
        assert_eq!(all.len(), 4, "{all:?}");
        assert!(all[1..3].iter().all(|all| blind(all) && all.contains(&"a".to_owned())), "{all:?}");
        assert_eq!((&all[0][..], &all[3][..]), (&["a".to_owned()][..], &["b".to_owned()][..]));
    }

    #[test]
    fn what_was_seen_before_encryption_was_off_does_not_count_after_it() {
        let all = told(&[
            (Stage::Normal, true, Ok("a")),
            (Stage::Gone, false, Err(())),
            (Stage::Normal, true, Err(())),
        ]);
        assert!(all.len() == 2 && blind(&all[1]) && all[1].len() == 1, "{all:?}");
    }
}
