//! The lab itself, without SecureOverlay: pods of all nodes talk, and the bridge shows it in the clear.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::capture::Capture;
use crate::lab::Lab;
use crate::scenario::{Profile, Report, Run, Scenario, Tier};
use crate::wait::wait_until;

pub const SCENARIO: Scenario = Scenario {
    name: "plain",
    about: "without SecureOverlay, pod traffic is IPIP and readable: what the other scenarios start from",
    tier: Tier::Gate,
    estimate: 10,
    alone: false,
    run: Run::Cluster(run),
};

const PODS: &str = include_str!("plain.yaml");
const PINGS: u64 = 5;

fn run(lab: &Lab, report: &mut Report, _: Profile) -> Result<()> {
    lab.apply(PODS)?;
    let pods = wait_until("a pod on every node", Duration::from_secs(60), || {
        let list = lab.kubectl_json(&["get", "pods", "-l", "app=plain"])?;
        let ips: Option<Vec<(String, String)>> = list["items"]
            .as_array()
            .context("no list of pods")?
            .iter()
            .map(|pod| {
                Some((pod["spec"]["nodeName"].as_str()?.into(), pod["status"]["podIP"].as_str()?.into()))
            })
            .collect();
        Ok(ips.filter(|ips| ips.len() == lab.nodes().len()))
    })?;
    let capture = Capture::start("plain", None)?;
    let mut pairs = 0;
    for (from, _) in &pods {
        for (to, ip) in pods.iter().filter(|(to, _)| to != from) {
            let outcome =
                lab.exec(from, &["ping", "-q", "-c", &PINGS.to_string(), "-i", "0.05", "-W", "2", ip])?;
            report.check(outcome.status == 0, format!("{from} does not reach the pod on {to}"));
            pairs += 1;
        }
    }
    let counts = capture.stop()?.counts();
    report.expect("esp", counts.esp, 0);
    // Each echo and each answer is one packet on the wire, counted once.
    report.expect("ipip", counts.ipip, pairs * PINGS * 2);
    report.check(pairs > 0, "there were no pairs of nodes");
    lab.kubectl(&["delete", "daemonset", "plain", "--wait=false"])?;
    Ok(())
}
