//! The Node and the Pod of each agent, as large as those of a cluster, and the heartbeats of the Nodes.

use std::{ops::Range, path::Path, time::Duration};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Node, Pod},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use secureoverlay_k8s::{
    client,
    names::{AGENT_LABEL, CALICO_ADDRESS, DAEMON_SET, NAMESPACE},
};
use serde_json::{Value, json};
use tokio::{
    runtime::Builder,
    time::{MissedTickBehavior, interval},
};

use crate::{number, sources};

/// Requests under way at the same time.
const AT_ONCE: usize = 16;
/// Between two status updates of a kubelet on whose node nothing changes (`nodeStatusReportFrequency`).
const HEARTBEAT: Duration = Duration::from_secs(300);
/// Images that a kubelet reports (`nodeStatusMaxImages`).
const IMAGES: u32 = 50;

/// Makes all objects, writes `stats`, and sends heartbeats until the end.
pub fn run(nodes: Range<u32>, stats: &Path) -> Result<()> {
    Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(async {
        let client = client::connect("secureoverlay-rig-objects").await?;
        let sets: Api<DaemonSet> = Api::namespaced(client.clone(), NAMESPACE);
        let uid = sets.get(DAEMON_SET).await.context("reading the DaemonSet")?.metadata.uid;
        let uid = uid.context("the DaemonSet has no UID")?;
        let made: Vec<(usize, usize)> = stream::iter(nodes.clone())
            .map(|node| make(client.clone(), uid.clone(), node))
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        let (node, pod) = made.first().copied().unwrap_or_default();
        sources::write(stats, &json!({"made": made.len(), "node_bytes": node, "pod_bytes": pod}))?;
        beat(Api::all(client), nodes).await
    })
}

/// Sends the status of one Node after the other.
async fn beat(api: Api<Node>, nodes: Range<u32>) -> Result<()> {
    let count = u32::try_from(nodes.len()).context("so many nodes")?;
    let mut ticks = interval(HEARTBEAT / count.max(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for node in nodes.cycle() {
        ticks.tick().await;
        let patch = json!({"status": {"conditions": conditions()}});
        if let Err(error) =
            api.patch_status(&number::name(node), &PatchParams::default(), &Patch::Merge(patch)).await
        {
            tracing::warn!(error = client::describe(&error), node, "a heartbeat failed");
        }
    }
    Ok(())
}

/// Sizes of Node and Pod in bytes of JSON.
async fn make(client: Client, daemon_set: String, number: u32) -> Result<(usize, usize)> {
    let name = number::name(number);
    let nodes: Api<Node> = Api::all(client.clone());
    let made: Node = serde_json::from_value(node(number)?).context("a Node")?;
    let made = nodes
        .create(&PostParams::default(), &made)
        .await
        .with_context(|| format!("making the Node {name}"))?;
    let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
    let pod: Pod = serde_json::from_value(pod(number, &daemon_set)?).context("a Pod")?;
    let pod = pods
        .create(&PostParams::default(), &pod)
        .await
        .with_context(|| format!("making the Pod of {name}"))?;
    let pod_name = pod.metadata.name.unwrap_or_default();
    let status = json!({"status": pod_status(number)?});
    let pod = pods
        .patch_status(&pod_name, &PatchParams::default(), &Patch::Merge(status))
        .await
        .with_context(|| format!("the status of the Pod of {name}"))?;
    Ok((serde_json::to_vec(&made)?.len(), serde_json::to_vec(&pod)?.len()))
}

fn conditions() -> Value {
    let now = Timestamp::now().to_string();
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    };
    json!([
        condition("NetworkUnavailable", "False", "CalicoIsUp", "Calico is running on this node"),
        condition(
            "MemoryPressure",
            "False",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available"
        ),
        condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ])
}

fn node(number: u32) -> Result<Value> {
    let (name, address) = (number::name(number), number::address(number)?.to_string());
    let pods = number::pod_network(number);
    let tunnel = pods.trim_end_matches("/26");
    let images: Vec<Value> = (0..IMAGES)
        .map(|image| {
            let repository = format!("registry.rig.example.com/platform/team-{}/service-{image}", image % 7);
            json!({
                "names": [
                    format!("{repository}@sha256:{:064x}", u128::from(image) * 0x9e37_79b9_7f4a_7c15),
                    format!("{repository}:v1.{image}.0-release-20260101"),
                ],
                "sizeBytes": 100_000_000 + image,
            })
        })
        .collect();
    let capacity = json!({
        "cpu": "16", "memory": "65807696Ki", "pods": "110", "ephemeral-storage": "203234260Ki",
        "hugepages-1Gi": "0", "hugepages-2Mi": "0",
    });
    Ok(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
                "beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": "amd64",
                "node.kubernetes.io/instance-type": "m5.4xlarge",
                "topology.kubernetes.io/region": "eu-central-1", "topology.kubernetes.io/zone": "eu-central-1a",
            },
            "annotations": {
                CALICO_ADDRESS: format!("{address}/16"),
                "projectcalico.org/IPv4IPIPTunnelAddr": tunnel,
                "node.alpha.kubernetes.io/ttl": "300",
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
            },
        },
        "spec": {"podCIDR": pods, "podCIDRs": [pods]},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name},
            ],
            "capacity": capacity, "allocatable": capacity, "conditions": conditions(), "images": images,
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {
                "machineID": format!("{number:032x}"), "systemUUID": format!("00000000-0000-4000-8000-{number:012x}"),
                "bootID": format!("11111111-0000-4000-8000-{number:012x}"), "kernelVersion": "6.12.41+deb13-amd64",
                "osImage": "Debian GNU/Linux 13 (trixie)", "containerRuntimeVersion": "containerd://2.1.4",
                "kubeletVersion": "v1.37.2", "kubeProxyVersion": "v1.37.2", "operatingSystem": "linux",
                "architecture": "amd64",
            },
        },
    }))
}

