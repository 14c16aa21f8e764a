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
fn ours_has_every_object_of_mkes_four_roles_and_four_kinds() {
    let ours: BTreeSet<_> = names(&ours()).into_iter().collect();
    let mkes: BTreeSet<_> = names(&mkes()).into_iter().collect();
    assert!(mkes.is_subset(&ours), "{mkes:?}");
    let more: Vec<_> = ours.difference(&mkes).map(|(kind, name)| (kind.as_str(), name.as_str())).collect();
    assert_eq!(
        more,
        [
            ("ClusterRole", "secureoverlay-operator"),
            ("ClusterRole", "secureoverlay-view"),
            ("CustomResourceDefinition", "clusterencryptions.secureoverlay.io"),
            ("CustomResourceDefinition", "encryptionpeers.secureoverlay.io"),
            ("CustomResourceDefinition", "keyrotations.secureoverlay.io"),
            ("CustomResourceDefinition", "nodeencryptions.secureoverlay.io"),
            ("Role", AGENT),
            ("Role", MANAGER),
            ("Role", "ucp-secureoverlay-mgr-events"),
            ("RoleBinding", AGENT),
            ("RoleBinding", MANAGER),
            ("RoleBinding", "ucp-secureoverlay-mgr-events")
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
    let definition = "CustomResourceDefinition";
    assert_eq!(kinds[..3], ["DaemonSet", "Secret", "Deployment"]);
    assert_eq!(kinds[3..7], [definition; 4]);
    assert_eq!(kinds[7..9], ["ServiceAccount"; 2]);
    assert!(kinds[9..].iter().all(|kind| kind.contains("Role")), "{kinds:?}");
}

#[test]
fn applying_again_cannot_touch_the_ring() {
    let ours = ours();
    let secret = find(&ours, "Secret", "ucp-secureoverlay").as_object().unwrap();
    assert_eq!(secret.keys().collect::<Vec<_>>(), ["apiVersion", "kind", "metadata", "type"]);
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

#[test]
fn ours_waits_for_acknowledgements_and_reads_settings_from_an_object() {
    let env = |objects: &[Value]| pod(find(objects, "Deployment", MANAGER))["containers"][0]["env"].clone();
    assert_eq!(
        env(&ours()),
        json!([
            {"name": "SECUREOVERLAY_ROTATION_MODE", "value": "acknowledged"},
            {"name": "SECUREOVERLAY_SETTINGS", "value": "object"}
        ])
    );
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
            all("", "events", &["create"]),
            all("", "pods", &["list", "watch"])
        ])
    );
    let events = find(&ours, "Role", &format!("{MANAGER}-events"));
    assert_eq!(
        (&events["rules"], &events["metadata"]["namespace"]),
        (&json!([all("", "events", &["create"])]), &json!("default"))
    );
    assert_eq!(
        find(&ours, "ClusterRole", AGENT)["rules"],
        json!([
            all("", "nodes", &["get"]),
            all(group, "encryptionpeers", &["get", "list", "watch", "create", "update"]),
            all(group, "nodeencryptions", &["get", "create", "patch"]),
            all(group, "nodeencryptions/status", &["patch"])
        ])
    );
    let policies = ["validatingadmissionpolicies", "validatingadmissionpolicybindings"];
    assert_eq!(
        find(&ours, "ClusterRole", MANAGER)["rules"],
        json!([
            all("", "nodes", &watch),
            {"apiGroups": [group], "resources": ["encryptionpeers", "nodeencryptions"],
             "verbs": ["list", "watch", "delete"]},
            all(group, "clusterencryptions", &["get", "list", "watch", "create", "patch"]),
            all(group, "keyrotations", &["get", "list", "watch", "create", "patch", "delete"]),
            {"apiGroups": [group], "resources": ["clusterencryptions/status", "keyrotations/status"],
             "verbs": ["patch"]},
            {"apiGroups": ["admissionregistration.k8s.io"], "resources": policies,
             "resourceNames": ["secureoverlay-own-node"], "verbs": ["get"]}
        ])
    );
}

#[test]
fn applying_again_undoes_no_edit_and_operating_is_not_bound() {
    let ours = ours();
    assert!(names(&ours).iter().all(|(kind, _)| kind != "ClusterEncryption" && kind != "KeyRotation"));
    let bound = ours.iter().filter(|object| object["roleRef"]["name"] == "secureoverlay-operator");
    assert_eq!(bound.count(), 0);
    let role = |name| find(&ours, "ClusterRole", name);
    let operator = role("secureoverlay-operator");
    assert!(operator["metadata"]["labels"].is_null(), "no other role includes it");
    let (other, ours): (Vec<_>, Vec<_>) = operator["rules"]
        .as_array()
        .unwrap()
        .iter()
        .partition(|rule| rule["apiGroups"] != json!(["secureoverlay.io"]));
    let nodes = json!({"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list"]});
    assert_eq!((other, ours.len()), (vec![&nodes], 3), "not the Secret");
    let view = role("secureoverlay-view");
    assert_eq!(view["metadata"]["labels"], json!({"rbac.authorization.k8s.io/aggregate-to-view": "true"}));
    assert_eq!(view["rules"][0]["verbs"], json!(["get", "list", "watch"]));
}

#[test]
fn admission_policy_is_bound_and_is_about_the_agents() {
    let objects = manifest(include_str!("../../manifests/admission-policy.yaml"));
    let name = "secureoverlay-own-node";
    let kinds = ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"];
    assert_eq!(names(&objects), kinds.map(|kind| (kind.to_owned(), name.to_owned())));
    let spec = &objects[0]["spec"];
    assert_eq!((&spec["failurePolicy"], &objects[1]["spec"]["policyName"]), (&json!("Fail"), &json!(name)));
    assert_eq!(objects[1]["spec"]["validationActions"], json!(["Deny"]));
    let account = pod(find(&ours(), "DaemonSet", AGENT))["serviceAccountName"].as_str().unwrap().to_owned();
    let agents = spec["matchConditions"][0]["expression"].as_str().unwrap();
    assert!(agents.ends_with(&format!("\"system:serviceaccount:kube-system:{account}\"")), "{agents}");
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
