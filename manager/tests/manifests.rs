//! The manifests hold what they promise, and stay interchangeable.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;

use secureoverlay_daemon::node_encryption;
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
fn ours_has_every_object_of_mkes_two_namespaced_roles_and_one_kind() {
    let ours: BTreeSet<_> = names(&ours()).into_iter().collect();
    let mkes: BTreeSet<_> = names(&mkes()).into_iter().collect();
    assert!(mkes.is_subset(&ours), "{mkes:?}");
    let more: Vec<_> = ours.difference(&mkes).map(|(kind, name)| (kind.as_str(), name.as_str())).collect();
    assert_eq!(
        more,
        [
            ("CustomResourceDefinition", "nodeencryptions.secureoverlay.io"),
            ("Role", AGENT),
            ("Role", MANAGER),
            ("RoleBinding", AGENT),
            ("RoleBinding", MANAGER)
        ]
    );
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
    let first =
        ["DaemonSet", "Secret", "Deployment", "CustomResourceDefinition", "ServiceAccount", "ServiceAccount"];
    assert_eq!(kinds[..6], first);
    assert!(kinds[6..].iter().all(|kind| kind.contains("Role")), "{kinds:?}");
}

#[test]
fn applying_again_cannot_touch_the_ring() {
    let ours = ours();
    let secret = find(&ours, "Secret", "ucp-secureoverlay").as_object().unwrap();
    assert_eq!(secret.keys().collect::<Vec<_>>(), ["apiVersion", "kind", "metadata", "type"]);
}

#[test]
fn the_definition_is_the_programs() {
    let ours = ours();
    let definition = find(&ours, "CustomResourceDefinition", "nodeencryptions.secureoverlay.io");
    let generated = serde_json::to_value(node_encryption::definition()).unwrap();
    assert_eq!(*definition, generated, "put what `ucp-secureoverlay-mgr crd` prints into the manifest");
}

/// Both are Kubernetes' own, and for what is in kube-system.
#[test]
fn pods_have_the_built_in_priorities() {
    let ours = ours();
    for (kind, name, class) in
        [("DaemonSet", AGENT, "system-node-critical"), ("Deployment", MANAGER, "system-cluster-critical")]
    {
        let workload = find(&ours, kind, name);
        assert_eq!(pod(workload)["priorityClassName"], class);
        assert_eq!(workload["metadata"]["namespace"], "kube-system");
    }
}

#[test]
fn the_flow_schema_is_for_the_agents() {
    let objects = manifest(include_str!("../../manifests/flowschema.yaml"));
    let kinds = ["PriorityLevelConfiguration", "FlowSchema"].map(|kind| (kind.to_owned(), AGENT.to_owned()));
    assert_eq!(names(&objects), kinds);
    let schema = &objects[1]["spec"];
    assert_eq!(schema["priorityLevelConfiguration"]["name"], AGENT);
    let account = json!({"name": AGENT, "namespace": "kube-system"});
    let subjects = json!([{"kind": "ServiceAccount", "serviceAccount": account}]);
    assert_eq!((&schema["rules"][0]["subjects"], schema["rules"].as_array().unwrap().len()), (&subjects, 1));
    assert_eq!(pod(find(&ours(), "DaemonSet", AGENT))["serviceAccountName"], AGENT);
    // Kubernetes' own for all of kube-system has 900.
    assert!(schema["matchingPrecedence"].as_u64().unwrap() < 900);
}

/// One agent's account can write all objects: what is read from them has an end.
#[test]
fn what_is_said_in_sentences_is_bounded() {
    let generated = serde_json::to_value(node_encryption::definition()).unwrap();
    let version = &generated["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let status = &version["properties"]["status"]["properties"];
    let said = &status["acknowledgement"]["properties"];
    assert_eq!(
        (&said["obstacles"]["maxItems"], &said["obstacles"]["items"]["maxLength"]),
        (&json!(32), &json!(400))
    );
    assert_eq!(said["unreachable"]["maxItems"], 128);
    assert_eq!(status["awaited"]["maxLength"], 400);
}

/// What the API server makes of v1 since 1.20: structural schemas, in which only some keywords are known.
#[test]
fn the_definition_is_structural() {
    fn check(path: &str, schema: &Value) {
        let known = [
            "type",
            "description",
            "title",
            "properties",
            "required",
            "items",
            "additionalProperties",
            "format",
            "nullable",
            "default",
            "minimum",
            "maximum",
            "minLength",
            "maxLength",
            "maxItems",
            "pattern",
            "enum",
        ];
        for key in schema.as_object().unwrap().keys() {
            assert!(known.contains(&key.as_str()), "{path}: {key}");
        }
        assert!(schema["type"].is_string(), "{path} has no type");
        // Of a format that they don't know, API servers warn.
        match (schema["type"].as_str(), schema["format"].as_str()) {
            (Some("integer"), format) => {
                assert_eq!(format, Some("int64"), "{path}");
                assert!(schema["minimum"] == 0.0 || path.ends_with("observedGeneration"), "{path}");
            }
            (_, format) => assert!(matches!(format, None | Some("date-time")), "{path}: {format:?}"),
        }
        let choices = schema["enum"].as_array().into_iter().flatten();
        assert!(choices.into_iter().all(|choice| !choice.is_null()), "{path}: null among the choices");
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            check(&format!("{path}.{name}"), property);
        }
        for inner in ["items", "additionalProperties"].map(|key| &schema[key]) {
            if !inner.is_null() {
                check(&format!("{path}[]"), inner);
            }
        }
    }
    let generated = serde_json::to_value(node_encryption::definition()).unwrap();
    check("", &generated["spec"]["versions"][0]["schema"]["openAPIV3Schema"]);
}

#[test]
fn ours_waits_for_acknowledgements() {
    let env = |objects: &[Value]| pod(find(objects, "Deployment", MANAGER))["containers"][0]["env"].clone();
    assert_eq!(env(&ours()), json!([{"name": "SECUREOVERLAY_ACKNOWLEDGEMENTS", "value": "required"}]));
    assert!(env(&mkes()).is_null());
}

#[test]
fn rights_are_the_least() {
    let ours = ours();
    let rule = |group: &str, resource: &str, name: &str, verbs: &[&str]| json!({"apiGroups": [group], "resources": [resource], "resourceNames": [name], "verbs": verbs});
    let all = |group: &str, resource: &str, verbs: &[&str]| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs});
    let group = "secureoverlay.io";
    let watch = ["get", "list", "watch"];
    assert_eq!(
        find(&ours, "Role", AGENT)["rules"],
        json!([
            rule("", "secrets", "ucp-secureoverlay", &watch),
            rule("apps", "daemonsets", AGENT, &watch),
            rule("apps", "daemonsets", "calico-node", &["get"])
        ])
    );
    assert_eq!(
        find(&ours, "Role", MANAGER)["rules"],
        json!([
            rule("", "secrets", "ucp-secureoverlay", &["get", "update"]),
            rule("apps", "daemonsets", AGENT, &["get"]),
            all("", "events", &["create"])
        ])
    );
    assert_eq!(
        find(&ours, "ClusterRole", AGENT)["rules"],
        json!([
            all("", "nodes", &watch),
            all(group, "nodeencryptions", &["get", "create", "patch"]),
            all(group, "nodeencryptions/status", &["patch"])
        ])
    );
    assert_eq!(
        find(&ours, "ClusterRole", MANAGER)["rules"],
        json!([
            all("", "nodes", &["list", "watch"]),
            all(group, "nodeencryptions", &["list", "watch"]),
            all(group, "nodeencryptions/status", &["patch"])
        ])
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
