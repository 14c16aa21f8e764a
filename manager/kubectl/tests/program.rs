//! The program as it is run, against an API server of this process that serves the objects of a test.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{Method, StatusCode, Uri},
};
use serde_json::{Value, from_slice, from_str, json};
use tempfile::TempDir;

const GOOD: &str = include_str!("../core/testdata/good.json");
const PODS: &str = "/api/v1/namespaces/kube-system/pods";
const OURS: &str = "/apis/secureoverlay.io/v1alpha1";

/// What is served, and what was asked for.
#[derive(Default)]
struct World {
    objects: BTreeMap<String, Value>,
    refused: BTreeMap<String, u16>,
    log: String,
    asked: Vec<(Method, String, Value)>,
}

impl World {
    fn good() -> Self {
        let mut cluster: Value = from_str(GOOD).unwrap();
        // Whatever the time is.
        cluster["encryption"]["status"]["nextRotationTime"] = json!("2000-01-01T00:00:00Z");
        let list = |field: &str| json!({ "items": cluster[field] });
        let mut world = Self::default();
        let mut serve = |path: String, object: Value| world.objects.insert(path, object);
        serve(format!("{OURS}/clusterencryptions"), json!({"items": [cluster["encryption"]]}));
        serve(format!("{OURS}/clusterencryptions/default"), cluster["encryption"].clone());
        serve(format!("{OURS}/keyrotations"), list("rotations"));
        serve(format!("{OURS}/nodeencryptions"), list("reports"));
        serve(format!("{OURS}/encryptionpeers"), json!({"items": []}));
        serve("/api/v1/nodes".to_owned(), list("nodes"));
        serve(format!("/api/v1/nodes/{}", "node3"), cluster["nodes"][2].clone());
        serve(format!("{PODS}?k8s-app"), list("agents"));
        serve(format!("{PODS}?app"), list("managers"));
        for empty in ["deployments", "daemonsets"] {
            serve(format!("/apis/apps/v1/namespaces/kube-system/{empty}"), json!({"items": []}));
        }
        for namespace in ["kube-system", "default"] {
            serve(format!("/api/v1/namespaces/{namespace}/events"), json!({"items": []}));
        }
        world
    }

    fn answer(&mut self, method: &Method, uri: &Uri, body: &[u8]) -> (u16, String) {
        let (path, query) = (uri.path(), uri.query().unwrap_or_default());
        self.asked.push((method.clone(), uri.to_string(), from_slice(body).unwrap_or_default()));
        if let Some(code) = self.refused.get(path) {
            let message = format!("User \"olga\" cannot list resource {path}");
            return (
                *code,
                json!({"kind": "Status", "code": code, "message": message, "reason": "x"}).to_string(),
            );
        }
        if path.ends_with("/log") {
            return (200, format!("a line\u{1b}[2J\n{}", self.log));
        }
        if query.contains("secureoverlay-check") {
            // As the controller would: a Pod as long as there is a DaemonSet.
            let count = |method: Method| {
                let of_check = |path: &String| path.contains("daemonsets");
                self.asked.iter().filter(|(used, path, _)| *used == method && of_check(path)).count()
            };
            let runs = count(Method::POST) == count(Method::DELETE);
            let pod = json!({"metadata": {"name": "check-1"}, "spec": {"nodeName": "node1"}});
            return (200, json!({"items": if runs { vec![pod] } else { vec![] }}).to_string());
        }
        if method == Method::POST {
            return (201, json!({"metadata": {"name": "rotate-new"}}).to_string());
        }
        let key = match path {
            PODS if query.contains("k8s-app") => format!("{PODS}?k8s-app"),
            PODS => format!("{PODS}?app"),
            path => path.to_owned(),
        };
        let Some(object) = self.objects.get(&key) else {
            return (
                404,
                json!({"kind": "Status", "code": 404, "message": "not found", "reason": "NotFound"})
                    .to_string(),
            );
        };
        let mut object = object.clone();
        // Nodes come on two pages.
        if path == "/api/v1/nodes" && !self.objects.contains_key("one page") {
            let items = object["items"].as_array_mut().unwrap();
            let second = items.split_off(2.min(items.len()));
            if query.contains("continue=more") {
                object["items"] = json!(second);
            } else {
                object["metadata"] = json!({"continue": "more"});
            }
        }
        (200, object.to_string())
    }
}

