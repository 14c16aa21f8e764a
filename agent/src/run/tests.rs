use std::{
    io,
    sync::{Mutex, PoisonError},
};

use secureoverlay_common::{node::NodeFacts, ring::Ring};
use tokio::{task::JoinHandle, time::timeout};
use tracing::Level;
use zeroize::Zeroizing;

use super::*;
use crate::{
    agent::Settings,
    held::Content,
    kernel::{Counts, Kernel, KernelError, OpError},
    model_kernel::ModelKernel,
    mtu::Facts,
    removal::Sighting,
    surroundings::Surroundings,
    xfrm::{Actual, Op},
};

/// Far longer than any of this takes.
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<ModelKernel>>);

impl Shared {
    fn with<T>(&self, what: impl FnOnce(&mut ModelKernel) -> T) -> T {
        what(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Kernel for Shared {
    fn dump(&mut self) -> Result<Actual, KernelError> {
        self.with(|mut kernel| kernel.dump())
    }

    fn counts(&mut self) -> Result<Option<Counts>, KernelError> {
        self.with(|mut kernel| kernel.counts())
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>> {
        self.with(|mut kernel| kernel.apply(ops))
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Gives the same answer whatever is asked.
struct Says(Answer);

impl Ask for Says {
    fn ask(&self, _: Question) -> impl Future<Output = Answer> + Send + 'static {
        std::future::ready(self.0)
    }
}

/// A whole agent but for its sources, with a thread and a model of the kernel.
struct Whole {
    events: mpsc::Sender<Event>,
    end: secureoverlay_daemon::signal::Trigger,
    ended: JoinHandle<Result<()>>,
    kernel: Shared,
    health: Health,
    log: Log,
    wanted: watch::Receiver<Option<Wanted>>,
    probes: watch::Receiver<Option<Probes>>,
    _logging: tracing::subscriber::DefaultGuard,
}

impl Whole {
    fn start(answer: Answer) -> Self {
        Self::amid(|| Ok((Facts::default(), Surroundings::default())), answer)
    }

    fn amid(
        measure: impl FnMut() -> Result<(Facts, Surroundings), KernelError> + Send + 'static,
        answer: Answer,
    ) -> Self {
        Self::with(measure, 0, answer)
    }

    fn probing(answer: Answer, probe_port: u16) -> Self {
        Self::with(|| Ok((Facts::default(), Surroundings::default())), probe_port, answer)
    }

    fn with(
        mut measure: impl FnMut() -> Result<(Facts, Surroundings), KernelError> + Send + 'static,
        probe_port: u16,
        answer: Answer,
    ) -> Self {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(Level::TRACE)
            .with_writer(move || writer.clone())
            .finish();
        let logging = tracing::subscriber::set_default(subscriber);
        let (kernel, health) = (Shared::default(), Health::default());
        let (targets, jobs) = blocking::channel();
        let (reports, news) = mpsc::unbounded_channel();
        let opened = kernel.clone();
        thread::spawn(move || {
            worker::work(|| Ok(opened.clone()), |_| measure(), Default::default(), &jobs, &reports);
        });
        let settings = Settings {
            debounce: Duration::from_millis(1),
            resync: Duration::from_secs(60),
            removal_skew: Duration::from_millis(50),
            probe_port,
            needs_room: true,
        };
        let boot = Uid::from_random([101; 16]);
        let (to_write, wanted) = watch::channel(None);
        let (to_probe, probes) = watch::channel(None);
        let shell = Shell {
            agent: Agent::new("node-1".into(), boot, settings),
            mark: Mark::find(Path::new("/nowhere")),
            reporter: Reporter::new(&health, Metrics::new().0),
            targets,
            kernel_changed: Arc::default(),
            wanted: to_write,
            probes: to_probe,
            needs_mtu_advice: watch::channel(false).0,
        };
        let (events, inbox) = mpsc::channel(8);
        let (end, shutdown) = Shutdown::manual();
        let ended = tokio::spawn(async move { shell.run(inbox, news, &shutdown, Says(answer), || ()).await });
        Self { events, end, ended, kernel, health, log, wanted, probes, _logging: logging }
    }

    async fn encrypt(&self) {
        let node = |n: u8| NodeFacts {
            name: format!("node-{n}"),
            uid: Some(Uid::from_random([n; 16])),
            created: None,
            addr: Some([192, 0, 2, n].into()),
            boot: Some(Uid::from_random([100 + n; 16])),
            ready: true,
            excluded: false,
        };
        let ring = "version: 1\nrevision: 7\nenforcement: permissive\ngenerations:\n- {id: 1, \
                    uid: 0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b61, role: active, suite: aes128gcm8, \
                    key: AAECAwQFBgcICQoLDA0ODw==, spiSeed: EBESExQVFhcYGRobHB0eHw==, \
                    createdAt: 2026-11-20T03:00:00Z, roleSince: 2026-11-20T03:05:00Z}\n";
        assert!(Ring::parse(ring.as_bytes()).is_ok());
        let ring = Event::Ring(Content::Document(Zeroizing::new(ring.as_bytes().to_vec())));
        let set =
            Sighting::Present { uid: Some(Uid::from_random([77; 16])), deleting: false, orphaning: false };
        for event in [Event::DaemonSet(Some(set)), Event::Nodes(vec![node(1), node(2)]), ring] {
            assert!(self.events.send(event).await.is_ok());
        }
        let tunnels = |kernel: &ModelKernel| kernel.policies.keys().filter(|id| !id.is_probe()).count();
        self.wait_for(|kernel| (kernel.states.len(), tunnels(kernel)) == (2, 1)).await;
    }

    async fn wait_for(&self, condition: impl Fn(&ModelKernel) -> bool) {
        let waiting = async {
            while !self.kernel.with(|kernel| condition(kernel)) {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, waiting).await.expect("the kernel never got there");
    }

    /// Asks it to end, and returns its log.
    async fn end(self) -> String {
        self.end.request();
        timeout(DEADLINE, self.ended).await.expect("it ends").unwrap().unwrap();
        let log = String::from_utf8(self.log.0.lock().unwrap().clone()).unwrap();
        assert!(!log.contains("ERROR"), "{log}");
        assert!(!log.contains("AAECAwQF") && !log.contains("0, 1, 2, 3"), "{log}");
        log
    }
}

#[tokio::test]
async fn asked_to_end_it_leaves_the_kernel_as_it_is() {
    for answer in [Answer::Verdict(Verdict::Restart), Answer::DaemonSet(None)] {
        let whole = Whole::start(answer);
        whole.encrypt().await;
        let kernel = whole.kernel.clone();
        let log = whole.end().await;
        assert!(log.contains("left as it is") && log.contains("revision=7"), "{log}");
        assert_eq!(kernel.with(|kernel| (kernel.states.len(), kernel.policies.len())), (2, 1));
    }
}

#[tokio::test]
async fn asked_to_end_by_a_removal_it_takes_everything_away_first() {
    let whole = Whole::start(Answer::DaemonSet(Some(Sighting::Absent)));
    whole.encrypt().await;
    let kernel = whole.kernel.clone();
    whole.end().await;
    assert_eq!(kernel.with(|kernel| (kernel.states.len(), kernel.policies.len())), (0, 0));
}

#[tokio::test]
async fn a_flush_is_noticed_and_told_long_before_the_resync() {
    let mut whole = Whole::start(Answer::Verdict(Verdict::Restart));
    whole.encrypt().await;
    whole.kernel.with(ModelKernel::flush_states);
    whole.wait_for(|kernel| kernel.states.len() == 1).await;
    let burnt = |wanted: &Option<Wanted>| {
        let said = wanted.as_ref().and_then(|wanted| wanted.status.acknowledgement.as_ref());
        said.is_some_and(|said| said.burnt.len() == 1 && said.receives.len() == 1)
    };
    timeout(DEADLINE, whole.wanted.wait_for(burnt)).await.expect("it is told").unwrap();
    let log = whole.end().await;
    assert!(log.contains("kernel was given count=2"), "{log}");
}

#[tokio::test]
async fn whom_esp_does_not_reach_is_told_to_everybody() {
    let mut whole = Whole::probing(Answer::Verdict(Verdict::Restart), 9468);
    whole.encrypt().await;
    let probed = timeout(DEADLINE, whole.probes.wait_for(Option::is_some)).await.expect("probing begins");
    let peer = Uid::from_random([2; 16]);
    assert_eq!(probed.unwrap().as_ref().unwrap().peers, [([192, 0, 2, 2].into(), peer)].into());
    assert!(whole.events.send(Event::Probed(Ok([(peer, false)].into()))).await.is_ok());
    let unreachable = |wanted: &Option<Wanted>| {
        let status = wanted.as_ref().map(|wanted| &wanted.status);
        let said = status.and_then(|status| status.acknowledgement.as_ref()?.unreachable.as_ref());
        said == Some(&[peer].into())
    };
    let wanted = timeout(DEADLINE, whole.wanted.wait_for(unreachable)).await.expect("it is told").unwrap();
    let status = wanted.as_ref().unwrap().status.clone();
    drop(wanted);
    let esp = status.conditions.iter().find(|condition| condition.type_ == "EspReachable").unwrap();
    assert_eq!((esp.status.as_str(), &esp.message), ("False", &status.message));
    assert!(esp.message.contains("no answer from node-2 (192.0.2.2): "), "{}", esp.message);
    assert!(whole.events.send(Event::Probed(Ok([(peer, true)].into()))).await.is_ok());
    let reached =
        |wanted: &Option<Wanted>| wanted.as_ref().is_some_and(|it| it.status.message != esp.message);
    timeout(DEADLINE, whole.wanted.wait_for(reached)).await.expect("it is over").unwrap();
    let log = whole.end().await;
    let (warned, over) = (log.find(&esp.message), log.find("ESP passes to every probed peer and back"));
    assert!(warned.is_some() && warned < over, "{log}");
}

#[tokio::test]
async fn what_lets_traffic_past_is_told_from_the_first_word_on() {
    let seen = || {
        let around = ["a route around".to_owned()].into();
        Ok((Facts::default(), Surroundings { around, astray: 1, ..Surroundings::default() }))
    };
    let mut whole = Whole::amid(seen, Answer::Verdict(Verdict::Restart));
    whole.encrypt().await;
    let first = timeout(DEADLINE, whole.wanted.wait_for(Option::is_some)).await.expect("it is told").unwrap();
    let status = first.as_ref().unwrap().status.clone();
    drop(first);
    assert!(status.acknowledgement.unwrap().obstacles.contains("a route around"));
    let coverage = status.conditions.iter().find(|condition| condition.type_ == "CoverageComplete");
    assert_eq!(coverage.unwrap().status, "False");
    let log = whole.end().await;
    assert!(log.contains("something lets traffic past encryption: a route around"), "{log}");
}

#[tokio::test]
async fn what_was_never_seen_is_not_taken_for_good_and_what_was_seen_once_stays() {
    let mut looks = 0;
    let seen = move || {
        looks += 1;
        match looks {
            2 => Ok((Facts::default(), Surroundings::default())),
            _ => Err(KernelError::NoAnswer { doing: "reading the routes" }),
        }
    };
    let mut whole = Whole::amid(seen, Answer::Verdict(Verdict::Restart));
    whole.encrypt().await;
    let obstacles = |wanted: &Option<Wanted>| {
        let said = wanted.as_ref().and_then(|wanted| wanted.status.acknowledgement.as_ref());
        said.map(|said| said.obstacles.iter().any(|text| text.contains("reading the routes")))
    };
    let blind = |wanted: &Option<Wanted>| obstacles(wanted) == Some(true);
    timeout(DEADLINE, whole.wanted.wait_for(blind)).await.expect("it is told").unwrap();
    // A flush makes it look at the kernel again, and around.
    whole.kernel.with(ModelKernel::flush_states);
    let sighted = |wanted: &Option<Wanted>| obstacles(wanted) == Some(false);
    timeout(DEADLINE, whole.wanted.wait_for(sighted)).await.expect("it is told").unwrap();
    whole.kernel.with(ModelKernel::flush_states);
    let log = whole.log.clone();
    let count = move |text: &str| String::from_utf8_lossy(&log.0.lock().unwrap()).matches(text).count();
    let blind_again = async {
        while count("cannot read the MTUs") < 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, blind_again).await.expect("it says so");
    let log = whole.end().await;
    let times = |text: &str| log.matches(text).count();
    assert_eq!((times("something lets traffic past"), times("no longer lets traffic past")), (1, 1), "{log}");
}

#[tokio::test]
async fn removed_it_stays_and_says_so() {
    let whole = Whole::start(Answer::Verdict(Verdict::Restart));
    whole.encrypt().await;
    assert!(whole.events.send(Event::DaemonSet(Some(Sighting::Absent))).await.is_ok());
    whole.wait_for(|kernel| kernel.states.is_empty() && kernel.policies.is_empty()).await;
    // The Secret of a removed DaemonSet goes as well.
    assert!(whole.events.send(Event::Ring(Content::Absent("gone".into()))).await.is_ok());
    let log = whole.log.clone();
    let said = async {
        while !String::from_utf8_lossy(&log.0.lock().unwrap()).contains("nothing of ours is left") {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, said).await.expect("it says so");
    assert!(!whole.ended.is_finished());
    assert!(format!("{:?}", whole.health).contains("removed: encryption was taken off this node"));
    let log = whole.end().await;
    assert!(!log.contains("WARN"), "{log}");
}

#[tokio::test]
async fn the_death_of_the_kernels_thread_ends_the_process() {
    let (targets, _jobs) = blocking::channel();
    let (reports, news) = mpsc::unbounded_channel::<News>();
    let settings = Settings {
        debounce: Duration::ZERO,
        resync: DEADLINE,
        removal_skew: Duration::ZERO,
        probe_port: 0,
        needs_room: true,
    };
    let shell = Shell {
        agent: Agent::new("node-1".into(), Uid::from_random([1; 16]), settings),
        mark: Mark::find(Path::new("/nowhere")),
        reporter: Reporter::new(&Health::default(), Metrics::new().0),
        targets,
        kernel_changed: Arc::default(),
        wanted: watch::channel(None).0,
        probes: watch::channel(None).0,
        needs_mtu_advice: watch::channel(false).0,
    };
    let (_events, inbox) = mpsc::channel(1);
    let (_end, shutdown) = Shutdown::manual();
    drop(reports);
    let run = shell.run(inbox, news, &shutdown, Says(Answer::DaemonSet(None)), || ());
    let error = timeout(DEADLINE, run).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("kernel has ended"), "{error}");
}
