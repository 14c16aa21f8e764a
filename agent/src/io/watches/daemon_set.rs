//! What the API says about our DaemonSet, and, where it may not be read, about our own rights.

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::{api::apps::v1::DaemonSet, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client, Config as Connection, Resource,
    config::AuthInfo,
    core::Status,
    runtime::{
        WatchStreamExt,
        watcher::{self, Config, watcher},
    },
};
use secureoverlay_k8s::{
    names::{DAEMON_SET, NAMESPACE},
    node::SlimNode,
};
use serde::Deserialize;
use tokio::{
    sync::mpsc::Sender,
    time::{Instant, sleep, timeout},
};

use crate::{
    io::{
        input::Input,
        rights::{self, Object, Patience},
        watches::failures::Watching,
    },
    uninstall::removal::{Access, Refusals, Sighting, Verdict},
};

/// For one answer at the end, when the pod's grace period is already running.
const ANSWER: Duration = Duration::from_secs(2);
/// Between two questions about our rights.
const PAUSE: Duration = Duration::from_millis(500);

/// A DaemonSet as far as we read it: its pods come and go without it changing for us.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = DaemonSet)]
struct SlimDaemonSet {
    metadata: ObjectMeta,
}

impl From<&SlimDaemonSet> for Sighting {
    fn from(SlimDaemonSet { metadata }: &SlimDaemonSet) -> Self {
        let orphan = |finalizer: &String| finalizer == "orphan";
        Self::Present {
            uid: metadata.uid.as_deref().and_then(|uid| uid.parse().ok()),
            deleting: metadata.deletion_timestamp.is_some(),
            orphaning: metadata.finalizers.as_ref().is_some_and(|finalizers| finalizers.iter().any(orphan)),
        }
    }
}

/// Tells every sighting, or that this agent may not look, until the receiver is gone.
pub async fn follow(client: Client, events: Sender<Input>, mut watching: Watching) {
    let object = Object { group: "apps", resource: "daemonsets", namespace: NAMESPACE, name: DAEMON_SET };
    let mut patience = Patience::default();
    while !rights::may_watch(&client, object).await {
        if events.send(Input::DaemonSet(None)).await.is_err() {
            return;
        }
        sleep(patience.pause()).await;
    }
    let config = Config::default().fields(&format!("metadata.name={DAEMON_SET}"));
    let mut stream = watcher(Api::<SlimDaemonSet>::namespaced(client.clone(), NAMESPACE), config)
        .default_backoff()
        .boxed();
    let mut listed = Sighting::Absent;
    while let Some(event) = stream.next().await {
        let sighting = match watching.heard(event) {
            None => continue,
            Some(watcher::Event::Init) => {
                listed = Sighting::Absent;
                continue;
            }
            Some(watcher::Event::InitApply(set)) => {
                listed = (&set).into();
                continue;
            }
            // What follows from it can't be taken back: an empty list is believed once a question by name says the same.
            Some(watcher::Event::InitDone) if listed == Sighting::Absent => confirmed(&client).await,
            Some(watcher::Event::InitDone) => listed,
            Some(watcher::Event::Apply(set)) => (&set).into(),
            // With the finalizer `orphan` in the last version, its pods stay.
            Some(watcher::Event::Delete(set)) => match Sighting::from(&set) {
                orphaned @ Sighting::Present { orphaning: true, .. } => orphaned,
                _ => Sighting::Absent,
            },
        };
        if events.send(Input::DaemonSet(Some(sighting))).await.is_err() {
            return;
        }
    }
}

/// What the API says of the DaemonSet by its name, asked until it does.
async fn confirmed(client: &Client) -> Sighting {
    let mut patience = Patience::default();
    loop {
        match ask(client.clone()).await {
            Some(sighting) => return sighting,
            None => sleep(patience.pause()).await,
        }
    }
}

