//! One agent's decisions and plans alone, in virtual time and without an API server: what an event costs by the number of
//! peers.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use rand::{SeedableRng, rngs::StdRng};
use secureoverlay_agent_core::{
    Time,
    agent::{Agent, AgentSettings, Event, Start},
    announcer::{Announcement, Request, WriteResult},
    identity::{Identity, LocalIdentity},
    journal::{Journal, NoStore, Record},
    network::LocalNetwork,
    peers::{Content, NodeLookup, PeerObject},
    persisted::PersistedState,
    proof::Ping,
    reconcile::{Reconciler, SaLimits},
    ring_cache::{Installation, RingInput},
};
use secureoverlay_keyring::{
    keyring::{Enforcement, Generation, Identities, KeyRing, Role, SPI_SEED_LEN, Traffic},
    node_key::NodeKeyPair,
    peer::EncryptionPeerSpec,
    probe::Probe,
    secret::SecretBytes,
    settings::Settings,
    suite::Suite,
    uid::Uid,
};
use serde_json::json;

use crate::{machine::CountingKernel, number};

/// Events of which the mean is taken.
const EVENTS: u32 = 50;

/// Prints a line of JSON.
pub fn run(peers: u32) -> Result<()> {
    let mut one = One::new()?;
    let list = (2..peers + 2).map(object).collect::<Result<Vec<_>>>()?;
    let known = list[0].clone();
    let start = spent()?;
    one.agent.handle_event(Event::PeerList(list), one.now);
    one.show_ring()?;
    one.settle(Duration::from_secs(60 + u64::from(peers) / 100))?;
    let start = spent()? - start;
    anyhow::ensure!(one.pinned() == peers as usize, "{} of {peers} pairs are pinned", one.pinned());

    let mut next = peers + 2;
    let mut join = 0.0;
    for _ in 0..EVENTS / 10 {
        let object = object(next)?;
        next += 1;
        let before = spent()?;
        one.agent.handle_event(Event::PeerApplied(object), one.now);
        one.settle(Duration::from_secs(2))?;
        join += spent()? - before;
    }
    let joined = one.pinned();
    anyhow::ensure!(joined == (next - 2) as usize, "{joined} pairs are pinned");

    let burst = (next..next + EVENTS).map(object).collect::<Result<Vec<_>>>()?;
    let before = spent()?;
    burst.into_iter().for_each(|object| one.agent.handle_event(Event::PeerApplied(object), one.now));
    let event = spent()? - before;
    one.settle(Duration::from_secs(5))?;

    let before = spent()?;
    for version in 0..EVENTS {
        let resource_version = version.to_string();
        one.agent.handle_event(Event::PeerApplied(PeerObject { resource_version, ..known.clone() }), one.now);
    }
    let unchanged = spent()? - before;
    one.settle(Duration::from_secs(5))?;

    let (before, runs) = (spent()?, one.runs);
    one.settle(Duration::from_secs(60 * u64::from(EVENTS / 10)))?;
    // Re-checks come beside them.
    let (minutes, looks) = (spent()? - before, one.runs - runs);

    let before = spent()?;
    for _ in 0..EVENTS * 20 {
        one.turn()?;
        std::hint::black_box(one.agent.poll_timeout());
    }
    let turn = spent()? - before;

    let (before, runs) = (spent()?, one.runs);
    for _ in 0..EVENTS / 10 {
        one.agent.handle_event(Event::KernelLost, one.now);
        one.turn()?;
    }
    let (look, count) = (spent()? - before, one.runs - runs);
    let per = |seconds: f64, count: u32| (seconds / f64::from(count) * 1e6).round() / 1e3;
    println!(
        "{}",
        json!({
            "peers": peers, "start_ms": per(start, 1), "join_ms": per(join, EVENTS / 10),
            "joining_event_ms": per(event, EVENTS), "unchanged_event_ms": per(unchanged, EVENTS),
            "look_ms": per(look, count), "idle_minute_ms": per(minutes, EVENTS / 10), "idle_looks": looks,
            "turn_us": (turn / f64::from(EVENTS * 20) * 1e7).round() / 10.0,
        })
    );
    Ok(())
}

/// Seconds of processor time.
fn spent() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("reading the processor time")?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

fn uid(kind: u8, number: u32) -> Uid {
    let mut bytes = [kind; 16];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    Uid::from_random(bytes)
}

fn identity(number: u32) -> Result<Identity> {
    let mut private = [7; 32];
    private[..4].copy_from_slice(&number.to_be_bytes());
    let key_pair = NodeKeyPair::from_private(&SecretBytes::copy_from(&private)).context("a private key")?;
    Ok(Identity { instance: uid(1, number).into(), key_pair })
}

