//! The command line.

use std::{net::SocketAddr, time::Duration};

use clap::{Parser, ValueEnum};
use jiff::{Timestamp, tz::TimeZone};
use secureoverlay_common::suite::Suite;
use secureoverlay_daemon::{duration, log};
use secureoverlay_manager_core::{rollout_mode::RolloutMode, schedule::Schedule};

use crate::{
    enforce::{self, Enforce},
    rotate, taint,
};

/// Owns the key ring of SecureOverlay, in the Secret kube-system/ucp-secureoverlay, and rotates it.
///
/// One of it runs in a cluster, as a Deployment. It keeps everything it knows in the Secret: it can be killed and
/// started again at any time, and traffic between the nodes never depends on it. Runs in a pod with the pod's service
/// account, elsewhere with the kubeconfig that KUBECONFIG names.
#[derive(Clone, Debug, Parser)]
#[command(name = "ucp-secureoverlay-mgr", version)]
pub struct Config {
    /// Something else than to be the manager.
    #[command(subcommand)]
    pub command: Option<Command>,

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

    /// Key of a taint that the manager removes from a node as soon as that encrypts to all others, for instance
    /// secureoverlay.io/starting: who sets it keeps pods off nodes until then (--register-with-taints of the kubelet).
    /// Needs acknowledgements, and the rights in manifests/startup-taint.yaml
    #[arg(
        long,
        env = "SECUREOVERLAY_STARTUP_TAINT",
        value_name = "KEY",
        value_parser = taint::parse_key
    )]
    pub startup_taint: Option<String>,

    /// Where /healthz, /readyz and /metrics are served
    #[arg(long, env = "SECUREOVERLAY_LISTEN", default_value = "0.0.0.0:9466", value_name = "ADDRESS")]
    pub listen: SocketAddr,

    /// What is logged, and how.
    #[command(flatten)]
    pub log: log::Args,
}

/// What the program does besides managing.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Asks the manager for a new key now
    Rotate(rotate::Args),
    /// Tells the manager how far to insist on encryption
    Enforce(enforce::Args),
    /// Prints the CustomResourceDefinition of NodeEncryption, which is part of the manifest
    Crd,
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

    /// When keys are rotated, instead of after an interval: a cron expression (minute, hour, day of month, month, day of
    /// week), as in "0 3 * * 0" for Sundays at three in the morning
    #[arg(
        long,
        env = "SECUREOVERLAY_ROTATION_SCHEDULE",
        value_name = "CRON",
        conflicts_with = "rotation_interval"
    )]
    pub rotation_schedule: Option<String>,

    /// The clock that the schedule means: UTC, or a name like Europe/Berlin
    #[arg(
        long,
        env = "SECUREOVERLAY_TIME_ZONE",
        default_value = "UTC",
        value_name = "ZONE",
        value_parser = parse_zone
    )]
    pub time_zone: TimeZone,

    /// What a rotation waits for. With `required` a new key is used, and an old one dropped, when every node has said
    /// that it is ready for that; with `timed` when time has passed; `auto` is the first where the manager may list
    /// Nodes and NodeEncryptions, else the second
    #[arg(
        long,
        env = "SECUREOVERLAY_ACKNOWLEDGEMENTS",
        value_enum,
        default_value = "auto",
        value_name = "MODE"
    )]
    pub acknowledgements: Acknowledgements,

    /// For how long a rotation waits for a node that is not Ready; then it goes on, and the node catches up when it is
    /// back. One that is Ready is waited for without end
    #[arg(
        long,
        env = "SECUREOVERLAY_UNREACHABLE_LIMIT",
        default_value = "1h",
        value_name = "DURATION",
        value_parser = duration::parse_positive
    )]
    pub unreachable_limit: Duration,

    /// Without acknowledgements: the time within which every node has read a changed ring and programmed its kernel. A new key is used, and an
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

    /// How far encryption is insisted on. With `auto` plaintext is turned away as soon as every node encrypts and nothing
    /// speaks against it, which needs acknowledgements; with `permissive` it is accepted; with `off` nothing is encrypted,
    /// and what was is taken back step by step. The annotation secureoverlay.io/enforce of the Secret (see `enforce`)
    /// counts instead as long as it is there
    #[arg(long, env = "SECUREOVERLAY_ENFORCEMENT", value_enum, default_value = "auto", value_name = "GOAL")]
    pub enforcement: Enforce,
}

