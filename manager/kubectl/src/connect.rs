//! The client: with the caller's kubeconfig and rights, or those of the Pod that this runs in.

use std::{env, time::Duration};

use anyhow::Context;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::{api::Api, cli::Connection};

/// For a connection to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// Prepares the connection. Nothing is sent yet.
pub async fn connect(connection: &Connection) -> anyhow::Result<Api> {
    let mut config = config(connection).await?;
    config.connect_timeout = Some(CONNECT);
    let agent = concat!("kubectl-secureoverlay/", env!("CARGO_PKG_VERSION"));
    config.headers.push((http::header::USER_AGENT, http::HeaderValue::from_static(agent)));
    Ok(Api::new(Client::try_from(config).context("failed to prepare the connection to the API server")?))
}

async fn config(connection: &Connection) -> anyhow::Result<Config> {
    let Connection { kubeconfig, context, user, groups } = connection;
    let asked = kubeconfig.is_some() || context.is_some() || user.is_some();
    let read = match kubeconfig {
        Some(file) => Kubeconfig::read_from(file),
        None => Kubeconfig::read(),
    };
    let mut file = match read {
        Ok(file) => file,
        Err(_) if !asked && env::var_os("KUBERNETES_SERVICE_HOST").is_some() => {
            return Config::incluster().context("failed to read the Pod's service account");
        }
        Err(error) => return Err(error).context("failed to read the kubeconfig; --kubeconfig names another"),
    };
    if let Some(user) = user {
        for info in file.auth_infos.iter_mut().filter_map(|named| named.auth_info.as_mut()) {
            info.impersonate = Some(user.clone());
            info.impersonate_groups = (!groups.is_empty()).then(|| groups.clone());
        }
    }
    let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
    Config::from_custom_kubeconfig(file, &options).await.context("failed to use the kubeconfig")
}
