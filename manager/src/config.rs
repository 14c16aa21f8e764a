//! The command line.

use std::{net::SocketAddr, time::Duration};

use clap::{Parser, ValueEnum};
use jiff::Timestamp;
use secureoverlay_daemon::{duration, log};
use secureoverlay_keyring::{
    settings::{DeletionPolicy, EnforcementGoal, RotationSchedule, RotationSettings, Settings},
    suite::Suite,
};
use secureoverlay_manager_core::{rollout_mode::RolloutMode, schedule};

use crate::io::taint;

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

    /// Where the settings come from. With `object` from the ClusterEncryption named default, and rotations are asked for by
    /// KeyRotations; the flags below that are settings are errors then. With `flags` from these flags, as under MKE's
    /// manifest, whose manager has no rights on objects. [default: flags]
    #[arg(long, env = "SECUREOVERLAY_SETTINGS", value_enum, value_name = "SOURCE")]
    pub settings: Option<SettingsSource>,

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
    /// secureoverlay.io/starting, which keeps pods off nodes until then (--register-with-taints of the kubelet).
    /// Needs acknowledgements, and the rights in manifests/startup-taint.yaml
    #[arg(
        long,
        env = "SECUREOVERLAY_STARTUP_TAINT",
        value_name = "KEY",
        value_parser = taint::parse_key
    )]
    pub startup_taint: Option<String>,

    /// Where /healthz, /readyz and /metrics are served
    #[arg(
        long,
        env = "SECUREOVERLAY_METRICS_BIND_ADDRESS",
        default_value = "0.0.0.0:9466",
        value_name = "ADDRESS"
    )]
    pub metrics_bind_address: SocketAddr,

    /// What is logged, and how.
    #[command(flatten)]
    pub log: log::Args,
}

/// What the program does besides managing.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Asks the manager for a new key now
    ///
    /// Makes a KeyRotation, as `kubectl create` does, and prints its name. Where there is no such kind of object, or no right to
    /// make one, it asks by an annotation of the Secret kube-system/ucp-secureoverlay. That needs what the manager's pod may do
    /// under MKE's manifest: `get` and `update` of the Secret. So this works there, too:
    /// `kubectl -n kube-system exec deploy/ucp-secureoverlay-mgr -- /ucp-secureoverlay-mgr rotate --wait`.
    Rotate(RotateArgs),
    /// Prints the CustomResourceDefinitions, which are part of the manifest
    Crd,
}

/// Flags of `rotate`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct RotateArgs {
    /// Stay until the new key is in use and the old one is gone, and tell how it goes. Ends with an error if the new key
    /// is dropped
    #[arg(long)]
    pub wait: bool,
    /// Go on without nodes that do not respond. Pairs that are not proven with the new key stay on the old one, and are
    /// held back when that is removed, which is after --not-ready-timeout at the earliest. While a rotation is under way,
    /// this counts for that one. Needs KeyRotation objects: not under MKE's manifest
    #[arg(long)]
    pub skip_unresponsive: bool,
}

