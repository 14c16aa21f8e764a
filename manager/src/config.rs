//! The command line.

use std::{net::SocketAddr, time::Duration};

use clap::Parser;
use secureoverlay_common::{rotation::Settings, suite::Suite};
use secureoverlay_daemon::{duration, log};

/// Owns the key ring of SecureOverlay, in the Secret kube-system/ucp-secureoverlay, and rotates it.
///
/// One of it runs in a cluster, as a Deployment. It keeps everything it knows in the Secret: it can be killed and
/// started again at any time, and traffic between the nodes never depends on it. Runs in a pod with the pod's service
/// account, elsewhere with the kubeconfig that KUBECONFIG names.
#[derive(Clone, Debug, Parser)]
#[command(name = "ucp-secureoverlay-mgr", version)]
pub struct Config {
    /// When and how keys are rotated.
    #[command(flatten)]
    pub rotation: Rotation,

    /// How often the Secret is looked at, besides when a step is due. Short, because re-applying MKE's manifest empties
    /// it, and the running manager is the one that can put the ring back
    #[arg(
        long,
        env = "SECUREOVERLAY_POLL_INTERVAL",
        default_value = "2s",
        value_name = "DURATION",
        value_parser = duration::parse_positive
    )]
    pub poll_interval: Duration,

    /// Where /healthz, /readyz and /metrics are served
    #[arg(long, env = "SECUREOVERLAY_LISTEN", default_value = "0.0.0.0:9466", value_name = "ADDRESS")]
    pub listen: SocketAddr,

    /// What is logged, and how.
    #[command(flatten)]
    pub log: log::Args,
}

/// When and how keys are rotated.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Rotation")]
pub struct Rotation {
    /// For how long a key is used before the next one takes over
    #[arg(
        long,
        env = "SECUREOVERLAY_ROTATION_INTERVAL",
        default_value = "12h",
        value_name = "DURATION",
        value_parser = duration::parse_positive
    )]
    pub rotation_interval: Duration,

    /// The time within which every node has read a changed ring and programmed its kernel. A new key is used, and an
    /// old one dropped, only after it. Kubelets bring a mounted Secret up to date within about 2 minutes
    #[arg(
        long,
        env = "SECUREOVERLAY_PROPAGATION_DELAY",
        default_value = "3m",
        value_name = "DURATION",
        value_parser = duration::parse_positive
    )]
    pub propagation_delay: Duration,

    /// Cipher of the tunnels: aes128gcm8 (as MKE), aes128gcm16 or aes256gcm16. A change rotates at once. The last two
    /// need 8 bytes more in every packet: mind the tunnel's MTU
    #[arg(long, env = "SECUREOVERLAY_SUITE", default_value_t, value_name = "SUITE")]
    pub suite: Suite,
}

impl From<&Rotation> for Settings {
    fn from(rotation: &Rotation) -> Self {
        Self { interval: rotation.rotation_interval, suite: rotation.suite }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn defaults_are_mkes() {
        let config = Config::parse_from(["ucp-secureoverlay-mgr"]);
        assert_eq!(config.rotation.rotation_interval, Duration::from_secs(12 * 3600));
        assert_eq!(config.rotation.propagation_delay, Duration::from_secs(180));
        assert_eq!(config.rotation.suite, Suite::Aes128Gcm8);
    }

    #[test]
    fn every_flag_is_an_environment_variable_too() {
        let command = Config::command();
        command.clone().debug_assert();
        for arg in command.get_arguments().filter(|arg| !matches!(arg.get_id().as_str(), "help" | "version"))
        {
            let expected = arg.get_long().unwrap().replace('-', "_").to_uppercase();
            let env = arg.get_env().unwrap_or_else(|| panic!("{expected} has no variable")).to_str().unwrap();
            assert_eq!(env, format!("SECUREOVERLAY_{expected}"));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for args in [
            ["--suite", "rot13"],
            ["--rotation-interval", "0s"],
            ["--propagation-delay", "0s"],
            ["--poll-interval", "often"],
            ["--listen", "everywhere"],
        ] {
            assert!(Config::try_parse_from([&["mgr"], &args[..]].concat()).is_err(), "{args:?}");
        }
    }
}
