//! What is on the wire: every frame between nodes crosses the lab's bridge, where it is recorded.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use crate::network::{BRIDGE, HOST, inside, within};
use crate::pcap::{self, Packet};
use crate::place::Place;
use crate::wait::wait_until;

/// The port of RFC 863: nothing answers.
const DISCARD: u16 = 9;

/// A capture that is running.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Child,
    messages: Option<thread::JoinHandle<String>>,
    path: PathBuf,
}

/// Frames by what they carry, each counted once however many ports of the bridge it crosses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Encrypted: IPv4 protocol 50.
    pub esp: u64,
    /// Pod traffic in the clear: IPv4 protocol 4.
    pub ipip: u64,
    /// ICMP outside any tunnel.
    pub icmp: u64,
    /// TCP outside any tunnel: API server and kubelets.
    pub tcp: u64,
    /// UDP outside any tunnel.
    pub udp: u64,
    /// ARP.
    pub arp: u64,
    /// All else, IPv6 included.
    pub other: u64,
}

impl Counts {
    /// All frames.
    pub fn total(&self) -> u64 {
        self.esp + self.ipip + self.icmp + self.tcp + self.udp + self.arp + self.other
    }

    /// Counts packets.
    pub fn of<'a>(packets: impl IntoIterator<Item = &'a Packet>) -> Self {
        let mut counts = Self::default();
        for packet in packets {
            let slot = match (packet.ethertype(), packet.ip_protocol()) {
                (Some(0x0806), _) => &mut counts.arp,
                (_, Some(50)) => &mut counts.esp,
                (_, Some(4)) => &mut counts.ipip,
                (_, Some(1)) => &mut counts.icmp,
                (_, Some(6)) => &mut counts.tcp,
                (_, Some(17)) => &mut counts.udp,
                _ => &mut counts.other,
            };
            *slot += 1;
        }
        counts
    }
}

/// A finished capture.
#[derive(Debug, Clone)]
pub struct Captured {
    /// The file, for Wireshark and for tests that look closer.
    pub path: PathBuf,
    /// The packets.
    pub packets: Vec<Packet>,
}

impl Captured {
    /// The frames by protocol.
    pub fn counts(&self) -> Counts {
        Counts::of(&self.packets)
    }

    /// Protocol 4 packets by source and destination: who still sends in the clear.
    pub fn in_the_clear(&self) -> BTreeMap<String, u64> {
        let mut pairs = BTreeMap::new();
        for packet in self.packets.iter().filter(|p| p.ip_protocol() == Some(4)) {
            if let (Some(from), Some(to)) = (packet.source(), packet.destination()) {
                *pairs.entry(format!("{from} > {to}")).or_default() += 1;
            }
        }
        pairs
    }
}

impl Capture {
    /// Starts recording into `path`, or into a file of the lab's own named after `name`; when this returns, the
    /// capture has begun.
    pub fn start(name: &str, path: Option<&Path>) -> Result<Self> {
        let directory = Place::here().directory().join("captures");
        fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        let path = path.map_or_else(|| directory.join(format!("{name}.pcap")), Path::to_owned);
        // Promiscuous, a bridge passes forwarded frames up too: each once, not once a port.
        let mut tcpdump = inside("tcpdump")
            .args(["-i", BRIDGE, "-n", "-s", "0", "-U", "-B", "16384", "-Z", "root", "-w"])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting tcpdump")?;
        let mut messages = BufReader::new(tcpdump.stderr.take().context("no pipe from tcpdump")?);
        let mut said = String::new();
        while !said.contains("listening on") {
            let more = messages.read_line(&mut said).context("reading tcpdump's messages")?;
            ensure!(more > 0, "tcpdump does not start: {}", said.trim());
        }
        let messages = thread::spawn(move || {
            let mut text = String::new();
            drop(messages.read_to_string(&mut text));
            text
        });
        Ok(Self { tcpdump, messages: Some(messages), path })
    }

    /// What has been recorded up to now.
    pub fn so_far(&self) -> Result<Captured> {
        Ok(Captured { path: self.path.clone(), packets: pcap::read(&self.path)? })
    }

    /// Ends the recording; fails if packets were missed, because then the counts prove nothing.
    pub fn stop(mut self) -> Result<Captured> {
        let end = self.wait_for_end()?;
        let pid = Pid::from_raw(i32::try_from(self.tcpdump.id()).context("a pid out of range")?);
        kill(pid, Signal::SIGINT).context("ending tcpdump")?;
        wait_until("tcpdump to end", Duration::from_secs(10), || {
            self.tcpdump.try_wait().context("waiting for tcpdump")
        })?;
        let messages = self.messages.take().map(thread::JoinHandle::join);
        let said =
            messages.context("the capture has ended")?.map_err(|_| anyhow!("reading tcpdump failed"))?;
        let missed = said.lines().find(|line| line.ends_with("dropped by kernel")).unwrap_or_default().trim();
        ensure!(missed.starts_with("0 "), "the capture is incomplete: {}", said.trim());
        let mut captured = self.so_far()?;
        captured.packets.truncate(end);
        Ok(captured)
    }

    /// Ended at once, tcpdump would leave out what it has not read yet, up to a second: a marked packet is sent, and
    /// awaited in the file. Returns how many packets were before it.
    fn wait_for_end(&self) -> Result<usize> {
        let mark = format!("end of {} at {:?}", self.path.display(), SystemTime::now());
        let destination = (Ipv4Addr::new(HOST.octets()[0], HOST.octets()[1], HOST.octets()[2], 255), DISCARD);
        let send = || {
            let socket = UdpSocket::bind((HOST, 0))?;
            socket.set_broadcast(true)?;
            socket.send_to(mark.as_bytes(), destination)
        };
        within(send)?.context("sending the packet that marks the end of a capture")?;
        wait_until("the end of the capture", Duration::from_secs(30), || {
            let packets = self.so_far()?.packets;
            Ok(packets.iter().rposition(|packet| packet.frame.ends_with(mark.as_bytes())))
        })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // Ended already unless the scenario failed in the middle.
        drop(self.tcpdump.kill());
        drop(self.tcpdump.wait());
    }
}
