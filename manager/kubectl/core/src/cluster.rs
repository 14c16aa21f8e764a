//! What is wrong with the cluster as a whole, or not known of it.

use jiff::SignedDuration;
use secureoverlay_keyring::{
    cluster_encryption::ClusterEncryptionStatus,
    condition::{Condition, ConditionStatus},
    key_rotation::FAILED,
    settings::EnforcementGoal,
};

use crate::{
    assess::{Effect, Issue},
    node::manager_log,
    snapshot::{Encryption, MANAGER, NAMESPACE, Rotation, Snapshot},
    text,
};

/// A rotation that is later than this, or waits for longer, needs a look.
const LATE: SignedDuration = SignedDuration::from_mins(15);

/// What the manager reports.
pub(crate) fn status(snapshot: &Snapshot) -> Option<&ClusterEncryptionStatus> {
    snapshot.encryption.as_ref().ok()?.as_ref()?.status.as_ref().ok()
}

/// The issues of the cluster, beside those of its `nodes`.
pub(crate) fn issues(snapshot: &Snapshot, nodes: &[Issue], off: bool) -> Vec<Issue> {
    let mut issues = unread(snapshot);
    if snapshot.nodes.as_ref().is_ok_and(Vec::is_empty) {
        issues.push(Issue::cluster(
            Effect::Unknown,
            "NoNodes",
            "the cluster has no Nodes",
            "kubectl get nodes",
        ));
    }
    issues.extend(manager(snapshot));
    match &snapshot.encryption {
        Err(_) => {}
        Ok(None) => issues.push(Issue::cluster(
            Effect::Unknown,
            "NoClusterEncryption",
            "there is no ClusterEncryption named default: SecureOverlay is not installed, runs under MKE's manifest, or \
             the object was deleted",
            &format!("kubectl -n {NAMESPACE} get daemonsets,deployments,pods"),
        )),
        Ok(Some(encryption)) => issues.extend(settings(encryption, nodes, off)),
    }
    issues.extend(rotation(snapshot, off));
    issues
}

/// Lists that could not be read.
fn unread(snapshot: &Snapshot) -> Vec<Issue> {
    let errors = [
        snapshot.encryption.as_ref().err(),
        snapshot.rotations.as_ref().err(),
        snapshot.reports.as_ref().err(),
        snapshot.nodes.as_ref().err(),
        snapshot.agents.as_ref().err(),
        snapshot.managers.as_ref().err(),
    ];
    let mut issues: Vec<Issue> = Vec::new();
    for error in errors.into_iter().flatten() {
        let issue =
            Issue::cluster(Effect::Unknown, "NotRead", error, "kubectl auth can-i --list -n kube-system");
        // Pods are listed twice.
        if !issues.contains(&issue) {
            issues.push(issue);
        }
    }
    issues
}

/// Without a manager, what it reported may be old.
fn manager(snapshot: &Snapshot) -> Option<Issue> {
    let pods = snapshot.managers.as_ref().ok()?;
    if pods.iter().any(|pod| pod.ready && !pod.ending) {
        return None;
    }
    let found = pods.iter().max_by_key(|pod| !pod.ending);
    let state = found
        .map_or_else(|| "no Pod of it runs".to_owned(), |pod| format!("{} is {}", pod.name, pod.state()));
    let next = match found {
        Some(pod) if pod.waiting.is_empty() && !pod.ending => manager_log(),
        _ => format!("kubectl -n {NAMESPACE} describe deployment,pods -l app={MANAGER}"),
    };
    let message = format!("the manager is not Ready ({state}): what it reported may be old");
    Some(Issue::cluster(Effect::Unknown, "ManagerNotReady", &message, &next))
}

