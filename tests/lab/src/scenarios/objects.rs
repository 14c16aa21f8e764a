//! What operators do, with the operator's role alone: settings edited, rotations asked for, and what is told of them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::cluster::{kubectl_with, until};
use super::enforcing::{self, Totals};
use super::manager;
use super::overlay::{DEPLOYMENT, Manifest, NAMESPACE, Overlay, PATIENCE};
use super::probe::Probe;
use super::ring::Ring;
use super::rotate_timed;
use super::settings::OBJECT;
use super::xfrm;
use crate::lab::Lab;
use crate::progress::note;
use crate::scenario::{Profile, Report, Run, Scenario, Tier};
use crate::wait::wait_until;

pub const SCENARIO: Scenario = Scenario {
    name: "objects",
    about: "settings and rotations by the operator's objects and role, while nothing is lost or in the clear",
    tier: Tier::Gate,
    estimate: 125,
    alone: false,
    run: Run::Cluster(run),
};

/// Who operates: a user without any other right.
const OPERATOR: &str = "--as=olga";
const BINDING: &str = "secureoverlay-lab-operator";
/// An edit has an effect, and a rotation is staged, within this time.
const EFFECT: Duration = Duration::from_secs(5);
const AT_ONCE: usize = 10;
const HISTORY: usize = 2;

/// Edits that the API server refuses.
const REFUSED: [&str; 7] = [
    r#"{"rotation": {"schedule": "0 3 * * 0"}}"#,
    r#"{"rotation": {"interval": null}}"#,
    r#"{"rotation": {"timeZone": "UTC"}}"#,
    r#"{"rotation": {"interval": "soon"}}"#,
    r#"{"rotation": {"historyLimit": 5000}}"#,
    r#"{"enforcement": "Enforcing"}"#,
    r#"{"cipherSuite": "rot13"}"#,
];
/// Edits that the manager refuses, because a schema can't.
const REPORTED: [&str; 2] = [
    r#"{"rotation": {"interval": "1s", "minimumInterval": "1h"}}"#,
    r#"{"rotation": {"interval": null, "schedule": "0 0 31 2 *"}}"#,
];
/// What is good again after each of them.
const GOOD: &str =
    r#"{"rotation": {"interval": "12h", "minimumInterval": "1s", "schedule": null, "timeZone": null}}"#;

fn run(lab: &Lab, report: &mut Report, _: Profile) -> Result<()> {
    let probe = Probe::deploy(lab)?;
    let overlay = Overlay::new(lab, Manifest::Ours);
    // Without the lab's own settings, which `apply` brings.
    lab.apply(&overlay.text()?)?;
    let made = wait_until("the manager to make its settings", PATIENCE, || Ok(object(lab).ok()))?;
    let fields = made["metadata"]["managedFields"].as_array().into_iter().flatten();
    let by =
        fields.into_iter().any(|it| it["manager"] == "ucp-secureoverlay-mgr" && it["operation"] == "Apply");
    report.figure("created_by_manager", by);
    report
        .check(by, format!("the manager made the ClusterEncryption: {}", made["metadata"]["managedFields"]));
    overlay.wait_encrypting()?;
    overlay.wait_rolled_out()?;
    enforcing::wait(lab)?;

    let user = OPERATOR.trim_start_matches("--as=");
    let bind = ["create", "clusterrolebinding", BINDING, "--clusterrole=secureoverlay-operator"];
    lab.kubectl(&[&bind[..], &[&format!("--user={user}")]].concat())?;
    let done = operate(&overlay, report, &probe);
    lab.kubectl(&["delete", "clusterrolebinding", BINDING])?;
    done?;
    overlay.disable_and_check(report)
}

fn operate(overlay: &Overlay<'_>, report: &mut Report, probe: &Probe) -> Result<()> {
    let lab = overlay.lab;
    let can = lab
        .kubectl_command()
        .args([OPERATOR, "-n", NAMESPACE, "auth", "can-i", "get", "secrets/ucp-secureoverlay"])
        .output();
    let answer =
        String::from_utf8_lossy(&can.context("asking for the operator's rights")?.stdout).trim().to_owned();
    report.figure("operator_reads_secret", &answer);
    report.check(answer == "no", "the operator's role reads no Secret");
    wait_condition(lab, OBJECT, "Ready")?;
    report.figure("conditions", conditions(&object(lab)?));
    let explained = lab.kubectl(&["explain", "clusterencryption.spec.rotation"])?;
    note(&explained);
    report.check(
        explained.contains("least time between two rotations"),
        "`kubectl explain` says what fields mean",
    );

    let mut totals = Totals::default();
    let mut event = |report: &mut Report, what: &str, event: &mut dyn FnMut(&mut Report) -> Result<()>| {
        let (mut inner, mut result) = (Report::default(), Ok(()));
        totals.event(report, probe, what, true, || {
            result = event(&mut inner);
            Ok(())
        })?;
        report.absorb(inner);
        result
    };
    event(report, "an edit", &mut |report| edits(lab, report))?;
    event(report, "invalid edits", &mut |report| invalid(lab, report))?;
    event(report, "deleted and made again", &mut |report| deleted(overlay, report))?;
    event(report, "a rotation asked for", &mut |report| rotation(lab, report))?;
    event(report, "ten at once", &mut |report| at_once(lab, report))?;
    event(report, "deleted while it runs", &mut |report| deleted_while_running(lab, report))?;
    event(report, "history", &mut |report| history(lab, report))?;
    event(report, "an old object is put back", &mut |report| put_back(lab, report))?;
    event(report, "two managers", &mut |report| two_managers(overlay, report))?;
    event(report, "deleted with KeepKernelState", &mut |report| kept(overlay, report))?;
    totals.tell(report);
    Ok(())
}

