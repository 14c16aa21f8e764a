//! Traffic between pods of all nodes: the prober's pods, and measurements with them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use secureoverlay_prober::session::{Load, Pod, Session};
use secureoverlay_prober::summary::Summary;

use crate::lab::Lab;
use crate::network::within;

const MANIFEST: &str = include_str!("prober.yaml");
const PORT: u16 = 7100;
/// Packets a second in each direction: enough to see an outage of 5 ms, little enough for two cores.
const RATE: u32 = 200;
/// What a measurement may last at most: the pods stop by themselves then.
const LIMIT: u32 = 1800;

/// A prober on each node.
#[derive(Clone, Debug)]
pub struct Probe {
    pods: Vec<Pod>,
    rate: u32,
}

impl Probe {
    /// Starts the pods, or finds them running.
    pub fn deploy(lab: &Lab) -> Result<Self> {
        lab.apply(MANIFEST)?;
        lab.kubectl(&["-n", "default", "rollout", "status", "daemonset/prober", "--timeout=90s"])?;
        let list = lab.kubectl_json(&["-n", "default", "get", "pods", "-l", "app=prober"])?;
        let pod = |pod: &serde_json::Value| {
            let name = pod["spec"]["nodeName"].as_str().context("a prober without a node")?;
            let ip: IpAddr =
                pod["status"]["podIP"].as_str().context("a prober without an address")?.parse()?;
            let address = SocketAddr::new(ip, PORT);
            Ok(Pod { name: name.to_owned(), control: address, data: address })
        };
        let pods: Vec<Pod> =
            list["items"].as_array().into_iter().flatten().map(pod).collect::<Result<_>>()?;
        ensure!(
            pods.len() == lab.nodes().len() && pods.len() >= 2,
            "{} probers on {} nodes: traffic between nodes needs one on each of at least two",
            pods.len(),
            lab.nodes().len()
        );
        // A node that starts pods has one CPU for that: what measures goes first.
        lab.on_all_nodes(|node| {
            node.exec_ok(&["sh", "-c", "renice -n -10 -p $(ls /proc/$(pgrep -x prober)/task)"])
        })?;
        Ok(Self { pods, rate: RATE })
    }

    /// The same, sending so many packets a second in each direction.
    pub fn at(&self, rate: u32) -> Self {
        Self { pods: self.pods.clone(), rate }
    }

    /// The probers of all other nodes.
    pub fn without(&self, node: &str) -> Result<Self> {
        let pods: Vec<Pod> = self.pods.iter().filter(|pod| pod.name != node).cloned().collect();
        ensure!(pods.len() >= 2, "without {node} there are {} probers, and traffic takes two", pods.len());
        Ok(Self { pods, rate: self.rate })
    }

    /// Address of this node's prober.
    pub fn pod_on(&self, node: &str) -> Result<Ipv4Addr> {
        let pod =
            self.pods.iter().find(|pod| pod.name == node).with_context(|| format!("no prober on {node}"))?;
        match pod.data.ip() {
            IpAddr::V4(ip) => Ok(ip),
            IpAddr::V6(ip) => bail!("the prober on {node} has the address {ip}, and the tunnel is for IPv4"),
        }
    }

    /// Number of directions: from each node to each other.
    pub fn pairs(&self) -> usize {
        self.pods.len() * (self.pods.len() - 1)
    }

    /// Starts to send in all directions.
    pub fn start(&self) -> Result<Measurement> {
        let pods = self.pods.clone();
        let load = Load { rate: self.rate, size: 64, max_seconds: LIMIT };
        let session = within(move || Session::start(pods, load))??;
        Ok(Measurement { session })
    }

    /// Sends for a while with nothing else going on.
    pub fn run_for(&self, time: Duration) -> Result<Summary> {
        let measurement = self.start()?;
        std::thread::sleep(time);
        measurement.stop()
    }
}

/// Traffic that is flowing.
#[derive(Debug)]
pub struct Measurement {
    session: Session,
}

impl Measurement {
    /// Ends it and judges.
    pub fn stop(self) -> Result<Summary> {
        within(|| self.session.stop())?.context("collecting the probers' figures")
    }
}