struct Cluster {
    world: Arc<Mutex<World>>,
    directory: TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let world = Arc::new(Mutex::new(World::good()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(serve).with_state(Arc::clone(&world));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let directory = tempfile::tempdir().unwrap();
        kubeconfig(&directory, &format!("http://{address}"));
        Self { world, directory }
    }

    fn command(&self, line: &str) -> Command {
        program(&self.directory, line)
    }

    fn run(&self, line: &str) -> (i32, String) {
        finish(tokio::task::block_in_place(|| self.command(line).output()).unwrap())
    }

    fn edit(&self, edit: impl FnOnce(&mut World)) {
        edit(&mut self.world.lock().unwrap());
    }

    fn refuse(&self, path: &str) {
        self.world.lock().unwrap().refused.insert(path.to_owned(), 403);
    }

    /// Bodies that were sent by this method, with their paths.
    fn sent(&self, method: &Method) -> Vec<(String, Value)> {
        let world = self.world.lock().unwrap();
        world
            .asked
            .iter()
            .filter(|(used, ..)| used == method)
            .map(|(_, path, body)| (path.clone(), body.clone()))
            .collect()
    }
}

async fn serve(
    State(world): State<Arc<Mutex<World>>>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> (StatusCode, [(&'static str, &'static str); 1], String) {
    let (code, text) = world.lock().unwrap().answer(&method, &uri, &body);
    (StatusCode::from_u16(code).unwrap(), [("content-type", "application/json")], text)
}

fn kubeconfig(directory: &TempDir, server: &str) {
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
    });
    fs::write(directory.path().join("kubeconfig"), text.to_string()).unwrap();
}

fn program(directory: &TempDir, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-secureoverlay"));
    command.args(line.split_whitespace()).current_dir(directory.path());
    command.env_clear().env("KUBECONFIG", directory.path().join("kubeconfig"));
    command
}

fn finish(output: Output) -> (i32, String) {
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8(text).unwrap())
}