/// When and how keys are rotated.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Rotation")]
pub struct Rotation {
    /// For how long a key is used before the next one takes over. A setting [default: 12h]
    #[arg(
        long,
        env = "SECUREOVERLAY_ROTATION_INTERVAL",
        value_name = "DURATION",
        value_parser = duration::parse_positive
    )]
    pub rotation_interval: Option<Duration>,

    /// When keys are rotated, instead of after an interval: a cron expression (minute, hour, day of month, month, day of
    /// week), as in "0 3 * * 0" for Sundays at three in the morning. A setting
    #[arg(
        long,
        env = "SECUREOVERLAY_ROTATION_SCHEDULE",
        value_name = "CRON",
        conflicts_with = "rotation_interval"
    )]
    pub rotation_schedule: Option<String>,

    /// The clock that the schedule means: UTC, or a name like Europe/Berlin. A setting [default: UTC]
    #[arg(long, env = "SECUREOVERLAY_TIME_ZONE", value_name = "ZONE")]
    pub time_zone: Option<String>,

    /// The least time between two rotations, whatever asks for them. A setting [default: 5m]
    #[arg(
        long,
        env = "SECUREOVERLAY_MINIMUM_ROTATION_INTERVAL",
        value_name = "DURATION",
        value_parser = duration::parse
    )]
    pub minimum_rotation_interval: Option<Duration>,

    /// What a rotation waits for. With `acknowledged` a new key is used, and an old one removed, when every node has
    /// acknowledged that it is ready for that; with `timed` when time has passed; `auto` is the first where the manager
    /// may list Nodes, EncryptionPeers and NodeEncryptions, else the second
    #[arg(
        long,
        env = "SECUREOVERLAY_ROTATION_MODE",
        value_enum,
        default_value = "auto",
        value_name = "MODE"
    )]
    pub rotation_mode: RotationMode,

    /// For how long the removal of a key waits for a node that is not Ready or is excluded, and for how long a new key may
    /// take to be proven before it is dropped. A Ready node is waited for without end at removal
    #[arg(
        long,
        env = "SECUREOVERLAY_NOT_READY_TIMEOUT",
        default_value = "1h",
        value_name = "DURATION",
        value_parser = duration::parse_positive
    )]
    pub not_ready_timeout: Duration,

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
    /// need 8 bytes more in every packet: mind the tunnel's MTU. A setting [default: aes128gcm8]
    #[arg(long, env = "SECUREOVERLAY_CIPHER_SUITE", value_name = "SUITE")]
    pub cipher_suite: Option<Suite>,

    /// How far encryption is enforced. With `auto` plaintext is refused as soon as every node encrypts and nothing
    /// speaks against it, which needs acknowledgements; with `permissive` it is accepted; with `off` nothing is encrypted,
    /// and what was is taken back step by step. A setting [default: auto]
    #[arg(long, env = "SECUREOVERLAY_ENFORCEMENT", value_enum, value_name = "GOAL")]
    pub enforcement: Option<GoalArg>,
}

impl Config {
    /// The settings that the flags come to; `None` where the ClusterEncryption has them.
    ///
    /// # Errors
    /// A sentence for the user.
    pub fn settings(&self, now: Timestamp) -> Result<Option<Settings>, String> {
        match self.settings.unwrap_or(SettingsSource::Flags) {
            SettingsSource::Flags => self.rotation.settings(now).map(Some),
            SettingsSource::Object => match self.rotation.given().as_slice() {
                [] => Ok(None),
                given => Err(format!(
                    "{} cannot be given with --settings=object: settings come from the ClusterEncryption then. Take the flags and \
                     their environment variables out, and edit that object",
                    given.join(", ")
                )),
            },
        }
    }
}

impl Rotation {
    /// What these flags come to.
    ///
    /// # Errors
    /// A sentence for the user.
    fn settings(&self, now: Timestamp) -> Result<Settings, String> {
        let default = RotationSettings::default();
        let schedule = match (&self.rotation_schedule, self.rotation_interval) {
            (None, None) => default.schedule.clone(),
            (None, Some(interval)) => RotationSchedule::Interval(interval),
            (Some(expression), _) => RotationSchedule::Cron {
                expression: expression.clone(),
                time_zone: self.time_zone.clone().unwrap_or_else(|| "UTC".to_owned()),
            },
        };
        schedule::check(&schedule, now)?;
        let minimum_interval = self.minimum_rotation_interval.unwrap_or(default.minimum_interval);
        let rotation = RotationSettings { schedule, minimum_interval, ..default };
        rotation.check().map_err(|error| error.to_string())?;
        Ok(Settings {
            enforcement: self.enforcement.unwrap_or(GoalArg::Auto).into(),
            cipher_suite: self.cipher_suite.unwrap_or_default(),
            rotation,
            deletion_policy: DeletionPolicy::Disable,
        })
    }
}

impl Rotation {
    /// The flags that are settings, and were given.
    fn given(&self) -> Vec<&'static str> {
        let all = [
            ("--rotation-interval", self.rotation_interval.is_some()),
            ("--rotation-schedule", self.rotation_schedule.is_some()),
            ("--time-zone", self.time_zone.is_some()),
            ("--minimum-rotation-interval", self.minimum_rotation_interval.is_some()),
            ("--cipher-suite", self.cipher_suite.is_some()),
            ("--enforcement", self.enforcement.is_some()),
        ];
        all.into_iter().filter_map(|(name, given)| given.then_some(name)).collect()
    }
}

/// `--settings`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SettingsSource {
    /// The ClusterEncryption.
    Object,
    /// The command line and the environment.
    Flags,
}

