//! What is known about the lab between two commands: a file in /run, and a lock.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::cache::kubernetes::Kubernetes;
use crate::network;
use crate::place::Place;
use crate::process::Recorded;

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Name of the Node object and of the guest: `node1`.
    pub name: String,
    /// From 1.
    pub index: u8,
    /// Address on the bridge.
    pub ip: Ipv4Addr,
    /// Network of its pods, such as `10.244.1.0/24`.
    pub pod_cidr: String,
    /// Address of its tunnel interface.
    pub tunnel_ip: Ipv4Addr,
    /// The tap on the bridge that is its wire.
    pub tap: String,
}

impl Node {
    /// The node with this number.
    pub fn new(index: u8) -> Self {
        Self {
            name: format!("node{index}"),
            index,
            ip: Ipv4Addr::new(10, 200, 0, 10 + index),
            pod_cidr: format!("10.244.{index}.0/24"),
            tunnel_ip: Ipv4Addr::new(10, 244, index, 240),
            tap: format!("tap{index}"),
        }
    }

    /// Another address on the bridge, which no node has unless a scenario gives it.
    pub fn other_ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 200, 0, 110 + self.index)
    }

    /// The same host under the other name that it has credentials for.
    pub fn renamed(&self) -> Self {
        Self { name: format!("{}-renamed", self.name), ..self.clone() }
    }

    /// What Calico notes on the Node object.
    pub fn calico_address(&self) -> String {
        format!("{}/{}", self.ip, network::PREFIX)
    }

    /// The host directory that the guest sees as `/lab/node`.
    pub fn directory(&self) -> PathBuf {
        Place::here().directory().join("nodes").join(&self.name)
    }
}

/// The file's content.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct State {
    /// The machine's boot: process ids of an earlier one mean nothing.
    pub boot_id: String,
    /// Whether `up` came to its end.
    pub complete: bool,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// Processes by name: `etcd`, `kube-apiserver`, …, and the guests by node name.
    pub processes: BTreeMap<String, Recorded>,
    /// Its version of Kubernetes.
    pub kubernetes: Kubernetes,
    /// MTU of the nodes' tunnel interfaces.
    pub tunnel_mtu: u32,
}

impl State {
    /// The state of a lab, if it was begun since this machine booted.
    pub fn load(place: &Place) -> Result<Option<Self>> {
        let path = place.state();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let state: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{} is damaged; `cargo lab down` cleans up", path.display()))?;
        Ok((state.boot_id == boot_id()?).then_some(state))
    }

    /// Writes it so that a crash leaves the old or the new content.
    pub fn save(&self) -> Result<()> {
        let directory = Place::here().directory();
        fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        let mut file = tempfile::NamedTempFile::new_in(&directory).context("writing the lab's state")?;
        file.write_all(&serde_json::to_vec_pretty(self).context("encoding the lab's state")?)
            .context("writing the lab's state")?;
        file.persist(Place::here().state()).context("writing the lab's state")?;
        Ok(())
    }
}

/// This boot of the machine.
pub fn boot_id() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .context("reading the boot id")?
        .trim()
        .to_owned())
}

/// Held by every command that changes a lab.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes a lab's lock, or says that another command has it.
    pub fn take(place: &Place) -> Result<Self> {
        let path = place.lock();
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Self { _file: file }),
            Err((_, Errno::EAGAIN)) => {
                let name = place.name();
                bail!("another `cargo lab` command is changing the lab {name}; wait until it is done")
            }
            Err((_, errno)) => bail!("locking {}: {errno}", path.display()),
        }
    }
}