/// An edit of the suite stages a key at once, and has a KeyRotation.
fn edits(lab: &Lab, report: &mut Report) -> Result<()> {
    edit(lab, GOOD)?;
    for suite in ["aes128gcm16", "aes128gcm8"] {
        rotate_timed::wait_steady(lab)?;
        let begun = Instant::now();
        edit(lab, &json!({ "cipherSuite": suite }).to_string())?;
        wait_until("the suite to be staged", PATIENCE, || {
            let ring = Ring::read(lab)?;
            Ok(ring
                .is_some_and(|ring| ring.suite("staged").is_some_and(|staged| staged == suite))
                .then_some(()))
        })?;
        effect(report, "edit_to_staged_ms", begun);
        let newest = newest(lab)?;
        wait_condition(lab, &format!("keyrotation/{newest}"), "Complete")?;
        report
            .check(newest.starts_with("suite-"), format!("the manager made a KeyRotation for it: {newest}"));
        wait_condition(lab, OBJECT, "Ready")?;
    }
    Ok(())
}

/// What is invalid is refused, or reported with the last good settings kept.
fn invalid(lab: &Lab, report: &mut Report) -> Result<()> {
    let before = settings(lab)?;
    let refused = REFUSED.iter().filter(|spec| edit(lab, spec).is_err()).count();
    report.figure("invalid_edits_refused", refused);
    report
        .check(refused == REFUSED.len(), format!("{refused} of {} invalid edits are refused", REFUSED.len()));
    let other = json!({"apiVersion": "secureoverlay.io/v1alpha1", "kind": "ClusterEncryption", "metadata": {"name": "other"}});
    let created = kubectl_with(lab, &[OPERATOR, "create", "-f", "-"], &other.to_string());
    report.check(created.is_err(), "no other name than default is taken");
    let mut reported = 0;
    for spec in REPORTED {
        let begun = Instant::now();
        edit(lab, spec)?;
        until("an invalid edit to be reported", PATIENCE, || {
            let object = object(lab)?;
            let seen = object["status"]["observedGeneration"] == object["metadata"]["generation"];
            Ok(seen && conditions(&object)["Stalled"] == "True: InvalidSettings")
        })?;
        effect(report, "edit_to_reported_ms", begun);
        reported += usize::from(settings(lab)? == before);
        edit(lab, GOOD)?;
        wait_condition(lab, OBJECT, "Ready")?;
    }
    report.figure("invalid_edits_reported", reported);
    report.check(reported == REPORTED.len(), "the last good settings stay in force");
    Ok(())
}

/// Without the object, and with a manager that never saw it, nothing changes.
fn deleted(overlay: &Overlay<'_>, report: &mut Report) -> Result<()> {
    let lab = overlay.lab;
    rotate_timed::wait_steady(lab)?;
    let state = || -> Result<_> {
        let ring = Ring::read(lab)?.context("there is no ring")?;
        Ok((ring.uids(), ring.enforcement().to_owned(), settings(lab)?))
    };
    let before = state()?;
    lab.kubectl(&[OPERATOR, "delete", OBJECT])?;
    lab.kubectl(&["-n", NAMESPACE, "rollout", "restart", DEPLOYMENT])?;
    overlay.wait_rolled_out()?;
    std::thread::sleep(EFFECT);
    report.check(object(lab).is_err(), "no manager makes the object while there is a ring");
    let (_, _, kept) = &before;
    let spec = json!({
        "enforcement": kept["enforcement"], "cipherSuite": kept["cipherSuite"], "rotation": kept["rotation"],
    });
    let again = json!({
        "apiVersion": "secureoverlay.io/v1alpha1", "kind": "ClusterEncryption",
        "metadata": {"name": "default"}, "spec": spec,
    });
    kubectl_with(lab, &[OPERATOR, "create", "-f", "-"], &again.to_string())?;
    wait_condition(lab, OBJECT, "Ready")?;
    let after = state()?;
    report.figure("changed_by_delete_and_create", before != after);
    report.check(before == after, format!("neither key, suite nor goal changed: {before:?} {after:?}"));
    Ok(())
}

