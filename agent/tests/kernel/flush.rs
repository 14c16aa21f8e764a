//! What follows from a flush of the policies, from the notification to the last policy that is back.

use std::{
    sync::{Arc, atomic::AtomicBool, mpsc},
    thread,
    time::{Duration, Instant},
};

use secureoverlay_agent::kernel::{Job, News, machine::ThisMachine, worker::work};
use secureoverlay_agent_core::{
    entry::Entry,
    exclusion::Exclusion,
    identity::{Identity, LocalIdentity},
    journal::{Journal, NoStore, Record},
    network::LocalNetwork,
    peers::{Peer, Peers},
    plan::{DesiredInput, ReconcileTarget},
    reconcile::SaLimits,
    teardown::TeardownPhase,
};
use secureoverlay_agent_kernel::{Event, Events};
use secureoverlay_keyring::{
    derivation::EndpointKey,
    keyring::{Enforcement, Generation, Identities, KeyRing, Role, SPI_SEED_LEN, Traffic},
    node_key::NodeKeyPair,
    secret::SecretBytes,
    settings::Settings,
    suite::Suite,
    uid::Uid,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::{namespace::Namespace, objects::address};

/// Other nodes.
const PEERS: u16 = 50;
/// From the flush until every policy is back.
const LIMIT: Duration = Duration::from_millis(100);

fn identity(n: u16) -> Identity {
    let [high, low] = n.to_be_bytes();
    let mut private = [7; 32];
    (private[1], private[2]) = (high, low);
    let key_pair = NodeKeyPair::from_private(&SecretBytes::copy_from(&private)).unwrap();
    let mut random = [9; 16];
    (random[0], random[1]) = (high, low);
    Identity { instance: Uid::from_random(random).into(), key_pair }
}

/// Node 1 enforces.
fn target() -> ReconcileTarget {
    let peer = |n: u16| {
        let Identity { instance, key_pair } = identity(n);
        let key = EndpointKey::Public(*key_pair.public());
        let address = address(n).try_into().unwrap();
        (format!("node-{n}"), Peer { entries: vec![Entry { instance, address, key }] })
    };
    let at = "2026-11-30T03:00:00Z".parse().unwrap();
    let generation = Generation {
        id: 1,
        uid: Uid::from_random([1; 16]),
        role: Role::Active,
        suite: Suite::default(),
        traffic: Traffic::Ipip,
        identities: Identities::Announced,
        key: SecretBytes::copy_from(&[1; 16]),
        spi_seed: SecretBytes::copy_from(&[1; SPI_SEED_LEN]),
        created_at: at,
        role_since: at,
    };
    let off = KeyRing::off(1, Uid::from_random([2; 16]), None, Settings::default());
    let own = address(1).try_into().unwrap();
    let network =
        LocalNetwork { tunnel_addresses: vec![own], all_addresses: [own].into(), ..LocalNetwork::default() };
    let input = DesiredInput {
        ring: Arc::new(KeyRing { enforcement: Enforcement::Enforcing, generations: vec![generation], ..off }),
        identity: Arc::new(LocalIdentity::Announced(identity(1))),
        network: Arc::new(network),
        peers: Arc::new(Peers { by_name: (2..2 + PEERS).map(peer).collect(), ..Peers::default() }),
        exclusion: Arc::new(Exclusion::default()),
        pairs: Some(Arc::default()),
        announced: true,
    };
    ReconcileTarget { teardown: TeardownPhase::Inactive, input: Some(input) }
}

/// The first news that `wanted` takes.
fn hear<T>(news: &mut UnboundedReceiver<News>, wanted: impl Fn(News) -> Option<T>) -> T {
    loop {
        if let Some(found) = wanted(news.blocking_recv().expect("the thread lives")) {
            return found;
        }
    }
}

fn policies(namespace: &Namespace) -> usize {
    namespace.ip("xfrm policy list").lines().filter(|line| line.starts_with("src ")).count()
}

#[test]
fn flushed_policies_are_back_within_a_tenth_of_a_second() {
    let namespace = Namespace::new();
    namespace.enter(|| {
        let (jobs, to_do) = mpsc::channel();
        let (tell, mut news) = unbounded_channel();
        let mut events = Events::open().unwrap();
        let kernel = thread::spawn(move || {
            let journal = Journal::new(Record::default(), NoStore);
            work(ThisMachine::default(), (journal, SaLimits::default()), &to_do, &tell);
        });
        jobs.send(Job::Reconcile(Box::new(target()))).unwrap();
        hear(&mut news, |news| matches!(news, News::Attempt(_)).then_some(()));
        let before = policies(&namespace);
        assert!(before > usize::from(PEERS) * 2, "one for tunnels and two for probes of each peer: {before}");

        let begun = Instant::now();
        namespace.ip("xfrm policy flush");
        while events.wait(None).unwrap() != Some(Event::Flush) {}
        jobs.send(Job::PutPoliciesBack(Arc::new(AtomicBool::new(true)))).unwrap();
        let (count, took) = hear(&mut news, |news| match news {
            News::PoliciesFlushed(count, took) => Some((count, took)),
            _ => None,
        });
        let all = begun.elapsed();
        println!("{count} policies are back {all:?} after the flush began; putting them back took {took:?}");
        assert_eq!((count, policies(&namespace)), (before, before));
        assert!(all < LIMIT, "{all:?}");
        drop(jobs);
        kernel.join().unwrap();
    });
}
