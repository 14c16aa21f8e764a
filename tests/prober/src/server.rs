//! The prober in a pod: receives and counts, and does what the control port says.

use std::{
    collections::BTreeMap,
    io::{self, BufReader},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::net::sockopt;

use crate::{
    account::{Account, MAX_PACKETS},
    control::{Answer, PodReport, Request, read_line, write_line},
    metronome::Metronome,
    packet::{MAX_NAME, MAX_SIZE, Packet},
    sender::{Schedule, Sending},
    snmp,
};

/// A packet counts with all the memory that its driver took for it, which may be 64 KiB: this is room for thousands.
const RECEIVE_BUFFER: usize = 128 << 20;
const MAX_RUNS: usize = 4;
const MAX_PEERS: usize = 256;
const MAX_RATE: u32 = 20_000;
const IDLE: Duration = Duration::from_secs(60);

/// Where a running prober listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// UDP: probe packets.
    pub data: SocketAddr,
    /// TCP: requests.
    pub control: SocketAddr,
}

#[derive(Debug)]
struct Run {
    overruns_before: u64,
    accounts: BTreeMap<String, Account>,
    sending: Option<Sending>,
}

struct Prober {
    socket: UdpSocket,
    runs: Mutex<BTreeMap<u64, Run>>,
}

/// Listens on both addresses and works in threads of its own until the process ends.
///
/// # Errors
/// An address can't be bound.
pub fn serve(data: SocketAddr, control: SocketAddr) -> io::Result<Addresses> {
    let socket = UdpSocket::bind(data)?;
    if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
        // Without CAP_NET_ADMIN the kernel gives up to rmem_max; what then overflows is counted and reported.
        sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER)?;
    }
    let listener = TcpListener::bind(control)?;
    let addresses = Addresses { data: socket.local_addr()?, control: listener.local_addr()? };
    let prober = Arc::new(Prober { socket, runs: Mutex::default() });
    thread::spawn({
        let prober = Arc::clone(&prober);
        move || prober.receive()
    });
    thread::spawn(move || {
        for stream in listener.incoming() {
            match stream {
                Ok(stream) => {
                    let prober = Arc::clone(&prober);
                    thread::spawn(move || prober.converse(&stream));
                }
                Err(error) => {
                    eprintln!("control port: {error}");
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    });
    Ok(addresses)
}

impl Prober {
    fn receive(&self) {
        let origin = Instant::now();
        let metronome = Metronome::start(origin);
        let mut bytes = [0; MAX_SIZE];
        loop {
            let length = match self.socket.recv(&mut bytes) {
                Ok(length) => length,
                Err(error) => {
                    eprintln!("receiving probes: {error}");
                    continue;
                }
            };
            let at = origin.elapsed();
            let Some(packet) = Packet::decode(&bytes[..length]) else { continue };
            let mut runs = self.runs();
            let Some(run) = runs.get_mut(&packet.run) else { continue };
            if run.accounts.len() < MAX_PEERS || run.accounts.contains_key(&packet.from) {
                run.accounts.entry(packet.from).or_default().arrive(
                    packet.seq,
                    packet.late,
                    at,
                    |from, to| metronome.paused(from, to),
                );
            }
        }
    }

    fn converse(&self, stream: &TcpStream) {
        let timeouts = stream.set_read_timeout(Some(IDLE)).and(stream.set_write_timeout(Some(IDLE)));
        let mut lines = BufReader::new(stream);
        while timeouts.is_ok() {
            let answer = match read_line(&mut lines) {
                Ok(Some(request)) => {
                    self.answer(request).unwrap_or_else(|why| Answer::Refused(why.to_string()))
                }
                Ok(None) => return,
                Err(error) => {
                    let _ = write_line(stream, &Answer::Refused(format!("not a request: {error}")));
                    return;
                }
            };
            if write_line(stream, &answer).is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: Request) -> io::Result<Answer> {
        let overruns = snmp::receive_buffer_errors()?;
        let mut runs = self.runs();
        let id = match &request {
            Request::Open { run }
            | Request::Stop { run }
            | Request::Report { run }
            | Request::Send { run, .. } => *run,
        };
        if let Request::Open { .. } = request {
            if runs.contains_key(&id) {
                return Err(io::Error::other(format!("run {id} is open already")));
            }
            while runs.len() >= MAX_RUNS {
                runs.pop_first();
            }
            runs.insert(id, Run { overruns_before: overruns, accounts: BTreeMap::new(), sending: None });
        }
        let run = runs.get_mut(&id).ok_or_else(|| io::Error::other(format!("run {id} is not open here")))?;
        match request {
            Request::Open { .. } | Request::Report { .. } => {}
            Request::Stop { .. } => {
                if let Some(sending) = &mut run.sending {
                    sending.stop();
                }
            }
            Request::Send { name, peers, rate, size, max_seconds, .. } => {
                let refused = [
                    (run.sending.is_some(), "this run has sent already"),
                    (!(1..=MAX_RATE).contains(&rate), "the rate must be 1 to 20000 packets a second"),
                    (peers.is_empty() || peers.len() > MAX_PEERS, "there must be 1 to 256 peers"),
                    (name.is_empty() || name.len() > MAX_NAME, "the name must have 1 to 63 bytes"),
                    (usize::from(size) > MAX_SIZE, "a packet has at most 8192 bytes"),
                    (
                        u64::from(rate) * u64::from(max_seconds) > u64::from(MAX_PACKETS),
                        "more than 4194304 packets a direction",
                    ),
                ];
                if let Some((_, why)) = refused.into_iter().find(|(refused, _)| *refused) {
                    return Err(io::Error::other(why));
                }
                let schedule = Schedule {
                    run: id,
                    name,
                    peers,
                    period: Duration::from_secs(1) / rate,
                    size: size.into(),
                    limit: rate * max_seconds,
                };
                run.sending = Some(Sending::start(self.socket.try_clone()?, schedule));
            }
        }
        Ok(Answer::Done(PodReport {
            sent: run.sending.as_ref().map(Sending::sent).unwrap_or_default(),
            received: run.accounts.iter().map(|(from, account)| (from.clone(), account.received())).collect(),
            overruns: overruns.saturating_sub(run.overruns_before),
        }))
    }

    fn runs(&self) -> MutexGuard<'_, BTreeMap<u64, Run>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
