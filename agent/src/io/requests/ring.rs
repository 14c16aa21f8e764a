//! The Secret with the ring, once: from etcd, and not from a cache that may be behind.

use k8s_openapi::api::core::v1::Secret;
use kube::{Client, Resource, api::GetParams, core::Request};
use secureoverlay_k8s::{
    client::describe,
    names::{NAMESPACE, SECRET},
    object::Object,
    ring_secret::RingDocument,
};

/// What the API server says of the Secret.
#[derive(Debug, PartialEq)]
pub enum RingAnswer {
    /// It is there.
    Found(Object<RingDocument>),
    /// There is none.
    NotFound,
    /// This agent may not read it through the API: it reads the mounted file.
    Forbidden,
    /// There was no answer that says either. Nothing follows from it.
    Failed(String),
}

/// Reads the Secret.
pub async fn read(client: &Client) -> RingAnswer {
    let request = Request::new(Secret::url_path(&(), Some(NAMESPACE))).get(SECRET, &GetParams::default());
    let request = match request {
        Ok(request) => request,
        Err(error) => return RingAnswer::Failed(format!("the request can't be built: {error}")),
    };
    match client.request(request).await {
        Ok(object) => RingAnswer::Found(object),
        Err(kube::Error::Api(status)) if status.is_not_found() => RingAnswer::NotFound,
        Err(kube::Error::Api(status)) if status.code == 403 => RingAnswer::Forbidden,
        Err(error) => RingAnswer::Failed(describe(&error)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::io::requests::testing::{Server, answer, status};

    #[tokio::test]
    async fn secret_is_read_from_etcd() {
        let secret =
            json!({"metadata": {"name": SECRET, "resourceVersion": "7"}, "data": {"keys": "aHVzaA=="}});
        let server = Server::new([
            answer(200, &secret),
            status(404, "NotFound", "no"),
            status(403, "Forbidden", "no"),
            status(500, "InternalError", "no"),
        ]);
        let client = server.client();
        let RingAnswer::Found(found) = read(&client).await else { panic!("there is a Secret") };
        assert_eq!(found.content.unwrap().0.unwrap().as_slice(), b"hush");
        assert_eq!(read(&client).await, RingAnswer::NotFound);
        assert_eq!(read(&client).await, RingAnswer::Forbidden);
        assert!(matches!(read(&client).await, RingAnswer::Failed(why) if why.contains("500")));
        assert_eq!(server.asked()[0], "GET /api/v1/namespaces/kube-system/secrets/ucp-secureoverlay");
    }
}
