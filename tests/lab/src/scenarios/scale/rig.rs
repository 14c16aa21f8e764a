//! The processes of the rig: the real manager, measured agents, and light ones, beside a real API server.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::control_plane;
use crate::interface::manager;
use crate::lab::Lab;
use crate::network;
use crate::place::Place;
use crate::process::Recorded;
use crate::product;
use crate::scenarios::cluster::until;
use crate::scenarios::overlay::{NAMESPACE, PATIENCE, manifest};
use crate::wait::wait_until;

/// Agents that hold SAs with every node, each in a process of its own.
pub const MEASURED: u32 = 2;
/// The addresses of all nodes.
const NODES: &str = "10.64.0.0/16";
const AGENT: &str = "ucp-secureoverlay-agent";
const MANAGER: &str = "ucp-secureoverlay-mgr";
const MANAGER_PORT: u16 = 9466;
const FIRST_PORT: u16 = 9500;

/// A bare API server with the rig's processes beside it.
pub struct Rig<'l> {
    pub lab: &'l Lab,
    programs: PathBuf,
    /// Its files, in memory.
    directory: PathBuf,
}

impl<'l> Rig<'l> {
    /// Installs the manifest in a lab without nodes. No process runs yet.
    pub fn new(lab: &'l Lab) -> Result<Self> {
        let (programs, directory) = (product::rig()?, Place::here().memory().join("rig"));
        fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        network::ip(&["route", "add", "local", NODES, "dev", "lo"])?;
        lab.apply_file(&manifest("ucp-secureoverlay.yaml"))?;
        let rig = Self { lab, programs, directory };
        for account in [AGENT, MANAGER] {
            rig.write_kubeconfig(account)?;
        }
        until("the definitions to be served", PATIENCE, || {
            Ok(lab
                .kubectl(&["get", "encryptionpeers,nodeencryptions,clusterencryptions,keyrotations"])
                .is_ok())
        })?;
        Ok(rig)
    }

    fn kubeconfig(&self, account: &str) -> PathBuf {
        self.directory.join(format!("{account}.kubeconfig"))
    }

    /// With a token of the service account, as the pods have.
    fn write_kubeconfig(&self, account: &str) -> Result<()> {
        let token = self.lab.kubectl(&["-n", NAMESPACE, "create", "token", account, "--duration=12h"])?;
        let admin =
            fs::read(control_plane::kubeconfig()).context("reading the administrator's kubeconfig")?;
        let mut config: Value =
            serde_json::from_slice(&admin).context("the administrator's kubeconfig is no JSON")?;
        config["users"][0]["user"] = json!({"token": token.trim()});
        fs::write(self.kubeconfig(account), config.to_string()).context("writing a kubeconfig")
    }

    fn start(&self, name: &str, kubeconfig: &Path, program: &str, words: &[String]) -> Result<Recorded> {
        let program = self.programs.join(program);
        let mut arguments = vec![
            format!("KUBECONFIG={}", kubeconfig.display()),
            format!("{}={}", manager::ROTATION_MODE, manager::ACKNOWLEDGED),
            program.display().to_string(),
        ];
        arguments.extend_from_slice(words);
        let process = control_plane::start(name, Path::new("/usr/bin/env"), &arguments)?;
        self.lab.record(name, process.clone())?;
        Ok(process)
    }

    fn stats_file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.json"))
    }

    /// What a process of the rig has written of itself.
    pub fn stats(&self, name: &str) -> Result<Value> {
        let file = self.stats_file(name);
        let text = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", file.display()))
    }

    /// Makes Nodes and Pods, and goes on sending heartbeats. Says what it has made.
    pub fn objects(&self, name: &str, first: u32, count: u32) -> Result<Value> {
        let words = [
            "objects".to_owned(),
            format!("--first={first}"),
            format!("--count={count}"),
            format!("--stats={}", self.stats_file(name).display()),
        ];
        let process = self.start(name, &control_plane::kubeconfig(), "secureoverlay-rig", &words)?;
        wait_until("Nodes and Pods to be made", Duration::from_secs(600), || {
            anyhow::ensure!(process.is_running(), "{name} ended: see {}", control_plane::log(name).display());
            Ok(self.stats(name).ok())
        })
    }

    /// Starts light agents in one process.
    pub fn light(&self, name: &str, first: u32, count: u32) -> Result<Recorded> {
        let mut words = vec![
            "light".to_owned(),
            format!("--first={first}"),
            format!("--count={count}"),
            format!("--measured={MEASURED}"),
        ];
        words.extend(self.shared(name));
        self.start(name, &self.kubeconfig(AGENT), "secureoverlay-rig", &words)
    }

    /// Starts one measured agent.
    pub fn measured(&self, number: u32) -> Result<Recorded> {
        let name = measured_name(number);
        let mut words =
            vec!["measured".to_owned(), format!("--number={number}"), format!("--port={}", port(number))];
        words.extend(self.shared(&name));
        words.push("--log=info".to_owned());
        self.start(&name, &self.kubeconfig(AGENT), "secureoverlay-rig", &words)
    }

    fn shared(&self, name: &str) -> [String; 2] {
        [
            format!("--states={}", self.directory.join("states").display()),
            format!("--stats={}", self.stats_file(name).display()),
        ]
    }

    /// Starts the manager as its Deployment does.
    pub fn manager(&self) -> Result<Recorded> {
        let words =
            ["--settings=object".to_owned(), format!("--metrics-bind-address=127.0.0.1:{MANAGER_PORT}")];
        self.start(MANAGER, &self.kubeconfig(MANAGER), MANAGER, &words)
    }

    /// Makes a rotation, as an operator does, and waits for its end.
    pub fn rotate(&self) -> Result<()> {
        let program = self.programs.join(MANAGER);
        let program = program.to_str().context("the build directory's path is not text")?;
        let mut command = self.lab.inside_command(program);
        crate::run::quiet(command.env_remove("RUST_BACKTRACE").args(["rotate", "--wait"]))
    }

    /// Whether the manager says that it is ready.
    pub fn manager_is_ready(&self) -> bool {
        page(MANAGER_PORT, "/readyz").is_ok_and(|page| page.contains(" 200 "))
    }

    /// The metrics of a measured agent.
    pub fn metrics(&self, number: u32) -> Result<String> {
        page(port(number), "/metrics")
    }

    /// The summary in the cluster's object.
    pub fn summary(&self) -> Result<Value> {
        Ok(self.lab.kubectl_json(&["get", "clusterencryption", "default"])?["status"]["nodes"].clone())
    }
}

/// Of its process and its files.
pub fn measured_name(number: u32) -> String {
    format!("measured-{number}")
}

fn port(number: u32) -> u16 {
    FIRST_PORT + u16::try_from(number).unwrap_or(0)
}

fn page(port: u16, path: &str) -> Result<String> {
    network::within(|| {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })?
}
