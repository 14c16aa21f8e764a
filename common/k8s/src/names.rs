//! Names of the objects in the cluster: MKE's, so that its manifest works with our programs.

/// Group of the custom resources.
pub const GROUP: &str = "secureoverlay.io";
/// Namespace of everything that has one.
pub const NAMESPACE: &str = "kube-system";
/// The Secret with the key ring.
pub const SECRET: &str = "ucp-secureoverlay";
/// The Secret's entry that holds the ring.
pub const SECRET_KEY: &str = "keys";
/// The DaemonSet of the agents.
pub const DAEMON_SET: &str = "ucp-secureoverlay-agent";
/// The label of the agents' Pods; its value is [`DAEMON_SET`].
pub const AGENT_LABEL: &str = "k8s-app";
/// Nodes with this label set to [`EXCLUDED`] take no part. Kubelets can't set labels with this prefix on themselves.
pub const EXCLUDE_LABEL: &str = "node-restriction.kubernetes.io/secureoverlay";
/// The value of [`EXCLUDE_LABEL`].
pub const EXCLUDED: &str = "disabled";
/// Annotation of the Secret, with any value: an operator wants a rotation now. The write that starts it takes it off. Only
/// for managers that are not asked by KeyRotations, as under MKE's manifest.
pub const ROTATE: &str = "secureoverlay.io/rotate";
/// Where Calico writes the address that its tunnels use, with the prefix length of its network.
pub const CALICO_ADDRESS: &str = "projectcalico.org/IPv4Address";
/// The label with the node's operating system.
pub const OS_LABEL: &str = "kubernetes.io/os";
