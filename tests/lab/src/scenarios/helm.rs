//! The Helm chart through its life: installed, upgraded while a key rotates, rolled back, uninstalled, and taken over from
//! the plain manifest.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::cluster::{kubectl_with, until};
use super::enforcing::{self, Totals};
use super::overlay::{AGENTS, DEPLOYMENT, Manifest, NAMESPACE, Overlay, PATIENCE, manifest};
use super::probe::Probe;
use super::ring::Ring;
use super::rotate_timed::{self, Leftovers};
use super::{settings, xfrm};
use crate::cache::tools::Tool;
use crate::lab::Lab;
use crate::place::Place;
use crate::product::{NEXT_VERSION, VERSION};
use crate::run::output;
use crate::scenario::{Profile, Report, Run, Scenario, Tier};

const RELEASE: &str = "secureoverlay";
const DEFINITIONS: [&str; 4] = ["clusterencryptions", "encryptionpeers", "keyrotations", "nodeencryptions"];
const ROTATION: &str = r#"
apiVersion: secureoverlay.io/v1alpha1
kind: KeyRotation
metadata: {name: while-upgrading}
"#;

pub const SCENARIO: Scenario = Scenario {
    name: "helm",
    about: "the chart: install, upgrade while a key rotates, rollback, uninstall; and taking over the plain manifest",
    tier: Tier::Gate,
    estimate: 150,
    alone: false,
    run: Run::Cluster(run),
};

fn run(lab: &Lab, report: &mut Report, _: Profile) -> Result<()> {
    let helm = Helm::new(lab)?;
    let overlay = Overlay::new(lab, Manifest::Ours);
    let probe = Probe::deploy(lab)?;
    let mut totals = Totals::default();

    totals.event(report, &probe, "helm install", false, || {
        helm.run(&["install", RELEASE, CHART])?;
        settings::apply(lab)?;
        at_work(&overlay)
    })?;
    let definitions = uids(lab)?;
    upgrade_while_rotating(&helm, &overlay, report, &probe, &mut totals)?;
    roll_back(&helm, &overlay, report, &probe, &mut totals)?;
    report.check(uids(lab)? == definitions, "upgrade and rollback left the definitions in place");

    let mut left = uninstall(&helm, &overlay, report, &probe, &mut totals)?;
    report.check(uids(lab)? == definitions, "uninstalling left the definitions in place");
    report.check(Ring::read(lab)?.is_none(), "uninstalling removed the keys");
    let settings =
        lab.kubectl(&["get", settings::OBJECT, "-o", "jsonpath={.spec.rotation.minimumInterval}"])?;
    report.check(settings.trim() == "1s", format!("uninstalling left the settings: {settings:?}"));

    enforcing::enable(&overlay)?;
    let refused = helm.run(&["install", RELEASE, CHART]).err().map(|error| format!("{error:#}"));
    report.check(
        refused.as_ref().is_some_and(|error| error.contains("cannot be imported")),
        format!("an install without the flag takes nothing over: {refused:?}"),
    );
    let (kernels, ring) = (xfrm::dump(lab)?, Ring::read(lab)?);
    totals.event(report, &probe, "helm install --take-ownership over the plain manifest", true, || {
        // kubectl owns `fieldRef` with its default, which the chart leaves out: to Helm that is a conflict.
        helm.run(&["install", RELEASE, CHART, "--take-ownership", "--force-conflicts"])?;
        overlay.wait_rolled_out()
    })?;
    enforcing::check_unchanged(lab, report, "taken over", &kernels)?;
    report.check(Ring::read(lab)? == ring, "taking over wrote no ring");
    left += uninstall(&helm, &overlay, report, &probe, &mut totals)?;

    // Of the definitions, too: the next scenario finds nothing.
    overlay.delete()?;
    totals.tell(report);
    report.expect("left", left as u64, 0);
    Ok(())
}

fn upgrade_while_rotating(
    helm: &Helm<'_>,
    overlay: &Overlay<'_>,
    report: &mut Report,
    probe: &Probe,
    totals: &mut Totals,
) -> Result<()> {
    let lab = overlay.lab;
    let before = rotate_timed::steady(lab)?;
    totals.event(report, probe, "helm upgrade while a key rotates", true, || {
        kubectl_with(lab, &["create", "-f", "-"], ROTATION)?;
        until("the rotation to begin", PATIENCE, || {
            Ok(Ring::read(lab)?.is_some_and(|ring| !ring.is_steady()))
        })?;
        let tags = ["agent", "manager"].map(|program| format!("--set={program}.image.tag={NEXT_VERSION}"));
        helm.run(&["upgrade", RELEASE, CHART, &tags[0], &tags[1]])?;
        overlay.wait_rolled_out()?;
        // Agents that were replaced in between keep SAs until the generations that they found are gone.
        rotate_timed::wait_rotated(lab, &before, Leftovers::Stay)?;
        let complete = ["wait", "--for=condition=Complete", "--timeout=60s", "keyrotation/while-upgrading"];
        lab.kubectl(&complete).map(drop)
    })?;
    check_version(lab, report, NEXT_VERSION)?;
    enforcing::wait(lab)
}

