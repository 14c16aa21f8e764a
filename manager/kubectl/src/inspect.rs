//! `path`, and `check` of nodes whose agents run: what only a node's kernel knows, as the agents say it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::bail;
use secureoverlay_keyring::inspection::{CHECK, CheckReport, PATHS, PathState, PeerPaths};
use secureoverlay_kubectl_core::{
    Exit,
    checks::Checks,
    paths::{Missing, PROBE, Paths, Said},
    snapshot::{AGENT, Fetched, Node, Pod},
};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    api::{Api, Kind},
    cli::{CheckArgs, Output, PathArgs},
    output::document,
};

/// Agents that are asked at the same time.
const TOGETHER: usize = 20;

/// The agents' Pods by node.
pub async fn agents(api: &Api) -> Fetched<BTreeMap<String, Pod>> {
    let pods: Vec<Pod> = api.list(Kind::Pod, &format!("k8s-app={AGENT}")).await?;
    let mut by_node = BTreeMap::new();
    // Of two on one node, the one that stays.
    for pod in pods.into_iter().filter(|pod| !pod.ending && !pod.node.is_empty()) {
        by_node.insert(pod.node.clone(), pod);
    }
    Ok(by_node)
}

/// Both directions between two nodes.
pub async fn path(api: &Api, args: &PathArgs) -> anyhow::Result<Exit> {
    let PathArgs { from, to, .. } = args;
    if from == to {
        bail!("both are {from}: what stays on a node is not encrypted");
    }
    for name in [from, to] {
        let node = api.get(Kind::Node, name).await.map_err(anyhow::Error::msg)?;
        anyhow::ensure!(node.is_some(), "there is no Node {name:?}");
    }
    let agents = agents(api).await.map_err(anyhow::Error::msg)?;
    let both =
        || async { tokio::join!(ask(api, &agents, args, from, to), ask(api, &agents, args, to, from)) };
    let mut said = both().await;
    // The question had the SAs in use pinged: a second one tells which of them were answered.
    if [&said.0, &said.1].into_iter().flatten().any(is_pinned) {
        tokio::time::sleep(PROBE + Duration::from_millis(500)).await;
        said = both().await;
    }
    let paths = Paths::new([from, to], [&said.0, &said.1]);
    document(args.output.output, &paths, || paths.text(args.output.output == Output::Wide))?;
    Ok(paths.exit())
}

fn is_pinned(paths: &PeerPaths) -> bool {
    paths.outbound.iter().any(|path| path.state == PathState::Pinned)
}

async fn ask(api: &Api, agents: &BTreeMap<String, Pod>, args: &PathArgs, node: &str, peer: &str) -> Said {
    let Some(pod) = agents.get(node) else {
        return Err(Missing::Other("no agent's Pod runs there".to_owned()));
    };
    let agent = (pod.name.as_str(), args.agent.agent_port);
    api.ask_agent(agent, &format!("{PATHS}/{peer}"), args.agent.timeout).await
}

/// What the agents find on their nodes.
pub async fn check(api: &Api, args: &CheckArgs) -> anyhow::Result<Exit> {
    let names = linux_nodes(api, args.node.as_deref()).await?;
    let agents = agents(api).await.map_err(anyhow::Error::msg)?;
    let (places, mut asked) = (Arc::new(Semaphore::new(TOGETHER)), JoinSet::new());
    for name in names {
        let (api, places, pod) = (api.clone(), Arc::clone(&places), agents.get(&name).cloned());
        let (port, patience) = (args.agent.agent_port, args.agent.timeout);
        asked.spawn(async move {
            let _place = places.acquire().await;
            let found: Result<CheckReport, Missing> = match pod {
                Some(pod) => api.ask_agent((&pod.name, port), CHECK, patience).await,
                None => Err(Missing::Other("no agent's Pod runs there".to_owned())),
            };
            (name, found)
        });
    }
    report(asked.join_all().await, args, true)
}

/// Prints, and judges.
pub fn report(
    found: impl IntoIterator<Item = (String, Result<CheckReport, Missing>)>,
    args: &CheckArgs,
    installed: bool,
) -> anyhow::Result<Exit> {
    let checks = Checks::new(found, installed);
    document(args.output.output, &checks, || checks.text(args.output.output == Output::Wide))?;
    Ok(checks.exit())
}

/// The names of all nodes that agents run on, or the one that is asked for.
pub async fn linux_nodes(api: &Api, only: Option<&str>) -> anyhow::Result<Vec<String>> {
    let nodes: Vec<Node> = api.list(Kind::Node, "").await.map_err(anyhow::Error::msg)?;
    let names = nodes.into_iter().filter(Node::is_linux).map(|node| node.name);
    let names: Vec<String> = names.filter(|name| only.is_none_or(|only| only == name)).collect();
    if let Some(only) = only.filter(|_| names.is_empty()) {
        bail!("there is no Linux Node {only:?}");
    }
    Ok(names)
}
