//! The sender of one run: a thread that keeps a schedule and says in each packet how far behind it is.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{account::MAX_PACKETS, control::Sent, packet::Packet};

/// What to send.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// The run.
    pub run: u64,
    /// The name in the packets.
    pub name: String,
    /// Name and address of each peer.
    pub peers: BTreeMap<String, SocketAddr>,
    /// Time between two packets to one peer.
    pub period: Duration,
    /// Bytes of UDP payload.
    pub size: usize,
    /// Packets to each peer, at most.
    pub limit: u32,
}

/// A sender at work. Dropping it ends the sending.
#[derive(Debug)]
pub struct Sending {
    sent: Arc<Mutex<Sent>>,
    stop: Option<Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Sending {
    /// Starts to send from `socket`.
    #[must_use]
    pub fn start(socket: UdpSocket, schedule: Schedule) -> Self {
        let sent = Arc::new(Mutex::new(Sent {
            peers: schedule.peers.keys().cloned().collect(),
            period_us: u64::try_from(schedule.period.as_micros()).unwrap_or(u64::MAX),
            running: true,
            ..Sent::default()
        }));
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn({
            let sent = Arc::clone(&sent);
            move || {
                send(&socket, &schedule, &sent, |wait| match stopped.recv_timeout(wait) {
                    Err(RecvTimeoutError::Timeout) => true,
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => false,
                });
                lock(&sent).running = false;
            }
        });
        Self { sent, stop: Some(stop), thread: Some(thread) }
    }

    /// The figures so far.
    #[must_use]
    pub fn sent(&self) -> Sent {
        lock(&self.sent).clone()
    }

    /// Ends the sending; no packet leaves after it has returned.
    pub fn stop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic in there has left `running` set, which the summary reports.
            let _ = thread.join();
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.stop();
    }
}

/// `wait` sleeps, and says whether to go on.
fn send(socket: &UdpSocket, schedule: &Schedule, sent: &Mutex<Sent>, wait: impl Fn(Duration) -> bool) {
    let start = Instant::now();
    let mut packet = Packet { run: schedule.run, seq: 0, late: Duration::ZERO, from: schedule.name.clone() };
    let mut bytes = Vec::new();
    for seq in 0..schedule.limit.min(MAX_PACKETS) {
        let due = start + schedule.period * seq;
        if !wait(due.saturating_duration_since(Instant::now())) {
            return;
        }
        packet.seq = seq;
        for (name, address) in &schedule.peers {
            packet.late = Instant::now().saturating_duration_since(due);
            packet.encode(schedule.size, &mut bytes);
            if socket.send_to(&bytes, address).is_err() {
                *lock(sent).refused.entry(name.clone()).or_default() += 1;
            }
        }
        lock(sent).packets = seq + 1;
    }
}

fn lock(sent: &Mutex<Sent>) -> std::sync::MutexGuard<'_, Sent> {
    sent.lock().unwrap_or_else(PoisonError::into_inner)
}
