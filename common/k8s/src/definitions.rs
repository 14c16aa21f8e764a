//! The CustomResourceDefinitions, from the types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;
use secureoverlay_keyring::cluster_encryption::NAME;
use serde_json::json;

use crate::{
    cluster_encryption::ClusterEncryption, encryption_peer::EncryptionPeer, key_rotation::KeyRotation,
    node_encryption::NodeEncryption,
};

/// All of them, in the order of the manifest.
#[must_use]
pub fn all() -> Vec<CustomResourceDefinition> {
    let mut definitions =
        vec![EncryptionPeer::crd(), NodeEncryption::crd(), ClusterEncryption::crd(), KeyRotation::crd()];
    for definition in &mut definitions {
        let operators = matches!(&*definition.spec.names.kind, "ClusterEncryption" | "KeyRotation");
        for version in &mut definition.spec.versions {
            let schema = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
            let Some(schema) = schema else { continue };
            to_kubernetes(schema, operators);
            if operators {
                let spec = |schema: &mut JSONSchemaProps| schema.default = Some(JSON(json!({})));
                field(schema, &["spec"], spec);
                schema.required = None;
            }
        }
    }
    restrict(&mut definitions[2]);
    definitions
}

/// The rules of `ClusterEncryption` between fields. They are written without CEL: API servers before 1.23 do not know its
/// field, and kubectl refuses to send them a definition that has it (docs/decisions/0025).
fn restrict(definition: &mut CustomResourceDefinition) {
    let versions = definition.spec.versions.iter_mut();
    let schemas = versions.filter_map(|version| version.schema.as_mut()?.open_api_v3_schema.as_mut());
    for schema in schemas {
        let name = JSONSchemaProps {
            type_: Some("string".to_owned()),
            enum_: Some(vec![JSON(json!(NAME))]),
            ..JSONSchemaProps::default()
        };
        let metadata = JSONSchemaProps {
            type_: Some("object".to_owned()),
            properties: Some([("name".to_owned(), name)].into()),
            ..JSONSchemaProps::default()
        };
        schema.properties.get_or_insert_default().insert("metadata".to_owned(), metadata);
        field(schema, &["spec", "rotation"], |rotation| {
            rotation.one_of = Some(vec![requires("interval"), requires("schedule")]);
            let not =
                JSONSchemaProps { not: Some(Box::new(requires("timeZone"))), ..JSONSchemaProps::default() };
            rotation.any_of = Some(vec![requires("schedule"), not]);
        });
    }
}

fn requires(field: &str) -> JSONSchemaProps {
    JSONSchemaProps { required: Some(vec![field.to_owned()]), ..JSONSchemaProps::default() }
}

/// Changes the schema of a field.
fn field(schema: &mut JSONSchemaProps, path: &[&str], change: impl FnOnce(&mut JSONSchemaProps)) {
    match path {
        [] => change(schema),
        [name, rest @ ..] => {
            let inner = schema.properties.as_mut().and_then(|properties| properties.get_mut(*name));
            if let Some(inner) = inner {
                field(inner, rest, change);
            }
        }
    }
}

