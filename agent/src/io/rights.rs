//! Which of our sources this agent may read.

use std::time::Duration;

use kube::Client;
use secureoverlay_daemon::{access, client::describe};

/// Between attempts to get an answer, and before a "no" is believed: a healthy API server says "no" for moments after
/// its own start.
const PAUSE: Duration = Duration::from_secs(2);
/// After this time a "no" is first asked for again: the rights may be being mended at this moment.
const AGAIN_FIRST: Duration = Duration::from_secs(5);
/// The pause doubles up to this: where it is always "no", 5,000 agents ask.
const AGAIN_LAST: Duration = Duration::from_secs(300);

/// When to ask again after a "no".
#[derive(Debug)]
pub struct Patience(Duration);

impl Default for Patience {
    fn default() -> Self {
        Self(AGAIN_FIRST)
    }
}

impl Patience {
    /// How long to wait this time.
    pub fn pause(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (2 * pause).min(AGAIN_LAST);
        pause
    }
}

/// One named object.
#[derive(Clone, Copy, Debug)]
pub struct Object {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Plural name of the resource.
    pub resource: &'static str,
    /// Its namespace.
    pub namespace: &'static str,
    /// Its name.
    pub name: &'static str,
}

/// Whether this agent may watch the object. Asks until the API server says so, or says "no" twice.
pub async fn may_watch(client: &Client, object: Object) -> bool {
    let mut refusals = 0;
    let mut silent = false;
    loop {
        match ask(client, object).await {
            Ok(true) => return true,
            Ok(false) if refusals > 0 => return false,
            Ok(false) => refusals += 1,
            Err(error) => {
                if !silent {
                    let (resource, error) = (object.resource, describe(&error));
                    tracing::warn!(
                        resource,
                        error,
                        "cannot find out whether this agent may watch; asking on"
                    );
                }
                silent = true;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn ask(client: &Client, object: Object) -> Result<bool, kube::Error> {
    let Object { group, resource, namespace, name } = object;
    for verb in ["get", "list", "watch"] {
        if !access::allowed(client, verb, group, resource, Some(name), Some(namespace)).await? {
            return Ok(false);
        }
    }
    Ok(true)
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

    const OBJECT: Object = Object { group: "", resource: "secrets", namespace: "a", name: "b" };

    /// An API server that gives these answers in turn, the last one for ever, and a count of them.
    fn server(answers: &'static [&'static str]) -> (Client, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let respond = move |_: Request<Body>| {
            let answer = answers[asked.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1)];
            let status = if answer.contains("Status\"") { 403 } else { 201 };
            let response =
                Response::builder().status(status).body(Body::from(answer.as_bytes().to_vec())).unwrap();
            async move { Ok::<_, Infallible>(response) }
        };
        (Client::new(service_fn(respond), "default"), count)
    }

    const YES: &str = r#"{"spec": {}, "status": {"allowed": true}}"#;
    const NO: &str = r#"{"spec": {}, "status": {"allowed": false}}"#;
    const FORBIDDEN: &str = r#"{"kind": "Status", "status": "Failure", "message": "not yet", "reason": "Forbidden", "code": 403}"#;

    #[test]
    fn a_mended_right_is_noticed_soon_and_a_missing_one_asked_for_rarely() {
        let mut patience = Patience::default();
        let pauses: Vec<u64> = (0..8).map(|_| patience.pause().as_secs()).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[tokio::test(start_paused = true)]
    async fn every_verb_is_needed() {
        let (client, count) = server(&[YES]);
        assert!(may_watch(&client, OBJECT).await);
        assert_eq!(count.load(Ordering::Relaxed), 3);
        assert!(!may_watch(&server(&[YES, YES, NO, YES, NO]).0, OBJECT).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_of_refusal_is_not_believed() {
        assert!(may_watch(&server(&[NO, YES]).0, OBJECT).await);
        assert!(may_watch(&server(&[FORBIDDEN, FORBIDDEN, FORBIDDEN, FORBIDDEN, YES]).0, OBJECT).await);
        assert!(may_watch(&server(&["no JSON", YES]).0, OBJECT).await);
    }
}
