//! The versions of Kubernetes that the lab knows, and all in which a lab of one differs from a lab of another.

use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{modules, source_package};

/// A version of Kubernetes, as it is asked for and remembered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Kubernetes {
    /// Today's, on today's containerd.
    #[default]
    #[value(name = "1.37")]
    #[serde(rename = "1.37")]
    Current,
    /// The oldest that is supported; it serves the API versions of MKE's manifest.
    #[value(name = "1.20")]
    #[serde(rename = "1.20")]
    Oldest,
}

impl Kubernetes {
    /// What a lab of this version is made of.
    pub fn release(self) -> &'static Release {
        match self {
            Self::Current => &CURRENT,
            Self::Oldest => &OLDEST,
        }
    }
}

/// What a lab of one version is made of, as far as versions differ.
#[derive(Debug)]
pub struct Release {
    /// The version as the programs tell it, without the `v`.
    pub version: &'static str,
    /// Name in the cache of etcd and kubectl.
    pub tools_entry: &'static str,
    /// Debian suite of etcd and kubectl.
    pub tools_suite: &'static str,
    /// The package of it that holds kubectl.
    pub kubectl: &'static str,
    /// Debian suite of the nodes' root file system: its containerd is one that this kubelet speaks to.
    pub node_suite: &'static str,
    /// containerd's configuration file.
    pub containerd: &'static str,
    /// The kubelet's flags beside those that all versions share.
    pub kubelet: &'static [&'static str],
    /// Flags of controller manager and scheduler likewise.
    pub controllers: &'static [&'static str],
    /// API versions that it does not serve any more, and those that have taken their place unchanged.
    pub moved: &'static [(&'static str, &'static str)],
    /// Usual duration of the build, for a person.
    pub estimate: &'static str,
    /// Puts the programs into `bin` of a directory.
    pub build: fn(&Self, &Path) -> Result<()>,
    /// What is built, beside the version: a change is another build.
    pub patches: fn() -> String,
}

impl Release {
    /// Name in the cache of the programs that are built.
    pub fn entry(&self) -> String {
        format!("kubernetes-{}-{}", self.version, (self.patches)())
    }

    /// Whether the long build has been done.
    pub fn is_built(&self) -> Result<bool> {
        Ok(crate::cache::directory()?.join(self.entry()).is_dir())
    }
}

static CURRENT: Release = Release {
    version: modules::VERSION,
    tools_entry: "control-plane-tools-forky",
    tools_suite: "forky",
    kubectl: "kubectl",
    node_suite: "forky",
    containerd: include_str!("../../node/containerd.toml"),
    kubelet: &["--config=/lab/node/kubelet.yaml"],
    controllers: &[],
    moved: &[("rbac.authorization.k8s.io/v1beta1", "rbac.authorization.k8s.io/v1")],
    estimate: "9 min on 2 cores",
    build: modules::build,
    patches: modules::fingerprint,
};

static OLDEST: Release = Release {
    version: source_package::VERSION,
    tools_entry: "control-plane-tools-1",
    tools_suite: "bookworm",
    kubectl: "kubernetes-client",
    node_suite: "trixie",
    containerd: include_str!("../../node/containerd-1.7.toml"),
    kubelet: &[
        "--client-ca-file=/lab/node/ca.crt",
        "--anonymous-auth=false",
        "--authorization-mode=AlwaysAllow",
        "--container-runtime=remote",
        "--container-runtime-endpoint=unix:///run/containerd/containerd.sock",
        "--network-plugin=cni",
        "--cgroup-driver=cgroupfs",
        "--cgroups-per-qos=false",
        "--enforce-node-allocatable=",
        "--fail-swap-on=false",
        "--eviction-hard=",
        "--image-gc-high-threshold=100",
        "--feature-gates=LocalStorageCapacityIsolation=false",
        "--resolv-conf=",
        "--sync-frequency=3s",
        "--volume-plugin-dir=/var/lib/kubelet/volume-plugins",
        "--read-only-port=0",
    ],
    controllers: &["--port=0"],
    moved: &[],
    estimate: "7 min on 2 cores",
    build: source_package::build,
    patches: source_package::patches,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_asked_for_by_the_start_of_its_number() {
        for kubernetes in Kubernetes::value_variants() {
            let name = kubernetes.to_possible_value().unwrap().get_name().to_owned();
            assert!(kubernetes.release().version.starts_with(&format!("{name}.")), "{name}");
            assert_eq!(serde_json::to_value(kubernetes).unwrap(), name);
        }
    }

    #[test]
    fn versions_share_nothing_in_the_cache_but_by_intention() {
        assert_ne!(CURRENT.entry(), OLDEST.entry());
        assert_ne!(CURRENT.tools_entry, OLDEST.tools_entry);
        assert_ne!(CURRENT.node_suite, OLDEST.node_suite);
    }
}
