//! The commands that change something, beside `rotate`.

use anyhow::bail;
use secureoverlay_kubectl_core::{
    Exit,
    snapshot::{Cleaned, EXCLUDE_LABEL, EXCLUDED, Encryption, Node, REASON, Read},
};
use serde_json::json;

use crate::{
    api::{Api, Kind},
    cli::{Mode, Output},
    output::{document, print},
};

/// How far encryption goes; a finding while that is not what is wanted.
pub async fn enforcement(api: &Api, output: Output) -> anyhow::Result<Exit> {
    let encryption = match api.get(Kind::ClusterEncryption, "default").await {
        Ok(Some(object)) => Encryption::read(Cleaned::new(object)),
        Ok(None) => bail!("{NONE}"),
        Err(error) => bail!("{error}"),
    };
    let status = encryption.status.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
    let (goal, is) = (encryption.goal().unwrap_or_default(), status.enforcement.as_str());
    let enforced = status.conditions.iter().find(|condition| condition.r#type == "Enforced");
    let why = enforced.map_or("", |condition| condition.message.as_str());
    let exit = match (goal.as_str(), is) {
        _ if status.observed_generation != encryption.generation || is.is_empty() => Exit::Unknown,
        ("Auto", "enforcing") | ("Permissive", "permissive") | ("Off", "off") => Exit::Good,
        _ => Exit::Finding,
    };
    let shown = json!({"goal": goal, "enforcement": is, "message": why, "exitCode": exit.code()});
    document(output, &shown, || {
        let is = if is.is_empty() { "not known" } else { is };
        let read = if exit == Exit::Unknown { " (the manager has not read the latest edit)" } else { "" };
        format!("wanted    {goal}\nis        {is}{read}\n          {why}\n")
    })?;
    Ok(exit)
}

const NONE: &str = "there is no ClusterEncryption named default: the manager makes it at the first installation; create it \
                    with all settings that you want (docs/operations/install.md, \"Settings\")";

/// Changes how far it is to go.
pub async fn enforce(api: &Api, mode: Mode) -> anyhow::Result<Exit> {
    // A new object would bring defaults for all other settings.
    match api.get(Kind::ClusterEncryption, "default").await {
        Ok(Some(_)) => {}
        Ok(None) => bail!("{NONE}"),
        Err(error) => bail!("{error}"),
    }
    let (goal, means) = match mode {
        Mode::Auto => (
            "Auto",
            "plaintext is refused as soon as every pair has proven its keys and nothing speaks against it",
        ),
        Mode::Permissive => {
            ("Permissive", "pod traffic is encrypted where both nodes are ready, and plaintext is accepted")
        }
        Mode::Off => ("Off", "encryption is taken back step by step: all pod traffic will be in the clear"),
    };
    api.patch(Kind::ClusterEncryption, "default", &json!({"spec": {"enforcement": goal}})).await?;
    print(&format!("enforcement: {goal}\n{means}\nTo see when: kubectl secureoverlay status --watch\n"))?;
    Ok(Exit::Good)
}

/// Takes a node out.
pub async fn exclude(api: &Api, name: &str, reason: &str) -> anyhow::Result<Exit> {
    let node = node(api, name).await?;
    let labels = json!({EXCLUDE_LABEL: EXCLUDED});
    label(api, name, &json!({"labels": labels, "annotations": {REASON: reason}})).await?;
    let was = if node.excluded { "was excluded already; the reason is written down" } else { "is excluded" };
    print(&format!(
        "node {name} {was}\nWithin seconds all other nodes send plaintext to it and accept plaintext from it.\n\
         To take it in again: kubectl secureoverlay include {name}\n"
    ))?;
    Ok(Exit::Good)
}

/// Takes a node in again.
pub async fn include(api: &Api, name: &str) -> anyhow::Result<Exit> {
    if !node(api, name).await?.excluded {
        print(&format!("node {name} is not excluded\n"))?;
        return Ok(Exit::Good);
    }
    label(api, name, &json!({"labels": {EXCLUDE_LABEL: null}, "annotations": {REASON: null}})).await?;
    print(&format!(
        "node {name} takes part again\nTo see when all is encrypted: kubectl secureoverlay status --watch\n"
    ))?;
    Ok(Exit::Good)
}

async fn node(api: &Api, name: &str) -> anyhow::Result<Node> {
    match api.get(Kind::Node, name).await {
        Ok(Some(object)) => Ok(Node::read(Cleaned::new(object))),
        Ok(None) => bail!("there is no Node {name:?}"),
        Err(error) => bail!("{error}"),
    }
}

async fn label(api: &Api, name: &str, metadata: &serde_json::Value) -> anyhow::Result<()> {
    api.patch(Kind::Node, name, &json!({ "metadata": metadata })).await.map(drop)
}
