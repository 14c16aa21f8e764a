//! The key ring in the Secret, as far as scenarios look at it, and ways to spoil it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::cluster::kubectl_with;
use super::overlay::{NAMESPACE, PATIENCE};
use crate::lab::Lab;
use crate::wait::wait_until;

const SECRET: &str = "ucp-secureoverlay";

/// The Secret's document: plain YAML, edited as plain data.
#[derive(Clone, Debug, PartialEq)]
pub struct Ring(Value);

impl Ring {
    /// Reads it; `None` while there is no Secret or nothing in it.
    pub fn read(lab: &Lab) -> Result<Option<Self>> {
        read_document(lab)?.map(parse).transpose()
    }

    /// The number of the generation with this role.
    pub fn generation(&self, role: &str) -> Option<u64> {
        self.generations().find(|generation| generation["role"] == role)?["id"].as_u64()
    }

    /// The identities of all generations, in order.
    pub fn uids(&self) -> Vec<String> {
        self.generations()
            .map(|generation| generation["uid"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// Exactly one generation, and it is active: no rotation is going on.
    pub fn is_steady(&self) -> bool {
        self.generations().count() == 1 && self.generation("active").is_some()
    }

    /// For how long the generation in use was only received with before that.
    pub fn staged_for(&self) -> Option<Duration> {
        let active = self.generations().find(|generation| generation["role"] == "active")?;
        let time = |field: &str| active[field].as_str()?.parse::<Timestamp>().ok();
        Duration::try_from(time("roleSince")?.duration_since(time("createdAt")?)).ok()
    }

    /// The uid of the generation with this role.
    pub fn uid(&self, role: &str) -> Option<String> {
        self.generations().find(|generation| generation["role"] == role)?["uid"].as_str().map(str::to_owned)
    }

    /// The suite of the generation with this role.
    pub fn suite(&self, role: &str) -> Option<String> {
        self.generations().find(|generation| generation["role"] == role)?["suite"].as_str().map(str::to_owned)
    }

    /// How far nodes enforce: `off`, `permissive` or `enforcing`.
    pub fn enforcement(&self) -> &str {
        self.0["enforcement"].as_str().unwrap_or_default()
    }

    /// What acknowledgements have to name.
    pub fn ack_id(&self) -> &str {
        self.0["ackId"].as_str().unwrap_or_default()
    }

    /// The number of the write.
    pub fn revision(&self) -> u64 {
        self.0["revision"].as_u64().unwrap_or_default()
    }

    /// The same ring after `change`, as a document; JSON is YAML.
    pub fn changed(&self, change: impl FnOnce(&mut Value)) -> Vec<u8> {
        let mut ring = self.0.clone();
        change(&mut ring);
        ring.to_string().into_bytes()
    }

    /// The key material of all generations.
    pub fn secrets(&self) -> Vec<Vec<u8>> {
        let texts = self.generations().flat_map(|it| [&it["key"], &it["spiSeed"]]);
        texts.filter_map(|text| BASE64.decode(text.as_str()?).ok()).collect()
    }

    fn generations(&self) -> impl Iterator<Item = &Value> {
        self.0["generations"].as_array().into_iter().flatten()
    }
}

/// The bytes of the Secret's entry; `None` while there are none.
pub fn read_document(lab: &Lab) -> Result<Option<Vec<u8>>> {
    let secret =
        lab.kubectl(&["-n", NAMESPACE, "get", "secret", SECRET, "--ignore-not-found", "-o", "json"])?;
    if secret.trim().is_empty() {
        return Ok(None);
    }
    document(&serde_json::from_str(&secret).context("reading the Secret")?)
}

fn document(secret: &Value) -> Result<Option<Vec<u8>>> {
    let document = secret["data"]["keys"].as_str().unwrap_or_default();
    let document = BASE64.decode(document.as_bytes()).context("the Secret's data")?;
    Ok(if document.is_empty() { None } else { Some(document) })
}

fn parse(document: Vec<u8>) -> Result<Ring> {
    let text = String::from_utf8(document).context("the ring is not text")?;
    Ok(Ring(serde_saphyr::from_str(&text).map_err(|_| anyhow::anyhow!("the ring is not YAML"))?))
}

/// Puts `document` in the place of the ring, whatever is there.
pub fn write_document(lab: &Lab, document: &[u8]) -> Result<()> {
    let mut secret = lab.kubectl_json(&["-n", NAMESPACE, "get", "secret", SECRET])?;
    if let Some(metadata) = secret["metadata"].as_object_mut() {
        // A person's edit wins over any write since.
        metadata.remove("resourceVersion");
    }
    replace(lab, secret, document)
}

/// Brings the next rotation forward to now.
pub fn rotate_now(lab: &Lab) -> Result<()> {
    // What the manager writes between reading and writing must not be undone: then it is read once more.
    wait_until("the ring to be edited", PATIENCE, || {
        let secret = lab.kubectl_json(&["-n", NAMESPACE, "get", "secret", SECRET])?;
        let ring = document(&secret)?.map(parse).transpose()?.context("there is no ring to rotate")?;
        ensure!(ring.is_steady(), "a rotation is going on already");
        let due = ring.changed(|ring| ring["nextRotation"] = json!("2020-01-01T00:00:00Z"));
        match replace(lab, secret, &due) {
            Err(error) if format!("{error:#}").contains("(Conflict)") => Ok(None),
            outcome => outcome.map(Some),
        }
    })
}

fn replace(lab: &Lab, mut secret: Value, document: &[u8]) -> Result<()> {
    secret["data"] = json!({ "keys": BASE64.encode(document) });
    if let Some(metadata) = secret["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    // Raw, because `replace` copies the whole object into an annotation, which has less room than the Secret.
    let path = format!("/api/v1/namespaces/{NAMESPACE}/secrets/{SECRET}");
    kubectl_with(lab, &["replace", "--raw", &path, "-f", "-"], &secret.to_string())?;
    Ok(())
}