fn rotation(lab: &Lab, report: &mut Report) -> Result<()> {
    rotate_timed::wait_steady(lab)?;
    let begun = Instant::now();
    let name = ask(lab, 1)?.pop().context("no name was printed")?;
    wait_until("a generation to be staged", PATIENCE, || {
        Ok(Ring::read(lab)?.and_then(|ring| ring.generation("staged")))
    })?;
    effect(report, "request_to_staged_ms", begun);
    wait_condition(lab, &format!("keyrotation/{name}"), "Complete")?;
    let status = lab.kubectl_json(&[OPERATOR, "get", "keyrotation", &name])?["status"].take();
    report.check(status["phaseTimes"]["retired"].is_string(), "its status has the times of its steps");
    report.figure("rotation", status);
    Ok(())
}

/// All that wait are served by one key; those that came while it was made, by one more.
fn at_once(lab: &Lab, report: &mut Report) -> Result<()> {
    rotate_timed::wait_steady(lab)?;
    let names = ask(lab, AT_ONCE)?;
    let mut keys = BTreeSet::new();
    for name in &names {
        wait_condition(lab, &format!("keyrotation/{name}"), "Complete")?;
        let object = lab.kubectl_json(&["get", "keyrotation", name])?;
        keys.insert(object["status"]["generation"].as_u64().context("a complete one without a generation")?);
    }
    report.figure("at_once", names.len());
    report.figure("at_once_keys", keys.len());
    report.check(
        names.len() == AT_ONCE && keys.len() <= 2,
        format!("{} keys served {AT_ONCE} requests", keys.len()),
    );
    Ok(())
}

/// The key is taken into use all the same, and an Event says so.
fn deleted_while_running(lab: &Lab, report: &mut Report) -> Result<()> {
    rotate_timed::wait_steady(lab)?;
    let told = manager::event_count(lab, "RotationDeleted")?;
    let name = ask(lab, 1)?.pop().context("no name was printed")?;
    let generation = wait_until("its generation", PATIENCE, || {
        Ok(lab.kubectl_json(&["get", "keyrotation", &name])?["status"]["generation"].as_u64())
    })?;
    let running = Ring::read(lab)?.is_some_and(|ring| !ring.is_steady());
    ensure!(running, "the rotation was over before it could be deleted");
    lab.kubectl(&[OPERATOR, "delete", "keyrotation", &name])?;
    rotate_timed::wait_steady(lab)?;
    let active = Ring::read(lab)?.and_then(|ring| ring.generation("active"));
    report.check(active == Some(generation), format!("generation {generation} is in use: {active:?}"));
    until("an Event about it", PATIENCE / 4, || Ok(manager::event_count(lab, "RotationDeleted")? > told))?;
    report.figure("deleted_while_running", active == Some(generation));
    Ok(())
}

/// The oldest finished ones go.
fn history(lab: &Lab, report: &mut Report) -> Result<()> {
    edit(lab, &json!({"rotation": {"historyLimit": HISTORY}}).to_string())?;
    let count = || -> Result<usize> {
        Ok(lab.kubectl_json(&[OPERATOR, "get", "keyrotations"])?["items"].as_array().map_or(0, Vec::len))
    };
    until("the history to be pruned", PATIENCE, || Ok(count()? == HISTORY))?;
    until("the limit in the ring", PATIENCE, || Ok(settings(lab)?["rotation"]["historyLimit"] == HISTORY))?;
    report.figure("history_kept", count()?);
    Ok(())
}

