//! An object as it came from the API, read by itself.

use jiff::Timestamp;
use secureoverlay_keyring::uid::Uid;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

/// What is read of an object.
pub trait Content: Clone + Send + Sized + 'static {
    /// Reads it; the object is consumed so that key material in it can be wiped.
    ///
    /// # Errors
    /// What is wrong with it, without quoting it.
    fn read(object: Value) -> Result<Self, String>;
}

/// The object as it is.
impl Content for Value {
    fn read(object: Value) -> Result<Self, String> {
        Ok(object)
    }
}

/// An object, or one that can't be read: the others of a list are not affected by it.
#[derive(Clone, Debug, PartialEq)]
pub struct Object<T> {
    /// What identifies it.
    pub meta: Meta,
    /// What it holds, or why that can't be read.
    pub content: Result<T, String>,
}

/// What identifies an object and its version. What is missing or malformed is `None` or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: Option<Uid>,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// `metadata.generation`: one more with each change of the spec.
    pub generation: Option<i64>,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// `metadata.ownerReferences[].uid`.
    pub owners: Vec<Uid>,
}

impl Meta {
    /// That of an object.
    #[must_use]
    pub fn of(object: &Value) -> Self {
        let meta = &object["metadata"];
        let text = |field: &str| meta[field].as_str();
        let owners = meta["ownerReferences"].as_array().into_iter().flatten();
        Self {
            name: text("name").unwrap_or_default().to_owned(),
            uid: text("uid").and_then(|uid| uid.parse().ok()),
            resource_version: text("resourceVersion").unwrap_or_default().to_owned(),
            generation: meta["generation"].as_i64(),
            created: text("creationTimestamp").and_then(|time| time.parse().ok()),
            owners: owners.filter_map(|owner| owner["uid"].as_str()?.parse().ok()).collect(),
        }
    }
}

impl<T: Content> Object<T> {
    /// Reads an object.
    #[must_use]
    pub fn read(object: Value) -> Self {
        Self { meta: Meta::of(&object), content: T::read(object) }
    }
}

impl<'de, T: Content> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(Self::read)
    }
}

/// Reads the part of an object that a field holds, for [`Content`] of custom resources, whose schema limits what an
/// error can quote.
///
/// # Errors
/// What is wrong with it, in at most 200 characters.
pub fn read_field<T: DeserializeOwned>(mut object: Value, field: &str) -> Result<T, String> {
    serde_json::from_value(take(&mut object, field))
        .map_err(|error| format!("{field}: {error}").chars().take(200).collect())
}

/// Takes a field out of an object; null where there is none. (Indexing panics where the value is no object.)
#[must_use]
pub fn take(object: &mut Value, field: &str) -> Value {
    object.get_mut(field).map_or(Value::Null, Value::take)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Number(u8);

    impl Content for Number {
        fn read(object: Value) -> Result<Self, String> {
            read_field(object, "spec").map(Self)
        }
    }

    #[test]
    fn hostile_object_breaks_no_list() {
        let list = json!([
            {"metadata": {"name": "a", "resourceVersion": "7", "generation": 2}, "spec": 1},
            {"metadata": {"name": "b"}, "spec": {"x": "y".repeat(500)}},
            {"metadata": {"name": 5, "uid": [], "creationTimestamp": "now", "ownerReferences": {}}},
            {"metadata": 5, "spec": 3},
            {"spec": 4},
            "text", null, 7, [[]],
        ]);
        let objects: Vec<Object<Number>> = serde_json::from_value(list).unwrap();
        assert_eq!(objects[0].content, Ok(Number(1)));
        assert_eq!((objects[0].meta.resource_version.as_str(), objects[0].meta.generation), ("7", Some(2)));
        let error = objects[1].content.as_ref().unwrap_err();
        assert!(error.starts_with("spec: invalid type: map") && error.len() <= 200, "{error}");
        assert_eq!((objects[2].meta.clone(), objects[2].content.is_err()), (Meta::default(), true));
        assert_eq!([&objects[3].content, &objects[4].content], [&Ok(Number(3)), &Ok(Number(4))]);
        assert!(objects[5..].iter().all(|object| object.content.is_err()));
    }
}