/// Asks once more, at the end. `None` where the answer says nothing about the DaemonSet.
pub async fn ask(client: Client) -> Option<Sighting> {
    let api = Api::<SlimDaemonSet>::namespaced(client, NAMESPACE);
    match timeout(ANSWER, api.get(DAEMON_SET)).await {
        Ok(Ok(set)) => Some((&set).into()),
        Ok(Err(kube::Error::Api(status))) if names_the_daemon_set(&status) => Some(Sighting::Absent),
        Ok(Err(_)) | Err(_) => None,
    }
}

/// A proxy's 404, or that of an API server without the group, is no word on the DaemonSet.
fn names_the_daemon_set(status: &Status) -> bool {
    let details = status.details.as_ref();
    status.reason == "NotFound"
        && details.is_some_and(|details| details.name == DAEMON_SET && details.kind == "daemonsets")
}

/// A client without credentials, for asking whether the API server is well once ours are void. Many a cluster has
/// anonymous access switched off; then that is not to be had.
#[must_use]
pub fn anonymous() -> Option<Client> {
    let mut connection = Connection::incluster().ok()?;
    connection.auth_info = AuthInfo::default();
    Client::try_from(connection).ok()
}

/// Where DaemonSets may not be read: finds out whether the right to read our own Node is gone for good.
pub async fn ask_for_rights(client: Client, anonymous: Option<Client>, node: &str) -> Verdict {
    let mut refusals = Refusals::new(Instant::now().into_std());
    loop {
        let access =
            timeout(ANSWER, access(&client, anonymous.as_ref(), node)).await.unwrap_or(Access::Unclear);
        if let Some(verdict) = refusals.note(access, Instant::now().into_std()) {
            return verdict;
        }
        sleep(PAUSE).await;
    }
}

async fn access(client: &Client, anonymous: Option<&Client>, node: &str) -> Access {
    match Api::<SlimNode>::all(client.clone()).get(node).await {
        Ok(_) => Access::Granted,
        Err(kube::Error::Api(status)) => {
            // A token that is void is refused everywhere, at /readyz too.
            let asker = if status.code == 401 { anonymous } else { Some(client) };
            match asker {
                Some(asker) if [401, 403].contains(&status.code) && healthy(asker).await => Access::Refused,
                _ => Access::Unclear,
            }
        }
        Err(_) => Access::Unclear,
    }
}