fn pod(number: u32, daemon_set: &str) -> Result<Value> {
    let name = number::name(number);
    let tolerations: Vec<Value> =
        ["not-ready", "unreachable", "disk-pressure", "memory-pressure", "pid-pressure"]
            .map(|taint| json!({"key": format!("node.kubernetes.io/{taint}"), "operator": "Exists"}))
            .into();
    let variables: Vec<Value> = (0..40)
        .map(|at| json!({"name": format!("SETTING_OF_THE_PLATFORM_{at}"), "value": "x".repeat(120)}))
        .collect();
    Ok(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("{DAEMON_SET}-{number:05}"), "namespace": NAMESPACE,
            "labels": {
                AGENT_LABEL: DAEMON_SET, "controller-revision-hash": "5c7d9f8b6d", "pod-template-generation": "1",
            },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "DaemonSet", "name": DAEMON_SET, "uid": daemon_set,
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": {
            "nodeName": name, "hostNetwork": true, "serviceAccountName": DAEMON_SET,
            "priorityClassName": "system-node-critical", "tolerations": tolerations,
            "containers": [{
                "name": DAEMON_SET, "image": "docker.io/secureoverlay/ucp-secureoverlay-agent:0.1.0", "env": variables,
            }],
        },
    }))
}

fn pod_status(number: u32) -> Result<Value> {
    let (now, address) = (Timestamp::now().to_string(), number::address(number)?.to_string());
    let ready = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now});
    let conditions = ["Initialized", "Ready", "ContainersReady", "PodScheduled"].map(ready);
    Ok(json!({
        "phase": "Running", "hostIP": address, "podIP": address, "podIPs": [{"ip": address}], "startTime": now,
        "qosClass": "BestEffort",
        "conditions": conditions,
        "containerStatuses": [{
            "name": DAEMON_SET, "ready": true, "started": true, "restartCount": 0,
            "image": "docker.io/secureoverlay/ucp-secureoverlay-agent:0.1.0",
            "imageID": format!("docker.io/secureoverlay/ucp-secureoverlay-agent@sha256:{number:064x}"),
            "containerID": format!("containerd://{number:064x}"), "state": {"running": {"startedAt": now}},
        }],
    }))
}
