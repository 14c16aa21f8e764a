//! Where the ring comes from: a watch of the one Secret where that is allowed, the mounted file otherwise.

use std::{
    fmt, fs, io,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt,
        watcher::{self, Config, watcher},
    },
};
use secureoverlay_common::{
    names::{NAMESPACE, SECRET, SECRET_KEY},
    ring::MAX_LEN,
};
use serde::{Deserialize, Deserializer};
use tokio::{
    sync::mpsc::Sender,
    time::{Instant, interval},
};
use zeroize::Zeroizing;

use crate::{
    agent::Event,
    held::Content,
    rights::{self, Object, Patience},
    watching::Watching,
};

/// How often the file is looked at. The kubelet takes far longer to bring a change into it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The Secret with nothing but the ring in it.
#[derive(Clone, Deserialize, Resource)]
#[resource(inherit = Secret)]
struct RingSecret {
    metadata: ObjectMeta,
    #[serde(default)]
    data: Option<Data>,
}

#[derive(Clone, Deserialize)]
struct Data {
    /// [`SECRET_KEY`].
    #[serde(default, deserialize_with = "wiped")]
    keys: Option<Zeroizing<Vec<u8>>>,
}

impl fmt::Debug for RingSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingSecret").field("name", &self.metadata.name).finish_non_exhaustive()
    }
}

fn wiped<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Zeroizing<Vec<u8>>>, D::Error> {
    Ok(Option::<ByteString>::deserialize(deserializer)?.map(|bytes| Zeroizing::new(bytes.0)))
}

impl From<RingSecret> for Content {
    fn from(secret: RingSecret) -> Self {
        match secret.data.and_then(|data| data.keys) {
            Some(keys) => Self::Document(keys),
            None => Self::Absent(format!("the Secret {NAMESPACE}/{SECRET} has no entry {SECRET_KEY:?}")),
        }
    }
}

/// Tells what the source shows, now and whenever that changes, for as long as somebody listens.
pub async fn follow(client: Client, file: PathBuf, events: Sender<Event>, mut watching: Watching) {
    let object = Object { group: "", resource: "secrets", namespace: NAMESPACE, name: SECRET };
    let (mut said, mut patience, mut seen) = (false, Patience::default(), None);
    while !events.is_closed() {
        if rights::may_watch(&client, object).await {
            tracing::info!(secret = SECRET, "reading the key ring through the API");
            return watch(client, &events, &mut watching).await;
        }
        if !said {
            tracing::info!(file = %file.display(), "this agent may not watch the Secret: reading the mounted file");
        }
        said = true;
        poll(&file, &mut seen, &events, Instant::now() + patience.pause()).await;
    }
}

async fn watch(client: Client, events: &Sender<Event>, watching: &mut Watching) {
    let config = Config::default().fields(&format!("metadata.name={SECRET}"));
    let mut stream =
        watcher(Api::<RingSecret>::namespaced(client, NAMESPACE), config).default_backoff().boxed();
    let mut listed = None;
    while let Some(event) = stream.next().await {
        let Some(event) = watching.heard(event) else { continue };
        let content = match event {
            watcher::Event::Init => {
                listed = None;
                continue;
            }
            watcher::Event::InitApply(secret) => {
                listed = Some(secret);
                continue;
            }
            watcher::Event::InitDone => listed.take().map_or_else(missing, Content::from),
            watcher::Event::Apply(secret) => secret.into(),
            watcher::Event::Delete(_) => missing(),
        };
        if events.send(Event::Ring(content)).await.is_err() {
            return;
        }
    }
}

fn missing() -> Content {
    Content::Absent(format!("there is no Secret {NAMESPACE}/{SECRET}"))
}

/// What changes when the kubelet exchanges the file.
type Stamp = Result<(u64, u64, i64, i64, u64), io::ErrorKind>;

async fn poll(file: &Path, seen: &mut Option<Stamp>, events: &Sender<Event>, until: Instant) {
    let mut ticks = interval(LOOK_EVERY);
    while Instant::now() < until {
        ticks.tick().await;
        let now = stamp(file);
        if seen.as_ref() == Some(&now) {
            continue;
        }
        *seen = Some(now);
        let path = file.to_owned();
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        let content = match read {
            Ok(Ok(document)) => Content::Document(document),
            Ok(Err(error)) => Content::Absent(format!("reading {} failed: {error}", file.display())),
            Err(_) => continue,
        };
        if events.send(Event::Ring(content)).await.is_err() {
            return;
        }
    }
}

