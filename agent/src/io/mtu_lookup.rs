//! Asks the API server what sets the tunnels' MTU, while a tunnel has no room.

use std::time::Duration;

use k8s_openapi::{api::apps::v1::DaemonSet, apimachinery::pkg::apis::meta::v1::APIGroupList};
use kube::{Api, Client};
use secureoverlay_daemon::client::describe;
use secureoverlay_k8s::names::NAMESPACE;
use tokio::{
    sync::{mpsc::Sender, watch},
    time::sleep,
};

use crate::{
    io::{input::Input, rights::Patience},
    network::mtu_setting::{DAEMON_SET, MtuSetting},
};

/// Before another look: the installation may have been changed meanwhile.
const AGAIN: Duration = Duration::from_secs(600);

/// Tells what sets the MTU while that is `needed`, for as long as the agent runs.
pub async fn follow(client: Client, mut needed: watch::Receiver<bool>, events: Sender<Input>) {
    let mut patience = Patience::default();
    while needed.wait_for(|needed| *needed).await.is_ok() {
        let setting = look(&client).await;
        let pause = match setting {
            MtuSetting::Unknown => patience.pause(),
            _ => AGAIN,
        };
        if events.send(Input::MtuSetting(setting)).await.is_err() {
            return;
        }
        sleep(pause).await;
    }
}

/// What sets the MTU, as far as this client may see it. The API groups are open to every account.
pub async fn look(client: &Client) -> MtuSetting {
    let unseen = |error: kube::Error| {
        tracing::debug!(error = describe(&error), "cannot see what sets the tunnels' MTU");
    };
    let api = Api::<DaemonSet>::namespaced(client.clone(), NAMESPACE);
    let daemon_set = api.get_opt(DAEMON_SET).await.map_err(unseen).ok();
    let groups: Option<APIGroupList> = match daemon_set {
        Some(None) => client.list_api_groups().await.map_err(unseen).ok(),
        _ => None,
    };
    let names = groups.as_ref().map(|list| list.groups.iter().map(|group| group.name.as_str()));
    MtuSetting::new(daemon_set.as_ref().map(Option::as_ref), names)
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{Arc, Mutex},
    };

    use axum::http::{Request, Response};
    use kube::client::Body;
    use tokio::{sync::mpsc, time::Instant};
    use tower::service_fn;

    use super::*;

    const FOUND: &str = r#"{"metadata": {"name": "calico-node"}, "spec": {"selector": {}, "template": {}}}"#;
    const ABSENT: &str = r#"{"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}"#;
    const FORBIDDEN: &str = r#"{"kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403}"#;
    const OPERATOR: &str = r#"{"groups": [{"name": "operator.tigera.io", "versions": [{"groupVersion": "a/v1", "version": "v1"}]}]}"#;

    /// An API server with these answers about the DaemonSet and the groups, and the paths that were asked for.
    fn server(daemon_set: &'static str, groups: &'static str) -> (Client, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let paths = asked.clone();
        let respond = move |request: Request<Body>| {
            let path = request.uri().path().to_owned();
            let answer = if path.ends_with("/daemonsets/calico-node") { daemon_set } else { groups };
            paths.lock().unwrap().push(path);
            let status = if answer.contains("404") {
                404
            } else if answer.contains("403") {
                403
            } else {
                200
            };
            let response =
                Response::builder().status(status).body(Body::from(answer.as_bytes().to_vec())).unwrap();
            async move { Ok::<_, Infallible>(response) }
        };
        (Client::new(service_fn(respond), "default"), asked)
    }

    #[tokio::test]
    async fn groups_are_asked_for_only_where_there_is_no_daemon_set() {
        let path = "/apis/apps/v1/namespaces/kube-system/daemonsets/calico-node";
        for (daemon_set, groups, expected, asked) in [
            (FOUND, OPERATOR, MtuSetting::FelixConfiguration, &[path][..]),
            (ABSENT, OPERATOR, MtuSetting::Operator, &[path, "/apis"]),
            (ABSENT, r#"{"groups": []}"#, MtuSetting::Other, &[path, "/apis"]),
            (ABSENT, FORBIDDEN, MtuSetting::Unknown, &[path, "/apis"]),
            (FORBIDDEN, OPERATOR, MtuSetting::Unknown, &[path]),
        ] {
            let (client, paths) = server(daemon_set, groups);
            assert_eq!(look(&client).await, expected);
            assert_eq!(paths.lock().unwrap()[..], asked[..]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_asked_while_that_is_needed_and_rarely() {
        for (daemon_set, expected, pause) in [
            (FOUND, MtuSetting::FelixConfiguration, AGAIN),
            (FORBIDDEN, MtuSetting::Unknown, Duration::from_secs(5)),
        ] {
            let (client, asked) = server(daemon_set, OPERATOR);
            let (need, needed) = watch::channel(false);
            let (events, mut inbox) = mpsc::channel(1);
            tokio::spawn(follow(client, needed, events));
            sleep(AGAIN).await;
            assert!(asked.lock().unwrap().is_empty());
            need.send_replace(true);
            let mut told = async || match inbox.recv().await {
                Some(Input::MtuSetting(setting)) => (setting, Instant::now()),
                _ => panic!("another event, or none"),
            };
            let (first, second) = (told().await, told().await);
            assert_eq!((first.0, second.0), (expected.clone(), expected));
            assert!(second.1 - first.1 >= pause && second.1 - first.1 < pause + Duration::from_secs(1));
        }
    }
}
