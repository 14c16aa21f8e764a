//! What of the product's outside the lab goes by: variables, metrics, files. A test finds each in the product's sources,
//! because a variable that no program reads and a metric that no program has would go unnoticed for minutes.

/// Variables of the manager's environment.
pub mod manager {
    /// What a rotation waits for: [`ACKNOWLEDGED`] or [`TIMED`].
    pub const ROTATION_MODE: &str = "SECUREOVERLAY_ROTATION_MODE";
    /// By acknowledgements.
    pub const ACKNOWLEDGED: &str = "acknowledged";
    /// By time.
    pub const TIMED: &str = "timed";
    /// Within which every node has followed, in timed rotations.
    pub const PROPAGATION_DELAY: &str = "SECUREOVERLAY_PROPAGATION_DELAY";
    /// How long nodes that are not Ready are waited for.
    pub const NOT_READY_TIMEOUT: &str = "SECUREOVERLAY_NOT_READY_TIMEOUT";
    /// The taint that is removed from nodes that encrypt.
    pub const STARTUP_TAINT: &str = "SECUREOVERLAY_STARTUP_TAINT";
    /// Between two looks at the Secret.
    pub const POLL_INTERVAL: &str = "SECUREOVERLAY_POLL_INTERVAL";
}

/// Variables of the agents' environment.
pub mod agent {
    /// Between two comparisons of the kernel with the plan.
    pub const RESYNC: &str = "SECUREOVERLAY_RESYNC_INTERVAL";
    /// Whether a tunnel without room for ESP blocks or warns.
    pub const MTU_POLICY: &str = "SECUREOVERLAY_MTU_POLICY";
    /// Packets that an SA may carry.
    pub const SOFT_PACKET_LIMIT: &str = "SECUREOVERLAY_SOFT_PACKET_LIMIT";
    /// Bytes that an SA may carry.
    pub const SOFT_BYTE_LIMIT: &str = "SECUREOVERLAY_SOFT_BYTE_LIMIT";
}

/// The variable of both that says what is logged.
pub const LOG: &str = "SECUREOVERLAY_LOG";

/// Metrics, with the prefix of the program that has them.
pub mod metric {
    /// 1 while the ring that the agent reads is one.
    pub const AGENT_RING_VALID: &str = "secureoverlay_agent_ring_valid";
    /// The same, of the manager.
    pub const MANAGER_RING_VALID: &str = "secureoverlay_manager_ring_valid";
    /// What stands in the way in the kernel.
    pub const FINDINGS: &str = "secureoverlay_agent_findings";
    /// Changes that the kernel refused.
    pub const FAILED_CHANGES: &str = "secureoverlay_agent_failed_changes_total";
    /// 1 while the tunnel's MTU leaves room.
    pub const MTU_VALID: &str = "secureoverlay_agent_mtu_valid";
    /// The largest MTU of the tunnel, by the label `rule`.
    pub const MTU_LIMIT: &str = "secureoverlay_agent_tunnel_mtu_limit_bytes";
    /// Pairs of the node that no SA of the active generation is proven for.
    pub const UNPROVEN_PAIRS: &str = "secureoverlay_agent_unproven_pairs";
}

/// The label of Nodes that take no part, set to [`EXCLUDED`].
pub const EXCLUDE_LABEL: &str = "node-restriction.kubernetes.io/secureoverlay";
/// Its value.
pub const EXCLUDED: &str = "disabled";
/// Where Calico writes the address that its tunnels use, with the prefix length of its network.
pub const CALICO_ADDRESS: &str = "projectcalico.org/IPv4Address";

/// The directory on every node that outlives the agent.
pub const STATE_DIRECTORY: &str = "/run/secureoverlay";
/// The file with the instance and the private key.
pub const IDENTITY: &str = "/run/secureoverlay/identity";
/// The file with what was applied and announced.
pub const STATE: &str = "/run/secureoverlay/state";
/// The file with the outbound keys that the kernel may have been given.
pub const JOURNAL: &str = "/run/secureoverlay/journal";

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// All sources below a directory of the project, tests included.
    fn sources(directory: &Path, into: &mut String) {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                sources(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                into.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }

    fn of(directories: &[&str]) -> String {
        let mut text = String::new();
        for directory in directories {
            sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(directory), &mut text);
        }
        text
    }

    #[test]
    fn names_are_those_of_the_product() {
        let (manager, agent) = (of(&["manager/src", "common"]), of(&["agent", "common"]));
        let quoted = |name: &str| format!("\"{name}\"");
        let named = [
            (&manager, &[manager::ROTATION_MODE, manager::PROPAGATION_DELAY][..]),
            (&manager, &[manager::NOT_READY_TIMEOUT, manager::STARTUP_TAINT, LOG][..]),
            (&manager, &[manager::POLL_INTERVAL][..]),
            (
                &agent,
                &[agent::RESYNC, agent::MTU_POLICY, agent::SOFT_PACKET_LIMIT, agent::SOFT_BYTE_LIMIT, LOG][..],
            ),
            (&agent, &[EXCLUDE_LABEL, CALICO_ADDRESS][..]),
        ];
        for (text, names) in named {
            for name in names {
                assert!(text.contains(&quoted(name)), "no program reads {name}");
            }
        }
        for (text, prefix, names) in [
            (&manager, "secureoverlay_manager_", &[metric::MANAGER_RING_VALID][..]),
            (
                &agent,
                "secureoverlay_agent_",
                &[metric::AGENT_RING_VALID, metric::FINDINGS, metric::MTU_VALID][..],
            ),
            (
                &agent,
                "secureoverlay_agent_",
                &[metric::FAILED_CHANGES, metric::MTU_LIMIT, metric::UNPROVEN_PAIRS][..],
            ),
        ] {
            for name in names {
                // The encoder adds unit and kind.
                let own =
                    name.strip_prefix(prefix).unwrap().trim_end_matches("_total").trim_end_matches("_bytes");
                assert!(text.contains(&quoted(own)), "no program has the metric {name}");
            }
        }
    }
}
