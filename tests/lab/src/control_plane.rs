//! etcd and Kubernetes' control plane, as processes in the lab's namespace.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache::kubernetes::Programs;
use crate::network::{self, inside};
use crate::pki::Pki;
use crate::place::Place;
use crate::process::{self, Recorded};
use crate::run::{last_lines, output};
use crate::wait::wait_until;

/// Name of the API server's process in the lab's state.
pub const API_SERVER: &str = "kube-apiserver";

/// Name of etcd's process in the lab's state.
pub const ETCD: &str = "etcd";

/// Where etcd's data is.
pub fn etcd_data() -> PathBuf {
    Place::here().memory().join("etcd")
}

/// The administrator's kubeconfig.
pub fn kubeconfig() -> PathBuf {
    Place::here().directory().join("kubeconfig")
}

/// Log of a process of the control plane.
pub fn log(name: &str) -> PathBuf {
    Place::here().directory().join("logs").join(format!("{name}.log"))
}

fn pki_file(name: &str) -> String {
    Place::here().directory().join("pki").join(name).display().to_string()
}

/// Starts a process of the control plane.
pub fn start(name: &str, program: &Path, arguments: &[String]) -> Result<Recorded> {
    fs::create_dir_all(Place::here().directory().join("logs")).context("making the log directory")?;
    process::start(&network::namespace(), &log(name), program, arguments)
}

/// Starts etcd; its data is in memory.
pub fn start_etcd(programs: &Programs) -> Result<Recorded> {
    let data = etcd_data();
    fs::create_dir_all(&data).with_context(|| format!("creating {}", data.display()))?;
    start(
        ETCD,
        &programs.etcd,
        &[
            format!("--data-dir={}", data.display()),
            "--listen-client-urls=http://127.0.0.1:2379".into(),
            "--advertise-client-urls=http://127.0.0.1:2379".into(),
            "--listen-peer-urls=http://127.0.0.1:2380".into(),
            "--logger=zap".into(),
        ],
    )
}

/// Starts the API server.
pub fn start_api_server(programs: &Programs) -> Result<Recorded> {
    let arguments = [
        "--etcd-servers=http://127.0.0.1:2379".into(),
        "--bind-address=0.0.0.0".into(),
        "--secure-port=443".into(),
        format!("--advertise-address={}", network::HOST),
        format!("--service-cluster-ip-range={}", network::SERVICES),
        "--authorization-mode=Node,RBAC".into(),
        "--allow-privileged=true".into(),
        format!("--client-ca-file={}", pki_file("ca.crt")),
        format!("--tls-cert-file={}", pki_file("apiserver.crt")),
        format!("--tls-private-key-file={}", pki_file("apiserver.key")),
        format!("--service-account-key-file={}", pki_file("sa.pub")),
        format!("--service-account-signing-key-file={}", pki_file("sa.key")),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--kubelet-client-certificate={}", pki_file("kubelet-client.crt")),
        format!("--kubelet-client-key={}", pki_file("kubelet-client.key")),
        "--kubelet-preferred-address-types=InternalIP".into(),
    ];
    start(API_SERVER, &programs.api_server, &arguments)
}

/// Waits until the API server says that it is ready.
pub fn wait_for_api_server(programs: &Programs, process: &Recorded) -> Result<()> {
    wait_until("the API server to be ready", Duration::from_secs(60), || {
        anyhow::ensure!(
            process.is_running(),
            "the API server ended: {}",
            last_lines(&fs::read_to_string(log(API_SERVER)).unwrap_or_default(), 10)
        );
        let ready =
            output(inside(&programs.kubectl).arg(format!("--kubeconfig={}", kubeconfig().display())).args([
                "get",
                "--raw=/readyz",
                "--request-timeout=2s",
            ]));
        Ok(ready.is_ok_and(|answer| answer.trim() == "ok").then_some(()))
    })
}

/// Starts the controller manager.
pub fn start_controller_manager(programs: &Programs, pki: &Pki) -> Result<Recorded> {
    let name = "kube-controller-manager";
    let config = Place::here().directory().join("controller-manager.kubeconfig");
    pki.kubeconfig(&config, "system:kube-controller-manager", None)?;
    start_controller(
        programs,
        name,
        &[
            format!("--kubeconfig={}", config.display()),
            "--leader-elect=false".into(),
            "--use-service-account-credentials=true".into(),
            format!("--service-account-private-key-file={}", pki_file("sa.key")),
            format!("--root-ca-file={}", pki_file("ca.crt")),
            // A node that says nothing is not ready after 25 s instead of 40; its kubelet says something every 10 s.
            "--node-monitor-period=2s".into(),
            "--node-monitor-grace-period=25s".into(),
            format!("--cert-dir={}", Place::here().memory().join(name).display()),
        ],
    )
}

/// Starts the scheduler.
pub fn start_scheduler(programs: &Programs, pki: &Pki) -> Result<Recorded> {
    let name = "kube-scheduler";
    let config = Place::here().directory().join("scheduler.kubeconfig");
    pki.kubeconfig(&config, "system:kube-scheduler", None)?;
    start_controller(
        programs,
        name,
        &[
            format!("--kubeconfig={}", config.display()),
            "--leader-elect=false".into(),
            format!("--cert-dir={}", Place::here().memory().join(name).display()),
        ],
    )
}

fn start_controller(programs: &Programs, name: &str, arguments: &[String]) -> Result<Recorded> {
    let more = programs.release.controllers.iter().map(ToString::to_string);
    let arguments: Vec<String> = arguments.iter().cloned().chain(more).collect();
    start(name, &programs.kubernetes.join(name), &arguments)
}
