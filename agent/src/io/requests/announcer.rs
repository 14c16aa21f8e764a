//! Writes this node's EncryptionPeer. When, and what follows from the answer, is the core's.

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, PostParams},
    core::ObjectMeta,
};
use secureoverlay_k8s::{
    client::describe,
    encryption_peer::EncryptionPeer,
    object::{Meta, Object},
};
use secureoverlay_keyring::{peer::EncryptionPeerSpec, uid::Uid};
use serde_json::{Value, json};

use super::{
    nodes::{self, NodeAnswer},
    refusal::{self, Refusal},
};

/// What became of a write.
#[derive(Clone, Debug, PartialEq)]
pub enum WriteResult {
    /// The object is as it was asked for, or as the server made it of that.
    Written(Written),
    /// The object is another one than the decision was made from: here is what is there now.
    Conflict(Option<Object<EncryptionPeerSpec>>),
    /// There is no Node of this name: nothing was written.
    NodeNotFound,
    /// The Node has another UID than the spec names: nothing was written.
    NodeChanged {
        /// The Node's UID.
        uid: Uid,
    },
    /// An admission webhook or policy refused it, or could not be asked.
    Refused(Refusal),
    /// We have no right to.
    Forbidden(String),
    /// There was no answer, or another error. What became of the write is not known.
    Failed(String),
}

/// The object after a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its UID.
    pub uid: Uid,
    /// Its generation.
    pub generation: i64,
    /// Its version.
    pub resource_version: String,
    /// It holds something else than was sent: the definition is of an older version (`SchemaTooOld`).
    pub differs: bool,
}

/// The object of this node.
#[derive(Clone)]
pub struct Announcer {
    client: Client,
    api: Api<DynamicObject>,
    node: String,
}

impl Announcer {
    /// For the Node of this name.
    #[must_use]
    pub fn new(client: Client, node: String) -> Self {
        let api = Api::all_with(client.clone(), &ApiResource::erase::<EncryptionPeer>(&()));
        Self { client, api, node }
    }

    /// The object as it is in etcd; `None` where there is none.
    ///
    /// # Errors
    /// In words, why that is not known.
    pub async fn read(&self) -> Result<Option<Object<EncryptionPeerSpec>>, String> {
        Ok(self.read_raw().await?.map(Object::read))
    }

    async fn read_raw(&self) -> Result<Option<Value>, String> {
        match self.api.get_opt(&self.node).await {
            Ok(object) => object.map(serde_json::to_value).transpose().map_err(|error| error.to_string()),
            Err(error) => Err(describe(&error)),
        }
    }

    /// Writes the spec over the object that was `known` when that was decided, or creates the object.
    pub async fn write(&self, spec: &EncryptionPeerSpec, known: Option<&Meta>) -> WriteResult {
        let node_uid = match nodes::get(&self.client, &self.node).await {
            NodeAnswer::NotFound => return WriteResult::NodeNotFound,
            NodeAnswer::Failed(why) => return WriteResult::Failed(why),
            NodeAnswer::Found(node) => match node.uid {
                Some(uid) if uid == spec.node_uid => uid,
                Some(uid) => return WriteResult::NodeChanged { uid },
                None => return WriteResult::Failed("the Node has no UID".to_owned()),
            },
        };
        let found = match self.read_raw().await {
            Ok(found) => found,
            Err(why) => return WriteResult::Failed(why),
        };
        let version = |meta: &Meta| (meta.uid, meta.resource_version.clone());
        if found.as_ref().map(|object| version(&Meta::of(object))) != known.map(version) {
            return WriteResult::Conflict(found.map(Object::read));
        }
        let desired = match serde_json::to_value(spec) {
            Ok(desired) => desired,
            Err(error) => return WriteResult::Failed(error.to_string()),
        };
        let object = self.object(found, node_uid, &desired);
        let answer = match known {
            Some(_) => self.api.replace(&self.node, &PostParams::default(), &object).await,
            None => self.api.create(&PostParams::default(), &object).await,
        };
        match answer {
            Ok(object) => written(object, &desired),
            Err(error) => self.failed(&error).await,
        }
    }

    /// With what others keep in its metadata; that with the UID and the version makes the write conditional.
    fn object(&self, found: Option<Value>, node_uid: Uid, desired: &Value) -> DynamicObject {
        let found: Option<ObjectMeta> =
            found.and_then(|mut object| serde_json::from_value(object["metadata"].take()).ok());
        let mut object = DynamicObject::new(&self.node, &ApiResource::erase::<EncryptionPeer>(&()));
        if let Some(found) = found {
            object.metadata = ObjectMeta { name: object.metadata.name, managed_fields: None, ..found };
        }
        let owner = json!({"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": node_uid});
        object.metadata.owner_references = serde_json::from_value(json!([owner])).ok();
        object.data(json!({ "spec": desired }))
    }

    async fn failed(&self, error: &kube::Error) -> WriteResult {
        let kube::Error::Api(status) = error else { return WriteResult::Failed(describe(error)) };
        if let Some(refusal) = refusal::of(status) {
            return WriteResult::Refused(refusal);
        }
        match status.code {
            // Another write came first. (A missing definition is a 404 to the read before.)
            404 | 409 => match self.read().await {
                Ok(found) => WriteResult::Conflict(found),
                Err(why) => WriteResult::Failed(why),
            },
            403 => WriteResult::Forbidden(describe(error)),
            _ => WriteResult::Failed(describe(error)),
        }
    }
}

fn written(object: DynamicObject, desired: &Value) -> WriteResult {
    let Ok(object) = serde_json::to_value(object) else {
        return WriteResult::Failed("the API server's answer has an unexpected shape".to_owned());
    };
    let Meta { uid, generation, resource_version, .. } = Meta::of(&object);
    match (uid, generation) {
        (Some(uid), Some(generation)) => {
            let differs = object.get("spec") != Some(desired);
            WriteResult::Written(Written { uid, generation, resource_version, differs })
        }
        _ => WriteResult::Failed("the API server's answer has no UID or no generation".to_owned()),
    }
}

#[cfg(test)]
mod tests;
