//! The whole story in a few minutes, for a first-time reader.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::interface::metric;
use crate::lab::{Lab, TUNNEL_MTU};
use crate::scenario::Report;
use crate::scenarios::cluster::until;
use crate::scenarios::overlay::{Manifest, NAMESPACE, Overlay, PATIENCE};
use crate::scenarios::probe::Probe;
use crate::scenarios::processes::{AGENT, MANAGER, signal_everywhere};
use crate::scenarios::rotate_timed::Leftovers;
use crate::scenarios::wire::{self, Watched};
use crate::scenarios::{enforcing, manager, metrics, ring, rotate_timed, xfrm};
use crate::{cache, clean, pcap};

mod readable;
mod table;

use table::{Row, Table};

const PODS: &str = include_str!("pods.yaml");
const REQUEST: &str = "GET /secret-recipe";
const ANSWER: &str = "two spoons of cardamom";
/// How long one looks at the wire in a step where nothing else takes time.
const LOOK: Duration = Duration::from_secs(5);

/// Tells the story on standard output, on a lab that runs, with the images loaded. Returns whether all was as told.
pub fn run(lab: &Lab) -> Result<bool> {
    let mut report = Report::default();
    clean::clean(lab)?;
    let pcap = cache::directory()?.join("demo.pcap");
    let mut story = Story::begin(lab, &pcap)?;
    let outcome = story.tell(&mut report);
    lab.kubectl(&["-n", "default", "delete", "pod", "kitchen", "guest", "--wait=false"])?;
    println!("\n{}", story.table);
    println!("All of these packets: {}", pcap.display());
    if let Err(error) = outcome {
        report.check(false, format!("the story ended early: {error:#}"));
    }
    match report.failed() {
        [] => println!("demo: ok"),
        failed => println!("demo: FAILED\n  {}", failed.join("\n  ")),
    }
    Ok(report.ok())
}

struct Story<'a> {
    lab: &'a Lab,
    overlay: Overlay<'a>,
    probe: Probe,
    kitchen: String,
    table: Table,
    pcap: File,
}

fn say(text: &str) {
    println!("{text}");
}

fn chapter(number: u8, title: &str) {
    println!("\n── {number}. {title}");
}

impl<'a> Story<'a> {
    fn begin(lab: &'a Lab, pcap: &Path) -> Result<Self> {
        let pcap = File::create(pcap).with_context(|| format!("creating {}", pcap.display()))?;
        let overlay = Overlay::new(lab, Manifest::Ours);
        let [first, .., last] = lab.nodes() else { anyhow::bail!("the story needs two nodes") };
        lab.apply(&PODS.replace("NODE_A", &first.name).replace("NODE_B", &last.name))?;
        let probe = Probe::deploy(lab)?;
        lab.kubectl(&[
            "-n",
            "default",
            "wait",
            "--for=condition=Ready",
            "pod/kitchen",
            "pod/guest",
            "--timeout=90s",
        ])?;
        let kitchen =
            lab.kubectl(&["-n", "default", "get", "pod", "kitchen", "-o", "jsonpath={.status.podIP}"])?;
        say(&format!(
            "A cluster of {} nodes, each with its own Linux kernel. Pods talk through IP-in-IP tunnels, as Calico sets \
             them up.\nPod `kitchen` on {} serves http://{kitchen}:8080/secret-recipe; pod `guest` on {} asks for it.\n\
             Meanwhile a prober on each node sends numbered packets to all others, to count what gets lost.",
            lab.nodes().len(),
            first.name,
            last.name
        ));
        Ok(Self { lab, overlay, probe, kitchen, table: Table::default(), pcap })
    }

    fn tell(&mut self, report: &mut Report) -> Result<()> {
        self.in_the_clear(report)?;
        self.switch_on(report)?;
        self.mend_mtu(report)?;
        self.encrypted(report)?;
        self.enforce(report)?;
        self.rotate(report)?;
        self.kill(report)?;
        self.apply_again(report)?;
        self.switch_off(report)
    }

    /// The guest asks for the recipe.
    fn ask(&self) -> Result<String> {
        let url = format!("http://{}:8080/secret-recipe", self.kitchen);
        self.lab
            .kubectl(&[
                "-n",
                "default",
                "exec",
                "guest",
                "--",
                "/bin/busybox",
                "wget",
                "-T",
                "10",
                "-qO-",
                &url,
            ])
            .map(|answer| answer.trim().to_owned())
    }

