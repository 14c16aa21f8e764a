//! The operator's objects: made, and written as the controller says.

use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use secureoverlay_k8s::{
    cluster_encryption::{ClusterEncryption, Wanted},
    key_rotation::{KeyRotation, KeyRotationSpec, Requested},
    names::GROUP,
    object::Object,
};
use secureoverlay_keyring::{cluster_encryption::NAME, key_rotation::KeyRotationSpec as Spec};
use secureoverlay_manager_core::operator::{
    EncryptionObject, ObjectReference, ObjectWrite, OperatorObjects, RotationObject,
};
use serde::Serialize;
use serde_json::json;

/// How the API server tells our fields from an operator's.
const FIELD_MANAGER: &str = "ucp-secureoverlay-mgr";

/// Makes the ClusterEncryption with the defaults; one that is there stays as it is. By server-side apply, because the
/// maker of an object otherwise owns its fields, and operators could not apply theirs without a conflict.
///
/// # Errors
/// The API server refuses.
pub async fn create_encryption(client: &Client) -> Result<(), kube::Error> {
    let object = json!({
        "apiVersion": format!("{GROUP}/v1alpha1"), "kind": "ClusterEncryption", "metadata": {"name": NAME}, "spec": {},
    });
    let all = Api::<ClusterEncryption>::all(client.clone());
    all.patch(NAME, &PatchParams::apply(FIELD_MANAGER), &Patch::Apply(object)).await.map(drop)
}

/// Makes a KeyRotation.
///
/// # Errors
/// The API server refuses.
pub async fn create_rotation(client: &Client, name: &str) -> Result<RotationObject, kube::Error> {
    let object = KeyRotation::new(name, KeyRotationSpec(Spec::default()));
    let made = Api::<KeyRotation>::all(client.clone()).create(&PostParams::default(), &object).await?;
    let read = Object::<Requested>::read(serde_json::to_value(&made).map_err(kube::Error::SerdeError)?);
    rotation(&read).ok_or_else(|| {
        kube::Error::SerdeError(serde::de::Error::custom("the API server made a KeyRotation without a UID"))
    })
}

/// Does what the controller says. What another writer has changed or deleted is looked at anew.
///
/// # Errors
/// The API server refuses.
pub async fn write(client: &Client, write: &ObjectWrite) -> Result<(), kube::Error> {
    let result = match write {
        ObjectWrite::EncryptionStatus { resource_version, status } => {
            let all = Api::<ClusterEncryption>::all(client.clone());
            let patch = over(resource_version, status);
            all.patch_status(NAME, &PatchParams::default(), &patch).await.map(drop)
        }
        ObjectWrite::RotationStatus { rotation, resource_version, status } => {
            let all = Api::<KeyRotation>::all(client.clone());
            let patch = over(resource_version, status);
            all.patch_status(&rotation.name, &PatchParams::default(), &patch).await.map(drop)
        }
        ObjectWrite::DeleteRotation(ObjectReference { name, uid }) => {
            let preconditions = Preconditions { uid: Some(uid.to_string()), resource_version: None };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            Api::<KeyRotation>::all(client.clone()).delete(name, &params).await.map(drop)
        }
    };
    match result {
        Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(()),
        result => result,
    }
}

/// A status over a version of its object. What it does not have is null in it, and goes.
fn over(resource_version: &str, status: &impl Serialize) -> Patch<serde_json::Value> {
    Patch::Merge(json!({"metadata": {"resourceVersion": resource_version}, "status": status}))
}

/// What the watches have brought, as the controller takes it.
pub(crate) fn objects<'o>(
    encryptions: impl Iterator<Item = &'o Object<Wanted>>,
    rotations: impl Iterator<Item = &'o Object<Requested>>,
) -> OperatorObjects {
    let mut named = encryptions.filter(|object| object.meta.name == NAME);
    OperatorObjects {
        encryption: named.next().map(encryption),
        rotations: rotations.filter_map(rotation).collect(),
    }
}

fn encryption(object: &Object<Wanted>) -> EncryptionObject {
    let (settings, status) = match &object.content {
        Ok(wanted) => (wanted.settings.clone(), wanted.status.clone()),
        Err(error) => (Err(error.clone()), Default::default()),
    };
    EncryptionObject {
        uid: object.meta.uid,
        resource_version: object.meta.resource_version.clone(),
        generation: object.meta.generation.and_then(|generation| generation.try_into().ok()),
        settings: settings.and_then(|settings| {
            secureoverlay_manager_core::schedule::check(&settings.rotation.schedule, jiff::Timestamp::now())
                .map_err(|error| format!("spec.rotation: {error}"))?;
            Ok(settings)
        }),
        status,
    }
}

/// `None` where it has no UID: an API server gives every object one.
pub(crate) fn rotation(object: &Object<Requested>) -> Option<RotationObject> {
    let requested = object.content.as_ref().cloned().unwrap_or_default();
    Some(RotationObject {
        reference: ObjectReference { name: object.meta.name.clone(), uid: object.meta.uid? },
        resource_version: object.meta.resource_version.clone(),
        created: object.meta.created,
        spec: requested.spec,
        status: requested.status,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const UID: &str = "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b01";

    fn wanted(name: &str, spec: &Value) -> Object<Wanted> {
        let metadata = json!({"name": name, "uid": UID, "resourceVersion": "7", "generation": 3});
        Object::read(json!({"metadata": metadata, "spec": spec}))
    }

    #[test]
    fn cron_expression_that_cannot_be_read_is_an_invalid_edit() {
        let settings = |spec| {
            let all = [wanted("other", &json!({"enforcement": "Off"})), wanted(NAME, &spec)];
            let found = objects(all.iter(), std::iter::empty()).encryption.unwrap();
            assert_eq!((found.generation, found.resource_version.as_str()), (Some(3), "7"));
            found.settings
        };
        assert!(settings(json!({"rotation": {"schedule": "0 3 * * 0"}})).is_ok());
        for rotation in [
            json!({"schedule": "every so often"}),
            json!({"schedule": "0 0 30 2 *"}),
            json!({"schedule": "0 3 * * 0", "timeZone": "Europe/Atlantis"}),
        ] {
            let error = settings(json!({ "rotation": rotation })).unwrap_err();
            assert!(error.starts_with("spec.rotation: "), "{error}");
        }
    }

    #[test]
    fn patch_of_a_status_names_what_is_absent() {
        let status = secureoverlay_keyring::key_rotation::KeyRotationStatus::default();
        let Patch::Merge(patch) = over("7", &status) else { panic!("a merge patch") };
        assert_eq!(patch["metadata"], json!({"resourceVersion": "7"}));
        assert!(patch["status"].as_object().unwrap()["waitingFor"].is_null());
    }
}
