//! Bringing a lab up, and removing it whatever state it is in.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use crate::interface::CALICO_ADDRESS;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::cache::kubernetes::Kubernetes;
use crate::cache::rootfs;
use crate::control_plane::{self, API_SERVER, ETCD};
use crate::host;
use crate::lab::{self, Lab, TUNNEL_MTU};
use crate::network;
use crate::pki::Pki;
use crate::place::Place;
use crate::process;
use crate::product;
use crate::progress::{note, stage};
use crate::state::{self, Lock, Node, State};
use crate::wait::wait_until;

impl Lab {
    /// Makes a lab; what is left of an earlier one that did not come up, or crashed, is removed first.
    pub fn up(_lock: &Lock, nodes: u8, kubernetes: Kubernetes) -> Result<Self> {
        host::must_be_able_to_run_guests()?;
        host::must_be_large_enough(nodes, 1, kubernetes.release())?;
        host::install_tools()?;
        ensure!(Self::attach()?.is_none(), "there is a lab already; `cargo lab down` removes it");
        let place = Place::here();
        remove(place)?;
        let parts = lab::parts(kubernetes, nodes > 0)?;
        let version = kubernetes.release().version;
        let step = stage(format!("starting a cluster of {nodes} nodes, Kubernetes {version}"), "30 s");
        let state = State {
            boot_id: state::boot_id()?,
            nodes: (1..=nodes).map(Node::new).collect(),
            kubernetes,
            tunnel_mtu: TUNNEL_MTU,
            ..State::default()
        };
        state.save()?;
        let lab = Self { nodes: state.nodes.clone(), parts, state: Mutex::new(state) };
        if let Err(error) = lab.bring_up() {
            let directory = place.directory();
            note(format!(
                "it did not come up; the logs are kept in {} until the next `up` or `down`",
                directory.display()
            ));
            stop_processes(place);
            return Err(error);
        }
        step.done();
        Ok(lab)
    }

    /// Makes a lab, and builds the programs under test meanwhile, which takes minutes the first time.
    pub fn up_with_programs(lock: &Lock, nodes: u8, kubernetes: Kubernetes) -> Result<Self> {
        thread::scope(|scope| {
            // What can't be built is an error of the first that needs it.
            let programs =
                scope.spawn(|| product::programs().inspect_err(|error| note(format!("{error:#}"))));
            let up = Self::up(lock, nodes, kubernetes);
            drop(programs.join());
            up
        })
    }

    fn bring_up(&self) -> Result<()> {
        network::create(&self.nodes)?;
        let pki = Pki::create(&Place::here().directory().join("pki"))?;
        pki.kubeconfig(&control_plane::kubeconfig(), "lab-admin", Some("system:masters"))?;
        let programs = &self.parts.programs;
        self.record(ETCD, control_plane::start_etcd(programs)?)?;
        self.record(API_SERVER, control_plane::start_api_server(programs)?)?;
        if self.nodes.is_empty() {
            return self.finish_up(&pki);
        }
        install_init(&self.parts.root)?;
        product::pause(&self.parts.root).write(&lab::images_directory())?;
        // The guests boot while the API server starts; kubelet tries again until it answers.
        for node in &self.nodes {
            node.write_configuration(&self.state(), &self.parts, &pki)?;
            self.record(&node.name, node.start_guest(&self.parts)?)?;
        }
        let guests = self.state().processes.clone();
        self.on_all_nodes(|node| node.boot(&guests[&node.name]))?;
        self.finish_up(&pki)
    }

    fn finish_up(&self, pki: &Pki) -> Result<()> {
        let programs = &self.parts.programs;
        let api_server = self.process(API_SERVER)?;
        control_plane::wait_for_api_server(programs, &api_server)?;
        if !self.nodes.is_empty() {
            let process = control_plane::start_controller_manager(programs, pki)?;
            self.record("kube-controller-manager", process)?;
            self.record("kube-scheduler", control_plane::start_scheduler(programs, pki)?)?;
        }
        self.nodes.iter().try_for_each(|node| self.introduce(node))?;
        self.wait_ready(Duration::from_secs(120))?;
        let mut state = self.state();
        state.complete = true;
        state.save()
    }

    /// Adds to a Node object what Calico would.
    pub fn introduce(&self, node: &Node) -> Result<()> {
        let patch = json!({
            "metadata": {"annotations": {
                CALICO_ADDRESS: node.calico_address(),
                "projectcalico.org/IPv4IPIPTunnelAddr": node.tunnel_ip.to_string(),
            }},
            "spec": {"podCIDR": node.pod_cidr, "podCIDRs": [node.pod_cidr]},
        });
        wait_until(&format!("{} to register", node.name), Duration::from_secs(60), || {
            Ok(self.kubectl(&["patch", "node", &node.name, "-p", &patch.to_string()]).ok())
        })?;
        Ok(())
    }

    /// Removes the lab.
    pub fn down(self, _lock: &Lock) -> Result<()> {
        remove(Place::here())
    }
}

/// Removes whatever there is of a lab, running or crashed.
pub fn remove(place: &Place) -> Result<()> {
    stop_processes(place);
    let left = process::in_namespace(&place.namespace());
    if !left.is_empty() {
        bail!("processes of the lab do not end: {:?}", left.iter().map(|p| p.pid).collect::<Vec<_>>());
    }
    network::remove(place)?;
    for directory in [place.memory(), place.directory()] {
        if directory.exists() {
            fs::remove_dir_all(&directory).with_context(|| format!("removing {}", directory.display()))?;
        }
    }
    Ok(())
}

fn stop_processes(place: &Place) {
    // What is recorded, and whatever else lives in the lab's own network namespace: a crash may have come
    // between a start and its record.
    let recorded = State::load(place).ok().flatten().map(|s| s.processes.into_values().collect::<Vec<_>>());
    for process in recorded.unwrap_or_default() {
        process.signal(Signal::SIGKILL);
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = process::in_namespace(&place.namespace());
        if left.is_empty() || Instant::now() > deadline {
            return;
        }
        for process in left {
            process.signal(Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Puts this program into the guests' root, where it is their process 1.
fn install_init(root: &Path) -> Result<()> {
    let from = std::env::current_exe().context("finding this program")?;
    let to = root.join(rootfs::MOUNTS).join("init");
    let partial = to.with_extension(format!("partial-{}", std::process::id()));
    fs::copy(&from, &partial).with_context(|| format!("copying this program to {}", partial.display()))?;
    fs::rename(&partial, &to).with_context(|| format!("replacing {}", to.display()))
}