fn roll_back(
    helm: &Helm<'_>,
    overlay: &Overlay<'_>,
    report: &mut Report,
    probe: &Probe,
    totals: &mut Totals,
) -> Result<()> {
    let lab = overlay.lab;
    rotate_timed::wait_steady(lab)?;
    let (kernels, ring) = (xfrm::dump(lab)?, Ring::read(lab)?.context("there is no ring")?);
    totals.event(report, probe, "helm rollback", true, || {
        helm.run(&["rollback", RELEASE, "1"])?;
        overlay.wait_rolled_out()
    })?;
    check_version(lab, report, VERSION)?;
    enforcing::check_unchanged(lab, report, "rolled back", &kernels)?;
    let now = Ring::read(lab)?.context("the rollback took the keys")?;
    report.check(now.uids() == ring.uids(), "a rollback leaves the keys alone");
    enforcing::wait(lab)
}

/// Returns how many states and policies are left.
fn uninstall(
    helm: &Helm<'_>,
    overlay: &Overlay<'_>,
    report: &mut Report,
    probe: &Probe,
    totals: &mut Totals,
) -> Result<usize> {
    let mut left = (0, 0);
    totals.event(report, probe, "helm uninstall", false, || {
        helm.run(&["uninstall", RELEASE])?;
        overlay.wait_ended()?;
        let clean = || {
            left = xfrm::ours_in(&xfrm::dump(overlay.lab)?);
            Ok(left == (0, 0))
        };
        // What is left is a figure.
        drop(until("the kernels to hold nothing of ours", PATIENCE / 6, clean));
        Ok(())
    })?;
    enforcing::check_off(report, probe)?;
    Ok(left.0 + left.1)
}

fn at_work(overlay: &Overlay<'_>) -> Result<()> {
    overlay.wait_encrypting()?;
    overlay.wait_rolled_out()?;
    rotate_timed::wait_steady(overlay.lab)?;
    enforcing::wait(overlay.lab)
}

fn check_version(lab: &Lab, report: &mut Report, version: &str) -> Result<()> {
    for what in [AGENTS, DEPLOYMENT] {
        let path = "jsonpath={.spec.template.spec.containers[0].image}";
        let image = lab.kubectl(&["-n", NAMESPACE, "get", what, "-o", path])?;
        report.check(image.ends_with(&format!(":{version}")), format!("{what} is of {version}: {image}"));
    }
    Ok(())
}

/// The definitions that are there: one that was deleted and made again has another UID, and has lost its objects.
fn uids(lab: &Lab) -> Result<BTreeMap<&'static str, String>> {
    let uid = |name: &'static str| {
        let definition = format!("crd/{name}.secureoverlay.io");
        let uid = lab.kubectl(&["get", &definition, "-o", "jsonpath={.metadata.uid}"])?;
        ensure!(!uid.is_empty(), "{definition} has no UID");
        Ok((name, uid))
    };
    DEFINITIONS.into_iter().map(uid).collect()
}

/// Where the chart is, to be replaced by its path.
const CHART: &str = "CHART";

struct Helm<'l> {
    lab: &'l Lab,
    program: PathBuf,
    home: PathBuf,
}

impl<'l> Helm<'l> {
    fn new(lab: &'l Lab) -> Result<Self> {
        let home = Place::here().directory().join("helm");
        fs::create_dir_all(&home).with_context(|| format!("creating {}", home.display()))?;
        Ok(Self { lab, program: Tool::Helm.get()?, home })
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let chart = manifest("helm/secureoverlay").display().to_string();
        let program = self.program.to_str().context("the cache's path is not text")?;
        let mut command = self.lab.inside_command(program);
        for kind in ["CACHE", "CONFIG", "DATA"] {
            command.env(format!("HELM_{kind}_HOME"), &self.home);
        }
        command.args(["--namespace", NAMESPACE]);
        command.args(arguments.iter().map(|it| if *it == CHART { chart.as_str() } else { it }));
        output(&mut command)
    }
}
