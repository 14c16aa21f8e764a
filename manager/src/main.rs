//! `ucp-secureoverlay-mgr`: owns the key ring and rotates it.

use anyhow::Context;
use clap::Parser;
use secureoverlay_daemon::{log, process};
use secureoverlay_k8s::definitions;
use secureoverlay_manager::{
    cli::rotate::rotate,
    config::{Command, Config},
    run::run,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    process::harden().context("keeping memory out of core files and debuggers")?;
    log::init(config.log.log_format, &config.log.log)?;
    match &config.command {
        None => run(&config).await,
        Some(Command::Rotate(args)) => rotate(args, config.settings).await,
        Some(Command::Crd) => {
            for definition in definitions::all() {
                println!("---\n{}", serde_saphyr::to_string(&definition).context("writing YAML")?.trim_end());
            }
            Ok(())
        }
    }
}
