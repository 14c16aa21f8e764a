//! NodeEncryption objects as the manager reads them: whatever one of them holds, the others count.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use secureoverlay_common::acknowledgement::Acknowledgement;
use secureoverlay_daemon::node_encryption::NodeEncryption;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// What of it the manager reads.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = NodeEncryption)]
pub struct WatchedEncryption {
    metadata: ObjectMeta,
    #[serde(default, rename = "status")]
    said: Said,
}

/// What a node's agent has said, and what we have told it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Its word, where it can be read.
    pub acknowledgement: Option<Acknowledgement>,
    /// There is something in the place of its word that can't be read.
    pub malformed: bool,
    /// `status.awaited`.
    pub awaited: Option<String>,
}

impl<'de> Deserialize<'de> for Said {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut status = Value::deserialize(deserializer)?;
        let mut take = |field: &str| status.get_mut(field).map(Value::take).filter(|value| !value.is_null());
        let word = take("acknowledgement").map(serde_json::from_value);
        Ok(Self {
            malformed: matches!(word, Some(Err(_))),
            acknowledgement: word.and_then(Result::ok),
            awaited: take("awaited").and_then(|awaited| awaited.as_str().map(str::to_owned)),
        })
    }
}

impl WatchedEncryption {
    /// The node's name, and what it said.
    #[must_use]
    pub fn into_parts(self) -> (String, Said) {
        (self.metadata.name.unwrap_or_default(), self.said)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(status: &Value) -> Said {
        let object = json!({
            "apiVersion": "secureoverlay.io/v1alpha1", "kind": "NodeEncryption",
            "metadata": {"name": "node-1"}, "status": status,
        });
        let (name, said) = serde_json::from_value::<WatchedEncryption>(object).unwrap().into_parts();
        assert_eq!(name, "node-1");
        said
    }

    #[test]
    fn a_word_is_read_and_everything_else_is_passed_over() {
        let uid = "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b01";
        let said = read(&json!({
            "acknowledgement": {"node": uid, "boot": uid, "newest": 7}, "awaited": "receiving generation 43",
            "conditions": "none", "revision": -1,
        }));
        assert_eq!(said.acknowledgement.unwrap().newest, 7);
        assert_eq!((said.malformed, said.awaited.as_deref()), (false, Some("receiving generation 43")));
    }

    #[test]
    fn what_is_malformed_is_no_word_and_no_error() {
        for word in [json!({"node": "me"}), json!([]), json!("yes"), json!({"node": {}, "receives": 3})] {
            let said = read(&json!({"acknowledgement": word, "awaited": 3}));
            assert_eq!(said, Said { malformed: true, ..Said::default() }, "{word}");
        }
        for status in [json!(null), json!({}), json!([]), json!("ready"), json!({"acknowledgement": null})] {
            assert_eq!(read(&status), Said::default(), "{status}");
        }
    }
}
