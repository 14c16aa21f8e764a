//! `kubectl secureoverlay`, run against the cluster in good and in broken states: what it says, and how it ends.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::enforcing;
use super::leaks;
use super::overlay::{DEPLOYMENT, Manifest, NAMESPACE, Overlay, PATIENCE};
use super::probe::Probe;
use super::processes::{AGENT, signal};
use super::rotate_timed;
use crate::lab::Lab;
use crate::needles::Needles;
use crate::product::{self, PLUGIN};
use crate::progress::note;
use crate::scenario::{Profile, Report, Run, Scenario, Tier};

pub const SCENARIO: Scenario = Scenario {
    name: "operate",
    about: "the plugin of kubectl says what is wrong, and ends with its exit status, in good and in broken states",
    tier: Tier::Gate,
    estimate: 140,
    alone: false,
    run: Run::Cluster(run),
};

/// A user who has the operator's role and nothing else.
const USER: &str = "oscar";
const BINDING: &str = "secureoverlay-lab-oscar";
/// Between two looks.
const AGAIN: Duration = Duration::from_secs(1);
/// The exit status of usage errors.
const USAGE: i32 = 64;

/// The plugin, and what did not end as it should have.
struct Plugin<'l> {
    lab: &'l Lab,
    program: String,
    commands: u64,
    states: u64,
    mismatches: Vec<String>,
}

impl Plugin<'_> {
    /// Exit status, and what was printed.
    fn run(&mut self, line: &str) -> Result<(i32, String)> {
        self.commands += 1;
        let mut command = self.lab.inside_command(&self.program);
        let output = command.args(line.split_whitespace()).output().context("starting the plugin")?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned()))
    }

    fn state(&mut self, what: &str) {
        note(what);
        self.states += 1;
    }

    /// Runs it once.
    fn expect(&mut self, line: &str, code: i32, texts: &[&str]) -> Result<()> {
        let (found, said) = self.run(line)?;
        self.compare(line, (found, &said), code, texts);
        Ok(())
    }

    /// Runs it until it ends so: the cluster takes its time.
    fn until(&mut self, line: &str, code: i32, texts: &[&str]) -> Result<()> {
        let begun = Instant::now();
        loop {
            let (found, said) = self.run(line)?;
            let matches = found == code && texts.iter().all(|text| said.contains(text));
            if matches || begun.elapsed() > PATIENCE {
                self.compare(line, (found, &said), code, texts);
                return Ok(());
            }
            std::thread::sleep(AGAIN);
        }
    }

    fn compare(&mut self, line: &str, (found, said): (i32, &str), code: i32, texts: &[&str]) {
        let missing: Vec<_> = texts.iter().filter(|text| !said.contains(**text)).collect();
        let escapes = said.contains('\u{1b}');
        note(format!("kubectl secureoverlay {line}: {found}\n{said}"));
        if found != code || !missing.is_empty() || escapes {
            self.mismatches.push(format!("`{line}` ended with {found}, not {code}; missing: {missing:?}"));
        }
    }
}

fn run(lab: &Lab, report: &mut Report, _: Profile) -> Result<()> {
    // Pods on every node, as coverage needs them.
    let _probe = Probe::deploy(lab)?;
    // An installation of its own: agents report for minutes what other scenarios did to them.
    let overlay = Overlay::new(lab, Manifest::Ours);
    enforcing::enable(&overlay)?;
    let program = product::programs()?.join(PLUGIN);
    let program = program.to_str().context("the build directory's path is not text")?.to_owned();
    let mut plugin = Plugin { lab, program, commands: 0, states: 0, mismatches: Vec::new() };
    let done = states(&mut plugin, report);
    // Whatever happened, the next scenario finds nothing of this.
    for kind in ["clusterrolebinding", "rolebinding"] {
        lab.kubectl(&["-n", NAMESPACE, "delete", kind, BINDING, "--ignore-not-found"])?;
    }
    done?;
    enforcing::wait(lab)?;
    report.figure("commands", plugin.commands);
    report.figure("states", plugin.states);
    report.expect("mismatches", plugin.mismatches.len() as u64, 0);
    for mismatch in plugin.mismatches {
        report.check(false, mismatch);
    }
    overlay.disable_and_check(report)
}