    /// Lets `event` happen under probes and capture, asks for the recipe, and notes the figures.
    fn step(
        &mut self,
        name: &str,
        report: &mut Report,
        event: impl FnOnce() -> Result<()>,
    ) -> Result<Watched> {
        let mut answer = String::new();
        let watched = wire::watch(&self.probe, name, || {
            event()?;
            answer = self.ask()?;
            Ok(())
        })?;
        watched.check_delivered(report);
        self.keep(&watched)?;
        report.check(answer == ANSWER, format!("{name}: the kitchen answers {answer:?}"));
        self.table.0.push(Row {
            step: name.to_owned(),
            sent: watched.probes.sent,
            lost: watched.probes.lost,
            clear: watched.wire.ipip,
            esp: watched.wire.esp,
        });
        Ok(watched)
    }

    /// Adds the step's packets to the file of the whole story: one header, then the records of all steps.
    fn keep(&mut self, watched: &Watched) -> Result<()> {
        let bytes = fs::read(&watched.captured.path).context("reading the capture")?;
        let from = if self.table.0.is_empty() { 0 } else { pcap::HEADER };
        self.pcap.write_all(bytes.get(from..).unwrap_or_default()).context("keeping the capture")
    }

    /// A step during which everything is encrypted from beginning to end.
    fn encrypted_step(
        &mut self,
        name: &str,
        report: &mut Report,
        event: impl FnOnce() -> Result<()>,
    ) -> Result<Watched> {
        let watched = self.step(name, report, event)?;
        watched.check_encrypted(report);
        let found = readable::search(&watched.captured.packets, REQUEST);
        report.check(found.is_empty(), format!("{name}: {} captured packets show the request", found.len()));
        Ok(watched)
    }

    fn in_the_clear(&mut self, report: &mut Report) -> Result<()> {
        chapter(1, "Without SecureOverlay");
        let watched = self.step("without encryption", report, look)?;
        self.show_readable(&watched, report)
    }

    fn show_readable(&self, watched: &Watched, report: &mut Report) -> Result<()> {
        let found = readable::search(&watched.captured.packets, REQUEST);
        report.check(!found.is_empty(), "the request is readable on the wire");
        if let Some(packet) = found.first() {
            say(&format!(
                "On the wire, {} → {}, protocol {} (IP-in-IP), anyone can read:\n\n    {}\n\n\
                 and the answer: {ANSWER:?}.",
                packet.from, packet.to, packet.protocol, packet.line
            ));
        }
        Ok(())
    }

    fn switch_on(&mut self, report: &mut Report) -> Result<()> {
        chapter(2, "kubectl apply -f manifests/ucp-secureoverlay.yaml");
        let overlay = self.overlay;
        let watched = self.step("kubectl apply", report, || overlay.enable())?;
        say(&format!(
            "The manager made the first keys, the agents programmed them into the nodes' kernels: each pair of nodes \
             proved its keys with a ping before traffic took them. Lost on the way: {} of {} probes.",
            watched.probes.lost, watched.probes.sent
        ));
        Ok(())
    }

    fn mend_mtu(&mut self, report: &mut Report) -> Result<()> {
        chapter(3, "The tunnel's MTU");
        let (agent, node) = self.overlay.agents()?.pop().context("there is no agent")?;
        let advice = "is too large: at most ";
        let mut finding = String::new();
        until("the agent to name the MTU", PATIENCE, || {
            let log = self.lab.kubectl(&["-n", NAMESPACE, "logs", &agent])?;
            let named = |line: &&str| line.contains(&TUNNEL_MTU.to_string()) && line.contains(advice);
            finding = log.lines().find(named).unwrap_or_default().to_owned();
            Ok(!finding.is_empty())
        })?;
        let limit = number_after(&finding, advice).context("the agent names no MTU")?;
        say(&format!("ESP needs room. The agent of {node} says:\n\n    {finding}\n"));
        self.lab.set_tunnel_mtu(limit)?;
        say(&format!(
            "With Calico the agent names the command for your installation. The lab has none, and does what its felix would: \
             tunl0 and the routes over it have an MTU of {limit} on every node now."
        ));
        let mut waiting: Vec<String> = self.lab.nodes().iter().map(|node| node.name.clone()).collect();
        until("the agents to see the mended MTU", PATIENCE, || {
            let mut still = Vec::new();
            for node in waiting.drain(..) {
                if metrics::of_agent(self.lab, &node, metric::MTU_VALID)? != Some(1.0) {
                    still.push(node);
                }
            }
            waiting = still;
            Ok(waiting.is_empty())
        })?;
        report.check(waiting.is_empty(), "all agents find the MTU right");
        Ok(())
    }

