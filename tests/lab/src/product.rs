//! The images under test: our own programs, built static, and what tests need beside them.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::images::{Entry, Image};
use crate::interface::{agent, manager};
use crate::progress::{Stage, stage};
use crate::run::{counted, output};

/// Version of the images that the manifests name.
pub const VERSION: &str = "0.1.0";
/// Version of the same programs under another name, for upgrades.
pub const NEXT_VERSION: &str = "0.1.1";

/// The manager's repository.
pub const MANAGER: &str = "docker.io/secureoverlay/ucp-secureoverlay-mgr";
/// The agent's repository.
pub const AGENT: &str = "docker.io/secureoverlay/ucp-secureoverlay-agent";
/// The prober's repository.
pub const PROBER: &str = "docker.io/secureoverlay/prober";

/// The plugin of kubectl, beside the manager in its image.
pub const PLUGIN: &str = "kubectl-secureoverlay";

/// Short intervals, so that the lab shows in seconds what takes hours in a data centre; the manifests that
/// ship need not be changed for it.
const MANAGER_ENV: &[(&str, &str)] = &[
    // The lab's kubelets bring a mounted Secret up to date within 5 s.
    (manager::PROPAGATION_DELAY, "10s"),
    (manager::POLL_INTERVAL, "1s"),
];
const AGENT_ENV: &[(&str, &str)] = &[
    (agent::RESYNC, "5s"),
    // Tunnels have Calico's default MTU here, and probes are small.
    (agent::MTU_POLICY, "warn"),
];

/// Where another process of the lab has built the programs already.
pub const PROGRAMS_VARIABLE: &str = "SECUREOVERLAY_LAB_PROGRAMS";

const TARGET: &str = "x86_64-unknown-linux-gnu";
const FLAGS: &str = "-C target-feature=+crt-static --cfg getrandom_backend=\"linux_getrandom\"";

/// The image that containerd holds a pod's namespaces with.
pub fn pause(root: &Path) -> Image {
    Image {
        reference: "docker.io/secureoverlay/pause:lab".into(),
        content: vec![("busybox".into(), Entry::File(busybox(root)))],
        // Process 1 of a container ends at SIGTERM only if it asks to.
        entrypoint: [
            "/busybox",
            "sh",
            "-c",
            "trap 'exit 0' TERM; while :; do /busybox sleep 1000000 & wait; done",
        ]
        .map(String::from)
        .to_vec(),
        ..Image::default()
    }
}

/// Builds the programs and describes their images.
pub fn images(root: &Path) -> Result<Vec<Image>> {
    let programs = programs()?;
    let manager = Image {
        reference: format!("{MANAGER}:{VERSION}"),
        content: ["ucp-secureoverlay-mgr", PLUGIN]
            .map(|program| (program.to_owned(), Entry::File(programs.join(program))))
            .to_vec(),
        entrypoint: vec!["/ucp-secureoverlay-mgr".into()],
        env: environment(MANAGER_ENV),
        user: "65532:65532".into(),
    };
    let agent = Image {
        reference: format!("{AGENT}:{VERSION}"),
        content: vec![(
            "ucp-secureoverlay-agent".into(),
            Entry::File(programs.join("ucp-secureoverlay-agent")),
        )],
        entrypoint: vec!["/ucp-secureoverlay-agent".into()],
        env: environment(AGENT_ENV),
        user: String::new(),
    };
    let mut content = vec![
        ("tmp".into(), Entry::Directory),
        ("prober".into(), Entry::File(programs.join("secureoverlay-prober"))),
        ("bin/busybox".into(), Entry::File(busybox(root))),
    ];
    for applet in output(Command::new(busybox(root)).arg("--list"))?.lines().filter(|a| *a != "busybox") {
        content.push((format!("bin/{applet}"), Entry::Link("busybox".into())));
    }
    let prober = Image {
        reference: format!("{PROBER}:{VERSION}"),
        content,
        entrypoint: vec!["/prober".into()],
        env: vec!["PATH=/bin".into()],
        user: String::new(),
    };
    let next = [
        manager.derive(&format!("{MANAGER}:{NEXT_VERSION}"), &[]),
        agent.derive(&format!("{AGENT}:{NEXT_VERSION}"), &[]),
    ];
    Ok([manager, agent, prober].into_iter().chain(next).collect())
}

