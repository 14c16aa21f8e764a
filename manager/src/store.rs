//! The Secret that holds the ring: read, and replaced only as it was read.

use std::{collections::BTreeMap, fmt};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, Resource, api::PostParams};
use secureoverlay_common::{
    names::{ENFORCE, NAMESPACE, PRESS_ON, ROTATE, SECRET, SECRET_KEY},
    ring::{Enforcement, Ring, RingError},
};
use secureoverlay_daemon::client::describe;
use secureoverlay_manager_core::snapshot::OperatorRequests;
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

/// What the annotations of the Secret ask for.
fn requests_of(meta: &ObjectMeta) -> OperatorRequests {
    let value = |name: &str| meta.annotations.as_ref().and_then(|annotations| annotations.get(name));
    OperatorRequests {
        rotate: value(ROTATE).is_some(),
        press_on: value(PRESS_ON).is_some_and(|value| value == "true"),
        enforce: value(ENFORCE).and_then(|value| Enforcement::named(value)),
    }
}

/// The annotations of what is asked for once.
fn one_time(requests: OperatorRequests) -> impl Iterator<Item = &'static str> {
    let all = [(ROTATE, requests.rotate), (PRESS_ON, requests.press_on)];
    all.into_iter().filter_map(|(name, asked)| asked.then_some(name))
}

/// The Secret as it was read.
#[derive(Debug)]
pub struct Held {
    /// The Secret's UID: another one means that it was deleted and made anew.
    pub uid: Option<String>,
    /// What is asked for.
    pub requests: OperatorRequests,
    secret: RingSecret,
}

impl Held {
    /// What a write is made against.
    #[must_use]
    pub fn resource_version(&self) -> Option<&str> {
        self.secret.metadata.resource_version.as_deref()
    }

    /// How far to insist, where somebody has asked for something that is not understood.
    #[must_use]
    pub fn nonsense(&self) -> Option<&str> {
        let value = self.secret.metadata.annotations.as_ref()?.get(ENFORCE)?;
        Enforcement::named(value).is_none().then_some(value)
    }
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The ring is in the Secret.
    Done,
    /// Somebody else wrote first, nothing was changed.
    Conflict,
}

/// Why the Secret could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The API server has no such Secret.
    #[error("the Secret {NAMESPACE}/{SECRET} does not exist: apply the manifest (kubectl apply -f)")]
    Missing,
    /// Reading.
    #[error("reading the Secret {NAMESPACE}/{SECRET}: {}", describe(.0))]
    Read(#[source] kube::Error),
    /// Writing.
    #[error("writing the Secret {NAMESPACE}/{SECRET}: {}", describe(.0))]
    Write(#[source] kube::Error),
}

/// Access to the Secret. Needs `get` and `update` of it, nothing more.
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
    pub async fn read(&self) -> Result<(Result<Ring, RingError>, Held), StoreError> {
        let secret = self.api.get_opt(SECRET).await.map_err(StoreError::Read)?.ok_or(StoreError::Missing)?;
        let requests = requests_of(&secret.metadata);
        Ok((parse(&secret), Held { uid: secret.metadata.uid.clone(), requests, secret }))
    }

    /// Puts `ring` in the place of what was read, if nobody has written since, and takes the requests off that it has
    /// `answered`.
    ///
    /// # Errors
    /// Where the answer is no, or lost; then the write may have been done.
    pub async fn replace(
        &self,
        held: Held,
        ring: &Ring,
        answered: OperatorRequests,
    ) -> Result<Written, StoreError> {
        let mut secret = held.secret;
        let value = Zeroizing::new(BASE64.encode(ring.to_yaml().as_bytes()));
        secret.data.get_or_insert_default().insert(SECRET_KEY.to_owned(), value);
        if let Some(annotations) = &mut secret.metadata.annotations {
            for name in one_time(answered) {
                annotations.remove(name);
            }
        }
        self.write(secret).await
    }

    /// Asks for something beside what is asked for already, if nobody has written since.
    ///
    /// # Errors
    /// Where the answer is no, or lost; then the write may have been done.
    pub async fn request(&self, held: Held, requests: OperatorRequests) -> Result<Written, StoreError> {
        let mut secret = held.secret;
        let all = secret.metadata.annotations.get_or_insert_default();
        all.extend(one_time(requests).map(|name| (name.to_owned(), "true".to_owned())));
        self.write(secret).await
    }

    /// Asks for an enforcement, or with `None` for none in particular, if nobody has written since.
    ///
    /// # Errors
    /// Where the answer is no, or lost; then the write may have been done.
    pub async fn enforce(&self, held: Held, enforce: Option<Enforcement>) -> Result<Written, StoreError> {
        let mut secret = held.secret;
        let annotations = secret.metadata.annotations.get_or_insert_default();
        match enforce {
            Some(enforcement) => annotations.insert(ENFORCE.to_owned(), enforcement.name().to_owned()),
            None => annotations.remove(ENFORCE),
        };
        self.write(secret).await
    }

    async fn write(&self, secret: RingSecret) -> Result<Written, StoreError> {
        match self.api.replace(SECRET, &PostParams::default(), &secret).await {
            Ok(_) => Ok(Written::Done),
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Written::Conflict),
            Err(error) => Err(StoreError::Write(error)),
        }
    }
}

fn parse(secret: &RingSecret) -> Result<Ring, RingError> {
    let value = secret.data.as_ref().and_then(|data| data.get(SECRET_KEY)).ok_or(RingError::Empty)?;
    let document = Zeroizing::new(BASE64.decode(value.as_bytes()).map_err(|_| RingError::NotText)?);
    Ring::parse(&document)
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
    fn requests_are_annotations() {
        for (annotations, rotate, press_on, enforce) in [
            (json!(null), false, false, None),
            (json!({"note": "true"}), false, false, None),
            (json!({ROTATE: ""}), true, false, None),
            (json!({ROTATE: "now, please", PRESS_ON: "yes"}), true, false, None),
            (json!({PRESS_ON: "true", ENFORCE: "off"}), false, true, Some(Enforcement::Off)),
            (json!({ENFORCE: "enforcing"}), false, false, Some(Enforcement::Enforcing)),
            (json!({ENFORCE: "aus"}), false, false, None),
        ] {
            let secret: RingSecret =
                serde_json::from_value(json!({"metadata": {"annotations": annotations}})).unwrap();
            let requests = requests_of(&secret.metadata);
            assert_eq!(requests, OperatorRequests { rotate, press_on, enforce }, "{annotations}");
            let nonsense = annotations[ENFORCE].as_str().filter(|_| enforce.is_none());
            assert_eq!(Held { uid: None, requests, secret }.nonsense(), nonsense);
        }
    }

    #[test]
    fn no_data_no_entry_and_an_empty_entry_are_alike() {
        for data in [json!(null), json!({}), json!({"keys": ""})] {
            let secret = serde_json::from_value(json!({"metadata": {}, "data": data})).unwrap();
            assert_eq!(parse(&secret), Err(RingError::Empty), "{data}");
        }
        let secret = serde_json::from_value(json!({"metadata": {}, "data": {"keys": "%"}})).unwrap();
        assert_eq!(parse(&secret), Err(RingError::NotText));
    }
}
