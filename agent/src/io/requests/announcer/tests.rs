use axum::http::Response;
use kube::client::Body;

use super::*;
use crate::io::requests::testing::{Server, answer, status};

const NODE_UID: &str = "9d0f5a37-62a5-4d5f-8a3d-1c1ad0f2b001";
const OBJECT_UID: &str = "9d0f5a37-62a5-4d5f-8a3d-1c1ad0f2b0aa";
const OTHER_UID: &str = "9d0f5a37-62a5-4d5f-8a3d-1c1ad0f2b0ff";

fn spec() -> EncryptionPeerSpec {
    serde_json::from_value(json!({
        "nodeUid": NODE_UID,
        "senders": [{
            "instance": "4b8e0c2d-3a6f-4d31-9c57-e2f0a1b3cb03", "address": "192.0.2.2",
            "publicKey": "qO1Fq8KKFReWp7zSWnOwzTOZBdbgL4+Cx5Rr9nAyZCY="
        }],
        "podNetworks": ["10.244.1.0/26"],
    }))
    .unwrap()
}

fn node(uid: &str) -> Response<Body> {
    answer(200, &json!({"metadata": {"name": "a", "uid": uid}}))
}

fn gone(kind: &str) -> Response<Body> {
    let details = json!({"name": "a", "kind": kind});
    answer(404, &json!({"kind": "Status", "code": 404, "reason": "NotFound", "details": details}))
}

/// The object at a version, with what another client keeps in it.
fn object(version: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "secureoverlay.io/v1alpha1", "kind": "EncryptionPeer",
        "metadata": {
            "name": "a", "uid": OBJECT_UID, "resourceVersion": version, "generation": 3,
            "labels": {"theirs": "yes"}, "finalizers": ["their.io/hold"], "managedFields": [{"manager": "x"}],
        },
        "spec": spec,
    })
}

fn known(version: &str) -> Meta {
    Meta::of(&object(version, &Value::Null))
}

async fn write<const N: usize>(known: Option<&Meta>, answers: [Response<Body>; N]) -> (WriteResult, Server) {
    let server = Server::new(answers);
    let result = Announcer::new(server.client(), "a".to_owned()).write(&spec(), known).await;
    (result, server)
}

#[tokio::test]
async fn object_is_created_once_its_node_is_known() {
    let reply = object("8", &serde_json::to_value(spec()).unwrap());
    let (result, server) = write(None, [node(NODE_UID), gone("encryptionpeers"), answer(201, &reply)]).await;
    let uid = OBJECT_UID.parse().unwrap();
    let written = Written { uid, generation: 3, resource_version: "8".to_owned(), differs: false };
    assert_eq!(result, WriteResult::Written(written));
    assert!(server.asked()[2].starts_with("POST /apis/secureoverlay.io/v1alpha1/encryptionpeers"));
    let sent = server.body(2);
    assert_eq!(sent["metadata"]["ownerReferences"][0]["uid"], NODE_UID);
    assert_eq!((&sent["metadata"]["resourceVersion"], &sent["spec"]), (&Value::Null, &reply["spec"]));
}

#[tokio::test]
async fn write_is_conditional_and_keeps_what_is_not_ours() {
    let (before, after) = (object("7", &json!({})), object("8", &serde_json::to_value(spec()).unwrap()));
    let answers = [node(NODE_UID), answer(200, &before), answer(200, &after)];
    let (result, server) = write(Some(&known("7")), answers).await;
    assert!(matches!(result, WriteResult::Written(Written { differs: false, .. })), "{result:?}");
    assert!(server.asked()[2].starts_with("PUT /apis/secureoverlay.io/v1alpha1/encryptionpeers/a"));
    let sent = &server.body(2)["metadata"];
    assert_eq!((&sent["uid"], &sent["resourceVersion"]), (&json!(OBJECT_UID), &json!("7")));
    assert_eq!((&sent["labels"]["theirs"], &sent["finalizers"]), (&json!("yes"), &json!(["their.io/hold"])));
    assert_eq!(sent["managedFields"], Value::Null);
}

#[tokio::test]
async fn reply_that_lacks_a_field_differs() {
    let mut pruned = serde_json::to_value(spec()).unwrap();
    pruned["senders"][0].as_object_mut().unwrap().remove("publicKey");
    let answers = [node(NODE_UID), gone("encryptionpeers"), answer(201, &object("8", &pruned))];
    let (result, _) = write(None, answers).await;
    assert!(matches!(result, WriteResult::Written(Written { differs: true, .. })), "{result:?}");
}

#[tokio::test]
async fn nothing_is_written_without_the_node_that_the_spec_names() {
    let (result, server) = write(None, [gone("nodes")]).await;
    assert_eq!((result, server.asked().len()), (WriteResult::NodeNotFound, 1));
    let (result, server) = write(None, [node(OTHER_UID)]).await;
    let uid = OTHER_UID.parse().unwrap();
    assert_eq!((result, server.asked().len()), (WriteResult::NodeChanged { uid }, 1));
    let (result, server) = write(None, [status(500, "InternalError", "etcd")]).await;
    assert!(matches!(result, WriteResult::Failed(why) if why.contains("500")) && server.asked().len() == 1);
}

#[tokio::test]
async fn object_that_is_another_than_the_known_one_is_read_and_not_written() {
    let found = object("9", &serde_json::to_value(spec()).unwrap());
    for known in [None, Some(known("7"))] {
        let (result, server) = write(known.as_ref(), [node(NODE_UID), answer(200, &found)]).await;
        let WriteResult::Conflict(Some(there)) = result else { panic!("{result:?}") };
        assert_eq!((there.content, there.meta.resource_version.as_str()), (Ok(spec()), "9"));
        assert_eq!(server.asked().len(), 2);
    }
    let (result, _) = write(Some(&known("7")), [node(NODE_UID), gone("encryptionpeers")]).await;
    assert_eq!(result, WriteResult::Conflict(None));
    // It changes between the read and the write.
    let conflict = status(409, "Conflict", "the object has been modified");
    let answers = [node(NODE_UID), answer(200, &object("7", &json!({}))), conflict, answer(200, &found)];
    let (result, _) = write(Some(&known("7")), answers).await;
    assert!(matches!(result, WriteResult::Conflict(Some(there)) if there.meta.resource_version == "9"));
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let refused = async |code, message: &str| {
        let answer = status(code, "Forbidden", message);
        write(None, [node(NODE_UID), gone("encryptionpeers"), answer]).await.0
    };
    let result = refused(403, "admission webhook \"deny.all\" denied the request: no").await;
    assert!(matches!(&result, WriteResult::Refused(by) if by.name == "deny.all" && by.webhook), "{result:?}");
    let result = refused(500, "Internal error occurred: failed calling webhook \"deny.all\": timeout").await;
    assert!(matches!(&result, WriteResult::Refused(by) if by.name == "deny.all"), "{result:?}");
    let result =
        refused(422, "x: ValidatingAdmissionPolicy 'own' with binding 'own' denied request: no").await;
    assert!(matches!(&result, WriteResult::Refused(by) if by.name == "own" && !by.webhook), "{result:?}");
    let result = refused(403, "User \"x\" cannot create resource \"encryptionpeers\"").await;
    assert!(matches!(&result, WriteResult::Forbidden(why) if why.contains("403")), "{result:?}");
    let result = refused(422, "spec.senders: too many").await;
    assert!(matches!(&result, WriteResult::Failed(why) if why.contains("too many")), "{result:?}");
}
