//! The lab as a whole: what the command line and the scenarios work with.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use crate::cache::kernel::Kernel;
use crate::cache::kubernetes::{Kubernetes, Programs, Release};
use crate::cache::rootfs;
use crate::control_plane::{self, API_SERVER, ETCD};
use crate::interface::CALICO_ADDRESS;
use crate::network::{self, inside};
use crate::node::{Outcome, Parts};
use crate::place::Place;
use crate::process::Recorded;
use crate::product;
use crate::progress::note;
use crate::run::{output, output_with_stdin};
use crate::state::{Node, State};
use crate::wait::wait_until;

/// Calico's default for the tunnel of a 1500-byte network.
pub const TUNNEL_MTU: u32 = 1480;

/// The start-up taint that our manifest tolerates and the documentation uses.
pub const STARTUP_TAINT: &str = "secureoverlay.io/starting";

/// A running lab. All methods take `&self`, so that a scenario can share it between threads.
#[derive(Debug)]
pub struct Lab {
    pub(crate) nodes: Vec<Node>,
    pub(crate) parts: Parts,
    pub(crate) state: Mutex<State>,
}

impl Lab {
    /// The lab of this process, if it runs. One whose processes have all been killed is none.
    pub fn attach() -> Result<Option<Self>> {
        let alive = |state: &State| state.processes.values().any(Recorded::is_running);
        match State::load(Place::here())? {
            Some(state) if state.complete && network::namespace().exists() && alive(&state) => {
                let parts = parts(state.kubernetes, !state.nodes.is_empty())?;
                Ok(Some(Self { nodes: state.nodes.clone(), parts, state: Mutex::new(state) }))
            }
            _ => Ok(None),
        }
    }

    /// The lab of this process, which must run.
    pub fn running() -> Result<Self> {
        let name = Place::here().name();
        Self::attach()?.with_context(|| format!("the lab {name} does not run; `cargo lab up` makes one"))
    }

    /// Waits until all nodes are Ready and the default service account exists.
    pub fn wait_ready(&self, patience: Duration) -> Result<()> {
        if self.nodes.is_empty() {
            return Ok(());
        }
        wait_until("all nodes to be Ready", patience, || {
            let Ok(list) = self.kubectl_json(&["get", "nodes"]) else { return Ok(None) };
            let ready = list["items"]
                .as_array()
                .is_some_and(|nodes| nodes.iter().filter(|node| is_ready(node)).count() == self.nodes.len());
            Ok(ready.then_some(()))
        })?;
        wait_until("the default service account", patience, || {
            Ok(self.kubectl(&["get", "serviceaccount", "default"]).ok())
        })?;
        Ok(())
    }

    /// Whether the API says that a node is Ready.
    pub fn node_is_ready(&self, node: &str) -> Result<bool> {
        Ok(is_ready(&self.kubectl_json(&["get", "node", node])?))
    }

