//! The prober's command line.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::Context;
use clap::{Parser, Subcommand};
use secureoverlay_prober::{
    server,
    session::{Load, Pod, Session},
};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

/// The port of probes (UDP) and of requests (TCP).
const PORT: u16 = 7100;

/// Sends numbered UDP packets between pods and counts what is lost, duplicated or delayed.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Receive, and send when asked to: what runs in each pod, until SIGTERM.
    Serve {
        /// UDP address for probes.
        #[arg(long, default_value_t = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)))]
        listen: SocketAddr,
        /// TCP address for requests. Every host that reaches it can make this pod send: for test networks only.
        #[arg(long, default_value_t = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)))]
        control: SocketAddr,
    },
    /// Measure between running probers and print the figures as JSON; fails if they prove nothing.
    Measure {
        /// A prober, on its default port. Give at least two.
        #[arg(long = "pod", value_name = "NAME=IP", required = true, value_parser = pod)]
        pods: Vec<Pod>,
        /// Packets a second in each direction.
        #[arg(long, default_value_t = 200)]
        rate: u32,
        /// Bytes of UDP payload.
        #[arg(long, default_value_t = 64)]
        size: u16,
        /// How long to send.
        #[arg(long, default_value_t = 10)]
        seconds: u32,
    },
}

fn pod(text: &str) -> Result<Pod, String> {
    let (name, ip) = text.split_once('=').ok_or("want NAME=IP")?;
    let ip: IpAddr = ip.parse().map_err(|error| format!("{ip}: {error}"))?;
    let address = SocketAddr::new(ip, PORT);
    Ok(Pod { name: name.to_owned(), control: address, data: address })
}

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Serve { listen, control } => {
            // As process 1 of a container it has no default action for signals.
            let mut signals = Signals::new([SIGTERM, SIGINT]).context("waiting for signals")?;
            server::serve(listen, control)
                .with_context(|| format!("listening on UDP {listen} and TCP {control}"))?;
            signals.forever().next();
            Ok(ExitCode::SUCCESS)
        }
        Command::Measure { pods, rate, size, seconds } => {
            let session = Session::start(pods, Load { rate, size, max_seconds: seconds + 60 })?;
            thread::sleep(Duration::from_secs(seconds.into()));
            let summary = session.stop()?;
            println!("{}", serde_json::to_string_pretty(&summary)?);
            Ok(if summary.invalid.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}
