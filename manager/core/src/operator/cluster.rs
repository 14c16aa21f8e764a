//! What has come of the settings: `ClusterEncryption.status`.

use secureoverlay_keyring::{
    cluster_encryption::{ActiveKey, ClusterEncryptionStatus},
    condition::{
        Condition,
        ConditionStatus::{self, False, True, Unknown},
        stamp,
    },
    keyring::{Enforcement, KeyRing},
    settings::EnforcementGoal,
};
use secureoverlay_rotation::{History, Names, NodeReport, Phase};

use super::{EncryptionObject, Facts, condition, named, seconds};

/// The status that is to be there.
pub(super) fn status(object: &EncryptionObject, facts: &Facts<'_>) -> ClusterEncryptionStatus {
    let ring = facts.ring.unwrap_or_default();
    let active = Phase::of(ring).active();
    let mut conditions = conditions(object, ring, facts);
    stamp(&mut conditions, &object.status.conditions, facts.now.wall);
    let status = ClusterEncryptionStatus {
        observed_generation: object.generation,
        conditions,
        enforcement: ring.map_or("", |ring| ring.enforcement.name()).to_owned(),
        active_key: active.map(|active| ActiveKey {
            generation: active.id,
            suite: active.suite,
            active_since: seconds(active.role_since),
        }),
        next_rotation_time: ring.and_then(|ring| ring.next_rotation).map(seconds),
        nodes: facts.report.map(|report| report.counts),
    };
    match facts.ring {
        Ok(_) => status,
        // Nodes go on with what they hold: nothing is known to have changed.
        Err(_) => ClusterEncryptionStatus {
            enforcement: object.status.enforcement.clone(),
            active_key: object.status.active_key,
            next_rotation_time: object.status.next_rotation_time,
            nodes: object.status.nodes,
            ..status
        },
    }
}

fn conditions(object: &EncryptionObject, ring: Option<&KeyRing>, facts: &Facts<'_>) -> Vec<Condition> {
    let encrypted = encrypted(ring, facts.report);
    let enforced = enforced(ring, facts.report);
    let stalled = stalled(object, facts);
    let ready = match &stalled {
        Some(stalled) => condition("Ready", False, &stalled.reason, &stalled.message),
        None => ready(ring, facts, &encrypted, &enforced),
    };
    let reconciling = if ready.status != True && stalled.is_none() {
        condition("Reconciling", True, &ready.reason, &ready.message)
    } else {
        condition("Reconciling", False, "Settled", "")
    };
    let stalled = stalled.unwrap_or_else(|| condition("Stalled", False, "NotStalled", ""));
    let (esp, coverage) = (esp_reachable(ring, facts.report), coverage(ring, facts));
    vec![ready, reconciling, stalled, encrypted, enforced, esp, coverage]
}

/// What does not end by itself.
fn stalled(object: &EncryptionObject, facts: &Facts<'_>) -> Option<Condition> {
    let stalled = |reason: &str, message: &str| Some(condition("Stalled", True, reason, message));
    if let Err(error) = &object.settings {
        return stalled("InvalidSettings", &format!("{error}. The last good settings stay in force"));
    }
    if let Err(error) = facts.ring {
        return stalled("KeyRingInvalid", error);
    }
    if facts.history == History::WentBack {
        let text =
            "the store of the API server went back, and its caches do not know: restart the API servers";
        return stalled("ApiServerHistoryWentBack", text);
    }
    let wait = facts.decision?.wait.as_ref()?;
    (wait.waited > facts.limit && !wait.nodes.is_empty()).then(|| {
        let text =
            format!("nodes have not done the step \"{}\" for long: {}", wait.step.name(), Names(&wait.nodes));
        condition("Stalled", True, "NodesMissing", &text)
    })
}

/// Whether everything is as the settings want it.
fn ready(
    ring: Option<&KeyRing>,
    facts: &Facts<'_>,
    encrypted: &Condition,
    enforced: &Condition,
) -> Condition {
    let not_yet = |reason: &str, text: &str| condition("Ready", False, reason, text);
    let (phase, goal) = (Phase::of(ring), facts.settings.enforcement);
    if goal == EnforcementGoal::Off {
        return match phase {
            Phase::Off | Phase::Empty => condition("Ready", True, "Off", "encryption is off, as asked"),
            _ => not_yet("SwitchingOff", "encryption is being taken back"),
        };
    }
    let Some(active) = phase.active() else {
        return not_yet("WaitingForKey", "the first key is on its way to every node");
    };
    let (suite, wanted) = (active.suite, facts.settings.cipher_suite);
    if suite != wanted {
        return not_yet("ChangingSuite", &format!("the key in use has {suite}, wanted is {wanted}"));
    }
    let enforcing = ring.is_some_and(|ring| ring.enforcement == Enforcement::Enforcing);
    if enforcing && goal == EnforcementGoal::Permissive {
        return not_yet("Relaxing", "plaintext is still refused");
    }
    let needed = if goal == EnforcementGoal::Auto { enforced } else { encrypted };
    for condition in [encrypted, needed] {
        if condition.status != True {
            let Condition { status, reason, message, .. } = condition;
            return super::condition("Ready", *status, reason, message);
        }
    }
    condition("Ready", True, &needed.reason, &needed.message)
}

