//! `check --pre` and `check --capture`: a DaemonSet of the agent's image that lives as long as the command, and runs the
//! agent's check on each node. It has rights of its own, and alone has NET_RAW, which the agents never have.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Context;
use jiff::Timestamp;
use secureoverlay_keyring::inspection::CheckReport;
use secureoverlay_kubectl_core::{
    paths::Missing,
    snapshot::{AGENT, NAMESPACE, Pod},
};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    api::{Api, Kind},
    cli::CheckArgs,
    inspect::{linux_nodes, report},
};

/// The name of all objects of a check.
const NAME: &str = "secureoverlay-check";
/// Which run a Pod belongs to.
const RUN: &str = "secureoverlay.io/check-run";
/// Between two looks.
const AGAIN: Duration = Duration::from_secs(1);
/// How long objects of a check may take to go.
const GOING: Duration = Duration::from_secs(60);
/// The image of the manifest, where no agents are installed.
const IMAGE: &str = concat!("docker.io/secureoverlay/ucp-secureoverlay-agent:", env!("CARGO_PKG_VERSION"));
/// What a check makes, the last first.
const KINDS: [Kind; 4] = [Kind::DaemonSet, Kind::ClusterRoleBinding, Kind::ServiceAccount, Kind::ClusterRole];
/// The exit status after SIGINT and SIGTERM, as shells have it.
const INTERRUPTED: u8 = 130;

/// Checks all nodes, and takes everything away again.
pub async fn check(api: &Api, args: &CheckArgs) -> anyhow::Result<u8> {
    let names = linux_nodes(api, args.node.as_deref()).await?;
    let installed = installed(api).await?;
    let image = args.image.clone().or_else(|| installed.clone()).unwrap_or_else(|| IMAGE.to_owned());
    let mut terminate = signal(SignalKind::terminate()).context("listening for signals")?;
    let mut hangup = signal(SignalKind::hangup()).context("listening for signals")?;
    let work = async {
        remove(api).await.context("failed to remove what an earlier check left")?;
        let run = Timestamp::now().as_millisecond().to_string();
        create(api, args, &run, &image).await?;
        collect(api, args, &run, &names).await
    };
    let found = tokio::select! {
        found = work => Some(found),
        _ = tokio::signal::ctrl_c() => None,
        _ = terminate.recv() => None,
        _ = hangup.recv() => None,
    };
    let removed = remove(api).await.with_context(|| {
        format!("failed to remove {NAME} (the next check does, or: kubectl -n {NAMESPACE} delete daemonset,serviceaccount \
                 {NAME}; kubectl delete clusterrole,clusterrolebinding {NAME})")
    });
    let Some(found) = found else {
        removed?;
        eprintln!("interrupted; everything that the check made is removed");
        return Ok(INTERRUPTED);
    };
    let exit = report(found?, args, installed.is_some() && !args.pre)?;
    removed?;
    Ok(exit.code())
}

/// The image of the agents, where they are installed.
async fn installed(api: &Api) -> anyhow::Result<Option<String>> {
    let found = api.get(Kind::DaemonSet, AGENT).await.map_err(anyhow::Error::msg)?;
    let image =
        |object: &Value| Some(object.pointer("/spec/template/spec/containers/0/image")?.as_str()?.to_owned());
    Ok(found.as_ref().and_then(image))
}

