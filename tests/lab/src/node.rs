//! A node: a guest with containerd and kubelet, and routes as Calico programs them.

use std::fs;
use std::io;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};

use crate::cache;
use crate::cache::kernel::Kernel;
use crate::cache::kubernetes::Programs;
use crate::exec::{self, Request};
use crate::network;
use crate::pki::Pki;
use crate::place::Place;
use crate::process::{self, Recorded};
use crate::run::last_lines;
use crate::state::{Node, State};
use crate::uml::Uml;

/// The scripts that the guest runs; they find what differs between nodes in `/lab/node/environment`.
const BOOT: &str = include_str!("node/boot.sh");
const KUBELET: &str = include_str!("node/kubelet.sh");
const KUBELET_CONFIGURATION: &str = include_str!("node/kubelet.yaml");
const ROUTES: &str = include_str!("node/routes.sh");

/// Memory of a node's guest; it is taken from the host only as it is used.
const MEMORY: &str = "2G";
/// How long a guest may take until its exec server answers.
const BOOT_PATIENCE: Duration = Duration::from_secs(60);

/// What a finished command left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Exit status; 128 + signal for a killed command.
    pub status: i32,
    /// Its output.
    pub stdout: String,
    /// Its messages.
    pub stderr: String,
}

/// What all guests are made from.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The kernel.
    pub kernel: Kernel,
    /// The root file system.
    pub root: PathBuf,
    /// Kubernetes' programs.
    pub programs: Programs,
}

impl Node {
    /// Writes what the guest needs to know into its directory.
    pub fn write_configuration(&self, state: &State, parts: &Parts, pki: &Pki) -> Result<()> {
        let dir = self.directory();
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        pki.kubeconfig(
            &dir.join("kubelet.kubeconfig"),
            &format!("system:node:{}", self.name),
            Some("system:nodes"),
        )?;
        let renamed = self.renamed();
        pki.kubeconfig(
            &dir.join("renamed.kubeconfig"),
            &format!("system:node:{}", renamed.name),
            Some("system:nodes"),
        )?;
        fs::copy(pki.path("ca.crt"), dir.join("ca.crt")).context("copying the authority's certificate")?;
        for (name, text) in [
            ("boot.sh", BOOT),
            ("routes.sh", ROUTES),
            ("kubelet.sh", KUBELET),
            ("kubelet.yaml", KUBELET_CONFIGURATION),
            ("containerd.toml", parts.programs.release.containerd),
        ] {
            fs::write(dir.join(name), text).with_context(|| format!("writing {name}"))?;
        }
        self.write_environment(state, parts)?;
        self.write_cni(state)
    }

    /// The boot ID that the guest has from its next boot on, as far as its kubelet can see; its own if there is none.
    pub fn write_boot_id(&self, boot_id: Option<&str>) -> Result<()> {
        let file = self.directory().join("boot_id");
        match boot_id {
            Some(boot_id) => fs::write(&file, format!("{boot_id}\n")).context("writing a boot ID"),
            None if file.exists() => fs::remove_file(&file).context("removing a boot ID"),
            None => Ok(()),
        }
    }

    /// For the kubelet's `--register-with-taints`.
    pub fn write_taints(&self, taints: &str) -> Result<()> {
        fs::write(self.directory().join("taints"), taints).context("writing a kubelet's taints")
    }

    /// Shell variables for the scripts.
    fn write_environment(&self, state: &State, parts: &Parts) -> Result<()> {
        let peers: Vec<String> = state
            .nodes
            .iter()
            .filter(|peer| peer.index != self.index)
            .map(|peer| format!("{},{}", peer.pod_cidr, peer.ip))
            .collect();
        let kubelet = parts.programs.kubernetes.strip_prefix(cache::directory()?).unwrap_or(Path::new(""));
        let text = format!(
            "NODE_NAME={}\nNODE_INDEX={}\nNODE_IP={}\nTUNNEL_IP={}\nTUNNEL_MTU={}\nPEERS=\"{}\"\nKUBELET=/lab/cache/{}/kubelet\n\
             KUBELET_FLAGS=\"{}\"\n",
            self.name,
            self.index,
            self.ip,
            self.tunnel_ip,
            state.tunnel_mtu,
            peers.join(" "),
            kubelet.display(),
            parts.programs.release.kubelet.join(" ")
        );
        fs::write(self.directory().join("environment"), text).context("writing the node's environment")
    }