impl Rotation {
    /// When rotations are due.
    ///
    /// # Errors
    /// A sentence for the user.
    pub fn schedule(&self, now: Timestamp) -> Result<Schedule, String> {
        match &self.rotation_schedule {
            None => Ok(Schedule::Every(self.rotation_interval)),
            Some(text) => Schedule::cron(text, &self.time_zone, now),
        }
    }
}

/// `--acknowledgements`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Acknowledgements {
    /// The nodes say so.
    Required,
    /// Time has passed.
    Timed,
    /// `required` where the manager has the rights for it, else `timed`.
    Auto,
}

impl From<Acknowledgements> for RolloutMode {
    fn from(acknowledgements: Acknowledgements) -> Self {
        match acknowledgements {
            Acknowledgements::Required => Self::Acknowledged,
            Acknowledgements::Timed => Self::Timed,
            Acknowledgements::Auto => Self::Auto,
        }
    }
}

/// For a flag's `value_parser`: a name from the database of time zones, which is part of the program.
///
/// # Errors
/// A sentence for the user.
fn parse_zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name)
        .map_err(|_| format!("no time zone has the name {name:?}: write UTC, or one like Europe/Berlin"))
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
        assert!(config.command.is_none(), "MKE's manifest starts it without arguments");
        assert_eq!(config.rotation.acknowledgements, Acknowledgements::Auto);
        assert_eq!(config.rotation.enforcement, Enforce::Auto);
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
    fn a_schedule_takes_the_place_of_the_interval() {
        let config =
            Config::parse_from(["mgr", "--rotation-schedule", "0 3 * * 0", "--time-zone", "Asia/Tokyo"]);
        let schedule = config.rotation.schedule(Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(schedule.to_string(), "at \"0 3 * * 0\" (Asia/Tokyo)");
        let both = ["mgr", "--rotation-schedule", "0 3 * * 0", "--rotation-interval", "12h"];
        assert!(Config::try_parse_from(both).is_err());
        let config = Config::parse_from(["mgr", "--rotation-schedule", "daily, please"]);
        assert!(config.rotation.schedule(Timestamp::UNIX_EPOCH).is_err());
    }

    #[test]
    fn commands() {
        let config = Config::parse_from(["mgr", "rotate", "--wait", "--force"]);
        let Some(Command::Rotate(args)) = config.command else { panic!("{config:?}") };
        assert!(args.wait && args.force);
        assert!(matches!(Config::parse_from(["mgr", "crd"]).command, Some(Command::Crd)));
        let config = Config::parse_from(["mgr", "enforce", "off", "--wait"]);
        assert!(matches!(config.command, Some(Command::Enforce(args)) if args.wait), "{config:?}");
        assert!(Config::try_parse_from(["mgr", "enforce"]).is_err(), "it has to be said what");
    }

    #[test]
    fn nonsense_is_refused() {
        for args in [
            ["--suite", "rot13"],
            ["--rotation-interval", "0s"],
            ["--propagation-delay", "0s"],
            ["--poll-interval", "often"],
            ["--listen", "everywhere"],
            ["--acknowledgements", "maybe"],
            ["--enforcement", "enforcing"],
            ["--unreachable-limit", "0s"],
            ["--time-zone", "Europe/Atlantis"],
            ["--startup-taint", "starting:NoSchedule"],
        ] {
            assert!(Config::try_parse_from([&["mgr"], &args[..]].concat()).is_err(), "{args:?}");
        }
    }
}