/// As a GitOps tool does with what it has: the object of before counts again, and its status is the manager's.
fn put_back(lab: &Lab, report: &mut Report) -> Result<()> {
    let (mut old, before) = (object(lab)?, settings(lab)?);
    for field in ["resourceVersion", "uid", "managedFields", "generation"] {
        if let Some(metadata) = old["metadata"].as_object_mut() {
            metadata.remove(field);
        }
    }
    edit(lab, r#"{"enforcement": "Permissive", "rotation": {"historyLimit": 7}}"#)?;
    wait_until("the edit in the ring", PATIENCE, || Ok((settings(lab)? != before).then_some(())))?;
    let begun = Instant::now();
    kubectl_with(lab, &[OPERATOR, "replace", "-f", "-"], &old.to_string())?;
    wait_until("the old object in the ring", PATIENCE, || Ok((settings(lab)? == before).then_some(())))?;
    effect(report, "put_back_ms", begun);
    enforcing::wait(lab)?;
    wait_condition(lab, OBJECT, "Ready")
}

/// A second manager writes by the same conditions: a rotation is one rotation.
fn two_managers(overlay: &Overlay<'_>, report: &mut Report) -> Result<()> {
    let lab = overlay.lab;
    rotate_timed::wait_steady(lab)?;
    let scale = |count: &str| {
        lab.kubectl(&["-n", NAMESPACE, "scale", DEPLOYMENT, &format!("--replicas={count}")])?;
        overlay.wait_rolled_out()
    };
    scale("2")?;
    let name = ask(lab, 1)?.pop().context("no name was printed")?;
    wait_condition(lab, &format!("keyrotation/{name}"), "Complete")?;
    rotate_timed::wait_steady(lab)?;
    let made = lab.kubectl_json(&["get", "keyrotation", &name])?["status"]["generation"].as_u64();
    let active = Ring::read(lab)?.and_then(|ring| ring.generation("active"));
    report.check(
        made.is_some() && made == active,
        format!("two managers made one key: {made:?} was made, {active:?} is in use"),
    );
    scale("1")
}

/// The agents go and their kernels stay; a new installation takes over, and nothing was readable meanwhile.
fn kept(overlay: &Overlay<'_>, report: &mut Report) -> Result<()> {
    let lab = overlay.lab;
    edit(lab, r#"{"deletionPolicy": "KeepKernelState"}"#)?;
    until("the policy in the ring", PATIENCE, || Ok(settings(lab)?["deletionPolicy"] == "KeepKernelState"))?;
    rotate_timed::wait_steady(lab)?;
    enforcing::wait_proven(lab)?;
    let before = xfrm::dump(lab)?;
    overlay.delete()?;
    overlay.wait_ended()?;
    enforcing::check_unchanged(lab, report, "deleted with KeepKernelState", &before)?;
    overlay.enable()?;
    rotate_timed::wait_steady(lab)?;
    enforcing::wait(lab)
}

fn object(lab: &Lab) -> Result<Value> {
    // Raw, because kubectl leaves out which client owns which field.
    let text =
        lab.kubectl(&["get", "--raw", "/apis/secureoverlay.io/v1alpha1/clusterencryptions/default"])?;
    serde_json::from_str(&text).context("the ClusterEncryption is no JSON")
}

/// The settings in the ring.
fn settings(lab: &Lab) -> Result<Value> {
    let document = super::ring::read_document(lab)?.context("there is no ring")?;
    let ring: Value =
        serde_saphyr::from_slice(&document).map_err(|_| anyhow::anyhow!("the ring is not YAML"))?;
    Ok(ring["settings"].clone())
}

/// As the operator.
fn edit(lab: &Lab, spec: &str) -> Result<()> {
    let patch = format!(r#"{{"spec": {spec}}}"#);
    lab.kubectl(&[OPERATOR, "patch", OBJECT, "--type=merge", "--patch", &patch]).map(drop)
}

/// Makes KeyRotations in one go, as the operator; their names.
fn ask(lab: &Lab, count: usize) -> Result<Vec<String>> {
    let item = json!({
        "apiVersion": "secureoverlay.io/v1alpha1", "kind": "KeyRotation", "metadata": {"generateName": "asked-"},
    });
    let list = json!({"apiVersion": "v1", "kind": "List", "items": vec![item; count]});
    let made = kubectl_with(lab, &[OPERATOR, "create", "-f", "-", "-o", "name"], &list.to_string())?;
    Ok(made.lines().filter_map(|line| Some(line.rsplit_once('/')?.1.to_owned())).collect())
}

/// The KeyRotation that was made last.
fn newest(lab: &Lab) -> Result<String> {
    let list = lab.kubectl_json(&["get", "keyrotations", "--sort-by=.metadata.creationTimestamp"])?;
    let last = list["items"].as_array().and_then(|items| items.last());
    Ok(last.and_then(|item| item["metadata"]["name"].as_str()).context("there is no KeyRotation")?.to_owned())
}

/// `kubectl wait`, as the operator.
fn wait_condition(lab: &Lab, what: &str, condition: &str) -> Result<()> {
    lab.kubectl(&[OPERATOR, "wait", &format!("--for=condition={condition}"), what, "--timeout=120s"])
        .map(drop)
}

/// Status and reason of each condition.
fn conditions(object: &Value) -> Value {
    let all = object["status"]["conditions"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let shown =
        all.map(|it| (text(&it["type"]), json!(format!("{}: {}", text(&it["status"]), text(&it["reason"])))));
    Value::Object(shown.collect())
}

fn effect(report: &mut Report, name: &str, begun: Instant) {
    let took = begun.elapsed();
    report.figure(name, u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    report.check(took < EFFECT, format!("{name}: {took:?}, at most {EFFECT:?}"));
}
