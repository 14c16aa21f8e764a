//! The requests of a watch.

use std::time::Duration;

use futures::{StreamExt, stream::BoxStream};
use http::{Request, header::RETRY_AFTER};
use kube::{
    Client,
    client::Body,
    core::{Status, WatchEvent},
};
use serde::Deserialize;
use tokio::time::timeout;

use super::Source;
use crate::object::{Content, Object};

/// For a whole list.
const LIST_TIMEOUT: Duration = Duration::from_secs(120);
/// Watches end by themselves, each after a time of its own, so that a restarted server's load spreads over the others
/// again; and before the client takes one on which nothing comes for dead.
const WATCH_SECONDS: std::ops::Range<u32> = 200..280;

/// A list, with its objects read one by one.
#[derive(Deserialize)]
#[serde(bound(deserialize = "T: Content"))]
pub(super) struct List<T> {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default = "Vec::new")]
    pub items: Vec<Object<T>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    r#continue: Option<String>,
}

impl<T> List<T> {
    pub fn version(&self) -> &str {
        &self.metadata.resource_version
    }

    /// Where the next page begins; empty where this is the last one. A token that the server made is base64 for URLs.
    pub fn next(&self) -> &str {
        self.metadata.r#continue.as_deref().unwrap_or_default()
    }
}

/// Why there is no list.
pub(super) struct ListError {
    pub error: kube::Error,
    /// How long the server wishes not to be asked again.
    pub retry_after: Option<Duration>,
}

impl From<kube::Error> for ListError {
    fn from(error: kube::Error) -> Self {
        Self { error, retry_after: None }
    }
}

fn uri(source: &Source, query: &str) -> String {
    // Names of fields, labels and objects need no escapes but this one.
    let selector = |name: &str, selector: &Option<String>| {
        selector.as_ref().map_or_else(String::new, |text| format!("&{name}={}", text.replace('=', "%3D")))
    };
    let fields = selector("fieldSelector", &source.field_selector);
    let labels = selector("labelSelector", &source.label_selector);
    format!("{}?{query}{fields}{labels}", source.path)
}

/// Lists what the source names.
pub(super) async fn list<T: Content>(
    client: &Client,
    source: &Source,
    query: &str,
) -> Result<List<T>, ListError> {
    match timeout(LIST_TIMEOUT, list_unbounded(client, source, query)).await {
        Ok(listed) => listed,
        Err(elapsed) => Err(kube::Error::Service(elapsed.into()).into()),
    }
}

async fn list_unbounded<T: Content>(
    client: &Client,
    source: &Source,
    query: &str,
) -> Result<List<T>, ListError> {
    let request = Request::get(uri(source, query)).body(Body::empty()).map_err(kube::Error::HttpError)?;
    let response = client.send(request).await?;
    let (code, headers) = (response.status(), response.headers());
    let retry_after = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let retry_after = retry_after.map(Duration::from_secs);
    let body = response.into_body().collect_bytes().await?;
    if code.is_success() {
        let list: List<T> = serde_json::from_slice(&body).map_err(kube::Error::SerdeError)?;
        return Ok(list);
    }
    let status = serde_json::from_slice::<Status>(&body).unwrap_or_else(|_| {
        let text: String = String::from_utf8_lossy(&body).trim().chars().take(200).collect();
        Status::failure(&text, "").with_code(code.as_u16())
    });
    let details = status.details.as_ref().map(|details| details.retry_after_seconds).filter(|wish| *wish > 0);
    let retry_after = retry_after.or(details.map(|wish| Duration::from_secs(wish.into())));
    Err(ListError { error: kube::Error::Api(status.boxed()), retry_after })
}

/// Watches from a version on.
pub(super) async fn watch<T: Content>(
    client: &Client,
    source: &Source,
    version: &str,
    fraction: f64,
) -> Result<BoxStream<'static, kube::Result<WatchEvent<Object<T>>>>, kube::Error> {
    let length = f64::from(WATCH_SECONDS.end - WATCH_SECONDS.start);
    let seconds = f64::from(WATCH_SECONDS.start) + length * fraction;
    let query =
        format!("watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds:.0}&resourceVersion={version}");
    let request = Request::get(uri(source, &query)).body(Vec::new()).map_err(kube::Error::HttpError)?;
    Ok(client.request_events::<Object<T>>(request).await?.boxed())
}