/// Whether the API server says that it is ready.
async fn healthy(client: &Client) -> bool {
    let Ok(request) = axum::http::Request::get("/readyz").body(Vec::new()) else { return false };
    client.request_text(request).await.is_ok_and(|text| text.trim() == "ok")
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use axum::http::{Request, Response};
    use kube::client::Body;
    use tower::service_fn;

    use super::*;
    use crate::uninstall::removal::UNCLEAR_FOR;

    /// An API server that gives these answers in turn, the last one for ever, and is ready or not.
    fn server(answers: &'static [(u16, &'static str)], ready: bool) -> Client {
        let asked = Arc::new(AtomicUsize::new(0));
        let respond = move |request: Request<Body>| {
            let (status, body) = match request.uri().path() {
                "/readyz" if ready => (200, "ok".to_owned()),
                "/readyz" => (500, "[-]poststarthook/rbac/bootstrap-roles failed".to_owned()),
                _ => {
                    let at = asked.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1);
                    (answers[at].0, answers[at].1.to_owned())
                }
            };
            let response = Response::builder().status(status).body(Body::from(body.into_bytes())).unwrap();
            async move { Ok::<_, Infallible>(response) }
        };
        Client::new(service_fn(respond), "default")
    }

    const NODE: &str = r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}}"#;
    const ORPHANING: &str = r#"{"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {
        "uid": "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6d", "deletionTimestamp": "2026-11-20T03:00:00Z",
        "finalizers": ["orphan"]}}"#;
    const FORBIDDEN: &str = r#"{"kind": "Status", "status": "Failure", "message": "forbidden", "reason": "Forbidden", "code": 403}"#;
    const UNAUTHORIZED: &str = r#"{"kind": "Status", "status": "Failure", "message": "who?", "reason": "Unauthorized", "code": 401}"#;
    const NOT_FOUND: &str = r#"{"kind": "Status", "status": "Failure", "message": "gone", "reason": "NotFound", "code": 404,
        "details": {"name": "ucp-secureoverlay-agent", "group": "apps", "kind": "daemonsets"}}"#;
    const NO_SUCH_RESOURCE: &str = r#"{"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404,
        "message": "the server could not find the requested resource", "details": {}}"#;

    #[tokio::test(start_paused = true)]
    async fn rights_are_gone_when_they_are_refused_steadily() {
        let verdict = |answers, ready| ask_for_rights(server(answers, ready), None, "a");
        assert_eq!(verdict(&[(403, FORBIDDEN)], true).await, Verdict::Removal);
        assert_eq!(verdict(&[(200, NODE)], true).await, Verdict::Restart);
        assert_eq!(verdict(&[(403, FORBIDDEN)], false).await, Verdict::Restart);
        assert_eq!(verdict(&[(403, FORBIDDEN), (403, FORBIDDEN), (200, NODE)], true).await, Verdict::Restart);
        assert_eq!(verdict(&[(500, "oops")], true).await, Verdict::Restart);
        // One answer that says nothing, as a busy API server gives it, decides nothing.
        assert_eq!(verdict(&[(500, "oops"), (403, FORBIDDEN)], true).await, Verdict::Removal);
        assert_eq!(
            verdict(&[(403, FORBIDDEN), (500, "oops"), (403, FORBIDDEN)], true).await,
            Verdict::Removal
        );
        // A void token gets no answer to whether the API server is well; an anonymous client does.
        assert_eq!(verdict(&[(401, UNAUTHORIZED)], true).await, Verdict::Restart);
        let anonymous = server(&[(401, UNAUTHORIZED)], true);
        let void = server(&[(401, UNAUTHORIZED)], false);
        assert_eq!(ask_for_rights(void.clone(), Some(anonymous), "a").await, Verdict::Removal);
        assert_eq!(ask_for_rights(void.clone(), Some(void), "a").await, Verdict::Restart);
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_does_not_answer_is_no_removal() {
        let silence =
            service_fn(|_: Request<Body>| std::future::pending::<Result<Response<Body>, Infallible>>());
        let client = Client::new(silence, "default");
        let begun = Instant::now();
        assert_eq!(ask(client.clone()).await, None);
        assert_eq!(ask_for_rights(client, None, "a").await, Verdict::Restart);
        assert!(begun.elapsed() <= ANSWER + UNCLEAR_FOR + ANSWER + PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn empty_list_is_believed_once_the_name_is_not_found() {
        let unclear_first = server(&[(500, "oops"), (404, "404 page not found"), (404, NOT_FOUND)], true);
        assert_eq!(confirmed(&unclear_first).await, Sighting::Absent);
        let sighting = confirmed(&server(&[(200, ORPHANING)], true)).await;
        assert!(matches!(sighting, Sighting::Present { .. }), "{sighting:?}");
    }

    #[tokio::test]
    async fn the_last_question_is_answered_by_what_is_there() {
        assert_eq!(ask(server(&[(404, NOT_FOUND)], true)).await, Some(Sighting::Absent));
        assert_eq!(ask(server(&[(403, FORBIDDEN)], true)).await, None);
        assert_eq!(ask(server(&[(404, NO_SUCH_RESOURCE)], true)).await, None);
        assert_eq!(ask(server(&[(404, "404 page not found")], true)).await, None, "a proxy's");
        let uid = "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6d".parse().ok();
        let seen = Sighting::Present { uid, deleting: true, orphaning: true };
        assert_eq!(ask(server(&[(200, ORPHANING)], true)).await, Some(seen));
    }
}