    /// The version of Kubernetes, and what comes with it.
    pub fn release(&self) -> &'static Release {
        self.parts.programs.release
    }

    /// The nodes, in the order of their numbers.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| {
            let names: Vec<&str> = self.nodes.iter().map(|n| n.name.as_str()).collect();
            format!("no node {name}; there are {}", names.join(", "))
        })
    }

    /// Does something on all nodes at once; the first error counts.
    pub fn on_all_nodes<T: Send>(&self, action: impl Fn(&Node) -> Result<T> + Sync) -> Result<Vec<T>> {
        thread::scope(|scope| {
            let tasks: Vec<_> = self.nodes.iter().map(|node| scope.spawn(|| action(node))).collect();
            tasks
                .into_iter()
                .map(|task| task.join().map_err(|_| anyhow!("a node's thread failed"))?)
                .collect()
        })
    }

    /// A program of this machine in the lab's network, with the lab's kubectl and credentials.
    pub fn inside_command(&self, program: &str) -> Command {
        let mut path = OsString::new();
        if let Some(directory) = self.parts.programs.kubectl.parent() {
            path.push(directory);
            path.push(":");
        }
        path.push(env::var_os("PATH").unwrap_or_default());
        let mut command = inside(program);
        command.env("KUBECONFIG", control_plane::kubeconfig()).env("PATH", path);
        command
    }

    /// kubectl as the administrator; to be completed with arguments and run.
    pub fn kubectl_command(&self) -> Command {
        let mut command = inside(&self.parts.programs.kubectl);
        command.arg(format!("--kubeconfig={}", control_plane::kubeconfig().display()));
        command.env("KUBECONFIG", control_plane::kubeconfig());
        command
    }

    /// Runs kubectl and returns what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        output(self.kubectl_command().args(arguments))
    }

    /// Runs kubectl with `-o json`.
    pub fn kubectl_json(&self, arguments: &[&str]) -> Result<Value> {
        let text = output(self.kubectl_command().args(arguments).args(["-o", "json"]))?;
        serde_json::from_str(&text)
            .with_context(|| format!("kubectl {} printed no JSON", arguments.join(" ")))
    }

    /// `kubectl apply` of a manifest's text.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        output_with_stdin(self.kubectl_command().args(["apply", "-f", "-"]), manifest.as_bytes())
    }

    /// `kubectl apply` of a file.
    pub fn apply_file(&self, path: &Path) -> Result<String> {
        self.kubectl(&["apply", "-f", &path.display().to_string()])
    }

    /// Runs a command on a node's own system; works without the API server.
    pub fn exec(&self, node: &str, argv: &[&str]) -> Result<Outcome> {
        self.node(node)?.exec(argv)
    }

    /// Like [`Lab::exec`], for a command that must succeed; returns its output.
    pub fn exec_ok(&self, node: &str, argv: &[&str]) -> Result<String> {
        self.node(node)?.exec_ok(argv)
    }

    /// Stops the API server, as a crash would.
    pub fn stop_api(&self) -> Result<()> {
        self.process(API_SERVER)?.stop(Duration::ZERO)
    }

    /// Starts the API server again and waits until it is ready.
    pub fn start_api(&self) -> Result<()> {
        let process = control_plane::start_api_server(&self.parts.programs)?;
        self.record(API_SERVER, process.clone())?;
        control_plane::wait_for_api_server(&self.parts.programs, &process)
    }

    /// Kills a node's kubelet; its pods go on.
    pub fn stop_kubelet(&self, node: &str) -> Result<()> {
        self.exec_ok(node, &["pkill", "-KILL", "-x", "kubelet"]).map(drop)
    }

    /// Starts a node's kubelet again.
    pub fn start_kubelet(&self, node: &str) -> Result<()> {
        self.exec_ok(node, &["sh", "/lab/node/kubelet.sh"]).map(drop)
    }

    /// Gives a host another name, or its own again: its kubelet registers under it, as after a change of the host name. Its
    /// Node of the old name stays.
    pub fn rename(&self, node: &Node, to: &Node) -> Result<()> {
        self.stop_kubelet(&node.name)?;
        let (keep, take) = if node.name == to.name {
            ("true", "own.kubeconfig")
        } else {
            ("cp kubelet.kubeconfig own.kubeconfig", "renamed.kubeconfig")
        };
        let script = format!(
            "cd /lab/node; {keep}; cp {take} kubelet.kubeconfig; sed -i 's/^NODE_NAME=.*/NODE_NAME={}/' environment",
            to.name
        );
        self.exec_ok(&node.name, &["sh", "-ec", &script])?;
        self.start_kubelet(&node.name)?;
        self.introduce(to)
    }

    /// The taints that a node's kubelet registers with when it is started the next time, as its flag takes them.
    pub fn register_with_taints(&self, node: &str, taints: &str) -> Result<()> {
        self.node(node)?.write_taints(taints)
    }

    /// Whether a node's guest runs.
    pub fn is_on(&self, node: &str) -> Result<bool> {
        Ok(self.process(node)?.is_running())
    }

    /// Pulls a node's plug: its guest is gone at once, with all that it held.
    pub fn power_off(&self, node: &str) -> Result<()> {
        self.process(node)?.stop(Duration::ZERO)
    }

    /// Boots a node that was powered off; when this returns, its kubelet has been started.
    pub fn power_on(&self, node: &str) -> Result<()> {
        let node = self.node(node)?;
        let guest = node.start_guest(&self.parts)?;
        self.record(&node.name, guest.clone())?;
        node.boot(&guest)
    }

    /// Reboots a node; `graceful` lets its containers end first. Its boot ID is another one afterwards.
    pub fn reboot(&self, node: &str, graceful: bool) -> Result<()> {
        if graceful {
            let script = "pkill -KILL -x kubelet; for c in $(ctr -n k8s.io tasks ls -q); do \
                          ctr -n k8s.io tasks kill -s SIGTERM $c; done; \
                          for i in $(seq 50); do ctr -n k8s.io tasks ls | grep -q RUNNING || break; sleep 0.1; done";
            self.exec(node, &["sh", "-c", script])?;
        }
        self.power_off(node)?;
        self.power_on(node)
    }

    /// Changes the MTU of the nodes' tunnels as Calico would after a change of its configuration; pods that run
    /// keep theirs until they are started anew.
    pub fn set_tunnel_mtu(&self, mtu: u32) -> Result<()> {
        {
            let mut state = self.state();
            state.tunnel_mtu = mtu;
            state.save()?;
            for node in &self.nodes {
                node.write_cni(&state)?;
            }
        }
        self.on_all_nodes(|node| node.exec_ok(&["sh", "/lab/node/routes.sh", "calico", &mtu.to_string()]))?;
        Ok(())
    }

    /// Gives a node this address on the bridge, beside the one that the lab reaches it by: packets to other nodes come from
    /// it from now on, and the others' tunnels lead to it.
    pub fn move_address(&self, node: &Node, to: Ipv4Addr) -> Result<()> {
        let (prefix, network) = (network::PREFIX, network::NETWORK);
        let mut script =
            format!("ip route replace {network}/{prefix} dev vec0 proto kernel scope link src {to}\n");
        if to == node.ip {
            script += &format!("ip address delete {}/{prefix} dev vec0 || true\n", node.other_ip());
        } else {
            script = format!("ip address replace {to}/{prefix} dev vec0\n{script}");
        }
        self.exec_ok(&node.name, &["sh", "-ec", &script])?;
        self.on_all_nodes(|peer| {
            if peer.name != node.name {
                let new = format!("s#{},[0-9.]*#{},{to}#", node.pod_cidr, node.pod_cidr);
                let script = format!(
                    "sed -i '/^PEERS=/{new}' /lab/node/environment; sh /lab/node/routes.sh calico {}",
                    self.tunnel_mtu()
                );
                peer.exec_ok(&["sh", "-ec", &script])?;
            }
            Ok(())
        })?;
        let annotation = format!("{CALICO_ADDRESS}={to}/{prefix}");
        self.kubectl(&["annotate", "--overwrite", "node", &node.name, &annotation]).map(drop)
    }

    /// Takes the other nodes' routes to this one's pods away, as Calico does when its Node is deleted.
    pub fn withdraw_routes(&self, to: &Node) -> Result<()> {
        let script = format!("ip route flush proto 80 via {}", to.ip);
        self.on_all_nodes(|node| match node.name == to.name {
            true => Ok(()),
            false => node.exec_ok(&["sh", "-c", &script]).map(drop),
        })?;
        Ok(())
    }

    /// Puts them back, as Calico does when the node has registered.
    pub fn announce_routes(&self, to: &Node) -> Result<()> {
        let mtu = self.tunnel_mtu().to_string();
        self.on_all_nodes(|node| match node.name == to.name {
            true => Ok(()),
            false => node.exec_ok(&["sh", "/lab/node/routes.sh", "calico", &mtu]).map(drop),
        })?;
        Ok(())
    }

    /// Whether a node has the address that [`Lab::move_address`] may give it.
    pub fn has_moved(&self, node: &Node) -> Result<bool> {
        let shown = self.exec_ok(&node.name, &["ip", "-4", "-o", "address", "show", "dev", "vec0"])?;
        Ok(shown.contains(&format!(" {}/", node.other_ip())))
    }

    /// MTU of the nodes' tunnels.
    pub fn tunnel_mtu(&self) -> u32 {
        self.state().tunnel_mtu
    }

    /// Runs a program of this machine in the lab's network namespace and returns what it printed: packet
    /// filters on the bridge's side (`nft`, family bridge), a look at taps.
    pub fn in_network(&self, words: &[&str]) -> Result<String> {
        let (program, arguments) = words.split_first().context("no program named")?;
        output(inside(program).args(arguments))
    }

    /// Starts whatever a scenario stopped and left stopped; says what that was.
    pub fn revive(&self) -> Result<Vec<String>> {
        let mut revived = Vec::new();
        if !self.process(ETCD)?.is_running() {
            self.record(ETCD, control_plane::start_etcd(&self.parts.programs)?)?;
            revived.push("etcd was stopped".to_owned());
        }
        if !self.process(API_SERVER)?.is_running() {
            self.start_api()?;
            revived.push("the API server was stopped".to_owned());
        }
        for node in &self.nodes {
            node.write_boot_id(None)?;
            if !self.process(&node.name)?.is_running() {
                self.power_on(&node.name)?;
                revived.push(format!("{} was off", node.name));
            } else if self.exec(&node.name, &["pgrep", "-x", "kubelet"])?.status != 0 {
                self.start_kubelet(&node.name)?;
                revived.push(format!("the kubelet of {} was stopped", node.name));
            }
            let own = format!("NODE_NAME={}", node.name);
            if self.exec(&node.name, &["grep", "-qx", &own, "/lab/node/environment"])?.status != 0 {
                self.rename(node, node)?;
                revived.push(format!("{} had another name", node.name));
            }
        }
        self.wait_ready(Duration::from_secs(60))?;
        Ok(revived)
    }

    /// Builds the images under test and imports those that changed on all nodes.
    pub fn load_images(&self) -> Result<()> {
        for image in product::images(&self.parts.root)? {
            self.load_image(&image)?;
        }
        Ok(())
    }

    /// Imports one image on all nodes unless it is there unchanged.
    pub fn load_image(&self, image: &crate::images::Image) -> Result<()> {
        let (path, known) = image.write(&images_directory())?;
        if known {
            return Ok(());
        }
        let name = path.file_name().and_then(|n| n.to_str()).context("an image without a name")?.to_owned();
        let imported = self.on_all_nodes(|node| {
            node.exec_ok(&["ctr", "-n", "k8s.io", "images", "import", &format!("/lab/images/{name}")])
        });
        if imported.is_err() {
            // Or the next attempt would take it for imported.
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        imported.with_context(|| format!("importing {}", image.reference))?;
        note(format!("imported {} on all nodes", image.reference));
        Ok(())
    }

    /// Puts a file where every node sees it, and returns its path there.
    pub fn share(&self, file: &Path) -> Result<String> {
        let name = file.file_name().and_then(|name| name.to_str()).context("a file without a name")?;
        fs::copy(file, images_directory().join(name))
            .with_context(|| format!("copying {}", file.display()))?;
        Ok(format!("/lab/images/{name}"))
    }

    /// One line for each part of the lab.
    pub fn status(&self) -> String {
        let mut lines = Vec::new();
        for (name, process) in &self.state().processes {
            let state = if process.is_running() { "running" } else { "stopped" };
            lines.push(format!("{name:26} {state:8} pid {}", process.pid));
        }
        match self.kubectl(&["get", "nodes", "-o", "wide", "--request-timeout=3s"]) {
            Ok(nodes) => lines.push(nodes),
            Err(error) => lines.push(format!("the API server does not answer: {error:#}")),
        }
        lines.join("\n")
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn process(&self, name: &str) -> Result<Recorded> {
        self.state().processes.get(name).cloned().with_context(|| format!("the lab runs no {name}"))
    }

    pub(crate) fn record(&self, name: &str, process: Recorded) -> Result<()> {
        let mut state = self.state();
        state.processes.insert(name.to_owned(), process);
        state.save()
    }
}

/// What a lab is made of, from the cache. What can only be fetched is fetched while Kubernetes is compiled.
pub(crate) fn parts(kubernetes: Kubernetes, with_nodes: bool) -> Result<Parts> {
    let release = kubernetes.release();
    thread::scope(|scope| {
        let programs = scope.spawn(|| Programs::get(release, with_nodes));
        let (kernel, root) = if with_nodes {
            (Kernel::get()?, rootfs::get(release.node_suite)?)
        } else {
            (Kernel { program: PathBuf::new(), modules: PathBuf::new() }, PathBuf::new())
        };
        let programs = programs.join().map_err(|_| anyhow!("the thread that gets Kubernetes failed"))??;
        Ok(Parts { kernel, root, programs })
    })
}

pub(crate) fn images_directory() -> PathBuf {
    Place::here().directory().join("images")
}

fn is_ready(node: &Value) -> bool {
    node["status"]["conditions"]
        .as_array()
        .is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}
