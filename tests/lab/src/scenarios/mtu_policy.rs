//! A tunnel without room for ESP: switching on loses nothing and says so, and when there is room, everything is encrypted
//! without a person. A suite that needs more room than there is is not activated.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use secureoverlay_keyring::suite::Suite;
use serde_json::Value;

use super::cluster::{kubectl_with, until};
use super::enforcing::{self, Totals};
use super::manager;
use super::overlay::{NAMESPACE, Overlay, PATIENCE};
use super::probe::Probe;
use super::ring::Ring;
use super::{rotate_timed, suites};
use crate::interface::agent::MTU_POLICY;
use crate::interface::manager::NOT_READY_TIMEOUT;
use crate::lab::{Lab, TUNNEL_MTU};
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};

pub const SCENARIO: Scenario = Scenario {
    name: "mtu-policy",
    about: "where the tunnel leaves no room for ESP, switching on loses nothing and says so; with room, all is encrypted",
    tier: Tier::Gate,
    estimate: 100,
    alone: false,
    run: Run::Installs(run),
};

/// How long a generation that is not proven stays staged here.
const LIMIT: Duration = Duration::from_secs(20);
/// What MKE's rule leaves of 1500 bytes, and what the kernel would carry.
const ROOM: u32 = 1452;

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, _: Profile) -> Result<()> {
    let lab = overlay.lab;
    let mut totals = Totals::default();
    let mut advice = Vec::new();
    let cramped = totals.event(report, probe, "kubectl apply, without room in the tunnel", false, || {
        overlay.apply_with(MTU_POLICY, "block")?;
        until("the first key to be active, and no pair to be proven with it", PATIENCE, || {
            let Some(active) = Ring::read(lab)?.and_then(|ring| ring.uid("active")) else { return Ok(false) };
            let unproven = manager::unproven(lab, &active)?;
            Ok(unproven.values().map(BTreeSet::len).sum::<usize>() == probe.pairs())
        })?;
        until("every node to name the MTU", PATIENCE, || Ok(named(lab)? == lab.nodes().len()))?;
        advice = advised(overlay)?;
        std::thread::sleep(Duration::from_secs(3));
        Ok(())
    })?;
    for (installed, command, found) in advice {
        report.check(found.contains(command), format!("{installed}: `{command}` advised, in: {found}"));
    }
    let (clear, sent) = (cramped.wire.ipip, cramped.probes.sent);
    report.check(clear >= sent, format!("{clear} packets in the clear for {sent} probes"));
    // The pings that prove pairs are ESP: at first a few a second for each direction, later one in 5 s.
    let (esp, most) = (cramped.wire.esp, sent / 10);
    report
        .check(esp <= most, format!("{esp} ESP packets without room in the tunnel, at most {most} of pings"));

    totals.event(report, probe, "room in the tunnel", false, || {
        lab.set_tunnel_mtu(ROOM)?;
        enforcing::wait(lab)
    })?;
    totals.event(report, probe, "while every node enforces", true, || {
        std::thread::sleep(Duration::from_secs(3));
        Ok(())
    })?;
    totals.event(report, probe, "no room any more: who has begun goes on", true, || {
        lab.set_tunnel_mtu(TUNNEL_MTU)?;
        until("every node to name the MTU", PATIENCE, || Ok(named(lab)? == lab.nodes().len()))
    })?;
    suite_without_room(overlay, report, probe, &mut totals)?;
    totals.tell(report);
    overlay.apply()?;
    overlay.wait_rolled_out()
}

