//! `ucp-secureoverlay-agent`.

use std::process::ExitCode;

use clap::Parser;
use secureoverlay_agent::{
    cli::{check, cleanup},
    config::{CheckOutput, Command, Config},
    run, supervisor,
};
use secureoverlay_daemon::{log, process, signal::Shutdown};

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
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config) -> anyhow::Result<ExitCode> {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    match config.command {
        Some(Command::Cleanup { force }) => {
            println!("{}", cleanup::cleanup(force, &config.node.state_directory)?);
        }
        Some(Command::Check { capture, output, stay }) => {
            let runtime = runtime()?;
            // Listened for before the work, so that no signal is lost that comes meanwhile.
            let _guard = runtime.enter();
            let shutdown = Shutdown::listen()?;
            let report = runtime.block_on(async {
                tokio::select! {
                    report = check::check(&config.node, capture) => Some(report),
                    () = shutdown.requested() => None,
                }
            });
            let Some(report) = report else { return Ok(ExitCode::FAILURE) };
            match output {
                CheckOutput::Text => println!("{report}"),
                CheckOutput::Json => println!("{}", serde_json::to_string(&report.to_document())?),
            }
            if stay {
                runtime.block_on(shutdown.requested());
            }
            return Ok(report.exit_code().into());
        }
        None if supervisor::is_init() => return Ok(supervisor::run()?.into()),
        None => runtime()?.block_on(run::run(config))?,
    }
    Ok(ExitCode::SUCCESS)
}
