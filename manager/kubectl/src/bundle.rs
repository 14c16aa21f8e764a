//! `support-bundle`: what those need who help.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
};

use anyhow::Context;
use secureoverlay_kubectl_core::{
    Exit,
    assess::{Assessment, Effect},
    bundle::{Content, redact},
    history, nodes, screen,
    snapshot::{AGENT, Cleaned, MANAGER, Pod, Read, Snapshot},
    table::Style,
    text::{clean, plural},
    version::Versions,
};
use serde_json::Value;

use crate::{
    api::{Api, Kind},
    cli::BundleArgs,
    fetch,
    output::print,
};

/// An object as it came, cleaned.
struct Raw(Cleaned);

impl Read for Raw {
    fn read(object: Cleaned) -> Self {
        Self(object)
    }
}

/// Writes the tar. A finding where something could not be read; the bundle says what.
pub async fn write(api: &Api, args: &BundleArgs) -> anyhow::Result<Exit> {
    let (snapshot, assessment) = fetch::assessed(api).await;
    let file = args.file.clone().unwrap_or_else(|| {
        PathBuf::from(snapshot.now.strftime("secureoverlay-%Y%m%dT%H%M%SZ.tar").to_string())
    });
    let failed = || format!("failed to write {}", file.display());
    // What is in it is for those who help, and never overwrites anything.
    let out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file).with_context(failed)?;
    let result = fill(api, args, &snapshot, &assessment, out).await;
    if result.is_err() {
        drop(fs::remove_file(&file));
    }
    let missing = result.with_context(failed)?;
    let note = if missing == 0 {
        String::new()
    } else {
        format!(", without {} (errors.txt names them)", plural(missing, "part"))
    };
    print(&format!(
        "{} is written{note}\nIt holds names, addresses, public keys and logs, and no key.\n",
        file.display()
    ))?;
    Ok(if missing == 0 { Exit::Good } else { Exit::Finding })
}

/// Writes all files; how many could not be read.
async fn fill(
    api: &Api,
    args: &BundleArgs,
    snapshot: &Snapshot,
    assessment: &Assessment,
    out: File,
) -> anyhow::Result<usize> {
    let mut tar = Tar {
        archive: tar::Builder::new(out),
        time: snapshot.now.as_second().unsigned_abs(),
        errors: Vec::new(),
    };
    let style = Style::default();
    tar.add("status.txt", &screen::screen(snapshot, assessment, style))?;
    tar.add("nodes.txt", &nodes::text(&nodes::rows(snapshot, assessment, false).0, true))?;
    tar.add("version.txt", &Versions::of(snapshot, env!("CARGO_PKG_VERSION")).text())?;
    if let Ok(rotations) = &snapshot.rotations {
        tar.add("history.txt", &history::history(rotations, snapshot.now, true).0)?;
    }
    let agents = format!("k8s-app={AGENT}");
    let managers = format!("app={MANAGER}");
    for (name, kind, content, selector) in [
        ("clusterencryptions", Kind::ClusterEncryption, Content::Ours, ""),
        ("keyrotations", Kind::KeyRotation, Content::Ours, ""),
        ("nodeencryptions", Kind::NodeEncryption, Content::Ours, ""),
        ("encryptionpeers", Kind::EncryptionPeer, Content::Ours, ""),
        ("nodes", Kind::Node, Content::Node, ""),
        ("daemonsets", Kind::DaemonSet, Content::Workload, agents.as_str()),
        ("deployments", Kind::Deployment, Content::Workload, managers.as_str()),
        ("pods-agents", Kind::Pod, Content::Workload, agents.as_str()),
        ("pods-manager", Kind::Pod, Content::Workload, managers.as_str()),
        ("events", Kind::Event, Content::Event, ""),
        ("events-cluster", Kind::ClusterEvent, Content::Event, ""),
    ] {
        match api.list::<Raw>(kind, selector).await {
            Ok(objects) => {
                let objects = objects.into_iter().map(|Raw(object)| redact(content, object));
                let kept: Vec<Value> =
                    objects.filter(|object| content != Content::Event || is_ours(object)).collect();
                let text = serde_json::to_string_pretty(&kept).context("writing JSON")?;
                tar.add(&format!("objects/{name}.json"), &text)?;
            }
            Err(error) => tar.errors.push(error),
        }
    }
    for pod in pods(snapshot, assessment, args.agents) {
        for previous in [false, true] {
            if previous && pod.restarts == 0 {
                continue;
            }
            let suffix = if previous { "-previous" } else { "" };
            match api.log(&pod.name, previous).await {
                Ok(log) => tar.add(&format!("logs/{}{suffix}.log", pod.name), &log)?,
                // Kubelets keep few logs of containers that ended.
                Err(_) if previous => {}
                Err(error) => tar.errors.push(format!("{}: {error:#}", pod.name)),
            }
        }
    }
    tar.end()
}

/// An Event about an object of ours, or by one of our programs.
fn is_ours(event: &Value) -> bool {
    let ours = |value: &Value| value.as_str().is_some_and(|text| text.contains("secureoverlay"));
    ["/involvedObject/name", "/involvedObject/apiVersion", "/reportingComponent", "/source/component"]
        .iter()
        .any(|pointer| event.pointer(pointer).is_some_and(ours))
}

/// Whose logs are taken: the manager's, and of the agents those of nodes with the worst issues first.
fn pods<'s>(snapshot: &'s Snapshot, assessment: &Assessment, most: usize) -> Vec<&'s Pod> {
    let mut agents: Vec<&Pod> = snapshot.agents.as_deref().unwrap_or_default().iter().collect();
    agents.sort_by_key(|pod| {
        let worst = assessment.of_node(&pod.node).map(|issue| issue.effect).min().unwrap_or(Effect::Note);
        (pod.ready, worst, &pod.name)
    });
    let managers = snapshot.managers.as_deref().unwrap_or_default().iter();
    managers.chain(agents.into_iter().take(most)).collect()
}

struct Tar {
    archive: tar::Builder<File>,
    time: u64,
    errors: Vec<String>,
}

impl Tar {
    fn add(&mut self, name: &str, text: &str) -> anyhow::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.time);
        let path = format!("secureoverlay/{name}");
        self.archive
            .append_data(&mut header, &path, text.as_bytes())
            .with_context(|| format!("adding {path}"))
    }

    fn end(mut self) -> anyhow::Result<usize> {
        self.errors.dedup();
        let errors: String = self.errors.iter().map(|error| format!("{}\n", clean(error))).collect();
        self.add("errors.txt", &errors)?;
        self.archive.into_inner().and_then(|mut file| file.flush()).context("finishing the tar")?;
        Ok(self.errors.len())
    }
}