/// Removes what a check makes, also what one left that was killed. Waits until its Pods are gone.
async fn remove(api: &Api) -> anyhow::Result<()> {
    for kind in KINDS {
        api.delete(kind, NAME).await?;
    }
    let begun = Instant::now();
    loop {
        let pods: Vec<Pod> = api.list(Kind::Pod, &selector(None)).await.map_err(anyhow::Error::msg)?;
        // The Pods of a node that does not respond stay until it does.
        if pods.is_empty() || begun.elapsed() > GOING {
            return Ok(());
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn selector(run: Option<&str>) -> String {
    let run = run.map(|run| format!(",{RUN}={run}")).unwrap_or_default();
    format!("app.kubernetes.io/name={NAME}{run}")
}

async fn create(api: &Api, args: &CheckArgs, run: &str, image: &str) -> anyhow::Result<()> {
    let labels = json!({"app.kubernetes.io/name": NAME, RUN: run});
    let cluster = json!({"name": NAME, "labels": labels});
    let metadata = json!({"name": NAME, "namespace": NAMESPACE, "labels": labels});
    let rules = json!([
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]},
        // What sets the tunnel's MTU: the check says how to change it.
        {"apiGroups": ["apps"], "resources": ["daemonsets"], "resourceNames": ["calico-node"], "verbs": ["get"]},
    ]);
    let subjects = json!([{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}]);
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAME});
    let rbac = "rbac.authorization.k8s.io/v1";
    for (kind, object) in [
        (
            Kind::ClusterRole,
            json!({"apiVersion": rbac, "kind": "ClusterRole", "metadata": cluster, "rules": rules}),
        ),
        (Kind::ServiceAccount, json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})),
        (
            Kind::ClusterRoleBinding,
            json!({"apiVersion": rbac, "kind": "ClusterRoleBinding", "metadata": cluster, "roleRef": role,
                   "subjects": subjects}),
        ),
        (
            Kind::DaemonSet,
            json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata,
                   "spec": {"selector": {"matchLabels": {"app.kubernetes.io/name": NAME}},
                            "template": {"metadata": {"labels": labels}, "spec": pod(args, image)}}}),
        ),
    ] {
        api.create(kind, &object).await?;
    }
    Ok(())
}

fn pod(args: &CheckArgs, image: &str) -> Value {
    let mut command = vec!["check".to_owned(), "--output=json".to_owned(), "--stay".to_owned()];
    let mut capabilities = vec!["NET_ADMIN"];
    if let Some(capture) = args.capture {
        command.push(format!("--capture={}ms", capture.as_millis()));
        capabilities.push("NET_RAW");
    }
    let affinity = args.node.as_ref().map(|node| {
        let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]});
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}})
    });
    json!({
        "hostNetwork": true,
        "dnsPolicy": "Default",
        "tolerations": [{"operator": "Exists"}],
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "affinity": affinity,
        "serviceAccountName": NAME,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "check",
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "args": command,
            "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                    // The report alone is to be read from the log.
                    {"name": "SECUREOVERLAY_LOG", "value": "off"}],
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "256Mi"}},
            "securityContext": {
                "runAsUser": 0,
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"], "add": capabilities},
            },
        }],
    })
}

/// Reads each Pod's report as soon as it is there.
async fn collect(
    api: &Api,
    args: &CheckArgs,
    run: &str,
    names: &[String],
) -> anyhow::Result<Vec<(String, Result<CheckReport, Missing>)>> {
    let patience = args.agent.timeout + args.capture.unwrap_or_default() + args.start_timeout;
    let (begun, mut found) = (Instant::now(), BTreeMap::new());
    let mut states: BTreeMap<String, String> = BTreeMap::new();
    while names.iter().any(|name| !found.contains_key(name)) && begun.elapsed() < patience {
        let pods: Vec<Pod> = api.list(Kind::Pod, &selector(Some(run))).await.map_err(anyhow::Error::msg)?;
        for pod in pods {
            if found.contains_key(&pod.node) {
                continue;
            }
            states.insert(pod.node.clone(), pod.state());
            // A container that has not started has no log.
            let Ok(log) = api.plain_log(&pod.name).await else { continue };
            let line = log.lines().rev().find(|line| line.starts_with("{\"items\":"));
            if let Some(line) = line {
                let read = serde_json::from_str(line)
                    .map_err(|error| Missing::Other(format!("failed to read its report: {error}")));
                found.insert(pod.node, read);
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
    let missing = |name: &String| {
        let state = states.get(name).map_or("no Pod was started there", String::as_str);
        let state = if state == "Ready" { "its check goes on" } else { state };
        Missing::Late(format!("no report within {} s: {state}", patience.as_secs()))
    };
    Ok(names
        .iter()
        .map(|name| (name.clone(), found.remove(name).unwrap_or_else(|| Err(missing(name)))))
        .collect())
}
