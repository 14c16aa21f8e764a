//! Names of the objects in the cluster: MKE's, so that its manifest works with our programs.

/// Namespace of everything.
pub const NAMESPACE: &str = "kube-system";
/// The Secret with the key ring.
pub const SECRET: &str = "ucp-secureoverlay";
/// The Secret's entry that holds the ring.
pub const SECRET_KEY: &str = "keys";
/// The DaemonSet of the agents.
pub const DAEMON_SET: &str = "ucp-secureoverlay-agent";
/// Nodes with this label set to `true` take no part. Kubelets can't set labels with this prefix on themselves.
pub const EXCLUDE_LABEL: &str = "node-restriction.kubernetes.io/secureoverlay-exclude";
/// Where Calico writes the address that its tunnels use, with the prefix length of its network.
pub const CALICO_ADDRESS: &str = "projectcalico.org/IPv4Address";
/// The label with the node's operating system.
pub const OS_LABEL: &str = "kubernetes.io/os";
/// Annotation of the Secret, with any value: somebody wants a rotation now. The write that starts it takes it off.
pub const ROTATE: &str = "secureoverlay.io/rotate";
/// Annotation of the Secret: while `true`, the rotation under way goes on without the nodes that it waits for, as does
/// the way to "off". The write that ends either takes it off.
pub const PRESS_ON: &str = "secureoverlay.io/press-on";
/// Annotation of the Secret: `permissive`, `enforcing` or `off`, which counts instead of what the manager was started
/// with for as long as it is there.
pub const ENFORCE: &str = "secureoverlay.io/enforce";