/// What nodes report, or a condition that says why that is not known.
fn reported<'r>(
    kind: &str,
    ring: Option<&KeyRing>,
    report: Option<&'r NodeReport>,
) -> Result<&'r NodeReport, Condition> {
    let unknown = |reason: &str, text: &str| Err(condition(kind, Unknown, reason, text));
    match (Phase::of(ring).active(), report) {
        (_, None) => {
            unknown("NotReported", "the manager may not read what nodes report: rotation goes by time")
        }
        (Some(_), Some(report)) if report.participants == 0 => {
            unknown("NoNodes", "no node that takes part is Ready")
        }
        (Some(_), Some(report)) => Ok(report),
        (None, Some(_)) => unknown("NoKey", "no key is in use"),
    }
}

/// True where no node is named, else False or, where some of these say nothing, what is not known.
fn all(
    kind: &str,
    missing: &std::collections::BTreeSet<String>,
    holds: (&str, &str),
    not: (&str, &str),
) -> Condition {
    let (reason, text) = if missing.is_empty() { holds } else { not };
    let status: ConditionStatus = if missing.is_empty() { True } else { False };
    let message = if missing.is_empty() { text.to_owned() } else { named(text, missing) };
    condition(kind, status, reason, &message)
}

fn encrypted(ring: Option<&KeyRing>, report: Option<&NodeReport>) -> Condition {
    let kind = "Encrypted";
    if Phase::of(ring).active().is_none() {
        return condition(kind, False, "NoKey", "no key is in use");
    }
    reported(kind, ring, report).map_or_else(
        |unknown| unknown,
        |report| {
            let holds = ("AllPairsEncrypted", "every node encrypts to every other");
            let not = ("NodesNotEncrypting", "nodes that do not encrypt to every other, as far as is known");
            all(kind, &report.not_encrypting, holds, not)
        },
    )
}

fn enforced(ring: Option<&KeyRing>, report: Option<&NodeReport>) -> Condition {
    let kind = "Enforced";
    if ring.is_none_or(|ring| ring.enforcement != Enforcement::Enforcing) {
        let mut text = "plaintext is accepted".to_owned();
        if let Some(report) = report.filter(|report| !report.blocked.is_empty()) {
            text = named("plaintext is accepted; nodes with a blocker", &report.blocked);
        }
        return condition(kind, False, "PlaintextAccepted", &text);
    }
    reported(kind, ring, report).map_or_else(
        |unknown| unknown,
        |report| {
            let holds = ("PlaintextRefused", "every node refuses plaintext");
            let not = ("NodesNotEnforcing", "nodes that do not refuse plaintext, as far as is known");
            all(kind, &report.not_enforcing, holds, not)
        },
    )
}

fn esp_reachable(ring: Option<&KeyRing>, report: Option<&NodeReport>) -> Condition {
    let kind = "ESPReachable";
    reported(kind, ring, report).map_or_else(
        |unknown| unknown,
        |report| match report.silent.is_empty() || !report.unproven.is_empty() {
            true => {
                let holds = ("AllAnswered", "every pair has answered by ESP");
                all(
                    kind,
                    &report.unproven,
                    holds,
                    ("PairsNotProven", "nodes with pairs that have not answered by ESP"),
                )
            }
            false => {
                condition(kind, Unknown, "NodesSilent", &named("nodes that report nothing", &report.silent))
            }
        },
    )
}

fn coverage(ring: Option<&KeyRing>, facts: &Facts<'_>) -> Condition {
    let kind = "CoverageComplete";
    let report = match reported(kind, ring, facts.report) {
        Ok(report) => report,
        Err(unknown) => return unknown,
    };
    if !report.blocked.is_empty() {
        let text = named("nodes with a blocker, which their NodeEncryptions name", &report.blocked);
        return condition(kind, False, "NodesBlocked", &text);
    }
    // Not knowing is never "complete".
    if facts.covered.len() < usize::try_from(report.participants).unwrap_or(usize::MAX) {
        let text = "some nodes have no route to other nodes' pods yet, or report nothing";
        return condition(kind, Unknown, "NotChecked", text);
    }
    condition(kind, True, "NoBypassFound", "no route of any node leads pod traffic around the tunnel")
}