/// What the manager says of the settings.
fn settings(encryption: &Encryption, nodes: &[Issue], off: bool) -> Vec<Issue> {
    let describe = "kubectl describe cenc default";
    let unknown = |reason: &str, message: &str, next: &str| {
        vec![Issue::cluster(Effect::Unknown, reason, message, next)]
    };
    let (spec, status) = match (&encryption.spec, &encryption.status) {
        (Ok(spec), Ok(status)) => (spec, status),
        (Err(error), _) | (_, Err(error)) => {
            let message = format!("the ClusterEncryption can't be read: {error}");
            return unknown("Unreadable", &message, "kubectl secureoverlay version");
        }
    };
    if status.conditions.is_empty() {
        return unknown("NothingReported", "the manager has reported nothing yet", &manager_log());
    }
    let mut issues = Vec::new();
    if status.observed_generation != encryption.generation {
        let message = "the manager has not read the latest edit of the ClusterEncryption";
        issues.push(Issue::cluster(Effect::Unknown, "StatusStale", message, &manager_log()));
    }
    let condition = |kind: &str| status.conditions.iter().find(|condition| condition.r#type == kind);
    if let Some(stalled) = condition("Stalled").filter(|it| it.status != ConditionStatus::False) {
        issues.push(Issue::cluster(Effect::Attention, &stalled.reason, &stalled.message, describe));
    }
    if off {
        let message = "spec.enforcement of the ClusterEncryption is Off";
        let next = "kubectl secureoverlay enforcement set Auto";
        issues.push(Issue::cluster(Effect::Attention, "EncryptionOff", message, next));
        return issues;
    }
    let needed = if spec.enforcement == EnforcementGoal::Auto {
        &["Encrypted", "Enforced"][..]
    } else {
        &["Encrypted"]
    };
    for kind in needed.iter().chain(&["ESPReachable", "CoverageComplete", "Ready"]) {
        let Some(Condition { status, reason, message, .. }) = condition(kind) else {
            let message = format!("the manager reports no condition {kind}");
            issues.push(Issue::cluster(Effect::Unknown, "NothingReported", &message, describe));
            continue;
        };
        let effect = match status {
            ConditionStatus::True => continue,
            ConditionStatus::Unknown => Effect::Unknown,
            // It counts nodes without an agent as not encrypting. What they do is not known.
            ConditionStatus::False if *kind == "Encrypted" => {
                if nodes.iter().any(|issue| issue.effect == Effect::Unknown) {
                    Effect::Unknown
                } else {
                    Effect::Plaintext
                }
            }
            ConditionStatus::False => Effect::Attention,
        };
        if issues.iter().all(|issue| issue.reason != *reason) {
            issues.push(Issue::cluster(effect, reason, message, describe));
        }
    }
    issues
}

/// A rotation that is late, waits or failed.
fn rotation(snapshot: &Snapshot, off: bool) -> Vec<Issue> {
    let Ok(rotations) = &snapshot.rotations else { return Vec::new() };
    let (now, mut issues) = (snapshot.now, Vec::new());
    let history = "kubectl secureoverlay history -o wide";
    let newest =
        rotations.iter().filter(|rotation| rotation.is_finished()).max_by_key(|rotation| rotation.created);
    let failed = newest.and_then(|newest| newest.status.as_ref().ok()?.condition(FAILED));
    if let Some(failed) = failed.filter(|failed| failed.status == ConditionStatus::True && !off) {
        issues.push(Issue::cluster(Effect::Attention, "RotationFailed", &failed.message, history));
    }
    for rotation in rotations.iter().filter(|rotation| rotation.is_under_way()) {
        let waiting = rotation.status.as_ref().ok().and_then(|status| status.waiting_for.as_ref());
        if let Some(waiting) = waiting.filter(|waiting| now.duration_since(waiting.since) > LATE) {
            let nodes = text::names(&waiting.nodes, 5);
            let message = format!(
                "{} waits for {} since {}: {nodes}",
                rotation.name,
                waiting.step,
                text::span(waiting.since, now)
            );
            issues.push(Issue::cluster(Effect::Attention, "RotationWaiting", &message, history));
        }
    }
    let due = status(snapshot).and_then(|status| status.next_rotation_time);
    let late =
        due.filter(|due| now.duration_since(*due) > LATE && rotations.iter().all(Rotation::is_finished));
    if let Some(due) = late.filter(|_| !off) {
        let message = format!("the rotation that is due since {} has not begun", text::span(due, now));
        issues.push(Issue::cluster(Effect::Attention, "RotationOverdue", &message, &manager_log()));
    }
    issues
}
