//! Asks an agent through a port-forward to its node's loopback, as `kubectl port-forward` would.

use std::{borrow::Cow, time::Duration};

use kube::{
    Api, Client, Resource,
    api::{ObjectMeta, Portforward},
    core::NamespaceResourceScope,
};
use secureoverlay_kubectl_core::{paths::Missing, snapshot::NAMESPACE};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

/// The longest answer that is read. The pairs with one peer take some kilobytes, a check likewise.
const ANSWER: u64 = 4 << 20;
/// For the reason why a forwarded connection has ended.
const REASON: Duration = Duration::from_millis(500);

/// A Pod, of which nothing but its ports is used.
#[derive(Clone, Debug, Deserialize)]
struct Pod {
    metadata: ObjectMeta,
}

impl Portforward for Pod {}

impl Resource for Pod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pod".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "pods".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// A document of an agent.
pub async fn ask<T: DeserializeOwned>(
    client: &Client,
    (pod, port): (&str, u16),
    path: &str,
    patience: Duration,
) -> Result<T, Missing> {
    match timeout(patience, fetch(client, (pod, port), path)).await {
        Ok(answer) => serde_json::from_str(&answer?).map_err(|error| {
            Missing::Other(format!("failed to read its answer: {error}; are versions the same?"))
        }),
        Err(_) => Err(Missing::Late(format!("no answer within {} s", patience.as_secs()))),
    }
}

async fn fetch(client: &Client, (pod, port): (&str, u16), path: &str) -> Result<String, Missing> {
    let other = |text: String| Missing::Other(text);
    let api: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let mut forwarder = api.portforward(pod, &[port]).await.map_err(|error| other(refused(&error)))?;
    let mut stream =
        forwarder.take_stream(port).ok_or_else(|| other("no connection was forwarded".to_owned()))?;
    let failed = forwarder.take_error(port);
    let request = format!("GET {path} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n");
    let mut answer = Vec::new();
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        (&mut stream).take(ANSWER).read_to_end(&mut answer).await
    };
    let result = exchange.await;
    if answer.is_empty() {
        let why = match failed {
            Some(failed) => timeout(REASON, failed).await.ok().flatten(),
            None => None,
        };
        let why = why.or_else(|| result.err().map(|error| error.to_string()));
        return Err(other(why.unwrap_or_else(|| "its port gave no answer".to_owned())));
    }
    match parse(&String::from_utf8_lossy(&answer)) {
        Some((200, body)) => Ok(body.to_owned()),
        Some((404, _)) => Err(other("it does not know the question: its version is an older one".to_owned())),
        Some((status, body)) => Err(other(format!("it answered {status}: {}", body.trim()))),
        None => Err(other("its answer is not HTTP".to_owned())),
    }
}

fn refused(error: &kube::Error) -> String {
    use kube::client::UpgradeConnectionError;
    let status = match error {
        kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(status)) => {
            Some(status.as_u16())
        }
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    };
    match status {
        Some(401) => "the API server does not accept your credentials: log in again".to_owned(),
        Some(403) => format!("you may not get and create pods/portforward in {NAMESPACE}"),
        Some(404) => "its Pod is gone".to_owned(),
        _ => format!("failed to forward its port: {error}"),
    }
}

fn parse(answer: &str) -> Option<(u16, &str)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut words = head.lines().next()?.split(' ');
    let http = words.next()?.starts_with("HTTP/1.");
    Some((words.next().filter(|_| http)?.parse().ok()?, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_http_or_nothing() {
        assert_eq!(parse("HTTP/1.1 200 OK\r\na: b\r\n\r\n{}"), Some((200, "{}")));
        for answer in ["", "HTTP/1.1 200 OK", "SSH-2.0-x\r\n\r\n", "HTTP/1.1 fine\r\n\r\n", "200\r\n\r\n"] {
            assert_eq!(parse(answer), None, "{answer}");
        }
    }
}