    fn encrypted(&mut self, report: &mut Report) -> Result<()> {
        chapter(4, "The same request, encrypted");
        let watched = self.encrypted_step("encrypted", report, look)?;
        say(&format!(
            "The kitchen answers as before. The wire had {} ESP packets, {} in the clear; \"{REQUEST}\" is in none of \
             them.",
            watched.wire.esp, watched.wire.ipip
        ));
        Ok(())
    }

    fn enforce(&mut self, report: &mut Report) -> Result<()> {
        chapter(5, "Every node enforces");
        let lab = self.lab;
        self.encrypted_step("nodes begin to enforce", report, || enforcing::wait(lab))?;
        say(&format!(
            "Every node has said that it sends and receives encrypted, and that nothing speaks against it. From here on its \
             kernel drops what comes or would leave in the clear, whatever crashes. kubectl get nodeencryptions:\n\n{}",
            manager::table(lab)?
        ));
        Ok(())
    }

    fn rotate(&mut self, report: &mut Report) -> Result<()> {
        chapter(6, "New keys, under traffic");
        let lab = self.lab;
        let before = rotate_timed::steady(lab)?;
        say("Keys rotate every 12 hours by default. The demo sets the date of the next rotation to now.");
        self.encrypted_step("rotation of the keys", report, || {
            ring::rotate_now(lab)?;
            rotate_timed::wait_rotated(lab, &before, Leftovers::Go).map(drop)
        })?;
        let after = rotate_timed::steady(lab)?;
        say("The number that names the keys a node sends with (SPI), before and after:\n");
        for (node, old) in before.spis() {
            say(&format!("    {node:8} {old}  →  {}", after.spis().get(node).unwrap_or(&"?")));
        }
        Ok(())
    }

    fn kill(&mut self, report: &mut Report) -> Result<()> {
        chapter(7, "kill -9");
        let (lab, overlay) = (self.lab, self.overlay);
        let kernels = xfrm::dump(lab)?;
        let mut killed = 0;
        self.encrypted_step("all agents, manager killed", report, || {
            killed = signal_everywhere(lab, AGENT, "-KILL")? + signal_everywhere(lab, MANAGER, "-KILL")?;
            look()?;
            overlay.wait_rolled_out()
        })?;
        let changes = xfrm::changes(&kernels, &xfrm::dump(lab)?);
        report.check(killed > lab.nodes().len(), format!("{killed} processes killed"));
        report
            .check(changes.is_empty(), format!("what was killed changed nothing in the kernels {changes:?}"));
        say(&format!(
            "{killed} processes killed: the kernels hold the keys, so traffic went on, encrypted. The new agents made {} \
             changes.",
            changes.len()
        ));
        Ok(())
    }

    fn apply_again(&mut self, report: &mut Report) -> Result<()> {
        chapter(8, "kubectl apply, once more");
        let overlay = self.overlay;
        let kernels = xfrm::dump(self.lab)?;
        let watched = self.encrypted_step("kubectl apply again", report, || {
            overlay.apply()?;
            look()?;
            overlay.wait_rolled_out()
        })?;
        let changes = xfrm::changes(&kernels, &xfrm::dump(self.lab)?);
        report.check(changes.is_empty(), format!("applying again changed the kernels {changes:?}"));
        say(&format!(
            "{} changes in the kernels, {} of {} probes lost.",
            changes.len(),
            watched.probes.lost,
            watched.probes.sent
        ));
        Ok(())
    }

    fn switch_off(&mut self, report: &mut Report) -> Result<()> {
        chapter(9, "kubectl delete -f manifests/ucp-secureoverlay.yaml");
        let overlay = self.overlay;
        let (mut states, mut policies) = (0, 0);
        self.step("kubectl delete", report, || {
            (states, policies) = overlay.disable()?;
            Ok(())
        })?;
        let watched = self.step("without encryption again", report, look)?;
        self.show_readable(&watched, report)?;
        report.check((states, policies) == (0, 0), format!("{states} states and {policies} policies left"));
        say("In no kernel is anything of SecureOverlay left.");
        Ok(())
    }
}

/// The first number after `word`.
fn number_after(text: &str, word: &str) -> Option<u32> {
    let rest = text.split_once(word)?.1.trim_start_matches(|c: char| !c.is_ascii_digit());
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn look() -> Result<()> {
    std::thread::sleep(LOOK);
    Ok(())
}
