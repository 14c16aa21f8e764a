//! Flags. Each is an environment variable too.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};
use secureoverlay_daemon::{duration, log};

use secureoverlay_agent_core::{agent::AgentSettings, reconcile::SaLimits};

/// Encrypts Calico's IP-in-IP traffic between nodes with IPsec: the agent for one node.
///
/// Reads the key ring and the Node objects and programs this node's kernel. The kernel goes on encrypting whether this
/// program runs or not; only the removal of the DaemonSet, or a key ring that is off, switches encryption off.
#[derive(Debug, Parser)]
#[command(name = "ucp-secureoverlay-agent", version)]
pub struct Config {
    /// What to do; without a command, run the agent
    #[command(subcommand)]
    pub command: Option<Command>,
    /// This node and its surroundings.
    #[command(flatten)]
    pub node: Node,
    /// Times.
    #[command(flatten)]
    pub timing: Timing,
    /// What asks for a rotation before its time.
    #[command(flatten)]
    pub limits: SoftLimits,
    /// The log.
    #[command(flatten)]
    pub log: log::Args,
}

/// One-time commands for a person on the node.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Command {
    /// Take everything of ours out of this node's kernel, for a node that was down when the DaemonSet was deleted
    Cleanup {
        /// Even while an agent runs on this node, which may put everything back
        #[arg(long)]
        force: bool,
    },
    /// Look for what keeps this node's pod traffic from being encrypted, and print a line for each thing looked at
    ///
    /// Runs beside the agent and changes nothing: one SA between two addresses for documentation is added and deleted
    /// again. Without the API it goes on with what the kernel shows. Needs NET_ADMIN, as the agent does. Exits with 0 if
    /// nothing FAILed, 1 if something did, 2 if the kernel could not be asked.
    Check {
        /// Count readable and encrypted packets to and from other nodes for this long. Needs NET_RAW too; no payload is kept
        #[arg(long, value_name = "DURATION", value_parser = capture_time)]
        capture: Option<Duration>,
        /// How to print
        #[arg(short, long, value_enum, default_value = "text", value_name = "FORMAT")]
        output: CheckOutput,
        /// Do not end afterwards, but wait for a signal: for a container that would be started again
        #[arg(long)]
        stay: bool,
    },
}

/// How a check is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CheckOutput {
    /// A line for each thing looked at
    Text,
    /// JSON in one line
    Json,
}

/// A check of a node takes no longer than this.
const LONGEST_CAPTURE: Duration = Duration::from_secs(600);

fn capture_time(text: &str) -> Result<Duration, String> {
    let time = duration::parse_positive(text)?;
    if time <= LONGEST_CAPTURE { Ok(time) } else { Err("at most 10m".to_owned()) }
}

/// This node and its surroundings.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Node")]
pub struct Node {
    /// Name of this node's Node object
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// The mounted key ring, read where the agent may not read the Secret through the API
    #[arg(
        long,
        env = "SECUREOVERLAY_RING_FILE",
        default_value = "/etc/secureoverlay/keys",
        value_name = "FILE"
    )]
    pub ring_file: PathBuf,
    /// Directory for identity, state and the journal of used keys, gone with the boot (tmpfs). Where it is none, they last
    /// only until the agent ends
    #[arg(
        long,
        env = "SECUREOVERLAY_STATE_DIRECTORY",
        default_value = "/run/secureoverlay",
        value_name = "DIRECTORY"
    )]
    pub state_directory: PathBuf,
    /// Where /healthz, /readyz and /metrics are served. The agent shares the node's network: any other address than
    /// the loopback is open to every host that reaches the node
    #[arg(
        long,
        env = "SECUREOVERLAY_METRICS_BIND_ADDRESS",
        default_value = "127.0.0.1:9467",
        value_name = "ADDRESS:PORT"
    )]
    pub metrics_bind_address: SocketAddr,
    /// What to do where the tunnel's MTU leaves no room for ESP, so that large packets would be lost. With `block` a pair
    /// is pinned to an SA only after a probe as long as the tunnel's MTU was answered
    #[arg(
        long,
        env = "SECUREOVERLAY_MTU_POLICY",
        value_enum,
        default_value = "block",
        value_name = "POLICY"
    )]
    pub mtu_policy: MtuPolicy,
}

