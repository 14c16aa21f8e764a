//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use secureoverlay_keyring::duration;

/// Show whether all pod traffic is encrypted, what is not and why, and what to do next.
///
/// Exit status: 0 good or done, 1 something is not as it should be, 2 it could not be told or done, 3 timed out, 64 usage.
#[derive(Debug, Parser)]
#[command(name = "kubectl-secureoverlay", bin_name = "kubectl secureoverlay", version, max_term_width = 100)]
pub struct Cli {
    /// Which cluster, and who asks.
    #[command(flatten)]
    pub connection: Connection,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Which cluster, and who asks.
#[derive(Debug, Args)]
pub struct Connection {
    /// Use this kubeconfig
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Use this context of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Act as this user
    #[arg(long = "as", global = true, value_name = "USER")]
    pub user: Option<String>,
    /// Act as a member of this group
    #[arg(long = "as-group", global = true, value_name = "GROUP", requires = "user")]
    pub groups: Vec<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say whether all is encrypted, what is not and why, and what to do next
    Status(StatusArgs),
    /// List the nodes, and what is wrong with each
    Nodes(NodesArgs),
    /// Replace the key
    Rotate(RotateArgs),
    /// Show or change how far encryption goes
    Enforcement {
        /// Which of both.
        #[command(subcommand)]
        command: EnforcementCommand,
    },
    /// Take a node out: all other nodes send plaintext to it. Needs the right to patch Nodes
    Exclude {
        /// Node to take out
        node: String,
        /// Why, for those who come after you
        #[arg(long, value_parser = reason)]
        reason: String,
    },
    /// Let a node take part again. Needs the right to patch Nodes
    Include {
        /// Node that takes part again
        node: String,
    },
    /// List the rotations, the newest first
    History(OutputArgs),
    /// Show the versions of this program, the manager and the agents
    Version(OutputArgs),
    /// Show both directions between two nodes: key, SPI, counters, last proof, room in the tunnel's MTU. Needs the right to
    /// forward ports of Pods in kube-system
    Path(PathArgs),
    /// Look on each node for what keeps its pod traffic from being encrypted
    ///
    /// Asks the running agents through port-forwards. With --pre or --capture a DaemonSet checks the nodes instead, which is
    /// removed at the end, also after Ctrl-C; what a killed check left is removed by the next one.
    Check(CheckArgs),
    /// Say which nodes a deletion of SecureOverlay would strand
    Uninstall(UninstallArgs),
    /// Write a tar for those who help you: objects, Events, Pods and logs. It holds no key
    SupportBundle(BundleArgs),
    /// Print a completion script
    Completion {
        /// Shell that completes
        shell: clap_complete::Shell,
    },
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For people, with more columns
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// How to print.
#[derive(Clone, Copy, Debug, Args)]
pub struct OutputArgs {
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Flags of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Look again every five seconds, until interrupted
    #[arg(short, long)]
    pub watch: bool,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Flags of `nodes`.
#[derive(Debug, Args)]
pub struct NodesArgs {
    /// List only nodes that something is wrong with
    #[arg(long)]
    pub problems: bool,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Flags of `rotate`.
#[derive(Debug, Args)]
pub struct RotateArgs {
    /// Stay until the new key is in use everywhere and the old one is gone
    #[arg(long)]
    pub wait: bool,
    /// Stay no longer than this, such as 10m. The rotation goes on
    #[arg(long, requires = "wait", value_name = "DURATION", value_parser = duration::parse_positive)]
    pub timeout: Option<Duration>,
    /// Go on without nodes that do not respond. Pairs that have not proven the new key are held back when the old one is
    /// removed. While a rotation is under way, this counts for that one
    #[arg(long)]
    pub skip_unresponsive: bool,
}

/// How agents are asked.
#[derive(Clone, Copy, Debug, Args)]
pub struct AgentArgs {
    /// Wait no longer than this for the answer of an agent
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration::parse_positive)]
    pub timeout: Duration,
    /// Port of the agents' SECUREOVERLAY_METRICS_BIND_ADDRESS
    #[arg(long, value_name = "PORT", default_value_t = 9467)]
    pub agent_port: u16,
}

/// Flags of `path`.
#[derive(Debug, Args)]
pub struct PathArgs {
    /// One node
    #[arg(value_name = "NODE")]
    pub from: String,
    /// The other node
    #[arg(value_name = "NODE")]
    pub to: String,
    /// How agents are asked.
    #[command(flatten)]
    pub agent: AgentArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Flags of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Check before an installation: by a DaemonSet of the agent's image. Readable packets are no finding then
    #[arg(long)]
    pub pre: bool,
    /// Check this node only
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Count readable and encrypted packets between nodes for this long, such as 10s. By a DaemonSet with NET_RAW
    #[arg(long, value_name = "DURATION", value_parser = capture)]
    pub capture: Option<Duration>,
    /// The agent's image for the DaemonSet; by default that of the installed agents
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// Wait this much longer for the DaemonSet's Pods to start
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration::parse_positive)]
    pub start_timeout: Duration,
    /// How agents are asked.
    #[command(flatten)]
    pub agent: AgentArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What to do about enforcement.
#[derive(Debug, Subcommand)]
pub enum EnforcementCommand {
    /// Show how far encryption goes, and how far it is to go
    Get(OutputArgs),
    /// Change how far it is to go
    Set {
        /// How far
        #[arg(value_enum, ignore_case = true)]
        mode: Mode,
    },
}

/// How far encryption is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Plaintext is refused as soon as every pair has proven its keys and nothing speaks against it
    Auto,
    /// Encrypted where both nodes are ready; plaintext is accepted
    Permissive,
    /// Everything in the clear
    Off,
}

