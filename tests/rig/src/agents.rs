//! Runs one agent, or many light ones.

use std::{collections::BTreeSet, fs, ops::Range, sync::Arc};

use anyhow::{Context, Result};
use clap::Parser;
use secureoverlay_agent::{config::Config, run};
use secureoverlay_daemon::signal::Shutdown;
use secureoverlay_k8s::client;
use tokio::{runtime::Builder, task::JoinSet};

use crate::{
    Shared,
    machine::CountingMachine,
    number,
    sources::{self, Heard},
};

/// What an agent is started with. There is no tunnel here whose MTU could leave room for a large probe.
fn config(node: u32, port: u16, shared: &Shared) -> Result<Config> {
    let (name, directory) = (number::name(node), shared.states.join(node.to_string()));
    fs::create_dir_all(&shared.states).with_context(|| format!("making {}", shared.states.display()))?;
    let flags = [
        "agent".to_owned(),
        format!("--node-name={name}"),
        format!("--state-directory={}", directory.display()),
        format!("--metrics-bind-address=127.0.0.1:{port}"),
        "--mtu-policy=warn".to_owned(),
    ];
    Config::try_parse_from(flags).context("the agent's flags")
}

async fn agent(
    node: u32,
    port: u16,
    shared: Shared,
    heard: Arc<Heard>,
    only: Option<Arc<BTreeSet<String>>>,
    shutdown: Shutdown,
) -> Result<()> {
    let config = config(node, port, &shared)?;
    let machine = CountingMachine::new(node, only.is_none())?;
    let client = client::connect("secureoverlay-rig").await?;
    let sources = |to| sources::through(to, heard, only, number::name(node));
    run::run_on(machine, config, client, &shutdown, sources)
        .await
        .with_context(|| format!("the agent of {}", number::name(node)))
}

/// Runs a measured agent, with as many threads as the product has.
pub fn measured(node: u32, port: u16, shared: Shared) -> Result<()> {
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        let heard = Arc::new(Heard::default());
        tokio::spawn(sources::tell(heard.clone(), shared.stats.clone()));
        let shutdown = Shutdown::listen().context("listening for signals")?;
        agent(node, port, shared, heard, None, shutdown).await
    })
}

/// Runs light agents; all end when one does.
pub fn light(nodes: Range<u32>, measured: u32, shared: &Shared) -> Result<()> {
    Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(async {
        let heard = Arc::new(Heard::default());
        tokio::spawn(sources::tell(heard.clone(), shared.stats.clone()));
        let shutdown = Shutdown::listen().context("listening for signals")?;
        let only: Arc<BTreeSet<String>> = Arc::new((1..=measured).map(number::name).collect());
        let mut agents = JoinSet::new();
        for node in nodes {
            let (shared, heard, only) = (shared.clone(), heard.clone(), Some(only.clone()));
            agents.spawn(agent(node, 0, shared, heard, only, shutdown.clone()));
        }
        while let Some(ended) = agents.join_next().await {
            ended.context("a light agent panicked")??;
        }
        Ok(())
    })
}
