//! The API server's objects: what tools and kubelets write there, and what the manager makes of it.

use std::time::Duration;

use super::{Case, Field, SEEN};
use crate::interface::{EXCLUDE_LABEL, EXCLUDED};
use crate::scenario::Report;
use crate::scenarios::cluster::{kubectl_with, until};
use crate::scenarios::processes::{AGENT, signal};
use crate::scenarios::ring::Ring;
use crate::scenarios::{manager, wire, xfrm};
use anyhow::{Context, Result, ensure};

pub const REPLACED: Case = Case::new(
    11,
    "a GitOps tool replaces every object of the manifest, the Secret included",
    "the ring is put back, and nothing changes in any kernel",
    replaced,
);
pub const NEW_NODE_PULLS: Case = Case::new(
    14,
    "a new node has to pull its agent over the overlay while all enforce",
    "excluded, it reaches pods of others; nothing else goes in the clear",
    new_node_pulls,
)
.imitated();

fn replaced(field: &Field<'_>) -> Result<String> {
    let lab = field.lab();
    let (before, told) = (xfrm::dump(lab)?, manager::event_count(lab, "KeyRingRestored")?);
    let watched = wire::watch(field.probe, "field: every object is replaced", || {
        kubectl_with(lab, &["replace", "-f", "-"], &field.manifest)?;
        until("the ring to be put back", SEEN, || {
            Ok(Ring::read(lab).ok().flatten().is_some_and(|ring| ring.is_steady())
                && manager::event_count(lab, "KeyRingRestored")? > told)
        })
    })?;
    let mut checks = Report::default();
    watched.check_delivered(&mut checks);
    watched.check_encrypted(&mut checks);
    ensure!(checks.ok(), "{:?}", checks.failed());
    let changes = xfrm::changes(&before, &xfrm::dump(lab)?);
    ensure!(changes.is_empty(), "kernels changed: {changes:?}");
    Ok(format!("KeyRingRestored; of {} probes none lost or in the clear", watched.probes.sent))
}

/// The node is one without an agent, as far as its kernel goes.
fn new_node_pulls(field: &Field<'_>) -> Result<String> {
    let (lab, [registry, _, node]) = (field.lab(), field.nodes);
    ensure!(signal(lab, &node.name, AGENT, "-STOP")? == 1, "no agent to be stopped");
    let reach = |wanted: bool| {
        let pod = field.probe.pod_on(&registry.name)?.to_string();
        let from = node.tunnel_ip.to_string();
        let ping = ["ping", "-q", "-c", "1", "-W", "1", "-I", &from, &pod];
        until(&format!("the pod to be reached: {wanted}"), SEEN, || {
            Ok((lab.exec(&node.name, &ping)?.status == 0) == wanted)
        })
    };
    let pulls = || -> Result<String> {
        field.sh(node, "ip xfrm policy flush; ip xfrm state flush")?;
        reach(false).context("as long as it is not excluded")?;
        lab.kubectl(&["label", "node", &node.name, &format!("{EXCLUDE_LABEL}={EXCLUDED}")])?;
        reach(true).context("once it is excluded")?;
        let others = field.probe.without(&node.name)?;
        let between = wire::watch_for(&others, "field: between the others", Duration::from_secs(1))?;
        let mut checks = Report::default();
        between.check_delivered(&mut checks);
        between.check_encrypted(&mut checks);
        ensure!(checks.ok(), "{:?}", checks.failed());
        Ok("refused before, answered in the clear once excluded; the others go on encrypted".to_owned())
    };
    let outcome = pulls();
    signal(lab, &node.name, AGENT, "-CONT")?;
    lab.kubectl(&["label", "node", &node.name, &format!("{EXCLUDE_LABEL}-")])?;
    until("it to take part again", SEEN, || {
        let kernels = xfrm::dump(lab)?;
        Ok(lab.nodes().iter().all(|from| xfrm::sends_to_all(&kernels, from, lab.nodes())))
    })?;
    outcome
}