fn states(plugin: &mut Plugin<'_>, report: &mut Report) -> Result<()> {
    let lab = plugin.lab;
    let (node, _) = enforcing::one_and_others(lab)?;
    let node = node.name.as_str();
    let nodes = lab.nodes().len();

    plugin.state("a good cluster");
    plugin.expect(
        "rotate --wait --timeout 100s",
        0,
        &["keyrotation.secureoverlay.io/rotate-", "is in use"],
    )?;
    let good = format!("ENCRYPTED: all {nodes} nodes encrypt to each other and refuse plaintext");
    plugin.until(
        "status",
        0,
        &[&good, "Enforcement enforcing (wanted: Auto)", "Manager     1 of 1 Ready"],
    )?;
    plugin.expect("status -o json", 0, &["\"verdict\": \"Encrypted\"", "\"exitCode\": 0"])?;
    plugin.expect("nodes", 0, &[node, "Enforcing"])?;
    plugin.expect("enforcement get", 0, &["wanted    Auto", "is        enforcing"])?;
    plugin.expect(
        "version",
        0,
        &[&format!("client    {}", product::VERSION), &format!("agents    {}", product::VERSION)],
    )?;
    plugin.expect("uninstall --check", 0, &[&format!("the agents of all {nodes} nodes are Ready")])?;
    plugin.expect("history", 0, &["rotate-", "Request", "Complete"])?;
    bundle(plugin, report)?;

    let inside = ["-n", NAMESPACE, "exec", DEPLOYMENT, "--", "/kubectl-secureoverlay", "status"];
    let same = lab.kubectl(&inside).is_ok_and(|said| said.starts_with(&good));
    report.check(same, "the one in the manager's image says the same, with the manager's rights");

    plugin.state("wrong command lines");
    for line in ["", "stat", "rotate --timeout 5s", "enforcement set on", "exclude node1", "uninstall"] {
        plugin.expect(line, USAGE, &["--help"])?;
    }
    plugin.expect("include node-that-is-not", 2, &["there is no Node \"node-that-is-not\""])?;
    plugin.expect("status --context other", 2, &["error: failed to use the kubeconfig"])?;

    plugin.state("an operator who may not list Pods");
    lab.kubectl(&[
        "create",
        "clusterrolebinding",
        BINDING,
        "--clusterrole=secureoverlay-operator",
        &format!("--user={USER}"),
    ])?;
    plugin.until(
        "status --as oscar",
        2,
        &["COULD NOT TELL: you may not list pods in kube-system", "Agents      could not tell"],
    )?;
    plugin.expect(
        &format!("exclude {node} --reason x --as oscar"),
        2,
        &["error: you may not patch nodes"],
    )?;
    plugin.expect("rotate --wait --timeout 100s --as oscar", 0, &["is in use"])?;
    plugin.state("the same with `view` in kube-system");
    let view = ["create", "rolebinding", BINDING, "--clusterrole=view"];
    lab.kubectl(&[&["-n", NAMESPACE][..], &view, &[&format!("--user={USER}")]].concat())?;
    plugin.until("status --as oscar", 0, &[&good])?;

    plugin.state("plaintext is accepted, as asked");
    plugin.expect("enforcement set permissive", 0, &["enforcement: Permissive"])?;
    plugin.until("enforcement get", 0, &["wanted    Permissive", "is        permissive"])?;
    plugin.until("status", 0, &["plaintext is accepted, as asked"])?;
    plugin.expect("enforcement set auto", 0, &["enforcement: Auto"])?;
    plugin.until("status", 0, &[&good])?;

    plugin.state("an excluded node");
    plugin.expect(&format!("exclude {node} --reason broken"), 0, &["is excluded"])?;
    let excluded = format!("{node}: excluded (broken): its pod traffic is in the clear");
    plugin.expect(
        "status",
        1,
        &["NOT ALL ENCRYPTED", &excluded, &format!("kubectl secureoverlay include {node}")],
    )?;
    plugin.expect("nodes --problems", 1, &[node, "Excluded"])?;
    plugin.expect(&format!("include {node}"), 0, &["takes part again"])?;
    plugin.until("status", 0, &[&good])?;

    plugin.state("no manager");
    lab.kubectl(&["-n", NAMESPACE, "scale", DEPLOYMENT, "--replicas=0"])?;
    plugin.until(
        "status",
        2,
        &["COULD NOT TELL: the manager is not Ready", "what it reported may be old"],
    )?;
    lab.kubectl(&["-n", NAMESPACE, "scale", DEPLOYMENT, "--replicas=1"])?;
    plugin.until("status", 0, &[&good])?;

    plugin.state("a stopped agent");
    ensure!(signal(lab, node, AGENT, "-STOP")? == 1, "no agent to be stopped on {node}");
    let stopped = stopped(plugin, node);
    signal(lab, node, AGENT, "-CONT")?;
    stopped?;
    plugin.state("and all is good again");
    plugin.until("status", 0, &[&good])?;
    rotate_timed::wait_steady(lab)
}

/// With the agent of a node stopped: a minute at most, or the kubelet starts another one.
fn stopped(plugin: &mut Plugin<'_>, node: &str) -> Result<()> {
    plugin.expect(
        "rotate --wait --timeout 8s",
        3,
        &[&format!("waiting for {node}"), "timed out: the rotation goes on"],
    )?;
    plugin.until("status", 2, &[&format!("COULD NOT TELL: {node}: its agent is not Ready")])?;
    plugin.expect("nodes --problems", 2, &["AgentNotReady"])?;
    plugin.expect(
        "uninstall --check",
        1,
        &["A deletion would strand 1 of", "its agent is not Ready", "it enforces"],
    )
}

/// What is written for those who help holds no key.
fn bundle(plugin: &mut Plugin<'_>, report: &mut Report) -> Result<()> {
    let directory = tempfile::tempdir().context("making a directory")?;
    let file = directory.path().join("bundle.tar");
    plugin.expect(&format!("support-bundle --file {}", file.display()), 0, &["is written"])?;
    let bundle = fs::read(&file).context("reading the bundle")?;
    let mut needles = Needles::default();
    leaks::gather(plugin.lab, &mut needles)?;
    let found = needles.find(&bundle);
    let names = ["nodeencryptions.json", "encryptionpeers.json", "logs/ucp-secureoverlay-mgr", "status.txt"];
    let complete =
        names.iter().all(|name| bundle.windows(name.len()).any(|window| window == name.as_bytes()));
    report.check(
        complete && needles.secrets() > 0,
        "the bundle has objects and logs, and there are keys to look for",
    );
    report.figure("bundle_bytes", bundle.len());
    report.expect("bundle_keys", found.len() as u64, 0);
    Ok(())
}