/// A suite that the tunnel has no room for is staged, not activated, and given up at the limit; the pairs are named.
fn suite_without_room(
    overlay: &Overlay<'_>,
    report: &mut Report,
    probe: &Probe,
    totals: &mut Totals,
) -> Result<()> {
    let lab = overlay.lab;
    lab.set_tunnel_mtu(ROOM)?;
    enforcing::wait_proven(lab)?;
    let active = || Ok::<_, anyhow::Error>(Ring::read(lab)?.and_then(|ring| ring.uid("active")));
    let (before, events) = (active()?, manager::event_count(lab, "RotationFailed")?);
    let (mut named, mut changed) = (0, false);
    totals.event(report, probe, "a suite that the tunnel has no room for", true, || {
        overlay.configure_manager(&[&format!("{NOT_READY_TIMEOUT}={}s", LIMIT.as_secs())])?;
        suites::request(overlay, Suite::Aes256Gcm16)?;
        until("the rotation to be given up", PATIENCE, || {
            let ring = Ring::read(lab)?.context("there is no ring")?;
            changed |= ring.uid("active") != before;
            if let Some(staged) = ring.uid("staged") {
                named = named.max(manager::unproven(lab, &staged)?.values().map(BTreeSet::len).sum());
            }
            Ok(manager::event_count(lab, "RotationFailed")? > events)
        })
    })?;
    suites::request(overlay, Suite::default())?;
    overlay.configure_manager(&[&format!("{NOT_READY_TIMEOUT}-")])?;
    rotate_timed::wait_steady(lab)?;
    let pairs = probe.pairs();
    report.figure("pairs_without_room", named);
    report.check(named == pairs, format!("{named} of {pairs} pairs are named that can't carry the suite"));
    report.check(!changed && active()? == before, "the suite that does not fit is not activated");
    report.figure("suite_refused", manager::events(lab, "RotationFailed")?);
    lab.set_tunnel_mtu(TUNNEL_MTU)
}

/// What shows how Calico was installed, as it is found in the API: its DaemonSet, here without pods, as `calico.yaml` makes
/// it and without the variable, and the operator's kind.
pub const CALICO_NODE: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: calico-node, namespace: kube-system}
spec:
  selector: {matchLabels: {k8s-app: calico-node}}
  template:
    metadata: {labels: {k8s-app: calico-node}}
    spec:
      nodeSelector: {secureoverlay.io/lab: no-node}
      containers:
      - name: calico-node
        image: none.invalid/calico-node
        env: ENV
"#;
/// What it takes the MTU from.
pub const FROM_CONFIG_MAP: &str =
    "[{name: FELIX_IPINIPMTU, valueFrom: {configMapKeyRef: {name: calico-config, key: veth_mtu}}}]";
const OPERATOR: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: installations.operator.tigera.io}
spec:
  group: operator.tigera.io
  names: {kind: Installation, plural: installations}
  scope: Cluster
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}
";

/// For each kind of installation, the command that `check` has to advise in an agent's pod, and what it advises.
fn advised(overlay: &Overlay<'_>) -> Result<Vec<(&'static str, &'static str, String)>> {
    let lab = overlay.lab;
    let kinds = [
        ("no Calico", "not Calico's", None),
        ("calico.yaml", "patch configmap calico-config", Some(CALICO_NODE.replace("ENV", FROM_CONFIG_MAP))),
        ("another Calico", "patch felixconfiguration default", Some(CALICO_NODE.replace("ENV", "[]"))),
        ("Calico's operator", "patch installations.operator.tigera.io default", Some(OPERATOR.to_owned())),
    ];
    let mut all = Vec::new();
    for (installed, command, objects) in kinds {
        if let Some(objects) = &objects {
            lab.apply(objects)?;
        }
        // A new kind is served a moment after it was made.
        let mut found = String::new();
        drop(until("the advice to follow", PATIENCE / 4, || {
            found = advice(overlay)?;
            Ok(found.contains(command))
        }));
        if let Some(objects) = &objects {
            kubectl_with(lab, &["delete", "-f", "-"], objects)?;
        }
        all.push((installed, command, found));
    }
    Ok(all)
}

/// What `check` says of a tunnel that is too large, in an agent's pod.
pub fn advice(overlay: &Overlay<'_>) -> Result<String> {
    let (agent, _) = overlay.agents()?.pop().context("there is no agent")?;
    // It exits with 1, for the tunnel is too large.
    let program = ["--", "/ucp-secureoverlay-agent", "check"];
    let out = overlay.lab.kubectl_command().args(["-n", NAMESPACE, "exec", &agent]).args(program).output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    Ok(text.lines().find(|line| line.contains("is too large")).unwrap_or(&text).to_owned())
}

/// How many nodes say that their tunnel is too large.
fn named(lab: &Lab) -> Result<usize> {
    let too_large = |mtu: &Value| mtu["tunnel"] == TUNNEL_MTU && mtu["limit"] == ROOM;
    Ok(manager::statuses(lab, "mtu")?.values().filter(|mtu| too_large(mtu)).count())
}