    /// Configuration of the pod network: as under Calico a pair of devices and a /32 route for each pod. The MTU is that
    /// of pods which start from now on.
    pub fn write_cni(&self, state: &State) -> Result<()> {
        let network = serde_json::json!({
            "cniVersion": "0.3.1", "name": "pods", "type": "ptp", "ipMasq": false, "mtu": state.tunnel_mtu,
            "ipam": {"type": "host-local", "ranges": [[{
                "subnet": self.pod_cidr,
                "rangeStart": format!("10.244.{}.10", self.index), "rangeEnd": format!("10.244.{}.230", self.index),
            }]], "routes": [{"dst": "0.0.0.0/0"}]},
        });
        let file = self.directory().join("10-pods.conf");
        fs::write(&file, network.to_string()).with_context(|| format!("writing {}", file.display()))
    }

    /// Starts the guest; returns at once.
    pub fn start_guest(&self, parts: &Parts) -> Result<Recorded> {
        let dir = self.directory();
        let mut arguments: Vec<String> = vec!["--hostname".into(), self.name.clone()];
        arguments.extend([
            "--address".into(),
            self.ip.to_string(),
            "--prefix".into(),
            network::PREFIX.to_string(),
        ]);
        arguments.extend(["--gateway".into(), network::HOST.to_string()]);
        let cache = cache::directory()?;
        let modules = parts.kernel.modules.strip_prefix(&cache).context("the kernel is not in the cache")?;
        arguments.extend(["--modules".into(), Path::new("/lab/cache").join(modules).display().to_string()]);
        for (host, guest) in [
            (cache.display().to_string(), "/lab/cache"),
            (dir.display().to_string(), "/lab/node"),
            (Place::here().directory().join("images").display().to_string(), "/lab/images"),
        ] {
            arguments.extend(["--share".into(), format!("{host}:{guest}")]);
        }
        arguments.extend(["--copied".into(), "/etc".into()]);
        for dir in ["/run", "/tmp", "/var/tmp", "/var/lib", "/var/log", "/root", "/opt"] {
            arguments.extend(["--scratch".into(), dir.into()]);
        }
        let words = Uml {
            kernel: &parts.kernel,
            root: &parts.root,
            init: Path::new("/lab/init"),
            memory: MEMORY,
            tap: &self.tap,
            mac: &format!("52:54:00:c8:00:{:02x}", self.index),
            arguments,
            directory: &dir,
        }
        .words();
        process::start(&network::namespace(), &Uml::console(&dir), Path::new(&words[0]), &words[1..])
    }

    /// Waits for a started guest and brings it to the point where kubelet runs.
    pub fn boot(&self, guest: &Recorded) -> Result<()> {
        drop(self.connect(BOOT_PATIENCE, || guest.is_running()).with_context(|| {
            let console = fs::read_to_string(Uml::console(&self.directory())).unwrap_or_default();
            format!("{} does not boot; its console ended with:\n{}\n", self.name, last_lines(&console, 20))
        })?);
        self.exec_ok(&["sh", "/lab/node/boot.sh"]).with_context(|| format!("setting up {}", self.name))?;
        Ok(())
    }

    /// Runs a command in the guest.
    pub fn exec(&self, argv: &[&str]) -> Result<Outcome> {
        let request = Request { argv: argv.iter().map(ToString::to_string).collect(), ..Request::default() };
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let stream = self.connect(Duration::from_secs(2), || true)?;
        let status = exec::run(&stream, &request, None, &mut stdout, &mut stderr)?;
        Ok(Outcome {
            status,
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        })
    }

    /// Runs a command in the guest that must succeed, and returns its output.
    pub fn exec_ok(&self, argv: &[&str]) -> Result<String> {
        let outcome = self.exec(argv)?;
        ensure!(
            outcome.status == 0,
            "{argv:?} on {} failed ({}): {}",
            self.name,
            outcome.status,
            last_lines(&format!("{}{}", outcome.stdout, outcome.stderr), 12)
        );
        Ok(outcome.stdout)
    }

    /// Runs a command in the guest with this process's standard streams.
    pub fn exec_here(&self, argv: &[String]) -> Result<i32> {
        let request = Request { argv: argv.to_vec(), ..Request::default() };
        let stream = self.connect(Duration::from_secs(2), || true)?;
        exec::run(&stream, &request, Some(Box::new(io::stdin())), &mut io::stdout(), &mut io::stderr())
    }

    /// A connection made in the lab's namespace; it stays there when the caller uses it.
    fn connect(&self, patience: Duration, alive: impl FnMut() -> bool + Send) -> Result<TcpStream> {
        let ip = self.ip;
        let connect = move || {
            let path = network::namespace();
            let namespace = fs::File::open(&path).context("there is no lab; `cargo lab up` makes one")?;
            setns(namespace, CloneFlags::CLONE_NEWNET).context("entering the lab's network namespace")?;
            exec::connect(ip, patience, alive)
        };
        // A namespace belongs to a thread: this one is used up by it.
        thread::scope(|scope| scope.spawn(connect).join())
            .map_err(|_| anyhow!("the connecting thread failed"))?
            .with_context(|| format!("reaching {}", self.name))
    }
}
