//! `ucp-secureoverlay-agent`.

use std::process::ExitCode;

use clap::Parser;
use secureoverlay_agent::{
    cleanup,
    config::{Command, Config},
    run,
};
use secureoverlay_daemon::{log, process};

fn main() -> ExitCode {
    let hardened = process::harden();
    let config = Config::parse();
    if let Err(error) = log::init(config.log.log_format, &config.log.log) {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    if let Err(error) = hardened {
        tracing::warn!(%error, "cannot keep this process from leaving core files, which would hold keys");
    }
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config) -> anyhow::Result<()> {
    if let Some(Command::Cleanup { force }) = config.command {
        println!("{}", cleanup::cleanup(force)?);
        return Ok(());
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run::run(config))
}
