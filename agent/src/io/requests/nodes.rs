//! Node objects, one at a time: agents watch none.

use kube::{
    Api, Client,
    api::GetParams,
    core::{Status, response::reason},
};
use secureoverlay_k8s::{
    client::describe,
    node::{NodeFacts, SlimNode},
};

/// What the API server says of a Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeAnswer {
    /// It is there.
    Found(Box<NodeFacts>),
    /// There is no Node of this name.
    NotFound,
    /// There was no answer that says either. Nothing follows from it.
    Failed(String),
}

/// Asks for a Node, from the API server's cache.
pub async fn get(client: &Client, name: &str) -> NodeAnswer {
    match Api::<SlimNode>::all(client.clone()).get_with(name, &GetParams::any()).await {
        Ok(node) if node.metadata.name.as_deref() == Some(name) => NodeAnswer::Found(Box::new(node.into())),
        Ok(_) => NodeAnswer::Failed("the API server answered with another Node".to_owned()),
        Err(kube::Error::Api(status)) if is_not_found(&status, name) => NodeAnswer::NotFound,
        Err(error) => NodeAnswer::Failed(describe(&error)),
    }
}

/// The API server's own answer about this Node, and not a proxy's 404.
fn is_not_found(status: &Status, name: &str) -> bool {
    let about =
        |details: &kube::core::response::StatusDetails| details.name == name && details.kind == "nodes";
    status.code == 404 && status.reason == reason::NOT_FOUND && status.details.as_ref().is_some_and(about)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::io::requests::testing::{Server, answer, status};

    #[tokio::test]
    async fn node_is_read_and_only_the_servers_word_makes_it_not_found() {
        let not_found = |name: &str| {
            let details = json!({"name": name, "kind": "nodes"});
            json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": "gone", "details": details})
        };
        let node = json!({"metadata": {"name": "a", "uid": "9d0f5a37-62a5-4d5f-8a3d-1c1ad0f2b001"}});
        let server = Server::new([
            answer(200, &node),
            answer(404, &not_found("a")),
            answer(404, &not_found("b")),
            answer(404, &json!("page not found")),
            answer(200, &json!({"metadata": {"name": "b"}})),
            status(403, "Forbidden", "no"),
        ]);
        let client = server.client();
        let answers = [get(&client, "a").await, get(&client, "a").await];
        assert!(matches!(&answers[0], NodeAnswer::Found(facts) if facts.uid.is_some()), "{answers:?}");
        assert_eq!(answers[1], NodeAnswer::NotFound);
        for _ in 0..4 {
            assert!(matches!(get(&client, "a").await, NodeAnswer::Failed(_)));
        }
        assert_eq!(server.asked()[0], "GET /api/v1/nodes/a?&resourceVersion=0");
    }
}
