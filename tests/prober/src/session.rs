//! A measurement from outside: opens a run on all pods, lets all send to all, collects and judges.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    thread,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    control::{PodReport, Request, ask},
    summary::Summary,
};

/// How long late packets are waited for.
const DRAIN: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(100);

/// One pod with a prober.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Any name, usually its node's.
    pub name: String,
    /// TCP address of its control port.
    pub control: SocketAddr,
    /// UDP address that its peers send to.
    pub data: SocketAddr,
}

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Packets a second in each direction.
    pub rate: u32,
    /// Bytes of UDP payload.
    pub size: u16,
    /// After this time the pods stop by themselves.
    pub max_seconds: u32,
}

/// A prober that could not be talked to.
#[derive(Debug, thiserror::Error)]
#[error("asking the prober of {pod} at {address}: {source}")]
pub struct SessionError {
    pod: String,
    address: SocketAddr,
    source: io::Error,
}

/// A measurement that is going on.
#[derive(Debug)]
pub struct Session {
    run: u64,
    pods: Vec<Pod>,
}

impl Session {
    /// Starts to send between all pods.
    ///
    /// # Errors
    /// A prober can't be reached or refuses.
    pub fn start(pods: Vec<Pod>, load: Load) -> Result<Self, SessionError> {
        // Runs are told apart by the clock: a later one has a higher number, across processes too.
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let session = Self { run: u64::try_from(since.as_micros()).unwrap_or(u64::MAX), pods };
        session.each(|run, _| Request::Open { run })?;
        session.each(|run, pod| Request::Send {
            run,
            name: pod.name.clone(),
            peers: session
                .pods
                .iter()
                .filter(|peer| peer.name != pod.name)
                .map(|peer| (peer.name.clone(), peer.data))
                .collect(),
            rate: load.rate,
            size: load.size,
            max_seconds: load.max_seconds,
        })?;
        Ok(session)
    }

    /// The figures so far. Packets on their way count as lost, and senders at work make it invalid: no judgement.
    ///
    /// # Errors
    /// A prober can't be reached.
    pub fn glance(&self) -> Result<Summary, SessionError> {
        Ok(Summary::of(&self.each(|run, _| Request::Report { run })?))
    }

    /// Stops all senders, waits up to 3 s for late packets, and judges.
    ///
    /// # Errors
    /// A prober can't be reached.
    pub fn stop(self) -> Result<Summary, SessionError> {
        self.each(|run, _| Request::Stop { run })?;
        let deadline = Instant::now() + DRAIN;
        loop {
            let summary = self.glance()?;
            if summary.lost == 0 || Instant::now() >= deadline {
                return Ok(summary);
            }
            thread::sleep(POLL);
        }
    }

    fn each(
        &self,
        request: impl Fn(u64, &Pod) -> Request,
    ) -> Result<BTreeMap<String, PodReport>, SessionError> {
        let one = |pod: &Pod| match ask(pod.control, &request(self.run, pod)) {
            Ok(report) => Ok((pod.name.clone(), report)),
            Err(source) => Err(SessionError { pod: pod.name.clone(), address: pod.control, source }),
        };
        self.pods.iter().map(one).collect()
    }
}
