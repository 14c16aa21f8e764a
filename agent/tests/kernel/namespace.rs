//! Network namespaces for one test each.

use std::{
    fs::File,
    net::IpAddr,
    os::fd::AsFd,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A namespace with its loopback up; deleted when dropped.
pub struct Namespace(String);

impl Namespace {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("secureoverlay-{}-{count}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Self(name);
        namespace.ip("link set lo up");
        namespace
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    /// Runs `ip` with `arguments` in the namespace and returns what it printed.
    pub fn ip(&self, arguments: &str) -> String {
        let output = run(Command::new("ip").args(["-n", &self.0]).args(arguments.split_whitespace()));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `inside` on a thread that entered the namespace.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.join_thread();
                inside()
            });
            match thread.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Moves the calling thread into the namespace.
    pub fn join_thread(&self) {
        let file = File::open(format!("/run/netns/{}", self.0)).unwrap();
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    /// The kernel's own words about all SAs and policies, keys included, without times and counters.
    pub fn xfrm(&self) -> (String, String) {
        (self.ip("xfrm state list"), self.ip("xfrm policy list"))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        run(Command::new("ip").args(["netns", "del", &self.0]));
    }
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Two nodes on one wire, with IPIP tunnels between them as Calico sets them up.
pub struct Nodes {
    pub a: Namespace,
    pub b: Namespace,
}

impl Nodes {
    pub const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    pub const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));
    pub const POD_A: &str = "10.77.1.1";
    pub const POD_B: &str = "10.77.2.1";

    pub fn new() -> Self {
        let (a, b) = (Namespace::new(), Namespace::new());
        a.ip(&format!("link add eth0 type veth peer name eth0 netns {}", b.name()));
        for (node, own, peer, own_pod, peer_pod) in [
            (&a, Self::A, Self::B, Self::POD_A, Self::POD_B),
            (&b, Self::B, Self::A, Self::POD_B, Self::POD_A),
        ] {
            node.ip(&format!("address add {own}/24 dev eth0"));
            node.ip("link set eth0 up");
            node.ip(&format!("address add {own_pod}/32 dev tunl0"));
            node.ip("link set tunl0 mtu 1452 up");
            node.ip(&format!("route add {peer_pod}/32 via {peer} dev tunl0 onlink"));
        }
        Self { a, b }
    }
}
