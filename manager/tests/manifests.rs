//! The manifests hold what they promise, and stay interchangeable.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;

use serde_json::{Value, json};

fn manifest(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

fn ours() -> Vec<Value> {
    manifest(include_str!("../../manifests/ucp-secureoverlay.yaml"))
}

fn mkes() -> Vec<Value> {
    manifest(include_str!("../../manifests/mke-original.yaml"))
}

fn names(objects: &[Value]) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    objects.iter().map(|object| (text(&object["kind"]), text(&object["metadata"]["name"]))).collect()
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name).unwrap()
}

fn pod(workload: &Value) -> &Value {
    &workload["spec"]["template"]["spec"]
}

const AGENT: &str = "ucp-secureoverlay-agent";
const MANAGER: &str = "ucp-secureoverlay-mgr";

#[test]
fn ours_has_every_object_of_mkes_and_two_namespaced_roles() {
    let ours: BTreeSet<_> = names(&ours()).into_iter().collect();
    let mkes: BTreeSet<_> = names(&mkes()).into_iter().collect();
    assert!(mkes.is_subset(&ours), "{mkes:?}");
    let more: Vec<_> = ours.difference(&mkes).map(|(kind, name)| (kind.as_str(), name.as_str())).collect();
    assert_eq!(more, [("Role", AGENT), ("Role", MANAGER), ("RoleBinding", AGENT), ("RoleBinding", MANAGER)]);
}

#[test]
fn one_can_be_applied_over_the_other() {
    let (ours, mkes) = (ours(), mkes());
    for (kind, name) in [("DaemonSet", AGENT), ("Deployment", MANAGER)] {
        let (our, mke) = (find(&ours, kind, name), find(&mkes, kind, name));
        assert_eq!(our["spec"]["selector"], mke["spec"]["selector"], "a selector can't be changed");
        let (our, mke) = (pod(our), pod(mke));
        assert_eq!(our["serviceAccountName"], mke["serviceAccountName"]);
        assert_eq!(our["containers"].as_array().unwrap().len(), 1);
        for field in ["name", "image", "imagePullPolicy"] {
            assert_eq!(our["containers"][0][field], mke["containers"][0][field]);
        }
    }
    let agent = |objects| pod(find(objects, "DaemonSet", AGENT)).clone();
    assert_eq!(agent(&ours)["containers"][0]["env"], agent(&mkes)["containers"][0]["env"]);
    let volumes = agent(&ours)["volumes"].as_array().unwrap().clone();
    assert!(
        volumes.iter().all(|volume| volume["secret"].is_null()),
        "agents that may read it need no copy of it"
    );
    assert_eq!(volumes[0]["hostPath"]["path"], agent(&ours)["containers"][0]["volumeMounts"][0]["mountPath"]);
    assert_eq!(agent(&mkes)["volumes"][0]["secret"]["secretName"], json!("ucp-secureoverlay"));
    for name in [AGENT, MANAGER] {
        let binding = |objects| find(objects, "ClusterRoleBinding", name).clone();
        let (our, mke) = (binding(&ours), binding(&mkes));
        assert_eq!((&our["roleRef"], &our["subjects"]), (&mke["roleRef"], &mke["subjects"]));
    }
}

#[test]
fn deletion_starts_with_the_daemon_set_and_ends_with_the_rights() {
    let kinds: Vec<_> = names(&ours()).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds[..5], ["DaemonSet", "Secret", "Deployment", "ServiceAccount", "ServiceAccount"]);
    assert!(kinds[5..].iter().all(|kind| kind.contains("Role")), "{kinds:?}");
}

#[test]
fn applying_again_cannot_touch_the_ring() {
    let ours = ours();
    let secret = find(&ours, "Secret", "ucp-secureoverlay").as_object().unwrap();
    assert_eq!(secret.keys().collect::<Vec<_>>(), ["apiVersion", "kind", "metadata", "type"]);
}

#[test]
fn rights_are_the_least() {
    let ours = ours();
    let rule = |group: &str, resource: &str, name: &str, verbs: &[&str]| json!({"apiGroups": [group], "resources": [resource], "resourceNames": [name], "verbs": verbs});
    let watch = ["get", "list", "watch"];
    assert_eq!(
        find(&ours, "Role", AGENT)["rules"],
        json!([rule("", "secrets", "ucp-secureoverlay", &watch), rule("apps", "daemonsets", AGENT, &watch)])
    );
    assert_eq!(
        find(&ours, "Role", MANAGER)["rules"],
        json!([
            rule("", "secrets", "ucp-secureoverlay", &["get", "update"]),
            rule("apps", "daemonsets", AGENT, &["get"])
        ])
    );
    assert_eq!(
        find(&ours, "ClusterRole", AGENT)["rules"],
        json!([{"apiGroups": [""], "resources": ["nodes"], "verbs": watch}])
    );
    assert_eq!(
        find(&ours, "ClusterRole", MANAGER)["rules"],
        json!([{"nonResourceURLs": ["/version"], "verbs": ["get"]}])
    );
}

#[test]
fn containers_hold_no_more_power_than_they_use() {
    let ours = ours();
    let (agent, manager) = (pod(find(&ours, "DaemonSet", AGENT)), pod(find(&ours, "Deployment", MANAGER)));
    for pod in [agent, manager] {
        let context = &pod["containers"][0]["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], json!(false));
        assert_eq!(context["readOnlyRootFilesystem"], json!(true));
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], json!("RuntimeDefault"));
        assert!(context["privileged"].is_null());
        for probe in ["livenessProbe", "readinessProbe"] {
            assert!(pod["containers"][0][probe]["httpGet"].is_object());
        }
    }
    assert_eq!(agent["containers"][0]["securityContext"]["capabilities"]["add"], json!(["NET_ADMIN"]));
    assert!(manager["containers"][0]["securityContext"]["capabilities"]["add"].is_null());
    assert_eq!(manager["securityContext"]["runAsNonRoot"], json!(true));
    assert_eq!(agent["tolerations"], json!([{"operator": "Exists"}]));
}
