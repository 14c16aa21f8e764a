//! SecureOverlay in the lab: switched on and off as an operator does it, and awaited by what the kernels hold.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::cluster::{kubectl_with, until};
use super::{settings, xfrm};
use crate::lab::Lab;
use crate::scenario::Report;

/// Where all of it lives.
pub const NAMESPACE: &str = "kube-system";
/// What is awaited at most where no scenario says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The agents.
pub const AGENTS: &str = "daemonset/ucp-secureoverlay-agent";
/// The manager.
pub const DEPLOYMENT: &str = "deployment/ucp-secureoverlay-mgr";

/// Which manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manifest {
    /// `manifests/ucp-secureoverlay.yaml`.
    Ours,
    /// `manifests/mke-original.yaml`.
    Mke,
}

/// SecureOverlay, installed by one of the manifests.
#[derive(Clone, Copy, Debug)]
pub struct Overlay<'a> {
    /// The cluster.
    pub lab: &'a Lab,
    manifest: Manifest,
}

/// A file that ships.
pub fn manifest(file: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests")).join(file)
}

impl<'a> Overlay<'a> {
    /// Nothing happens yet.
    pub fn new(lab: &'a Lab, manifest: Manifest) -> Self {
        Self { lab, manifest }
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        manifest(match self.manifest {
            Manifest::Ours => "ucp-secureoverlay.yaml",
            Manifest::Mke => "mke-original.yaml",
        })
    }

    /// `kubectl apply -f` of the file.
    pub fn apply(&self) -> Result<()> {
        self.lab.apply(&self.text()?)?;
        self.apply_settings()
    }

    /// Under our manifest, settings are an object of their own.
    fn apply_settings(&self) -> Result<()> {
        match self.manifest {
            Manifest::Ours => settings::apply(self.lab),
            Manifest::Mke => Ok(()),
        }
    }

    /// `kubectl apply -f` of the file with the images of the next version.
    pub fn apply_upgraded(&self) -> Result<()> {
        let text = self.text()?;
        let upgraded = text.replace(":0.1.0", ":0.1.1");
        ensure!(upgraded != text, "{} names no image of version 0.1.0", self.path().display());
        self.lab.apply(&upgraded)?;
        self.apply_settings()
    }

    /// `kubectl apply -f` of the file with a variable more in every environment.
    pub fn apply_with(&self, variable: &str, value: &str) -> Result<()> {
        self.lab.apply(&self.text_with(&[(variable, value)])?)?;
        self.apply_settings()
    }

    /// The file's text with these variables more in every environment.
    pub fn text_with(&self, variables: &[(&str, &str)]) -> Result<String> {
        let (text, env) = (self.text()?, "        env:\n");
        ensure!(text.matches(env).count() == 2, "{} has other environments", self.path().display());
        let entry =
            |(name, value): &(&str, &str)| format!("        - name: {name}\n          value: {value}\n");
        let more: String = variables.iter().map(entry).collect();
        Ok(text.replace(env, &format!("{env}{more}")))
    }

    /// Sets variables of the manager's environment and waits for its new pod.
    pub fn configure_manager(&self, variables: &[&str]) -> Result<()> {
        self.set_manager(variables)?;
        self.wait_rolled_out()
    }

    /// Sets variables of the agents' environment and waits for their new pods.
    pub fn configure_agents(&self, variables: &[&str]) -> Result<()> {
        self.lab.kubectl(&[&["-n", NAMESPACE, "set", "env", AGENTS], variables].concat())?;
        self.wait_rolled_out()
    }

    /// Sets variables of the manager's environment: it is replaced by and by.
    pub fn set_manager(&self, variables: &[&str]) -> Result<()> {
        self.lab.kubectl(&[&["-n", NAMESPACE, "set", "env", DEPLOYMENT], variables].concat()).map(drop)
    }

    /// Waits until all pods are of the version last applied, and ready.
    pub fn wait_rolled_out(&self) -> Result<()> {
        for what in [AGENTS, DEPLOYMENT] {
            self.lab.kubectl(&["-n", NAMESPACE, "rollout", "status", what, "--timeout=180s"])?;
        }
        Ok(())
    }

    /// Waits until every kernel sends ESP to every other node.
    pub fn wait_encrypting(&self) -> Result<()> {
        let nodes = self.lab.nodes();
        until("every node to encrypt to every other", PATIENCE, || {
            let kernels = xfrm::dump(self.lab)?;
            Ok(nodes.iter().all(|node| xfrm::sends_to_all(&kernels, node, nodes)))
        })
    }

    /// Applies, and waits until everything is up and encrypts.
    pub fn enable(&self) -> Result<()> {
        self.apply()?;
        self.wait_encrypting()?;
        self.wait_rolled_out()
    }

    /// `kubectl delete -f` of the file.
    pub fn delete(&self) -> Result<()> {
        kubectl_with(self.lab, &["delete", "--ignore-not-found", "-f", "-"], &self.text()?).map(drop)
    }

    /// `kubectl delete -f` of the file, and the end of all its pods. Returns how many states and policies of ours
    /// are left in the kernels some time later.
    pub fn disable(&self) -> Result<(usize, usize)> {
        self.delete()?;
        self.wait_ended()?;
        let mut left = (0, 0);
        let clean = || {
            left = xfrm::ours_in(&xfrm::dump(self.lab)?);
            Ok(left == (0, 0))
        };
        // What is left is the caller's to judge.
        drop(until("the kernels to hold nothing of ours", PATIENCE / 6, clean));
        Ok(left)
    }

    /// Waits until all pods have ended.
    pub fn wait_ended(&self) -> Result<()> {
        until("all pods of SecureOverlay to be gone", PATIENCE, || {
            Ok(self.agents()?.is_empty() && self.managers()?.is_empty())
        })
    }

    /// Switches off; nothing may be left.
    pub fn disable_and_check(&self, report: &mut Report) -> Result<()> {
        let (states, policies) = self.disable()?;
        report.check(
            (states, policies) == (0, 0),
            format!("after delete {states} states and {policies} policies left"),
        );
        report.figure("left", states + policies);
        Ok(())
    }

    /// Name and node of each agent's pod.
    pub fn agents(&self) -> Result<Vec<(String, String)>> {
        self.pods("k8s-app=ucp-secureoverlay-agent")
    }

    /// Name and node of the manager's pods.
    pub fn managers(&self) -> Result<Vec<(String, String)>> {
        self.pods("app=ucp-secureoverlay-mgr")
    }

    fn pods(&self, selector: &str) -> Result<Vec<(String, String)>> {
        let pods = self.lab.kubectl_json(&["-n", NAMESPACE, "get", "pods", "-l", selector])?;
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let pod = |pod: &serde_json::Value| (text(&pod["metadata"]["name"]), text(&pod["spec"]["nodeName"]));
        Ok(pods["items"].as_array().into_iter().flatten().map(pod).collect())
    }

    /// The file, with API versions that this cluster serves no more moved to those that took their place.
    pub fn text(&self) -> Result<String> {
        let path = self.path();
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let line = |version: &str| format!("apiVersion: {version}\n");
        Ok(self
            .lab
            .release()
            .moved
            .iter()
            .fold(text, |text, (gone, served)| text.replace(&line(gone), &line(served))))
    }
}
