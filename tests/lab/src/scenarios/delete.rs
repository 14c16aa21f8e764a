//! `kubectl delete` in every way that there is, from enforcing and under traffic.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::cluster::{kubectl_with, until};
use super::enforcing::{self, Totals};
use super::overlay::{AGENTS, DEPLOYMENT, Manifest, NAMESPACE, Overlay, PATIENCE};
use super::partition::{cut_off, join_again};
use super::probe::Probe;
use super::processes::{AGENT, pids, signal_everywhere};
use super::xfrm;
use crate::lab::Lab;
use crate::product;
use crate::progress::note;
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};

pub const SCENARIO: Scenario = Scenario {
    name: "delete",
    about: "kubectl delete from enforcing: all of it, the DaemonSet alone, the Deployment first, in random orders, orphaned, one node cut off",
    tier: Tier::Gate,
    estimate: 170,
    alone: false,
    run: Run::Removes(run),
};

/// Between two objects that are deleted one after the other: as slow as a person, or a GitOps tool.
const PAUSE: Duration = Duration::from_millis(300);

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    let mut totals = Totals::default();
    let mut left = 0;
    let before = xfrm::dump(lab)?;
    totals.event(report, probe, "delete daemonset --cascade=orphan is no removal", true, || {
        lab.kubectl(&["-n", NAMESPACE, "delete", AGENTS, "--cascade=orphan"])?;
        std::thread::sleep(Duration::from_secs(4));
        // Nor is the end of an agent that has never seen the DaemonSet.
        let (pod, node) = overlay.agents()?.pop().context("there are no agents")?;
        let before = pids(lab, &node, AGENT)?;
        ensure!(signal_everywhere(lab, AGENT, "-KILL")? == lab.nodes().len(), "not all agents were killed");
        until("its agent to be started anew", PATIENCE, || {
            Ok(pids(lab, &node, AGENT)?.iter().any(|pid| !before.contains(pid)))
        })?;
        std::thread::sleep(Duration::from_secs(3));
        lab.kubectl(&["-n", NAMESPACE, "delete", "pod", &pod])?;
        std::thread::sleep(Duration::from_secs(3));
        Ok(())
    })?;
    enforcing::check_unchanged(lab, report, "orphaned", &before)?;
    totals.event(report, probe, "applied again, the DaemonSet adopts the agents", true, || {
        overlay.apply()?;
        overlay.wait_rolled_out()?;
        enforcing::wait(lab)
    })?;

    totals.event(report, probe, "the DaemonSet alone is deleted", false, || {
        lab.kubectl(&["-n", NAMESPACE, "delete", AGENTS])?;
        enforcing::wait_gone(lab)
    })?;
    enforcing::check_off(report, probe)?;
    totals.event(report, probe, "and applied again", false, || enforcing::enable(overlay))?;

    totals.event(report, probe, "the Deployment is deleted first, then all of it", false, || {
        lab.kubectl(&["-n", NAMESPACE, "delete", DEPLOYMENT])?;
        std::thread::sleep(Duration::from_secs(2));
        let (states, policies) = overlay.disable()?;
        left += states + policies;
        Ok(())
    })?;
    enforcing::check_off(report, probe)?;

    left += in_random_orders(lab, report, probe, profile, &mut totals)?;

    enforcing::enable(overlay)?;
    left += cut_off_meanwhile(overlay, report, probe, &mut totals)?;
    enforcing::check_off(report, probe)?;
    totals.tell(report);
    report.expect("left", left as u64, 0);
    Ok(())
}

/// The objects of the manifest one after the other, in orders that nobody chose; the first of them begins with the rights.
fn in_random_orders(
    lab: &Lab,
    report: &mut Report,
    probe: &Probe,
    profile: Profile,
    totals: &mut Totals,
) -> Result<usize> {
    let mut rng = StdRng::seed_from_u64(profile.seed());
    let manifests: &[Manifest] = profile.pick(&[Manifest::Ours], &[Manifest::Ours, Manifest::Mke]);
    let mut left = 0;
    for manifest in manifests {
        let overlay = Overlay::new(lab, *manifest);
        for order in 0..profile.pick(1, 10) {
            match manifest {
                Manifest::Ours => enforcing::enable(&overlay)?,
                Manifest::Mke => overlay.enable()?,
            }
            let text = overlay.text()?;
            let mut objects: Vec<&str> =
                text.split("\n---\n").filter(|object| object.contains("\nkind: ")).collect();
            objects.shuffle(&mut rng);
            if order == 0 {
                objects.sort_by_key(|object| !object.contains("apiVersion: rbac."));
            }
            let what = format!("the objects of {manifest:?} are deleted in random order {order}");
            totals.event(report, probe, &what, false, || {
                for object in &objects {
                    kubectl_with(lab, &["delete", "--ignore-not-found", "--wait=false", "-f", "-"], object)?;
                    std::thread::sleep(PAUSE);
                }
                let (states, policies) = overlay.disable()?;
                left += states + policies;
                Ok(())
            })?;
            report.check(left == 0, format!("{what}: {left} left"));
            enforcing::check_off(report, probe)?;
        }
    }
    Ok(left)
}

/// A node that can't reach the API server while all of it is deleted can't tell this from an outage, and goes on; it needs
/// `cleanup` when it is back.
fn cut_off_meanwhile(
    overlay: &Overlay<'_>,
    report: &mut Report,
    probe: &Probe,
    totals: &mut Totals,
) -> Result<usize> {
    let lab = overlay.lab;
    let (cut, others) = enforcing::one_and_others(lab)?;
    let bystanders = probe.without(&cut.name)?;
    cut_off(lab, &cut.ip.to_string())?;
    let gone = totals.event(report, &bystanders, "deleted while a node is cut off", false, || {
        overlay.delete()?;
        until("the others' kernels to hold nothing of ours", PATIENCE, || {
            let kernels = xfrm::dump(lab)?;
            let left = |name: &String| kernels.get(name).map_or(0, |it| it.our_states() + it.our_policies());
            Ok(others.iter().all(|node| left(&node.name) == 0))
        })
    });
    let held = xfrm::dump(lab)?.get(&cut.name).map_or(0, xfrm::Kernel::our_policies);
    join_again(lab)?;
    gone?;
    report.check(held > 0, "the node that was cut off went on");
    note("it is back, and its agent is ended");
    overlay.wait_ended()?;
    let agent = lab.share(&product::programs()?.join("ucp-secureoverlay-agent"))?;
    let said = lab.exec_ok(&cut.name, &[&agent, "cleanup"])?;
    note(format!("{}: {}", cut.name, said.trim()));
    let (states, policies) = xfrm::ours_in(&xfrm::dump(lab)?);
    Ok(states + policies)
}