/// What API servers since 1.20 take: no sets, and no number formats that Kubernetes does not know (of others, API servers
/// warn at every `kubectl apply`). Only what operators write has `defaults`: what a status does not say is not to be made
/// up.
fn to_kubernetes(schema: &mut JSONSchemaProps, defaults: bool) {
    if !defaults {
        schema.default = None;
    }
    schema.unique_items = None;
    // The sign is left to `minimum`. A number of 32 bits does not fit into int32, whose range API servers enforce.
    if let Some("uint8" | "uint16" | "uint32" | "uint64") = schema.format.as_deref() {
        schema.format = Some("int64".to_owned());
    }
    for (name, property) in schema.properties.iter_mut().flatten() {
        to_kubernetes(property, defaults && name != "status");
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        to_kubernetes(values, defaults);
    }
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(item)) => to_kubernetes(item, defaults),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => {
            items.iter_mut().for_each(|item| to_kubernetes(item, defaults));
        }
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json, to_value};

    use super::*;

    const KNOWN: [&str; 20] = [
        "default",
        "oneOf",
        "anyOf",
        "type",
        "description",
        "title",
        "properties",
        "required",
        "items",
        "additionalProperties",
        "format",
        "nullable",
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "pattern",
        "enum",
    ];

    fn check(path: &str, schema: &Value) {
        for key in schema.as_object().unwrap().keys() {
            assert!(KNOWN.contains(&key.as_str()) || key == "maxProperties", "{path}: {key}");
        }
        match schema["type"].as_str().unwrap_or_else(|| panic!("{path} has no type")) {
            "integer" => {
                assert_eq!(schema["format"], "int64", "{path}");
                assert_eq!(schema["minimum"], 0.0, "{path}");
            }
            "string" => {
                let time = schema["format"] == "date-time";
                assert!(time || schema["format"].is_null(), "{path}: {}", schema["format"]);
                let bounded = time || schema["maxLength"].is_u64() || schema["enum"].is_array();
                assert!(bounded, "{path} has no limit");
                // API servers of 1.20 refuse Option<Enum> as schemars renders it.
                let null = schema["enum"].as_array().is_some_and(|choices| choices.contains(&Value::Null));
                assert!(!null, "{path}: null among the choices");
            }
            "array" => assert!(schema["maxItems"].is_u64(), "{path} has no limit"),
            "object" => {
                let open = !schema["additionalProperties"].is_null();
                assert!(!open || schema["maxProperties"].is_u64(), "{path} has no limit");
                let fields = schema["properties"].as_object();
                // Only the empty spec of NodeEncryption has no field.
                assert!(open || fields.is_some() || path.ends_with("NodeEncryption.spec"), "{path} is open");
            }
            "boolean" => {}
            other => panic!("{path}: {other}"),
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            check(&format!("{path}.{name}"), property);
        }
        for inner in ["items", "additionalProperties"].map(|key| &schema[key]) {
            if !inner.is_null() {
                check(&format!("{path}[]"), inner);
            }
        }
    }

    #[test]
    fn schemas_are_structural_and_everything_in_them_has_a_limit() {
        for definition in all() {
            let version = &definition.spec.versions[0];
            let schema = version.schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
            check(&definition.spec.names.kind, &to_value(schema).unwrap());
        }
    }

    #[test]
    fn operators_write_what_differs_from_the_defaults() {
        let schema = |at: usize| {
            let version = all().remove(at).spec.versions.remove(0);
            to_value(version.schema.unwrap().open_api_v3_schema.unwrap()).unwrap()
        };
        let cluster = schema(2);
        assert_eq!(cluster["properties"]["metadata"]["properties"]["name"]["enum"], json!(["default"]));
        let spec = &cluster["properties"]["spec"];
        let default = |field: &str| &spec["properties"][field]["default"];
        assert_eq!((default("enforcement"), default("cipherSuite")), (&json!("Auto"), &json!("aes128gcm8")));
        let rotation = json!({"interval": "12h", "minimumInterval": "5m", "historyLimit": 10});
        assert_eq!((&spec["default"], default("rotation")), (&json!({}), &rotation));
        let rotation = &spec["properties"]["rotation"]["properties"];
        assert!(rotation["interval"]["default"].is_null(), "or a schedule would contradict it");
        assert_eq!(
            schema(3)["properties"]["spec"]["properties"]["skipUnresponsive"]["default"],
            json!(false)
        );
        for at in 0..4 {
            assert!(!schema(at)["properties"]["status"].to_string().contains("\"default\""), "{at}");
        }
    }

    #[test]
    fn objects_are_found_by_short_names_and_one_category() {
        let names = |definition: &CustomResourceDefinition| {
            let names = &definition.spec.names;
            (
                names.short_names.clone().unwrap(),
                names.categories.clone().unwrap(),
                definition.spec.scope.clone(),
            )
        };
        let all: Vec<_> = all().iter().map(names).collect();
        let expected = ["encpeer", "nenc", "cenc", "krot"]
            .map(|name| (vec![name.to_owned()], vec!["secureoverlay".to_owned()], "Cluster".to_owned()));
        assert_eq!(all, expected);
    }

    #[test]
    fn columns_are_those_that_operators_see() {
        let columns = |at: usize| {
            let columns = all()[at].spec.versions[0].additional_printer_columns.clone().unwrap();
            let wide = |priority: Option<i32>| priority.unwrap_or_default() == 0;
            let names = columns.into_iter().filter(|column| wide(column.priority)).map(|column| column.name);
            json!(names.collect::<Vec<_>>())
        };
        assert_eq!(columns(0), json!(["Address", "Instance", "Age"]));
        assert_eq!(columns(1), json!(["State", "Key", "Accepts", "Unproven", "MTU", "Version", "Age"]));
        assert_eq!(columns(2), json!(["Goal", "State", "Ready", "Key", "Nodes", "Plaintext", "Next", "Age"]));
        let rotations = ["Key", "Cause", "Complete", "Reason", "Waiting-For", "Done", "Of", "Age"];
        assert_eq!(columns(3), json!(rotations));
    }
}
