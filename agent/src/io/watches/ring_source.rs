//! Where the ring comes from: a watch of the one Secret where that is allowed, the mounted file otherwise.

use std::{
    fs, io,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use kube::Client;
use secureoverlay_agent_core::{agent::Event, ring_cache::RingInput};
use secureoverlay_k8s::{
    names::{NAMESPACE, SECRET, SECRET_KEY},
    ring_secret::RingDocument,
    watch::{Source, Update},
};
use secureoverlay_keyring::keyring::MAX_LEN;
use tokio::{
    sync::mpsc::Sender,
    time::{Instant, interval},
};
use zeroize::Zeroizing;

use crate::{
    io::{
        input::Input,
        rights::{self, Object, Patience},
    },
    telemetry::{heard::Heard, metrics::Metrics},
};

/// How often the file is looked at. The kubelet takes far longer to bring a change into it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

fn input(content: Result<RingDocument, String>) -> RingInput {
    match content {
        Ok(RingDocument(Some(document))) => RingInput::Document(document),
        Ok(RingDocument(None)) => {
            RingInput::Absent(format!("the Secret {NAMESPACE}/{SECRET} has no entry {SECRET_KEY:?}"))
        }
        Err(problem) => {
            RingInput::Absent(format!("the Secret {NAMESPACE}/{SECRET} can't be read: {problem}"))
        }
    }
}

/// Tells what the source shows, now and whenever that changes, until the receiver is gone.
pub async fn follow(client: Client, file: PathBuf, events: Sender<Input>, told: (Metrics, Heard)) {
    let object = Object { group: "", resource: "secrets", namespace: NAMESPACE, name: SECRET };
    let (mut said, mut patience, mut seen) = (false, Patience::default(), None);
    while !events.is_closed() {
        if rights::may_watch(&client, object).await {
            tracing::info!(secret = SECRET, "reading the key ring through the API");
            return watch(client, events, told).await;
        }
        if !said {
            tracing::info!(file = %file.display(), "this agent may not watch the Secret: reading the mounted file");
        }
        said = true;
        poll(&file, &mut seen, &events, Instant::now() + patience.pause()).await;
    }
}

async fn watch(client: Client, events: Sender<Input>, told: (Metrics, Heard)) {
    let to_events = |update: Update<RingDocument>| {
        let ring = match update {
            Update::List { objects, .. } => {
                objects.into_iter().next().map_or_else(missing, |secret| input(secret.content))
            }
            Update::Applied(secret) => input(secret.content),
            Update::Deleted(_) => missing(),
            Update::Heard | Update::Failed(_) => return None,
        };
        Some(vec![Event::Ring(ring)])
    };
    super::watch(client, (Source::ring(), "secrets"), told, to_events, events).await;
}

fn missing() -> RingInput {
    RingInput::Absent(format!("there is no Secret {NAMESPACE}/{SECRET}"))
}

/// What changes when the kubelet exchanges the file.
type Stamp = Result<(u64, u64, i64, i64, u64), io::ErrorKind>;

async fn poll(file: &Path, seen: &mut Option<Stamp>, events: &Sender<Input>, until: Instant) {
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
            Ok(Ok(document)) => RingInput::Document(document),
            Ok(Err(error)) => RingInput::Absent(format!("reading {} failed: {error}", file.display())),
            Err(_) => continue,
        };
        if events.send(Event::Ring(content).into()).await.is_err() {
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

    fn text(event: Option<Input>) -> String {
        match event.unwrap() {
            Input::Agent(Event::Ring(RingInput::Document(document))) => {
                String::from_utf8(document.to_vec()).unwrap()
            }
            Input::Agent(Event::Ring(RingInput::Absent(why))) => why,
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
            watch(client, sender, (Metrics::new().0, Heard::default())).await;
        });
        for expected in ["one", "two", "there is no Secret kube-system/ucp-secureoverlay"] {
            let event = timeout(Duration::from_secs(30), events.recv()).await.expect("an event");
            assert_eq!(text(event), expected);
        }
        watcher.abort();
    }

    #[test]
    fn secret_without_a_ring_says_what_is_missing() {
        let document = RingDocument(Some(Zeroizing::new(b"hush".to_vec())));
        let RingInput::Document(read) = input(Ok(document)) else { panic!("there is a document") };
        assert_eq!(*read, b"hush");
        let absent = |content| match input(content) {
            RingInput::Absent(why) => why,
            RingInput::Document(_) => panic!("there is none"),
        };
        assert!(absent(Ok(RingDocument(None))).contains("no entry \"keys\""));
        assert!(absent(Err("data.keys: not base64".to_owned())).contains("not base64"));
    }
}
