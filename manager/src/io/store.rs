//! The Secret that holds the ring: read, and replaced only as it was read.

use std::{collections::BTreeMap, fmt};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client, Resource,
    api::{GetParams, PostParams},
};
use secureoverlay_k8s::{
    client::describe,
    names::{NAMESPACE, ROTATE, SECRET, SECRET_KEY},
};
use secureoverlay_keyring::keyring::{KeyRing, KeyRingError};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// A Secret whose values are wiped when dropped and never printed. Everything else in it is kept as it is.
#[derive(Clone, Serialize, Deserialize, Resource)]
#[resource(inherit = Secret)]
#[serde(rename_all = "camelCase")]
pub struct RingSecret {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    api_version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    metadata: ObjectMeta,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    r#type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    immutable: Option<bool>,
    /// Values are in base64, as the API has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<BTreeMap<String, Zeroizing<String>>>,
}

impl fmt::Debug for RingSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingSecret")
            .field("name", &self.metadata.name)
            .field("resource_version", &self.metadata.resource_version)
            .finish_non_exhaustive()
    }
}

/// Whether an annotation of the Secret asks for a rotation.
fn asks(meta: &ObjectMeta) -> bool {
    meta.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(ROTATE))
}

/// The Secret as it was read, or one that is gone and can be made anew.
#[derive(Debug)]
pub struct SecretRead {
    /// The Secret's UID: another one means that it was deleted and made anew.
    pub uid: Option<String>,
    /// Its annotation asks for a rotation.
    pub rotate: bool,
    secret: RingSecret,
}

impl SecretRead {
    /// A Secret that is to be made, because it is gone.
    #[must_use]
    pub fn missing() -> Self {
        let metadata = ObjectMeta {
            name: Some(SECRET.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        };
        let secret = RingSecret {
            api_version: Some("v1".to_owned()),
            kind: Some("Secret".to_owned()),
            metadata,
            r#type: Some("Opaque".to_owned()),
            immutable: None,
            data: None,
        };
        Self { uid: None, rotate: false, secret }
    }

    /// What a write is made against.
    #[must_use]
    pub fn resource_version(&self) -> Option<&str> {
        self.secret.metadata.resource_version.as_deref()
    }
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The ring is in the Secret.
    Done,
    /// Another writer was faster, nothing was changed.
    Conflict,
}

/// Why the Secret could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The API server has no such Secret.
    #[error("the Secret {NAMESPACE}/{SECRET} does not exist: apply the manifest (kubectl apply -f)")]
    Missing,
    /// Reading.
    #[error("failed to read the Secret {NAMESPACE}/{SECRET}: {}", describe(.0))]
    Read(#[source] kube::Error),
    /// Writing.
    #[error("failed to write the Secret {NAMESPACE}/{SECRET}: {}", describe(.0))]
    Write(#[source] kube::Error),
}

/// Access to the Secret. Needs `get` and `update` of it; `create` where it is to be made anew.
#[derive(Clone)]
pub struct Store {
    api: Api<RingSecret>,
}

impl Store {
    /// Sends nothing yet.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { api: Api::namespaced(client, NAMESPACE) }
    }

    /// Reads the Secret: the ring, or why there is none in it, and what a write must be made against.
    ///
    /// # Errors
    /// Where there is no Secret, or no answer.
    pub async fn read(&self) -> Result<(Result<KeyRing, KeyRingError>, SecretRead), StoreError> {
        let secret = self.api.get_opt(SECRET).await.map_err(StoreError::Read)?.ok_or(StoreError::Missing)?;
        let rotate = asks(&secret.metadata);
        Ok((parse(&secret), SecretRead { uid: secret.metadata.uid.clone(), rotate, secret }))
    }

    /// The version of the Secret that the API server's cache has; `None` where that has none.
    ///
    /// # Errors
    /// Where there is no answer.
    pub async fn cached_version(&self) -> Result<Option<String>, StoreError> {
        match self.api.get_with(SECRET, &GetParams::at("0")).await {
            Ok(secret) => Ok(secret.metadata.resource_version),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(StoreError::Read(error)),
        }
    }

    /// Puts `ring` in the place of what was read, if no other writer was faster, and takes the request for a rotation off if it
    /// `answers` that.
    ///
    /// # Errors
    /// Where the answer is no, or lost; then the write may have been done.
    pub async fn replace(
        &self,
        read: SecretRead,
        ring: &KeyRing,
        answers: bool,
    ) -> Result<Written, StoreError> {
        let mut secret = read.secret;
        let value = Zeroizing::new(BASE64.encode(ring.to_yaml().as_bytes()));
        secret.data.get_or_insert_default().insert(SECRET_KEY.to_owned(), value);
        if let Some(annotations) = secret.metadata.annotations.as_mut().filter(|_| answers) {
            annotations.remove(ROTATE);
        }
        self.write(secret).await
    }

    /// Asks for a rotation, if no other writer was faster.
    ///
    /// # Errors
    /// Where the answer is no, or lost; then the write may have been done.
    pub async fn request(&self, read: SecretRead) -> Result<Written, StoreError> {
        let mut secret = read.secret;
        secret.metadata.annotations.get_or_insert_default().insert(ROTATE.to_owned(), "true".to_owned());
        self.write(secret).await
    }

    async fn write(&self, secret: RingSecret) -> Result<Written, StoreError> {
        let params = PostParams::default();
        let created = secret.metadata.resource_version.is_none();
        let result = match secret.metadata.resource_version {
            Some(_) => self.api.replace(SECRET, &params, &secret).await,
            None => self.api.create(&params, &secret).await,
        };
        match result {
            Ok(_) => Ok(Written::Done),
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Written::Conflict),
            // Creating Secrets is a right that nothing should have; applying the manifest brings this one back.
            Err(kube::Error::Api(status)) if created && status.code == 403 => Err(StoreError::Missing),
            Err(error) => Err(StoreError::Write(error)),
        }
    }
}

