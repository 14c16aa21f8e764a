use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::body::Body;
use http::{Request, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, Receiver};
use tower::service_fn;

use super::*;
use crate::{encryption_peer::EncryptionPeer, object::read_field};

#[derive(Clone, Debug, PartialEq)]
struct Number(u8);

impl Content for Number {
    fn read(object: Value) -> Result<Self, String> {
        read_field(object, "spec").map(Self)
    }
}

/// What the server answers, one after the other; then watches stay silent.
struct Server {
    answers: Mutex<VecDeque<Response<Body>>>,
    asked: Mutex<Vec<(Instant, String)>>,
}

impl Server {
    /// The n-th question, and how long after the one before it came.
    fn asked(&self, at: usize) -> (String, Duration) {
        let asked = self.asked.lock().unwrap();
        let before = asked[at.saturating_sub(1)].0;
        (asked[at].1.clone(), asked[at].0 - before)
    }
}

fn answer(body: &impl ToString) -> Response<Body> {
    Response::new(Body::from(body.to_string().into_bytes()))
}

fn refusal(code: u16, retry_after: Option<u32>) -> Response<Body> {
    let mut response = Response::builder().status(code);
    if let Some(seconds) = retry_after {
        response = response.header("Retry-After", seconds);
    }
    response.body(Body::from(b"Too many requests".to_vec())).unwrap()
}

fn object(name: &str, version: u32, number: impl Into<Value>) -> Value {
    json!({"metadata": {"name": name, "resourceVersion": version.to_string()}, "spec": number.into()})
}

fn list(version: u32, items: &[Value]) -> Response<Body> {
    answer(&json!({"kind": "List", "metadata": {"resourceVersion": version.to_string()}, "items": items}))
}

fn events(events: &[(&str, Value)]) -> Response<Body> {
    let lines =
        events.iter().map(|(kind, object)| json!({"type": kind, "object": object}).to_string() + "\n");
    answer(&lines.collect::<String>())
}

fn follow_server<const N: usize>(answers: [Response<Body>; N]) -> (Arc<Server>, Receiver<Update<Number>>) {
    let server = Arc::new(Server { answers: Mutex::new(answers.into()), asked: Mutex::default() });
    let served = Arc::clone(&server);
    let service = service_fn(move |request: Request<kube::client::Body>| {
        let server = Arc::clone(&served);
        async move {
            server.asked.lock().unwrap().push((Instant::now(), request.uri().to_string()));
            let answer = server.answers.lock().unwrap().pop_front();
            match answer {
                Some(answer) => Ok::<_, Infallible>(answer),
                None => std::future::pending().await,
            }
        }
    });
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(follow(Client::new(service, "default"), Source::cluster::<EncryptionPeer>(), sender));
    (server, receiver)
}

fn numbers(update: Option<Update<Number>>) -> Vec<(String, Result<u8, ()>)> {
    let objects = match update.expect("the watch goes on") {
        Update::List { objects, .. } => objects,
        Update::Applied(object) | Update::Deleted(object) => vec![object],
        other => panic!("{other:?}"),
    };
    let read = |object: Object<Number>| (object.meta.name, object.content.map(|n| n.0).map_err(drop));
    objects.into_iter().map(read).collect()
}