impl Node {
    /// The name of this node's Node object. MKE's manifest sets a variable of another name.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        let by_mke = || std::env::var("MY_NODE_NAME").ok();
        let given = |name: &String| !name.is_empty();
        self.node_name.clone().filter(given).or_else(|| by_mke().filter(given))
    }
}

/// What a tunnel's MTU means that leaves no room for ESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MtuPolicy {
    /// Pairs are not proven until there is room: in the clear while permissive, blocked while enforcing
    Block,
    /// It is reported, and a small probe is enough
    Warn,
}

/// Times.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Timing")]
pub struct Timing {
    /// How long changes are collected before the kernel is changed
    #[arg(long, env = "SECUREOVERLAY_RECONCILE_DEBOUNCE", default_value = "100ms",
          value_parser = duration::parse, value_name = "DURATION")]
    pub reconcile_debounce: Duration,
    /// How often the kernel is compared with the plan though nothing is known to have changed
    #[arg(long, env = "SECUREOVERLAY_RESYNC_INTERVAL", default_value = "60s",
          value_parser = duration::parse_positive, value_name = "DURATION")]
    pub resync_interval: Duration,
    /// By how much nodes may differ in noticing that encryption is being switched off: each step waits this long for
    /// the slowest. Two steps have to fit into the pod's termination grace period
    #[arg(long, env = "SECUREOVERLAY_REMOVAL_SKEW", default_value = "4s",
          value_parser = duration::parse, value_name = "DURATION")]
    pub removal_skew: Duration,
}

impl Config {
    /// What the decisions depend on.
    #[must_use]
    pub const fn settings(&self) -> AgentSettings {
        let Timing { reconcile_debounce: debounce, resync_interval: resync, removal_skew } = self.timing;
        let mtu_policy = self.node.mtu_policy;
        let needs_room = matches!(mtu_policy, MtuPolicy::Block);
        AgentSettings { debounce, resync, skew: removal_skew, needs_room }
    }
}

/// What asks for a rotation before its time. Packets pass beyond it.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Limits")]
pub struct SoftLimits {
    /// Ask for new keys when an SA has carried this many packets
    #[arg(long, env = "SECUREOVERLAY_SOFT_PACKET_LIMIT", default_value_t = SaLimits::default().packets,
          value_parser = value_parser!(u64).range(1..), value_name = "PACKETS")]
    pub soft_packet_limit: u64,
    /// Ask for new keys when an SA has carried this many bytes
    #[arg(long, env = "SECUREOVERLAY_SOFT_BYTE_LIMIT", default_value_t = SaLimits::default().bytes,
          value_parser = value_parser!(u64).range(1..), value_name = "BYTES")]
    pub soft_byte_limit: u64,
}

impl From<SoftLimits> for SaLimits {
    fn from(limits: SoftLimits) -> Self {
        Self { packets: limits.soft_packet_limit, bytes: limits.soft_byte_limit }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_flag_is_an_environment_variable_too() {
        let command = Config::command();
        command.clone().debug_assert();
        for arg in command.get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()))
        {
            assert!(arg.get_env().is_some() && arg.get_help().is_some(), "{}", arg.get_id());
        }
    }

    #[test]
    fn the_loopback_is_the_default() {
        let config = Config::parse_from(["agent", "--node-name", "a"]);
        assert!(config.node.metrics_bind_address.ip().is_loopback() && config.command.is_none());
        assert_eq!(config.timing.removal_skew, Duration::from_secs(4));
    }
}
