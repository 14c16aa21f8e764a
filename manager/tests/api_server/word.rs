//! A rotation that waits for a node's word, as the node's agent would give it.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use secureoverlay_common::{
    acknowledgement::Acknowledgement,
    ring::{Ring, Role},
    uid::Uid,
};
use secureoverlay_daemon::node_encryption::{NodeEncryption, NodeEncryptionSpec};
use serde_json::json;

use crate::{
    cluster::{AGENT, Cluster, MANAGER, Manifest, until},
    program::Program,
};

const NODE: &str = "node-1";
const BOOT: &str = "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b02";

/// A Node object; no other test may see it.
struct Guest<'c> {
    cluster: &'c Cluster,
    uid: Uid,
}

impl<'c> Guest<'c> {
    async fn join(cluster: &'c Cluster) -> Self {
        let nodes = Api::<Node>::all(cluster.admin.clone());
        let node = serde_json::from_value(json!({"metadata": {"name": NODE}})).unwrap();
        let node = nodes.create(&PostParams::default(), &node).await.unwrap();
        let guest = Self { cluster, uid: node.metadata.uid.unwrap().parse().unwrap() };
        let info = json!({
            "architecture": "", "bootID": BOOT, "containerRuntimeVersion": "", "kernelVersion": "",
            "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "linux", "osImage": "",
            "systemUUID": "",
        });
        let status = json!({"status": {
            "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": info,
        }});
        nodes.patch_status(NODE, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        guest
    }

    /// Does all that `ring` wants, and says so.
    async fn speak(&self, ring: &Ring) {
        let word = Acknowledgement {
            node: self.uid,
            boot: BOOT.parse().unwrap(),
            installation: ring.installation,
            receives: ring.generations.iter().map(|g| (g.uid, g.incarnations.clone())).collect(),
            sends: ring.active().map(|active| active.uid),
            silent: false,
            revision: 1,
            encrypts: false,
            burnt: Default::default(),
            spent: Default::default(),
            newest: ring.newest(),
            enforcement: ring.enforcement,
            obstacles: Default::default(),
            unreachable: Some(Default::default()),
            oversized: false,
        };
        let agent = Api::<NodeEncryption>::all(self.cluster.as_account(AGENT));
        let patch = Patch::Merge(json!({"status": {"acknowledgement": word}}));
        agent.patch_status(NODE, &PatchParams::default(), &patch).await.unwrap();
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let deleted = Command::new("kubectl").args(["delete", "node", NODE]).status();
        assert!(std::thread::panicking() || deleted.unwrap().success());
    }
}

fn roles(ring: &Ring) -> Vec<(u64, Role)> {
    ring.generations.iter().map(|generation| (generation.id, generation.role)).collect()
}

/// The ring, once it holds these.
async fn holds(cluster: &Cluster, expected: &[(u64, Role)]) -> Ring {
    until(&format!("{expected:?}"), async || cluster.ring().await.filter(|ring| roles(ring) == expected))
        .await
}

fn rotate(kubeconfig: &Path) -> std::process::Child {
    Command::new(env!("CARGO_BIN_EXE_ucp-secureoverlay-mgr"))
        .env_clear()
        .env("KUBECONFIG", kubeconfig)
        .args(["rotate", "--wait"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_rotation_on_request_waits_for_the_nodes_word() {
    use Role::{Active, Retiring, Staged};
    let cluster = Cluster::fresh().await;
    cluster.apply(Manifest::Ours);
    let guest = Guest::join(&cluster).await;
    let agent = Api::<NodeEncryption>::all(cluster.as_account(AGENT));
    let object = NodeEncryption::new(NODE, NodeEncryptionSpec {});
    until("the definition is served", async || agent.create(&PostParams::default(), &object).await.ok())
        .await;

    let kubeconfig = cluster.account_kubeconfig(MANAGER).await;
    let program = Program::with(&kubeconfig, &["--acknowledgements", "required"]).await;
    let first = holds(&cluster, &[(1, Staged)]).await;
    until("the node is awaited", async || (program.metric("awaited_nodes") == 1).then_some(())).await;
    assert_eq!(cluster.ring().await, Some(first.clone()), "nobody has spoken");
    guest.speak(&first).await;
    guest.speak(&holds(&cluster, &[(1, Active)]).await).await;

    // With the rights of the manager's pod, no more.
    let command = rotate(&kubeconfig);
    guest.speak(&holds(&cluster, &[(1, Active), (2, Staged)]).await).await;
    guest.speak(&holds(&cluster, &[(1, Retiring), (2, Active)]).await).await;
    let done = holds(&cluster, &[(2, Active)]).await;
    let output = tokio::task::spawn_blocking(|| command.wait_with_output().unwrap()).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("generation 2 is active, no other is left"), "{text}");
    assert!(done.installation.is_some());
    assert!(program.page("/readyz").starts_with("HTTP/1.1 200"));
    assert_eq!(program.metric("expected_nodes"), 1);
    let events = cluster.kubectl(&["get", "events", "--namespace=kube-system"], "");
    for reason in ["RotationStarted", "KeyActivated", "RotationCompleted"] {
        assert!(events.contains(reason), "{events}");
    }
    let (code, log) = program.stop().await;
    assert_eq!(code, Some(0), "{log}");
}
