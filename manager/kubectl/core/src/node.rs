//! What is wrong with a node, or not known of it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use secureoverlay_keyring::{
    acknowledgement::Acknowledgement,
    condition::{Condition, ConditionStatus},
    node_encryption::{NodeEncryptionStatus, NodeState},
};

use crate::{
    assess::{Effect, Issue},
    snapshot::{NAMESPACE, Node, Pod, Report, Rotation, Snapshot},
    text,
};

/// What of the cluster a node is judged by.
pub(crate) struct Context<'s> {
    now: Timestamp,
    /// The agent's Pod of each node; absent where Pods could not be listed.
    agents: Option<BTreeMap<&'s str, &'s Pod>>,
    /// The report of each node; absent where NodeEncryptions could not be listed.
    reports: Option<BTreeMap<&'s str, &'s Report>>,
    /// Nodes that no pair has to be proven with.
    absent: Vec<&'s str>,
    rotating: bool,
}

impl<'s> Context<'s> {
    pub(crate) fn new(snapshot: &'s Snapshot) -> Self {
        let reports = snapshot.reports.as_ref().ok();
        let nodes = snapshot.nodes.as_deref().unwrap_or_default();
        let absent = nodes.iter().filter(|node| !node.ready || node.excluded);
        Self {
            now: snapshot.now,
            agents: snapshot.agents.as_ref().ok().map(|pods| by_node(pods)),
            reports: reports.map(|all| all.iter().map(|it| (it.name.as_str(), it)).collect()),
            absent: absent.map(|node| node.name.as_str()).collect(),
            rotating: snapshot.rotations.as_ref().is_ok_and(|all| all.iter().any(Rotation::is_under_way)),
        }
    }
}

/// The agent's Pod of each node. While one replaces another, the one that is Ready.
pub(crate) fn by_node(pods: &[Pod]) -> BTreeMap<&str, &Pod> {
    let mut all: BTreeMap<&str, &Pod> = BTreeMap::new();
    for pod in pods {
        let best = all.entry(&pod.node).or_insert(pod);
        let rank = |pod: &Pod| (pod.ready, !pod.ending);
        if rank(pod) > rank(best) {
            *best = pod;
        }
    }
    all
}

/// Collects the issues of one node.
struct Issues<'n> {
    node: &'n str,
    all: Vec<Issue>,
}

impl Issues<'_> {
    fn add(&mut self, effect: Effect, reason: &str, message: &str, next: impl Into<String>) {
        // Blockers, findings and conditions may say the same.
        if self.all.iter().all(|issue| issue.reason != reason) {
            let mut issue = Issue::cluster(effect, reason, message, &next.into());
            issue.node = Some(self.node.to_owned());
            self.all.push(issue);
        }
    }
}

/// The issues of a node.
pub(crate) fn issues(node: &Node, context: &Context<'_>) -> Vec<Issue> {
    let name = &node.name;
    let mut issues = Issues { node: name, all: Vec::new() };
    if node.excluded {
        let why = if node.reason.is_empty() { String::new() } else { format!(" ({})", node.reason) };
        let message = format!("excluded{why}: its pod traffic is in the clear");
        issues.add(Effect::Plaintext, "Excluded", &message, format!("kubectl secureoverlay include {name}"));
        return issues.all;
    }
    if !node.is_linux() {
        let message =
            format!("it runs {}, where no agent runs: pod traffic with it is not encrypted", node.system);
        issues.add(Effect::Plaintext, "NotLinux", &message, format!("kubectl describe node {name}"));
        return issues.all;
    }
    if !node.ready {
        let since =
            node.since.map_or_else(String::new, |since| format!(" for {}", text::span(since, context.now)));
        let message = format!("the Node is not Ready{since}: what its kernel does now is not known");
        issues.add(Effect::Unknown, "NodeNotReady", &message, format!("kubectl describe node {name}"));
        return issues.all;
    }
    if let Some(agents) = &context.agents {
        agent(agents.get(name.as_str()).copied(), context.now, &mut issues);
    }
    let Some(reports) = &context.reports else { return issues.all };
    match reports.get(name.as_str()).map(|report| &report.status) {
        None => {
            let next =
                format!("kubectl -n {NAMESPACE} get pods -o wide --field-selector spec.nodeName={name}");
            issues.add(
                Effect::Unknown,
                "NotReported",
                "there is no NodeEncryption: nothing is reported",
                next,
            );
        }
        Some(Err(error)) => {
            let message = format!("its NodeEncryption can't be read: {error}");
            issues.add(Effect::Unknown, "ReportUnreadable", &message, "kubectl secureoverlay version");
        }
        Some(Ok(status)) => report(node, status, context, &mut issues),
    }
    issues.all
}

fn agent(pod: Option<&Pod>, now: Timestamp, issues: &mut Issues<'_>) {
    let Some(pod) = pod else {
        let next = format!("kubectl -n {NAMESPACE} describe daemonset ucp-secureoverlay-agent");
        issues.add(Effect::Unknown, "NoAgent", "no agent's Pod runs there", next);
        return;
    };
    if pod.ready {
        return;
    }
    let since = pod.since.map_or_else(String::new, |since| format!(" for {}", text::span(since, now)));
    let message = format!("its agent is {}{since}: what its kernel does now is not known", pod.not_ready());
    let verb = if pod.waiting.is_empty() { "logs --tail=50" } else { "describe pod" };
    issues.add(
        Effect::Unknown,
        "AgentNotReady",
        &message,
        format!("kubectl -n {NAMESPACE} {verb} {}", pod.name),
    );
}