fn rotation(world: &mut World, complete: &str, failed: &str) {
    let condition = |kind: &str, status: &str| {
        json!({
            "type": kind, "status": status, "reason": "R", "message": format!("{kind} is {status}"),
            "lastTransitionTime": "2026-11-30T03:00:00Z",
        })
    };
    let waiting = json!({"step": "receive", "since": "2026-11-30T03:00:00Z", "done": 1, "total": 3, "nodes": ["b", "c"]});
    let status = json!({
        "generation": 7, "conditions": [condition("Complete", complete), condition("Failed", failed)], "waitingFor": waiting,
    });
    world.objects.insert(
        format!("{OURS}/keyrotations/rotate-new"),
        json!({"metadata": {"name": "rotate-new"}, "status": status}),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_end_with_their_exit_status() {
    let cluster = Cluster::start().await;
    for (line, code, text) in [
        ("status", 1, "ATTENTION: nothing is known to be in the clear, but: the rotation that is due since"),
        ("status -o json", 1, "\"verdict\": \"Attention\""),
        ("status -o yaml", 1, "verdict: Attention"),
        ("nodes", 0, "node3   Enforcing   1764471600"),
        ("nodes --problems -o json", 0, "[]"),
        ("history", 0, "scheduled-x7k2p"),
        ("version", 0, "manager   0.1.0"),
        ("uninstall --check", 0, "leaves nothing in the kernels"),
        ("enforcement get", 0, "wanted    Auto"),
        ("rotate", 0, "keyrotation.secureoverlay.io/rotate-new"),
        ("completion bash", 0, "complete -F"),
        ("completion zsh", 0, "#compdef kubectl-secureoverlay"),
        ("--help", 0, "Usage: kubectl secureoverlay"),
        ("include node3", 0, "is not excluded"),
        ("exclude node9 --reason broken", 2, "there is no Node \"node9\""),
        ("exclude ../secrets/x --reason broken", 2, "not a name of an object"),
        ("exclude node3", 64, "--reason"),
        ("uninstall", 64, "--check"),
        ("rotate --timeout 1s", 64, "--wait"),
        ("enforcement set enforcing", 64, "invalid value"),
        ("", 64, "Usage"),
        ("status --kubeconfig /nonexistent", 2, "error: failed to read the kubeconfig"),
        ("status --context other", 2, "error: failed to use the kubeconfig"),
    ] {
        let (found, said) = cluster.run(line);
        assert!(found == code && said.contains(text), "{line:?}: {found}, not {code} with {text:?}:\n{said}");
        assert!(!said.contains('\u{1b}'), "{line:?}: no colours where there is no terminal");
    }
    let asked = &cluster.world.lock().unwrap().asked;
    assert!(asked.iter().all(|(_, path, _)| !path.contains("secret")), "no Secret is asked for");
    assert!(asked.iter().any(|(_, path, _)| path.contains("continue=more")), "all pages are read");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_read_is_not_known() {
    let cluster = Cluster::start().await;
    cluster.refuse(PODS);
    for (line, code) in
        [("status", 2), ("nodes", 2), ("version", 2), ("uninstall --check", 2), ("history", 0)]
    {
        let (found, said) = cluster.run(line);
        assert_eq!(found, code, "{line}: {said}");
        assert_eq!(said.contains("you may not list pods in kube-system"), code == 2, "{line}: {said}");
    }
    cluster.refuse(&format!("{OURS}/keyrotations"));
    assert_eq!(cluster.run("history"), (2, "error: you may not list keyrotations\n".to_owned()));
    assert_eq!(cluster.run("rotate").0, 2);
    // As where SecureOverlay never was.
    cluster.edit(|world| world.objects.retain(|path, _| !path.starts_with(OURS)));
    let (code, said) = cluster.run("status");
    assert!(code == 2 && said.contains("this cluster serves no nodeencryptions"), "{said}");
    assert!(said.starts_with("COULD NOT TELL"), "{said}");

    let nowhere = tempfile::tempdir().unwrap();
    kubeconfig(&nowhere, "http://127.0.0.1:1");
    let output = tokio::task::block_in_place(|| program(&nowhere, "status").output()).unwrap();
    let (code, said) = finish(output);
    assert!(
        code == 2 && said.starts_with("COULD NOT TELL: failed to get clusterencryptions: no answer"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_is_followed_to_its_end_or_left_running() {
    let cluster = Cluster::start().await;
    for (complete, failed, code, last) in [
        ("True", "False", 0, "Complete is True\n"),
        ("False", "True", 1, "Failed is True\n"),
        (
            "False",
            "False",
            3,
            "timed out: the rotation goes on. To see how: kubectl secureoverlay history -o wide\n",
        ),
    ] {
        cluster.edit(|world| rotation(world, complete, failed));
        let (found, said) = cluster.run("rotate --wait --timeout 2s");
        assert!(found == code && said.ends_with(last), "{found}: {said}");
        assert_eq!(said.contains("Complete is False: 1/3, waiting for b, c\n"), code == 3, "{said}");
        let lines = said.lines().count();
        assert!(lines <= 3, "a line for each change: {said}");
    }
    let begun = Instant::now();
    let mut child = cluster.command("rotate --wait").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    tokio::task::block_in_place(|| {
        let waiting = lines.find(|line| line.as_ref().unwrap().contains("waiting for b, c"));
        assert!(waiting.is_some());
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert!(lines.next().unwrap().unwrap().starts_with("interrupted: the rotation goes on."));
    });
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(cluster.sent(&Method::DELETE).is_empty());
    let made = cluster.sent(&Method::POST);
    assert!(
        made.len() == 4 && made.iter().all(|(_, body)| body["spec"]["skipUnresponsive"] == false),
        "{made:?}"
    );

    // One that is under way is told to skip; no other is made.
    cluster.edit(|world| {
        let current = world.objects[&format!("{OURS}/keyrotations/rotate-new")].clone();
        world.objects.insert(format!("{OURS}/keyrotations"), json!({"items": [current]}));
    });
    assert_eq!(
        cluster.run("rotate --skip-unresponsive"),
        (0, "keyrotation.secureoverlay.io/rotate-new\n".to_owned())
    );
    let (path, body) = cluster.sent(&Method::PATCH).pop().unwrap();
    assert!(path.starts_with(&format!("{OURS}/keyrotations/rotate-new?")), "{path}");
    assert_eq!((body, cluster.sent(&Method::POST).len()), (json!({"spec": {"skipUnresponsive": true}}), 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_those_that_were_asked_for() {
    let cluster = Cluster::start().await;
    let label = "node-restriction.kubernetes.io/secureoverlay";
    let annotation = "secureoverlay.io/exclusion-reason";
    assert_eq!(cluster.run("exclude node3 --reason disk").0, 0);
    cluster.edit(|world| {
        world.objects.get_mut("/api/v1/nodes/node3").unwrap()["metadata"]["labels"][label] =
            json!("disabled");
    });
    assert_eq!(cluster.run("include node3").0, 0);
    assert_eq!(cluster.run("enforcement set permissive").0, 0);
    let bodies: Vec<Value> = cluster.sent(&Method::PATCH).into_iter().map(|(_, body)| body).collect();
    assert_eq!(
        bodies,
        [
            json!({"metadata": {"labels": {label: "disabled"}, "annotations": {annotation: "disk"}}}),
            json!({"metadata": {"labels": {label: null}, "annotations": {annotation: null}}}),
            json!({"spec": {"enforcement": "Permissive"}}),
        ]
    );
    cluster.edit(|world| drop(world.objects.remove(&format!("{OURS}/clusterencryptions/default"))));
    let (code, said) = cluster.run("enforcement set off");
    assert!(code == 2 && said.contains("there is no ClusterEncryption named default"), "{said}");
    assert_eq!(cluster.sent(&Method::PATCH).len(), 3, "a new object would change every other setting");
}

#[tokio::test(flavor = "multi_thread")]
async fn bundle_is_written_once_and_names_what_is_missing() {
    let cluster = Cluster::start().await;
    let (code, said) = cluster.run("support-bundle --file x.tar");
    assert_eq!(code, 0, "{said}");
    let file = cluster.directory.path().join("x.tar");
    let names = |file: &std::path::Path| -> Vec<(String, u64)> {
        let mut archive = tar::Archive::new(fs::File::open(file).unwrap());
        let entries = archive.entries().unwrap().map(|entry| entry.unwrap());
        entries.map(|entry| (entry.path().unwrap().display().to_string(), entry.size())).collect()
    };
    let found = names(&file);
    for part in
        ["status.txt", "objects/nodes.json", "objects/events.json", "logs/ucp-secureoverlay-mgr-7d4b9.log"]
    {
        assert!(
            found.iter().any(|(name, size)| name == &format!("secureoverlay/{part}") && *size > 0),
            "{found:?}"
        );
    }
    assert!(found.contains(&("secureoverlay/errors.txt".to_owned(), 0)), "{found:?}");
    let (code, said) = cluster.run("support-bundle --file x.tar");
    assert!(code == 2 && said.contains("failed to write x.tar"), "{said}");

    cluster.refuse("/api/v1/namespaces/default/events");
    let (code, said) = cluster.run("support-bundle --file y.tar");
    assert!(code == 1 && said.contains("without 1 part (errors.txt"), "{said}");
}

const REPORT: &str = r#"{"items":[{"verdict":"Fail","what":"mtu","text":"1480 of tunl0\\u001b[2J"}],"blind":false,
    "capture":{"milliseconds":1000,"interfaces":["eth0"],"esp":0,"readable":{"ipip":7,"vxlan":0,"gre":0,"routed":0}}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn check_before_an_installation_leaves_nothing() {
    let cluster = Cluster::start().await;
    cluster.edit(|world| world.log = REPORT.replace('\n', ""));
    let (code, said) = cluster.run("check --pre --node node1 --capture 1s --image registry/agent:7");
    assert!(code == 1 && said.contains("1480 of tunl0") && said.contains("7 readable"), "{said}");
    assert!(!said.contains('\u{1b}'), "{said}");
    let made = cluster.sent(&Method::POST);
    let names: Vec<&str> = made.iter().map(|(_, body)| body["kind"].as_str().unwrap()).collect();
    assert_eq!(names, ["ClusterRole", "ServiceAccount", "ClusterRoleBinding", "DaemonSet"]);
    let pod = &made[3].1["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(container["image"], "registry/agent:7");
    assert_eq!(container["securityContext"]["capabilities"]["add"], json!(["NET_ADMIN", "NET_RAW"]));
    assert!(pod.to_string().contains("node1") && pod["hostNetwork"] == true, "{pod}");
    // What an earlier one left is removed first, what this one made afterwards.
    assert_eq!(cluster.sent(&Method::DELETE).len(), 2 * made.len());

    cluster.edit(|world| world.log.clear());
    let (code, said) = cluster.run("check --pre --node node1 --timeout 1s --start-timeout 1s");
    assert!(code == 3 && said.contains("no report within 2 s"), "{said}");
    let container = cluster.sent(&Method::POST)[7].1["spec"]["template"]["spec"]["containers"][0].clone();
    assert_eq!(container["securityContext"]["capabilities"]["add"], json!(["NET_ADMIN"]));

    let child = cluster
        .command("check --pre --node node1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while cluster.sent(&Method::POST).len() < 12 && begun.elapsed() < Duration::from_secs(20) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let (code, said) = finish(tokio::task::block_in_place(|| child.wait_with_output()).unwrap());
    assert!(killed.success() && code == 130 && said.contains("interrupted"), "{code} {said}");
    assert_eq!(cluster.sent(&Method::DELETE).len(), 6 * 4);

    // Where the last object may not be made, the others go.
    cluster.refuse("/apis/apps/v1/namespaces/kube-system/daemonsets");
    let (code, said) = cluster.run("check --pre --node node1");
    assert!(code == 2 && said.contains("you may not"), "{said}");
    assert_eq!(cluster.sent(&Method::DELETE).len(), 8 * 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_that_cannot_be_asked_are_not_known() {
    let cluster = Cluster::start().await;
    let (code, said) = cluster.run("path node1 node3");
    assert!(code == 2 && said.contains("there is no Node \"node1\""), "{said}");
    let (code, said) = cluster.run("path node3 node3");
    assert!(code == 2 && said.contains("stays on a node"), "{said}");
    // This server forwards no ports.
    let (code, said) = cluster.run("check");
    assert!(code == 2 && said.contains("node1   unknown   check"), "{said}");
}
