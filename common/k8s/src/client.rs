//! The client of the Kubernetes API.

use std::{env, time::Duration};

use kube::{
    Client, Config,
    client::ClientBuilder,
    config::{InClusterError, KubeConfigOptions, KubeconfigError},
    runtime::watcher,
};
use tower::timeout::TimeoutLayer;

/// For a connection to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// For the head of an answer; a watch answers with its head at once.
const ANSWER: Duration = Duration::from_secs(30);
/// For the next byte. On a watch on which nothing happens none may come: [`crate::watch`] asks the server after three
/// minutes at most. One that brings nothing for longer is dead, and TCP goes on trying for a quarter of an hour.
const READ: Duration = Duration::from_secs(300);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// In a pod.
    #[error("reading the pod's service account: {0}. Is automountServiceAccountToken off?")]
    InCluster(#[from] InClusterError),
    /// Outside.
    #[error("not in a pod, and reading the kubeconfig failed: {0}. Set KUBECONFIG")]
    Kubeconfig(#[from] KubeconfigError),
    /// The program's own name is no header value.
    #[error("the user agent {0:?} is not a header value")]
    UserAgent(String),
    /// Credentials or certificates.
    #[error("preparing the connection to the API server: {0}")]
    Client(#[from] kube::Error),
}

/// A client with the pod's service account inside a pod, with the kubeconfig outside. Every request is bounded in
/// time. Nothing is sent yet.
///
/// # Errors
/// Where credentials are missing or unusable.
pub async fn connect(user_agent: &str) -> Result<Client, ConnectError> {
    let mut config = if env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        Config::incluster()?
    } else {
        Config::from_kubeconfig(&KubeConfigOptions::default()).await?
    };
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(READ);
    config.reset_reader_on_write = true;
    let value = user_agent.try_into().map_err(|_| ConnectError::UserAgent(user_agent.to_owned()))?;
    config.headers.push((http::header::USER_AGENT, value));
    Ok(ClientBuilder::try_from(config)?.with_layer(&TimeoutLayer::new(ANSWER)).build())
}

/// An error in words that may be logged. The library's own text quotes what it could not decode, which may be the
/// content of a Secret.
#[must_use]
pub fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("the API server answered {}: {}", status.code, status.message),
        kube::Error::SerdeError(fault) => {
            format!("the API server's answer has an unexpected shape ({:?} error)", fault.classify())
        }
        kube::Error::FromUtf8(_) => "the API server's answer is not UTF-8 text".to_owned(),
        other => {
            let mut text = format!("no answer from the API server: {other}");
            let mut cause = std::error::Error::source(other);
            while let Some(inner) = cause {
                let inner_text = inner.to_string();
                if !text.contains(&inner_text) {
                    text = format!("{text}: {inner_text}");
                }
                cause = inner.source();
            }
            text
        }
    }
}

/// [`describe`] for what a watch reports.
#[must_use]
pub fn describe_watch(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => describe(error),
        watcher::Error::WatchError(status) => {
            format!("the API server ended the watch with {}: {}", status.code, status.message)
        }
        watcher::Error::NoResourceVersion => "the API server's answer has no resourceVersion".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_decoded_is_not_quoted() {
        let fault = serde_json::from_str::<u8>("\"hush\"").unwrap_err();
        assert!(fault.to_string().contains("hush"), "else this test shows nothing");
        let text = describe(&kube::Error::SerdeError(fault));
        assert!(text.contains("unexpected shape") && !text.contains("hush"), "{text}");
        let bytes = String::from_utf8(vec![b'h', b'u', 0xff]).unwrap_err();
        assert_eq!(describe(&kube::Error::FromUtf8(bytes)), "the API server's answer is not UTF-8 text");
    }
}
