//! `kubectl secureoverlay`: whether all pod traffic is encrypted, what is not and why, and what operators do about it.
//!
//! It has the rights of its caller and no others. What it may ask for is [`api::Kind`], which has no Secret.

mod api;
mod bundle;
mod cli;
mod connect;
mod daemonset;
mod fetch;
mod forward;
mod inspect;
mod operate;
mod output;
mod rotate;
mod show;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use cli::{Cli, Command, EnforcementCommand};
use secureoverlay_kubectl_core::{Exit, text::clean};

/// The exit status of usage errors (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Where standard error is closed, there is nothing more to do.
            drop(error.print());
            return if error.use_stderr() { USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(&cli)));
    match result {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("error: {}", clean(&format!("{error:#}")));
            Exit::Unknown.code().into()
        }
    }
}

async fn run(cli: &Cli) -> anyhow::Result<u8> {
    if let Command::Completion { shell } = &cli.command {
        let mut script = Vec::new();
        clap_complete::generate(*shell, &mut Cli::command(), "kubectl-secureoverlay", &mut script);
        output::print(&String::from_utf8_lossy(&script))?;
        return Ok(Exit::Good.code());
    }
    let api = connect::connect(&cli.connection).await?;
    let exit = match &cli.command {
        Command::Status(args) => show::status(&api, args).await?,
        Command::Nodes(args) => show::nodes(&api, args).await?,
        Command::History(args) => show::history(&api, args.output).await?,
        Command::Version(args) => show::version(&api, args.output).await?,
        Command::Uninstall(args) => show::uninstall(&api, args.output.output).await?,
        Command::Path(args) => inspect::path(&api, args).await?,
        Command::Check(args) if args.pre || args.capture.is_some() => {
            return daemonset::check(&api, args).await;
        }
        Command::Check(args) => inspect::check(&api, args).await?,
        Command::Rotate(args) => return rotate::rotate(&api, args).await,
        Command::Enforcement { command: EnforcementCommand::Get(args) } => {
            operate::enforcement(&api, args.output).await?
        }
        Command::Enforcement { command: EnforcementCommand::Set { mode } } => {
            operate::enforce(&api, *mode).await?
        }
        Command::Exclude { node, reason } => operate::exclude(&api, node, reason).await?,
        Command::Include { node } => operate::include(&api, node).await?,
        Command::SupportBundle(args) => bundle::write(&api, args).await?,
        Command::Completion { .. } => Exit::Good,
    };
    Ok(exit.code())
}
