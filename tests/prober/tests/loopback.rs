//! Two probers on loopback, with a relay between them that drops and duplicates on purpose.
#![allow(clippy::unwrap_used)] // the helpers are test code too

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use secureoverlay_prober::{
    control::{Request, ask},
    server::serve,
    session::{Load, Pod, Session},
};

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const LOAD: Load = Load { rate: 1000, size: 100, max_seconds: 30 };

fn pod(name: &str) -> Pod {
    let addresses = serve(ANY, ANY).unwrap();
    Pod { name: name.into(), control: addresses.control, data: addresses.data }
}

/// Forwards to `to`: packet n never if n % 10 == 3, twice if n % 10 == 7.
fn relay(to: SocketAddr) -> SocketAddr {
    let socket = UdpSocket::bind(ANY).unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok(length) = socket.recv(&mut bytes) {
            let seq = u32::from_be_bytes(bytes[12..16].try_into().unwrap());
            for _ in 0..[1, 1, 1, 0, 1, 1, 1, 2, 1, 1][seq as usize % 10] {
                socket.send_to(&bytes[..length], to).unwrap();
            }
        }
    });
    address
}

/// Sends until each direction has sent `packets`.
fn run(session: &Session, packets: u32) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while session.glance().unwrap().directions.iter().any(|direction| direction.sent < packets) {
        assert!(Instant::now() < deadline, "the senders make no progress");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_clean_path_loses_nothing() {
    let session = Session::start(vec![pod("a"), pod("b"), pod("c")], LOAD).unwrap();
    run(&session, 300);
    let summary = session.stop().unwrap();
    assert_eq!(summary.directions.len(), 6);
    assert!(summary.directions.iter().all(|direction| direction.sent >= 300));
    assert_eq!((summary.lost, summary.duplicated), (0, 0));
    assert_eq!(summary.received, summary.sent);
    assert_eq!(summary.invalid, Vec::<String>::new());
}

#[test]
fn what_the_path_drops_and_duplicates_is_counted_exactly() {
    let (a, mut b) = (pod("a"), pod("b"));
    b.data = relay(b.data);
    let session = Session::start(vec![a, b], LOAD).unwrap();
    run(&session, 300);
    let summary = session.stop().unwrap();
    let (there, back) = (&summary.directions[0], &summary.directions[1]);
    let of = |rest| (0..there.sent).filter(|seq| seq % 10 == rest).count();
    assert_eq!((there.lost as usize, there.duplicated as usize), (of(3), of(7)), "of {}", there.sent);
    assert_eq!((back.lost, back.duplicated), (0, 0));
    assert_eq!(summary.lost, u64::from(there.lost));
}

#[test]
fn a_path_that_ends_nowhere_is_a_total_loss() {
    let (a, mut b) = (pod("a"), pod("b"));
    let silent = UdpSocket::bind(ANY).unwrap();
    b.data = silent.local_addr().unwrap();
    let session = Session::start(vec![a, b], LOAD).unwrap();
    run(&session, 200);
    let summary = session.stop().unwrap();
    assert_eq!(summary.directions[0].lost, summary.directions[0].sent);
    assert!(summary.longest_gap_ms >= 200, "{summary:?}");
}

#[test]
fn a_limit_ends_the_sending_and_bad_requests_are_refused() {
    let (a, b) = (pod("a"), pod("b"));
    let send = |rate, max_seconds| Request::Send {
        run: 1,
        name: "a".into(),
        peers: [("b".to_owned(), b.data)].into(),
        rate,
        size: 64,
        max_seconds,
    };
    let refusal = |request| ask(a.control, &request).unwrap_err().to_string();
    assert!(refusal(send(10, 1)).contains("not open"));
    ask(a.control, &Request::Open { run: 1 }).unwrap();
    assert!(refusal(Request::Open { run: 1 }).contains("open already"));
    assert!(refusal(send(0, 1)).contains("rate"));
    assert!(refusal(send(20_000, 1000)).contains("4194304"));
    ask(a.control, &send(100, 1)).unwrap();
    assert!(refusal(send(100, 1)).contains("sent already"));
    let deadline = Instant::now() + Duration::from_secs(10);
    while ask(a.control, &Request::Report { run: 1 }).unwrap().sent.running {
        assert!(Instant::now() < deadline, "the sender goes on beyond its limit");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(ask(a.control, &Request::Report { run: 1 }).unwrap().sent.packets, 100);
}