fn object(number: u32) -> Result<PeerObject> {
    let spec = EncryptionPeerSpec {
        node_uid: uid(2, number),
        senders: vec![identity(number)?.sender(number::address(number)?)],
        pod_networks: [number::pods(number)?].into(),
    };
    Ok(PeerObject {
        name: number::name(number),
        uid: uid(3, number),
        created: i64::from(number),
        generation: 1,
        resource_version: number.to_string(),
        content: Ok(Content::Announced(spec)),
    })
}

/// Node 1, driven as its shell drives it.
struct One {
    agent: Agent<NoStore>,
    reconciler: Reconciler<CountingKernel, NoStore>,
    kernel: CountingKernel,
    now: Time,
    rng: StdRng,
    runs: u32,
}

impl One {
    fn new() -> Result<Self> {
        let settings = AgentSettings {
            debounce: Duration::from_millis(100),
            resync: Duration::from_secs(60),
            skew: Duration::from_secs(4),
            needs_room: false,
        };
        let start = Start {
            name: number::name(1),
            identity: LocalIdentity::Announced(identity(1)?),
            state: PersistedState::default(),
            gone: BTreeSet::new(),
            drawn: false,
        };
        let kernel = CountingKernel::default();
        let journal = Journal::new(Record::default(), NoStore);
        let mut one = Self {
            agent: Agent::new(start, NoStore, settings),
            reconciler: Reconciler::new(kernel.clone(), journal, SaLimits::default()),
            kernel,
            now: Time::from_secs(100),
            rng: StdRng::seed_from_u64(1),
            runs: 0,
        };
        let address = number::address(1)?;
        let network = LocalNetwork {
            tunnel_addresses: vec![address],
            all_addresses: [address].into(),
            ..LocalNetwork::default()
        };
        one.agent.handle_event(Event::Installation(Installation::Unreadable), one.now);
        one.agent.handle_event(Event::Network(network), one.now);
        Ok(one)
    }

    fn show_ring(&mut self) -> Result<()> {
        let time = "2026-01-01T00:00:00Z".parse().context("a time")?;
        let generation = Generation {
            id: 1,
            uid: uid(4, 1),
            role: Role::Active,
            suite: Suite::Aes128Gcm8,
            traffic: Traffic::Ipip,
            identities: Identities::Announced,
            key: SecretBytes::copy_from(&[1; 16]),
            spi_seed: SecretBytes::copy_from(&[1; SPI_SEED_LEN]),
            created_at: time,
            role_since: time,
        };
        let ring = KeyRing {
            enforcement: Enforcement::Enforcing,
            generations: vec![generation],
            ..KeyRing::off(1, uid(5, 1), None, Settings::default())
        };
        let document = ring.to_yaml().as_bytes().to_vec().into();
        self.agent.handle_event(Event::Ring(RingInput::Document(document)), self.now);
        Ok(())
    }

    fn pinned(&self) -> usize {
        self.agent.report().map_or(0, |report| report.pins.len())
    }

    /// Virtual time passes, from one thing that is due to the next.
    fn settle(&mut self, lasting: Duration) -> Result<()> {
        let end = self.now + lasting;
        while self.now < end {
            self.turn()?;
            let next = self.agent.poll_timeout().unwrap_or(end);
            self.now = next.clamp(self.now + Duration::from_micros(100), end);
        }
        Ok(())
    }

    /// One turn of the main loop.
    fn turn(&mut self) -> Result<()> {
        self.agent.handle_timeout(self.now);
        while let Some(request) = self.agent.poll_request(self.now, &mut self.rng)? {
            let event = match request {
                Request::GetOwnNode => Event::OwnNode(NodeLookup::Found(uid(2, 1))),
                Request::GetRing => Event::RingRead(true),
                Request::Write(Announcement { spec, .. }) => {
                    Event::Announced(WriteResult::Written(PeerObject {
                        content: Ok(Content::Announced(spec)),
                        ..object(1)?
                    }))
                }
            };
            self.agent.handle_event(event, self.now);
        }
        while self.agent.poll_peer_node(self.now).is_some() {}
        if let Some(target) = self.agent.poll_target(self.now) {
            self.runs += 1;
            let report = self.reconciler.run(&target)?;
            self.agent.handle_reconciled(Some(report), self.now);
        }
        let kernel = self.kernel.clone();
        if let Some(Ping { pair, port, payload, .. }) =
            self.agent.poll_ping(self.now, &mut self.rng, |sa| kernel.packets(sa))?
        {
            let answer = Probe::parse(&payload).and_then(|probe| probe.answer()).context("an answer")?;
            let from: IpAddr = pair.dst.ip();
            self.agent.handle_packet(from, port, &answer.to_bytes(), self.now, |sa| kernel.packets(sa));
        }
        Ok(())
    }
}
