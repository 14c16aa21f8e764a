use std::{collections::BTreeMap, net::IpAddr};

use secureoverlay_common::uid::Uid;
use tokio::{
    sync::mpsc::{self, Receiver},
    time::timeout,
};

use super::*;

/// Far longer than any of this takes.
const DEADLINE: Duration = Duration::from_secs(30);

/// The whole of 127.0.0.0/8 is this machine's.
fn addr(n: u8) -> IpAddr {
    [127, 9, 46, n].into()
}

fn uid(n: u8) -> Uid {
    Uid::from_random([n; 16])
}

fn probes(local: u8, port: u16, peers: &[u8]) -> Option<Probes> {
    let peers: BTreeMap<IpAddr, Uid> = peers.iter().map(|&n| (addr(n), uid(n))).collect();
    Some(Probes { local: addr(local), port, peers })
}

struct Node {
    wanted: watch::Sender<Option<Probes>>,
    told: Receiver<Event>,
    metrics: Metrics,
}

fn start(probes: Option<Probes>) -> Node {
    let (wanted, to_probe) = watch::channel(probes);
    let (events, told) = mpsc::channel(8);
    let metrics = Metrics::new().0;
    tokio::spawn(probe(to_probe, events, metrics.clone()));
    Node { wanted, told, metrics }
}

impl Node {
    async fn wait_for(&mut self, what: impl Fn(&Result<Verdicts, String>) -> bool) {
        let waiting = async {
            loop {
                match self.told.recv().await.expect("it goes on") {
                    Event::Probed(told) if what(&told) => return,
                    Event::Probed(_) => {}
                    _ => panic!("it tells of nothing else"),
                }
            }
        };
        timeout(DEADLINE, waiting).await.expect("it tells");
    }
}

/// A port that is free at all of our addresses, as far as that can be known.
async fn free_port() -> u16 {
    UdpSocket::bind((addr(99), 0)).await.unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn two_nodes_reach_each_other_and_a_third_that_comes() {
    let port = free_port().await;
    let (mut one, mut two) = (start(probes(1, port, &[2])), start(probes(2, port, &[1])));
    one.wait_for(|told| *told == Ok([(uid(2), true)].into())).await;
    two.wait_for(|told| *told == Ok([(uid(1), true)].into())).await;
    // Nothing was wanted in between, too short to be noticed.
    one.wanted.send_replace(None);
    one.wanted.send_replace(probes(1, port, &[2]));
    one.wait_for(|told| *told == Ok([(uid(2), true)].into())).await;
    let _three = start(probes(3, port, &[1]));
    one.wanted.send_replace(probes(1, port, &[2, 3]));
    one.wait_for(|told| *told == Ok([(uid(2), true), (uid(3), true)].into())).await;
}

#[tokio::test]
async fn strangers_and_noise_are_ignored_and_counted() {
    let port = free_port().await;
    let mut node = start(probes(4, port, &[5]));
    let stranger = UdpSocket::bind((addr(6), port)).await.unwrap();
    let peers_other_port = UdpSocket::bind((addr(5), 0)).await.unwrap();
    let peer = UdpSocket::bind((addr(5), port)).await.unwrap();
    node.wait_for(|told| *told == Ok([].into())).await;
    let mut ping = [0; LEN + 1];
    let (length, from) = timeout(DEADLINE, peer.recv_from(&mut ping)).await.unwrap().unwrap();
    assert_eq!((length, from), (LEN, (addr(4), port).into()));
    // Its own ping is a valid one, if it comes from the right place.
    for socket in [&stranger, &peers_other_port] {
        socket.send_to(&ping[..LEN], from).await.unwrap();
    }
    peer.send_to(&ping, from).await.unwrap();
    peer.send_to(&ping[..LEN], from).await.unwrap();
    let mut pong = [0; LEN + 1];
    let (length, _) = timeout(DEADLINE, peer.recv_from(&mut pong)).await.unwrap().unwrap();
    assert_eq!((length, &pong[6..LEN]), (LEN, &ping[6..LEN]));
    assert_eq!(node.metrics.probes_ignored(), 3);
    // That answer, sent back, is the answer to its ping.
    peer.send_to(&pong[..LEN], from).await.unwrap();
    node.wait_for(|told| *told == Ok([(uid(5), true)].into())).await;
    // What was sent before that answer would be here by now.
    for socket in [&stranger, &peers_other_port] {
        assert!(timeout(Duration::from_millis(20), socket.recv_from(&mut pong)).await.is_err());
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_and_changes_are_heeded_meanwhile() {
    let taken = UdpSocket::bind((addr(7), 0)).await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut node = start(probes(7, port, &[8]));
    node.wait_for(|told| told.as_ref().is_err_and(|why| why.contains("--probe-port"))).await;
    node.wanted.send_replace(None);
    let free = free_port().await;
    node.wanted.send_replace(probes(7, free, &[8]));
    node.wait_for(|told| *told == Ok([].into())).await;
    drop(node.wanted);
    let ended = timeout(DEADLINE, async { while node.told.recv().await.is_some() {} });
    ended.await.expect("without anybody to want something it ends");
}

#[tokio::test]
async fn an_address_that_is_not_this_nodes_is_told() {
    let elsewhere = Probes { local: [192, 0, 2, 1].into(), ..probes(1, 0, &[8]).unwrap() };
    let mut node = start(Some(elsewhere));
    node.wait_for(|told| told.as_ref().is_err_and(|why| why.contains("correct its Node object"))).await;
}