fn report(node: &Node, status: &NodeEncryptionStatus, context: &Context<'_>, issues: &mut Issues<'_>) {
    let describe = || format!("kubectl describe nenc {}", node.name);
    let Some(ack) = &status.acknowledgement else {
        let message = "its agent has not looked at its kernel yet";
        return issues.add(Effect::Unknown, "NotReported", message, describe());
    };
    if ack.node_uid.to_string() != node.uid {
        let message = "its NodeEncryption is about an earlier Node of this name";
        return issues.add(Effect::Unknown, "ReportOfOtherNode", message, describe());
    }
    let condition = |kind: &str| status.conditions.iter().find(|condition| condition.r#type == kind);
    let Some(ready) = condition("Ready") else {
        return issues.add(
            Effect::Unknown,
            "NotReported",
            "its agent reports no condition Ready",
            describe(),
        );
    };
    let enforcing = status.state == NodeState::Enforcing;
    match status.state {
        NodeState::Permissive | NodeState::Enforcing => {}
        NodeState::Unknown => {
            issues.add(
                Effect::Unknown,
                "NotReported",
                "its agent has not looked at its kernel yet",
                describe(),
            );
        }
        NodeState::Excluded => {
            let message = "the key ring still excludes it: its pod traffic is in the clear";
            issues.add(Effect::Plaintext, "Excluded", message, manager_log());
        }
        NodeState::Off | NodeState::Waiting => {
            issues.add(Effect::Plaintext, &ready.reason, &ready.message, describe());
        }
    }
    for blocker in &ack.enforcement_blockers {
        issues.add(
            effect(&blocker.reason, enforcing),
            &blocker.reason,
            &blocker.detail,
            check(node, context),
        );
    }
    if ready.status != ConditionStatus::True {
        let pods = if ready.reason == "KernelIncomplete" { describe() } else { check(node, context) };
        issues.add(effect(&ready.reason, enforcing), &ready.reason, &ready.message, pods);
    }
    if ack.tunnel_mtu_too_large {
        let message =
            condition("MTUValid").map_or("the tunnel's MTU leaves no room for ESP", |it| &it.message);
        issues.add(Effect::Attention, "MTUTooLarge", message, describe());
    } else if let Some(mtu) = condition("MTUValid").filter(|mtu| mtu.status == ConditionStatus::False) {
        // As the agents were told to (SECUREOVERLAY_MTU_POLICY): small packets are encrypted all the same.
        issues.add(Effect::Note, "MTUTooLarge", &mtu.message, describe());
    }
    for finding in &status.findings {
        issues.add(effect(&finding.reason, enforcing), &finding.reason, &finding.message, describe());
    }
    let not_known = |it: &&Condition| it.status == ConditionStatus::Unknown && !ack.no_peers;
    if let Some(coverage) = condition("CoverageComplete").filter(not_known) {
        issues.add(Effect::Unknown, &coverage.reason, &coverage.message, check(node, context));
    }
    if !context.rotating && unproven(ack, context) > 0 && issues.all.is_empty() {
        let message = format!(
            "{} not proven with the key in use",
            text::plural(status.pairs.unproven as usize, "pair")
        );
        issues.add(Effect::Attention, "PairsNotProven", &message, check(node, context));
    }
}

/// Pairs that are not proven with the active generation, without those that can't be.
fn unproven(ack: &Acknowledgement, context: &Context<'_>) -> u32 {
    if ack.all_pairs_proven {
        return 0;
    }
    ack.unproven_pairs.iter().map(|pairs| pairs.remaining(context.absent.iter().copied())).max().unwrap_or(0)
}

/// What the reason of a condition, a blocker or a finding means for pod traffic.
fn effect(reason: &str, enforcing: bool) -> Effect {
    match reason {
        "Plaintext" | "NoActiveKey" | "PlaintextBypass" | "IPsecDisabled" | "SourceAddress"
        | "ForeignPolicy" => Effect::Plaintext,
        "GatewayUnknown" if !enforcing => Effect::Plaintext,
        "CoverageUnknown" | "KernelIncomplete" | "SchemaTooOld" | "NodeNameConflict" => Effect::Unknown,
        "KeyMaySwap" => Effect::Note,
        _ => Effect::Attention,
    }
}

/// The check of a node, by its agent's Pod.
fn check(node: &Node, context: &Context<'_>) -> String {
    let pod = context.agents.as_ref().and_then(|agents| agents.get(node.name.as_str()));
    pod.map_or_else(
        || format!("kubectl describe nenc {}", node.name),
        |pod| format!("kubectl -n {NAMESPACE} exec {} -- /ucp-secureoverlay-agent check", pod.name),
    )
}

pub(crate) fn manager_log() -> String {
    format!("kubectl -n {NAMESPACE} logs deployment/ucp-secureoverlay-mgr --tail=50")
}
