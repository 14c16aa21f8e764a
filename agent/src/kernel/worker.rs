//! The one thread that talks to the kernel, so that blocking there stops nothing else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use secureoverlay_agent_core::{
    coverage::{PodNetworks, Settling},
    journal::{Journal, JournalStore},
    kernel::Counts,
    plan::ReconcileTarget,
    reconcile::{Reconciler, SaLimits},
};
use tokio::sync::mpsc::UnboundedSender;

use super::{Job, News, ReconcileAttempt, machine::Machine};
use crate::{clock, network::surroundings::Surroundings};

/// How often MTUs, surroundings and the network are looked at while nothing else is to do.
const MEASURE_EVERY: Duration = Duration::from_secs(10);
/// How often SAs and policies are counted: only programs that may see keys are notified of a flush of SAs.
const COUNT_EVERY: Duration = Duration::from_millis(250);
/// After so many failing looks in a row, what was seen around the tunnel does not count any more.
const MAX_READ_FAILURES: usize = 3;

/// Does each job that comes, until none can come any more. `journal` tells what earlier agents gave to the kernel.
pub fn work<M: Machine, S: JournalStore>(
    machine: M,
    (journal, limits): (Journal<S>, SaLimits),
    jobs: &Receiver<Job>,
    news: &UnboundedSender<News>,
) {
    let mut worker = Worker {
        machine,
        journal: Some(journal),
        limits,
        reconciler: None,
        current: None,
        counts: None,
        pod_networks: None,
        measured: None,
        settling: Settling::default(),
        seen: None,
        failing: 0,
        news,
    };
    // Without the network nothing can be planned.
    if worker.look_at_network().is_err() {
        return;
    }
    loop {
        let done = match jobs.recv_timeout(COUNT_EVERY) {
            Ok(Job::Reconcile(target)) => worker.reconcile(*target),
            Ok(Job::LookAtNetwork) => worker.look_at_network(),
            Ok(Job::PodNetworks(networks)) => {
                worker.pod_networks = Some(networks);
                worker.measured = None;
                Ok(())
            }
            Ok(Job::PutPoliciesBack(flushed)) => worker.put_policies_back(&flushed),
            Err(RecvTimeoutError::Timeout) => worker.count(),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if done.and_then(|()| worker.look_around()).is_err() {
            return;
        }
    }
}

/// Nothing listens to the thread any more.
struct Closed;

struct Worker<'n, M: Machine, S> {
    machine: M,
    journal: Option<Journal<S>>,
    limits: SaLimits,
    reconciler: Option<Reconciler<M::Kernel, S>>,
    current: Option<ReconcileTarget>,
    counts: Option<Counts>,
    pod_networks: Option<Arc<PodNetworks>>,
    measured: Option<Instant>,
    settling: Settling,
    seen: Option<Surroundings>,
    failing: usize,
    news: &'n UnboundedSender<News>,
}

impl<M: Machine, S: JournalStore> Worker<'_, M, S> {
    fn tell(&self, news: News) -> Result<(), Closed> {
        self.news.send(news).map_err(|_| Closed)
    }

    fn reconcile(&mut self, target: ReconcileTarget) -> Result<(), Closed> {
        let begun = Instant::now();
        if self.reconciler.is_none() {
            match self.machine.open() {
                Ok(kernel) => {
                    let journal = self.journal.take();
                    self.reconciler = journal.map(|journal| Reconciler::new(kernel, journal, self.limits));
                }
                Err(error) => {
                    let run = Err(error.to_string());
                    return self
                        .tell(News::Attempt(Box::new(ReconcileAttempt { run, took: begun.elapsed() })));
                }
            }
        }
        let Some(reconciler) = &mut self.reconciler else { return Err(Closed) };
        let run = reconciler.run(&target).map_err(|error| error.to_string());
        self.counts = run.as_ref().ok().and_then(|report| report.counts);
        self.current = Some(target);
        let attempt = ReconcileAttempt { run, took: begun.elapsed() };
        // Before anything is said of the attempt: that nothing speaks against enforcing is to be true.
        self.measured = None;
        self.look_around()?;
        self.tell(News::Attempt(Box::new(attempt)))
    }

    fn put_policies_back(&mut self, flushed: &AtomicBool) -> Result<(), Closed> {
        // Cleared first: a flush from here on is another one.
        if !flushed.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let begun = Instant::now();
        let count = self.reconciler.as_mut().map_or(0, Reconciler::put_policies_back);
        self.tell(News::PoliciesFlushed(count, begun.elapsed()))
    }

    fn count(&mut self) -> Result<(), Closed> {
        let now = self.reconciler.as_mut().and_then(Reconciler::counts);
        if now.is_some() && self.counts.is_some() && now != self.counts {
            self.counts = now;
            return self.tell(News::Counts);
        }
        Ok(())
    }

    fn look_at_network(&mut self) -> Result<(), Closed> {
        match self.machine.network() {
            Ok((_, false)) => Ok(()),
            Ok((network, true)) => {
                // What is around the tunnel may be another thing, too.
                self.measured = None;
                self.tell(News::Network(Box::new(Ok(network))))
            }
            Err(error) => self.tell(News::Network(Box::new(Err(error.to_string())))),
        }
    }

    fn look_around(&mut self) -> Result<(), Closed> {
        if self.measured.is_some_and(|at| at.elapsed() < MEASURE_EVERY) {
            return Ok(());
        }
        self.measured = Some(Instant::now());
        self.look_at_network()?;
        let Some(input) = self.current.as_ref().and_then(|target| target.input.as_ref()) else {
            // What is said of the surroundings is forgotten then, too.
            self.seen = None;
            return Ok(());
        };
        match self.machine.measure(input, self.pod_networks.as_deref()) {
            Ok((mtu, mut surroundings)) => {
                self.settling.settle(&mut surroundings.coverage, clock::now());
                self.seen = Some(surroundings.clone());
                self.failing = 0;
                self.tell(News::Mtu(Ok(mtu)))?;
                self.tell(News::Surroundings(Box::new(surroundings)))
            }
            Err(error) => {
                let error = error.to_string();
                self.failing += 1;
                // What was seen goes on counting for a while. That nothing was seen must not pass for nothing being there.
                if self.seen.is_none() || self.failing >= MAX_READ_FAILURES {
                    let unseen = self.seen.clone().unwrap_or_default().unseen(&error);
                    self.tell(News::Surroundings(Box::new(unseen)))?;
                }
                self.tell(News::Mtu(Err(error)))
            }
        }
    }
}