fn parse(secret: &RingSecret) -> Result<KeyRing, KeyRingError> {
    let value = secret.data.as_ref().and_then(|data| data.get(SECRET_KEY)).ok_or(KeyRingError::Empty)?;
    let document = Zeroizing::new(BASE64.decode(value.as_bytes()).map_err(|_| KeyRingError::NotText)?);
    KeyRing::parse(&document)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn formatting_shows_no_value_and_nothing_is_lost() {
        let json = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {
                "name": "ucp-secureoverlay", "namespace": "kube-system", "resourceVersion": "7",
                "uid": "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6d",
                "labels": {"a": "b"}, "annotations": {"c": "d"}, "finalizers": ["e/f"],
            },
            "data": {"keys": "aHVzaA==", "other": "aHVzaA=="},
        });
        let secret: RingSecret = serde_json::from_value(json.clone()).unwrap();
        let text = format!("{secret:?}");
        assert!(text.contains("\"7\"") && !text.contains("aHVzaA"), "{text}");
        assert_eq!(serde_json::to_value(&secret).unwrap(), json);
    }

    #[test]
    fn request_is_an_annotation_with_any_value() {
        for (annotations, asked) in [
            (json!(null), false),
            (json!({"note": "true"}), false),
            (json!({ROTATE: ""}), true),
            (json!({ROTATE: "now, please"}), true),
        ] {
            let secret: RingSecret =
                serde_json::from_value(json!({"metadata": {"annotations": annotations}})).unwrap();
            assert_eq!(asks(&secret.metadata), asked, "{annotations}");
        }
    }

    #[test]
    fn no_data_no_entry_and_an_empty_entry_are_alike() {
        for data in [json!(null), json!({}), json!({"keys": ""})] {
            let secret = serde_json::from_value(json!({"metadata": {}, "data": data})).unwrap();
            assert_eq!(parse(&secret), Err(KeyRingError::Empty), "{data}");
        }
        let secret = serde_json::from_value(json!({"metadata": {}, "data": {"keys": "%"}})).unwrap();
        assert_eq!(parse(&secret), Err(KeyRingError::NotText));
    }
}
