//! `ucp-secureoverlay-mgr`: owns the key ring and rotates it.

use anyhow::Context;
use clap::Parser;
use secureoverlay_daemon::{log, node_encryption, process};
use secureoverlay_manager::{
    config::{Command, Config},
    enforce::enforce,
    rotate::rotate,
    run::run,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    process::harden().context("keeping memory out of core files and debuggers")?;
    log::init(config.log.log_format, &config.log.log)?;
    match &config.command {
        None => run(&config).await,
        Some(Command::Rotate(args)) => rotate(args).await,
        Some(Command::Enforce(args)) => enforce(args).await,
        Some(Command::Crd) => {
            print!("{}", serde_saphyr::to_string(&node_encryption::definition()).context("writing YAML")?);
            Ok(())
        }
    }
}