/// Flags of `uninstall`.
#[derive(Debug, Args)]
pub struct UninstallArgs {
    /// Look, and change nothing. What deletes is `kubectl delete -f` of the manifest
    #[arg(long, required = true)]
    pub check: bool,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Flags of `support-bundle`.
#[derive(Debug, Args)]
pub struct BundleArgs {
    /// File to write, which must not exist. By default secureoverlay-TIME.tar here
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Agents whose logs are taken, at most; those with problems come first
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub agents: usize,
}

/// The longest count of packets, as the agent's.
const LONGEST_CAPTURE: Duration = Duration::from_secs(600);

fn capture(text: &str) -> Result<Duration, String> {
    let time = duration::parse_positive(text)?;
    if time <= LONGEST_CAPTURE { Ok(time) } else { Err("at most 10m".to_owned()) }
}

fn reason(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("must not be empty".to_owned()),
        text if text.chars().count() > 200 => Err("at most 200 characters".to_owned()),
        text if text.chars().any(char::is_control) => Err("must not hold control characters".to_owned()),
        text => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent_and_usage_errors_are_usage_errors() {
        Cli::command().debug_assert();
        let parse = |line: &str| Cli::try_parse_from(["x"].into_iter().chain(line.split_whitespace()));
        for good in [
            "status",
            "status --watch -o json",
            "nodes --problems -o wide",
            "rotate --wait --timeout 10m",
            "rotate --skip-unresponsive",
            "enforcement get",
            "enforcement set auto",
            "enforcement set Permissive",
            "exclude node1 --reason broken",
            "include node1",
            "history",
            "version -o yaml",
            "uninstall --check",
            "support-bundle --file x.tar",
            "path node1 node2 -o wide",
            "check",
            "check --pre --node node1 --image registry/agent:1",
            "check --capture 10s --timeout 5s",
            "completion bash",
            "status --context x --as olga --as-group team",
        ] {
            assert!(parse(good).is_ok(), "{good}: {}", parse(good).unwrap_err());
        }
        for bad in [
            "",
            "stats",
            "rotate --timeout 10m",
            "rotate --wait --timeout soon",
            "rotate --wait --timeout 0s",
            "enforcement",
            "enforcement set enforcing",
            "exclude node1",
            "include",
            "uninstall",
            "completion tcl",
            "path node1",
            "path node1 node2 node3",
            "check node1",
            "check --capture 11m",
            "status -o xml",
            "status --as-group team",
            "support-bundle --agents -1",
        ] {
            assert!(parse(bad).unwrap_err().use_stderr(), "{bad}");
        }
        assert!(
            reason("disk\u{1b}[2J").is_err() && reason("  ").is_err() && reason(&"x".repeat(201)).is_err()
        );
    }
}