/// `--enforcement`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GoalArg {
    /// Up to enforcing, once nothing speaks against it
    Auto,
    /// Plaintext is accepted
    Permissive,
    /// Nothing is encrypted
    Off,
}

impl From<GoalArg> for EnforcementGoal {
    fn from(goal: GoalArg) -> Self {
        match goal {
            GoalArg::Auto => Self::Auto,
            GoalArg::Permissive => Self::Permissive,
            GoalArg::Off => Self::Off,
        }
    }
}

/// `--rotation-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RotationMode {
    /// The nodes acknowledge each step.
    Acknowledged,
    /// Time has passed.
    Timed,
    /// `acknowledged` where the manager has the rights for it, else `timed`.
    Auto,
}

impl From<RotationMode> for RolloutMode {
    fn from(mode: RotationMode) -> Self {
        match mode {
            RotationMode::Acknowledged => Self::Acknowledged,
            RotationMode::Timed => Self::Timed,
            RotationMode::Auto => Self::Auto,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn defaults_are_mkes() {
        let config = Config::parse_from(["ucp-secureoverlay-mgr"]);
        assert_eq!(config.settings(Timestamp::UNIX_EPOCH), Ok(Some(Settings::default())));
        assert_eq!(config.rotation.propagation_delay, Duration::from_secs(180));
        assert!(config.command.is_none(), "MKE's manifest starts it without arguments");
        assert_eq!(config.rotation.rotation_mode, RotationMode::Auto);
    }

    #[test]
    fn settings_have_one_source() {
        let settings =
            |args: &[&str]| Config::parse_from([&["mgr"], args].concat()).settings(Timestamp::UNIX_EPOCH);
        assert_eq!(settings(&["--settings", "object"]), Ok(None));
        assert!(settings(&["--settings", "flags", "--enforcement", "off"]).unwrap().is_some());
        for flag in [
            ["--rotation-interval", "1h"],
            ["--rotation-schedule", "0 3 * * 0"],
            ["--time-zone", "UTC"],
            ["--minimum-rotation-interval", "1m"],
            ["--cipher-suite", "aes128gcm16"],
            ["--enforcement", "auto"],
        ] {
            let error = settings(&["--settings=object", flag[0], flag[1]]).unwrap_err();
            assert!(error.starts_with(flag[0]) && error.contains("ClusterEncryption"), "{error}");
        }
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
        let settings = config.settings(Timestamp::UNIX_EPOCH).unwrap().unwrap();
        let expected =
            RotationSchedule::Cron { expression: "0 3 * * 0".into(), time_zone: "Asia/Tokyo".into() };
        assert_eq!(settings.rotation.schedule, expected);
        let both = ["mgr", "--rotation-schedule", "0 3 * * 0", "--rotation-interval", "12h"];
        assert!(Config::try_parse_from(both).is_err());
        for (schedule, zone) in [("daily, please", "UTC"), ("0 3 * * 0", "Europe/Atlantis")] {
            let config = Config::parse_from(["mgr", "--rotation-schedule", schedule, "--time-zone", zone]);
            assert!(config.settings(Timestamp::UNIX_EPOCH).is_err(), "{schedule} {zone}");
        }
    }

    #[test]
    fn commands() {
        let config = Config::parse_from(["mgr", "rotate", "--wait", "--skip-unresponsive"]);
        let Some(Command::Rotate(args)) = config.command else { panic!("{config:?}") };
        assert!(args.wait && args.skip_unresponsive);
        assert!(matches!(Config::parse_from(["mgr", "crd"]).command, Some(Command::Crd)));
    }

    #[test]
    fn nonsense_is_refused() {
        for args in [
            ["--cipher-suite", "rot13"],
            ["--rotation-interval", "0s"],
            ["--propagation-delay", "0s"],
            ["--poll-interval", "often"],
            ["--metrics-bind-address", "everywhere"],
            ["--rotation-mode", "maybe"],
            ["--enforcement", "enforcing"],
            ["--settings", "both"],
            ["--not-ready-timeout", "0s"],
            ["--minimum-rotation-interval", "-1s"],
            ["--startup-taint", "starting:NoSchedule"],
        ] {
            assert!(Config::try_parse_from([&["mgr"], &args[..]].concat()).is_err(), "{args:?}");
        }
    }
}
