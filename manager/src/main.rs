//! `ucp-secureoverlay-mgr`: owns the key ring and rotates it.

use anyhow::Context;
use clap::Parser;
use secureoverlay_daemon::{log, process};
use secureoverlay_manager::{config::Config, run::run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    process::harden().context("keeping memory out of core files and debuggers")?;
    log::init(config.log.log_format, &config.log.log)?;
    run(&config).await
}