fn environment(variables: &[(&str, &str)]) -> Vec<String> {
    variables.iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// Where our programs are, for use on this machine; built once.
pub fn programs() -> Result<PathBuf> {
    static PROGRAMS: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    if programs.is_none() {
        *programs = Some(env::var_os(PROGRAMS_VARIABLE).map(PathBuf::from).map_or_else(build, Ok)?);
    }
    programs.clone().context("the programs were not built")
}

fn busybox(root: &Path) -> PathBuf {
    root.join("usr/bin/busybox")
}

/// What is in the images.
const PACKAGES: [&str; 4] =
    ["secureoverlay-manager", "secureoverlay-agent", "secureoverlay-kubectl", "secureoverlay-prober"];

/// Builds our programs without any library that an image from scratch lacks.
fn build() -> Result<PathBuf> {
    let step = stage("building the static programs", "4 min the first time, then 20 s");
    let programs = static_build(&step, &PACKAGES, &[])?;
    step.done();
    Ok(programs)
}

/// Builds the program that measures, and returns its path. What is measured is optimised as in a release: the agent's code
/// here, the ciphers and netlink by the profile; what they do not call is taken from the other programs' build.
pub fn bench() -> Result<PathBuf> {
    let step = stage("building the bench", "3 min the first time");
    let measured =
        ["secureoverlay-agent", "secureoverlay-agent-core", "secureoverlay-keyring", "secureoverlay-bench"];
    // All at once: for fewer, dependencies would be built again with fewer features.
    let packages: Vec<&str> = PACKAGES.into_iter().chain(["secureoverlay-bench"]).collect();
    let programs = static_build(&step, &packages, &measured)?;
    step.done();
    Ok(programs.join("secureoverlay-bench"))
}

/// Builds the program with many agents and the manager for measurements, and returns their directory. Our own code is
/// optimised as in a release; libraries are not.
pub fn rig() -> Result<PathBuf> {
    let given = env::var_os(PROGRAMS_VARIABLE).map(PathBuf::from);
    if let Some(programs) = given.filter(|programs| programs.join("secureoverlay-rig").exists()) {
        return Ok(programs);
    }
    let step = stage("building the rig", "4 min the first time");
    let measured = [
        "secureoverlay-agent",
        "secureoverlay-agent-core",
        "secureoverlay-k8s",
        "secureoverlay-keyring",
        "secureoverlay-manager",
        "secureoverlay-manager-core",
        "secureoverlay-rotation",
        "secureoverlay-rig",
    ];
    let packages: Vec<&str> = PACKAGES.into_iter().chain(["secureoverlay-rig"]).collect();
    let programs = static_build(&step, &packages, &measured)?;
    step.done();
    Ok(programs)
}

/// Builds these packages without any library from outside, and returns the directory of the programs.
///
/// They are optimised less than a release, but for those that are named, in a directory of their own: what changes is built
/// again in seconds, and no other build is waited for.
fn static_build(step: &Stage, packages: &[&str], optimised: &[&str]) -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let directory = target_directory(&cargo, &workspace)?.join("images");
    let mut command = Command::new(&cargo);
    command.current_dir(&workspace).env("RUSTFLAGS", FLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.envs([
        ("CARGO_INCREMENTAL", "1"),
        ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
        ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ]);
    command.args(["build", "--release", "--locked", "--target", TARGET, "--target-dir"]).arg(&directory);
    for package in packages {
        command.args(["--package", package]);
    }
    for package in optimised {
        for setting in ["opt-level=3", "codegen-units=4"] {
            command.arg("--config").arg(format!("profile.release.package.{package}.{setting}"));
        }
    }
    counted(&mut command, step, "crates", None, |line| line.trim_start().starts_with("Compiling "))?;
    Ok(directory.join(TARGET).join("release"))
}

fn target_directory(cargo: &OsStr, workspace: &Path) -> Result<PathBuf> {
    let metadata = output(Command::new(cargo).current_dir(workspace).args([
        "metadata",
        "--no-deps",
        "--format-version=1",
    ]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata).context("reading cargo's metadata")?;
    metadata["target_directory"].as_str().map(PathBuf::from).context("cargo names no target directory")
}
