//! What agents and manager say of themselves: `/metrics`, `/readyz`, logs.

use anyhow::{Context, Result};

use super::overlay::NAMESPACE;
use crate::lab::Lab;

const AGENT_PORT: u16 = 9467;
const MANAGER_PORT: u16 = 9466;

/// The value of the agent's metric on this node; `None` while it does not answer or has no such metric.
pub fn of_agent(lab: &Lab, node: &str, metric: &str) -> Result<Option<f64>> {
    Ok(get(lab, node, "127.0.0.1", AGENT_PORT, "/metrics")?.and_then(|text| value(&text, metric)))
}

/// The value of the manager's metric; `None` while there is no manager or no such metric.
pub fn of_manager(lab: &Lab, metric: &str) -> Result<Option<f64>> {
    let Some((node, ip)) = manager(lab)? else { return Ok(None) };
    Ok(get(lab, &node, &ip, MANAGER_PORT, "/metrics")?.and_then(|text| value(&text, metric)))
}

/// Is the agent of this node ready?
pub fn agent_is_ready(lab: &Lab, node: &str) -> Result<bool> {
    Ok(get(lab, node, "127.0.0.1", AGENT_PORT, "/readyz")?.is_some())
}

/// Everything that agents and manager answer, as it comes.
pub fn all_pages(lab: &Lab) -> Result<Vec<u8>> {
    let mut doors: Vec<(String, String, u16)> =
        lab.nodes().iter().map(|node| (node.name.clone(), "127.0.0.1".into(), AGENT_PORT)).collect();
    doors.extend(manager(lab)?.map(|(node, ip)| (node, ip, MANAGER_PORT)));
    let mut pages = Vec::new();
    for (node, host, port) in doors {
        for path in ["/metrics", "/healthz", "/readyz"] {
            pages.extend(get(lab, &node, &host, port, path)?.unwrap_or_default().into_bytes());
        }
    }
    Ok(pages)
}

/// Node and address of the running manager.
fn manager(lab: &Lab) -> Result<Option<(String, String)>> {
    let selector = "app=ucp-secureoverlay-mgr";
    let pods = lab.kubectl_json(&["-n", NAMESPACE, "get", "pods", "-l", selector])?;
    Ok(pods["items"].as_array().into_iter().flatten().find_map(|pod| {
        let running = pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null();
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        running.then(|| Some((text(&pod["spec"]["nodeName"])?, text(&pod["status"]["podIP"])?))).flatten()
    }))
}

/// Body of the answer to `GET path`, asked from within the node; `None` where nothing answers 200. The shell's own
/// sockets do: a node has no HTTP client.
fn get(lab: &Lab, node: &str, host: &str, port: u16, path: &str) -> Result<Option<String>> {
    let script = format!(
        "exec 3<>/dev/tcp/{host}/{port} || exit 0; \
         printf 'GET {path} HTTP/1.0\\r\\nHost: {host}\\r\\n\\r\\n' >&3; timeout 5 cat <&3"
    );
    let answer = lab
        .exec_ok(node, &["timeout", "8", "bash", "-c", &format!("{{ {script}; }} 2>/dev/null || true")])
        .with_context(|| format!("asking {host}:{port}{path} on {node}"))?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return Ok(None) };
    Ok((head.split(' ').nth(1) == Some("200")).then(|| body.to_owned()))
}

/// The first sample of a metric in Prometheus' text format, whatever its labels.
fn value(text: &str, metric: &str) -> Option<f64> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(metric)?;
        let rest = if rest.starts_with('{') { rest.split_once('}')?.1 } else { rest };
        rest.strip_prefix(' ')?.split(' ').next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::value;

    #[test]
    fn finds_samples() {
        let text = "# TYPE a gauge\na_total 3\na{x=\"y z\"} 1.5 12\nb 0\n";
        assert_eq!(value(text, "a"), Some(1.5));
        assert_eq!(value(text, "a_total"), Some(3.0));
        assert_eq!(value(text, "b"), Some(0.0));
        assert_eq!(value(text, "c"), None);
    }
}