fn failure(update: Option<Update<Number>>) -> Failure {
    match update {
        Some(Update::Failed(failure)) => failure,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn list_and_changes_are_told_with_hostile_objects_among_them() {
    let (server, mut updates) = follow_server([
        list(5, &[object("a", 3, 1), object("b", 4, "x"), json!(7)]),
        events(&[("ADDED", object("c", 6, 3)), ("MODIFIED", json!({"metadata": {"name": "d"}}))]),
        events(&[("DELETED", object("a", 8, 1))]),
    ]);
    let named = |name: &str, number| (name.to_owned(), number);
    let expected = [named("a", Ok(1)), named("b", Err(())), named("", Err(()))];
    assert_eq!(numbers(updates.recv().await), expected);
    assert_eq!(numbers(updates.recv().await), [named("c", Ok(3))]);
    assert_eq!(numbers(updates.recv().await), [named("d", Err(()))]);
    assert!(matches!(updates.recv().await, Some(Update::Deleted(object)) if object.meta.name == "a"));
    assert_eq!(server.asked(0).0, "/apis/secureoverlay.io/v1alpha1/encryptionpeers?resourceVersion=0");
    assert!(server.asked(1).0.ends_with("&resourceVersion=5"), "{}", server.asked(1).0);
    assert!(server.asked(2).0.ends_with("&resourceVersion=6"), "the one that has no version is passed over");
}

#[tokio::test(start_paused = true)]
async fn silence_begins_with_the_last_bookmark() {
    let bookmark = json!({"kind": "EncryptionPeer", "apiVersion": "x", "metadata": {"resourceVersion": "9"}});
    let (server, mut updates) = follow_server([list(5, &[]), events(&[]), events(&[("BOOKMARK", bookmark)])]);
    assert!(matches!(updates.recv().await, Some(Update::List { .. })));
    assert_eq!(updates.recv().await, Some(Update::Heard));
    let heard = Instant::now();
    sleep(Duration::from_secs(300)).await;
    // The server has nothing more to answer to the watch.
    assert!(server.asked(3).0.ends_with("&resourceVersion=9"), "{}", server.asked(3).0);
    assert!(server.asked(4).0.ends_with("?resourceVersion=0"), "{}", server.asked(4).0);
    let after = server.asked.lock().unwrap()[4].0 - heard;
    assert!((120..=165).contains(&after.as_secs()), "{after:?}");
}

/// A watch that was answered, and on which nothing comes.
fn silent() -> Response<Body> {
    Response::new(Body::from_stream(futures::stream::pending::<Result<Vec<u8>, Infallible>>()))
}

#[tokio::test(start_paused = true)]
async fn silent_watch_on_which_nothing_was_missed_goes_on() {
    let (server, mut updates) =
        follow_server([list(5, &[]), silent(), list(5, &[]), list(5, &[]), list(6, &[])]);
    assert!(matches!(updates.recv().await, Some(Update::List { .. })));
    assert_eq!(updates.recv().await, Some(Update::Heard));
    assert_eq!(updates.recv().await, Some(Update::Heard));
    sleep(Duration::from_secs(250)).await;
    let checks = [2, 3, 4].map(|at| server.asked(at));
    for (uri, after) in checks {
        assert!(uri.ends_with("?resourceVersion=0&fieldSelector=metadata.name%3Dnone"), "{uri}");
        assert!((120..=165).contains(&after.as_secs()), "{after:?}");
    }
    let (uri, after) = server.asked(5);
    assert!(
        uri.ends_with("?resourceVersion=0") && after.as_secs() < 2,
        "something was missed: {uri} {after:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn silent_watch_is_listed_anew_where_the_check_fails() {
    let (server, mut updates) = follow_server([list(5, &[]), silent(), refusal(500, None), list(5, &[])]);
    assert!(matches!(updates.recv().await, Some(Update::List { .. })));
    assert!(matches!(updates.recv().await, Some(Update::List { .. })));
    assert!(server.asked(3).0.ends_with("?resourceVersion=0"), "{}", server.asked(3).0);
}

#[tokio::test(start_paused = true)]
async fn watch_that_does_not_answer_is_silent_too() {
    let (server, mut updates) = follow_server([list(5, &[])]);
    assert!(matches!(updates.recv().await, Some(Update::List { .. })));
    sleep(Duration::from_secs(250)).await;
    let (uri, after) = server.asked(2);
    assert!(uri.ends_with("?resourceVersion=0") && (120..=165).contains(&after.as_secs()), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn restarted_server_is_listed_anew_only_if_its_history_went_back() {
    for (version, went_back) in [(9, false), (3, true)] {
        let (server, mut updates) = follow_server([
            list(5, &[]),
            refusal(500, None),
            silent(),
            list(version, &[]),
            list(3, &[]),
            list(3, &[]),
        ]);
        assert!(matches!(updates.recv().await, Some(Update::List { .. })));
        assert!(matches!(updates.recv().await, Some(Update::Failed(_))));
        sleep(Duration::from_secs(60)).await;
        let (uri, after) = server.asked(3);
        assert!(uri.ends_with("?resourceVersion=0&fieldSelector=metadata.name%3Dnone"), "{uri}");
        assert!(after <= Duration::from_secs(20), "{after:?}");
        let told =
            updates.try_recv().is_ok_and(|update| matches!(update, Update::List { went_back: true, .. }));
        assert_eq!(told, went_back);
    }
}

fn expired() -> Response<Body> {
    events(&[("ERROR", json!({"code": 410, "reason": "Expired"}))])
}

#[tokio::test(start_paused = true)]
async fn older_list_is_dropped_for_what_etcd_holds() {
    let mut page =
        json!({"metadata": {"resourceVersion": "95", "continue": "abc"}, "items": [object("a", 3, 2)]});
    let first = answer(&page);
    page = json!({"metadata": {"resourceVersion": "95"}, "items": [object("b", 4, 3)]});
    let (server, mut updates) = follow_server([
        list(90, &[object("a", 3, 1)]),
        expired(),
        // An API server that lags behind.
        list(50, &[object("a", 2, 0)]),
        first,
        answer(&page),
        expired(),
        // A restored backup.
        list(60, &[object("a", 3, 1)]),
        list(61, &[object("a", 3, 1)]),
    ]);
    assert_eq!(numbers(updates.recv().await), [("a".to_owned(), Ok(1))]);
    let Some(Update::List { objects, went_back }) = updates.recv().await else { panic!("no list") };
    assert_eq!((objects.len(), went_back), (2, false));
    assert!(server.asked(3).0.ends_with("?limit=500"), "{}", server.asked(3).0);
    assert!(server.asked(4).0.ends_with("?limit=500&continue=abc"), "{}", server.asked(4).0);
    assert!(server.asked(5).0.ends_with("&resourceVersion=95"), "{}", server.asked(5).0);
    assert!(matches!(updates.recv().await, Some(Update::List { went_back: true, .. })));
}

#[tokio::test(start_paused = true)]
async fn history_that_caught_up_is_listed_once() {
    // The cache is at the version that its server began with; other objects have brought etcd further than what was
    // seen before.
    let restored = [object("a", 3, 1)];
    let (server, mut updates) = follow_server([
        list(90, &[object("a", 80, 2)]),
        silent(),
        list(60, &[]),
        list(60, &restored),
        list(200, &restored),
        silent(),
        list(60, &[]),
    ]);
    assert_eq!(numbers(updates.recv().await), [("a".to_owned(), Ok(2))]);
    assert_eq!(numbers(updates.recv().await), [("a".to_owned(), Ok(1))]);
    assert!(server.asked(5).0.ends_with("&resourceVersion=200"), "{}", server.asked(5).0);
    assert_eq!(updates.recv().await, Some(Update::Heard), "and not listed again every few minutes");
}

#[tokio::test(start_paused = true)]
async fn list_past_the_cache_that_fails_is_tried_again() {
    let (server, mut updates) = follow_server([
        list(90, &[]),
        expired(),
        list(50, &[]),
        refusal(500, None),
        list(50, &[]),
        list(95, &[]),
    ]);
    assert!(matches!(updates.recv().await, Some(Update::List { .. })));
    assert_eq!(failure(updates.recv().await).code, Some(500));
    assert!(matches!(updates.recv().await, Some(Update::List { went_back: false, .. })));
    assert!(
        server.asked(5).0.ends_with("?limit=500"),
        "what was seen is not forgotten: {}",
        server.asked(5).0
    );
}

#[tokio::test(start_paused = true)]
async fn failing_list_is_asked_for_less_often_and_as_the_server_wishes() {
    let (server, mut updates) =
        follow_server([refusal(404, None), refusal(429, Some(45)), refusal(503, None), list(5, &[])]);
    let codes = [404, 429, 503];
    for code in codes {
        let failure = failure(updates.recv().await);
        assert_eq!(failure.code, Some(code));
        assert!(failure.message.contains("Too many requests"), "{}", failure.message);
    }
    assert!(matches!(updates.recv().await, Some(Update::List { .. })));
    let pauses = [1, 2, 3].map(|at| server.asked(at).1.as_millis());
    assert!((500..=1001).contains(&pauses[0]) && (2000..=4001).contains(&pauses[2]), "{pauses:?}");
    assert!((45_000..=45_001).contains(&pauses[1]), "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn broken_answer_is_reported_without_its_content() {
    let (_server, mut updates) =
        follow_server([answer(&r#"{"items": "hush"}"#), list(5, &[]), answer(&"hush\n")]);
    let message = failure(updates.recv().await).message;
    assert!(message.contains("unexpected shape") && !message.contains("hush"), "{message}");
    assert!(matches!(updates.recv().await, Some(Update::List { .. })));
    let message = failure(updates.recv().await).message;
    assert!(message.contains("unexpected shape") && !message.contains("hush"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn watch_that_ends_at_once_is_not_started_in_a_loop() {
    let (server, mut updates) =
        follow_server([list(5, &[]), events(&[]), events(&[]), events(&[]), events(&[])]);
    assert!(matches!(updates.recv().await, Some(Update::List { .. })));
    sleep(Duration::from_secs(60)).await;
    let after = server.asked(5).1;
    assert!((4000..=8001).contains(&after.as_millis()), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn version_that_is_forgotten_at_once_is_not_listed_in_a_loop() {
    let (server, mut updates) = follow_server([
        list(5, &[]),
        expired(),
        list(5, &[]),
        expired(),
        list(5, &[]),
        expired(),
        list(5, &[]),
    ]);
    for _ in 0..4 {
        assert!(matches!(updates.recv().await, Some(Update::List { .. })));
    }
    let after = server.asked(6).1;
    assert!((2000..=4001).contains(&after.as_millis()), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn watch_ends_with_its_reader() {
    let (server, updates) = follow_server([refusal(500, None), list(5, &[])]);
    drop(updates);
    sleep(Duration::from_secs(600)).await;
    assert!(server.asked.lock().unwrap().len() <= 1);
}