fn stamp(file: &Path) -> Stamp {
    let meta = fs::metadata(file).map_err(|error| error.kind())?;
    Ok((meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
}

/// Reads at most a byte more than a ring may have, so that a longer one is noticed.
fn read(file: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let limit = MAX_LEN as u64 + 1;
    let file = fs::File::open(file)?;
    // Room for all of it from the start: growing would leave unwiped copies behind.
    let room = file.metadata()?.len().min(limit) as usize;
    let mut document = Zeroizing::new(Vec::with_capacity(room + 64));
    file.take(limit).read_to_end(&mut document)?;
    Ok(document)
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, os::unix::fs::symlink};

    use axum::http::{Request, Response};
    use kube::client::Body;
    use tokio::{sync::mpsc, time::timeout};
    use tower::service_fn;

    use super::*;
    use crate::metrics::Metrics;

    fn text(event: Option<Event>) -> String {
        match event.unwrap() {
            Event::Ring(Content::Document(document)) => String::from_utf8(document.to_vec()).unwrap(),
            Event::Ring(Content::Absent(why)) => why,
            _ => panic!("another event"),
        }
    }

    /// The kubelet writes a new folder and moves a symbolic link to it, as here.
    fn publish(dir: &Path, version: &str, content: &str) {
        fs::create_dir(dir.join(version)).unwrap();
        fs::write(dir.join(version).join("keys"), content).unwrap();
        symlink(version, dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_file_is_followed_through_the_kubelets_links() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys");
        let (sender, mut events) = mpsc::channel(4);
        let path = file.clone();
        let poller = tokio::spawn(async move {
            poll(&path, &mut None, &sender, Instant::now() + Duration::from_secs(60)).await;
        });
        assert!(text(events.recv().await).contains("keys failed"));
        publish(dir.path(), "..1", "one");
        symlink("..data/keys", &file).unwrap();
        assert_eq!(text(events.recv().await), "one");
        publish(dir.path(), "..2", "two");
        assert_eq!(text(events.recv().await), "two");
        let noise = "x".repeat(2 * MAX_LEN);
        publish(dir.path(), "..3", &noise);
        assert_eq!(text(events.recv().await).len(), MAX_LEN + 1);
        drop(events);
        publish(dir.path(), "..4", "four");
        poller.await.unwrap();
    }

    /// An API server with a Secret that changes twice and is deleted then.
    async fn secret_server(request: Request<Body>) -> Result<Response<Body>, Infallible> {
        let object = |version: u8, keys: &str| {
            format!(
                r#"{{"apiVersion": "v1", "kind": "Secret", "metadata": {{"name": "{SECRET}",
                "resourceVersion": "{version}"}}, "data": {{"keys": "{keys}"}}}}"#
            )
            .replace('\n', " ")
        };
        let query = request.uri().query().unwrap_or_default();
        assert!(query.contains(&format!("fieldSelector=metadata.name%3D{SECRET}")), "{query}");
        let body = if !query.contains("watch=true") {
            format!(r#"{{"metadata": {{"resourceVersion": "1"}}, "items": [{}]}}"#, object(1, "b25l"))
        } else if query.contains("resourceVersion=1") {
            let events = [("MODIFIED", object(2, "dHdv")), ("DELETED", object(3, "dHdv"))];
            events.map(|(kind, object)| format!(r#"{{"type": "{kind}", "object": {object}}}"#)).join("\n")
                + "\n"
        } else {
            std::future::pending().await
        };
        Ok(Response::new(Body::from(body.into_bytes())))
    }

    #[tokio::test]
    async fn the_secret_is_followed_through_its_changes() {
        let client = Client::new(service_fn(secret_server), "default");
        let (sender, mut events) = mpsc::channel(4);
        let watcher = tokio::spawn(async move {
            let mut watching = Watching::new("secrets", Metrics::new().0);
            watch(client, &sender, &mut watching).await;
        });
        for expected in ["one", "two", "there is no Secret kube-system/ucp-secureoverlay"] {
            let event = timeout(Duration::from_secs(30), events.recv()).await.expect("an event");
            assert_eq!(text(event), expected);
        }
        watcher.abort();
    }

    #[test]
    fn the_secret_shows_nothing_of_itself() {
        let json = r#"{"metadata": {"name": "a"}, "data": {"keys": "aHVzaA==", "other": "aHVzaA=="}}"#;
        let secret: RingSecret = serde_json::from_str(json).unwrap();
        assert!(!format!("{secret:?}").contains("104, 117"));
        let Content::Document(document) = secret.into() else { panic!("there is a document") };
        assert_eq!(*document, b"hush");
        for json in [
            r#"{"metadata": {}}"#,
            r#"{"metadata": {}, "data": null}"#,
            r#"{"metadata": {}, "data": {"other": "aHVzaA=="}}"#,
        ] {
            let secret: RingSecret = serde_json::from_str(json).unwrap();
            assert!(matches!(Content::from(secret), Content::Absent(why) if why.contains("no entry")));
        }
    }
}
