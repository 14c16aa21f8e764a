//! The lab's network: a namespace with a bridge, a tap for each guest, and no way out.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::place::Place;
use crate::run::quiet;
use crate::state::Node;

/// Name of the bridge in it.
pub const BRIDGE: &str = "br0";
/// The control plane's address on the bridge.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
/// The nodes' network.
pub const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 0);
/// Prefix length of the nodes' network.
pub const PREFIX: u8 = 24;
/// The API server's service address, reachable without kube-proxy because it is the bridge's.
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// All services.
pub const SERVICES: &str = "10.96.0.0/16";
/// All pods.
pub const PODS: &str = "10.244.0.0/16";

/// The file that names the namespace.
pub fn namespace() -> PathBuf {
    Place::here().namespace()
}

/// A command run in the lab's namespace.
pub fn inside(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace().display())).arg("--").arg(program);
    command
}

/// Does something in the lab's network namespace, from which pods are reached.
pub fn within<T: Send>(action: impl FnOnce() -> T + Send) -> Result<T> {
    within_namespace(&namespace(), action)
}

/// Does something in the network namespace that a file names; sockets made there stay there.
pub fn within_namespace<T: Send>(file: &Path, action: impl FnOnce() -> T + Send) -> Result<T> {
    let enter_and_act = || {
        let namespace = File::open(file).with_context(|| format!("opening {}", file.display()))?;
        setns(namespace, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("entering the network namespace {}", file.display()))?;
        Ok(action())
    };
    // A namespace belongs to a thread: this one is used up by it.
    thread::scope(|scope| scope.spawn(enter_and_act).join())
        .map_err(|_| anyhow!("the thread in {} failed", file.display()))?
}

/// Makes the namespace, the bridge and the taps.
pub fn create(nodes: &[Node]) -> Result<()> {
    quiet(Command::new("ip").args(["netns", "add", &Place::here().namespace_name()]))
        .context("making the lab's network namespace")?;
    ip(&["link", "set", "lo", "up"])?;
    // Learning is not needed on so small a bridge, but multicast snooping would be noise in captures.
    ip(&["link", "add", BRIDGE, "type", "bridge", "mcast_snooping", "0"])?;
    ip(&["addr", "add", &format!("{HOST}/{PREFIX}"), "dev", BRIDGE])?;
    ip(&["addr", "add", &format!("{SERVICE}/32"), "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])?;
    for node in nodes {
        add_tap(&node.tap)?;
        ip(&["route", "add", &node.pod_cidr, "via", &node.ip.to_string()])?;
    }
    Ok(())
}

/// Frames that wait for a guest, or in one for its tap. With the default of 1000 a guest that gets no processor time for a
/// second or two loses packets, which a real node's network card would not.
pub const QUEUE: &str = "10000";

/// Adds one more port to the bridge.
pub fn add_tap(name: &str) -> Result<()> {
    ip(&["tuntap", "add", "dev", name, "mode", "tap"])?;
    ip(&["link", "set", name, "txqueuelen", QUEUE])?;
    ip(&["link", "set", name, "master", BRIDGE])?;
    ip(&["link", "set", name, "up"])
}

/// Removes the namespace and all in it; its processes must have ended.
pub fn remove(place: &Place) -> Result<()> {
    if place.namespace().exists() {
        quiet(Command::new("ip").args(["netns", "del", &place.namespace_name()]))
            .context("removing the network namespace")?;
    }
    Ok(())
}

/// `ip` in the lab's namespace.
pub fn ip(words: &[&str]) -> Result<()> {
    quiet(inside("ip").args(words))
}
