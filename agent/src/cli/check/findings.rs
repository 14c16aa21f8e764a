//! From what was seen to what to say about it.

use std::{collections::BTreeSet, io, net::SocketAddr};

use secureoverlay_agent_core::{
    kernel::OpErrorKind,
    xfrm::{Actual, Owner},
};
use secureoverlay_k8s::node::NodeFacts;
use secureoverlay_keyring::{
    inspection::{Readable, WireCounts},
    suite::Suite,
};

use super::{
    Place, Trial,
    report::{Item, Verdict},
};
use crate::network::{
    mtu::{self, Finding},
    mtu_setting::MtuSetting,
    surroundings::{Facts, Pods, Surroundings, overruling},
};

/// The kernel's name of RFC 4106's AEAD.
const CIPHER: &str = "rfc4106(gcm(aes))";

/// Whether the kernel can encrypt with `suite`.
pub fn suite(suite: Suite, trial: Trial) -> Item {
    match trial {
        Trial::Taken => {
            Item::new(Verdict::Ok, "kernel", format!("{suite}: an SA could be added and deleted"))
        }
        Trial::Refused(error) if error.kind == OpErrorKind::NotPermitted => {
            Item::new(Verdict::Unknown, "kernel", error)
        }
        Trial::Refused(error) => Item::new(Verdict::Fail, "kernel", format!("{suite}: {error}")),
        Trial::Left(error) => Item::new(
            Verdict::Warn,
            "kernel",
            format!("{suite}: the trial SA is left, and the agent takes it away after ten minutes: {error}"),
        ),
        Trial::Untried(why) => Item::new(Verdict::Unknown, "kernel", format!("{suite}: not tried: {why}")),
    }
}

/// The kernel's own test of the cipher's implementation that it prefers, from `/proc/crypto`.
pub fn cipher(ciphers: io::Result<String>) -> Item {
    let ciphers = match ciphers {
        Ok(ciphers) => ciphers,
        Err(error) => return Item::new(Verdict::Unknown, "cipher", format!("reading /proc/crypto: {error}")),
    };
    let field = |block: &str, name: &str| {
        let mut fields = block.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
    };
    let priority =
        |block: &&str| field(block, "priority").and_then(|text| text.parse::<i64>().ok()).unwrap_or_default();
    let ours = ciphers.split("\n\n").filter(|block| field(block, "name").as_deref() == Some(CIPHER));
    let Some(block) = ours.max_by_key(priority) else {
        return Item::new(Verdict::Unknown, "cipher", format!("{CIPHER} is not in /proc/crypto"));
    };
    let driver = field(block, "driver").unwrap_or_default();
    match field(block, "selftest").as_deref() {
        Some("passed") => {
            Item::new(Verdict::Ok, "cipher", format!("{CIPHER} by {driver} passed the kernel's self-test"))
        }
        other => {
            let state = other.unwrap_or("unknown");
            let text = format!(
                "the kernel's self-test of {CIPHER} by {driver} is {state}: use a kernel whose module passes it"
            );
            Item::new(Verdict::Fail, "cipher", text)
        }
    }
}

/// Whether the API is in reach.
pub fn api(nodes: &Result<Vec<NodeFacts>, String>) -> Item {
    match nodes {
        Ok(nodes) => Item::new(Verdict::Ok, "api", format!("{} Nodes were listed", nodes.len())),
        Err(error) => {
            let text = format!("the Nodes can't be listed ({error}): going on with what the kernel shows");
            Item::new(Verdict::Unknown, "api", text)
        }
    }
}

/// Which node this is.
pub fn place(place: Option<&Place>) -> Item {
    let Some(place) = place else {
        let text = "which node this is, and who its peers are, is not known: neither a Node with an address of this \
                    host's nor an SA of ours was found. Set NODE_NAME";
        return Item::new(Verdict::Unknown, "node", text);
    };
    let peers = place.peers.len();
    match (place.local, place.name.as_str()) {
        (None, name) => {
            let text = format!("Node {name} has no IPv4 address: no node can encrypt to it");
            Item::new(Verdict::Fail, "node", text)
        }
        (Some(local), name) if place.excluded => {
            let text = format!("{name} ({local}) is excluded from encryption by its label, or is not Linux");
            Item::new(Verdict::Warn, "node", text)
        }
        (Some(local), "") => {
            Item::new(Verdict::Ok, "node", format!("{local} with {peers} peers, by the SAs in the kernel"))
        }
        (Some(local), name) => Item::new(Verdict::Ok, "node", format!("{name} ({local}) with {peers} peers")),
    }
}

/// The tunnel's MTU under the suites in use; where none is, under all of them, of which only the default one has to fit.
/// What to do is said where it has to fit.
pub fn mtu(facts: &Facts, place: &Place, setting: &MtuSetting, actual: Option<&Actual>) -> Vec<Item> {
    let Some(local) = place.local else { return Vec::new() };
    let measured = mtu::Facts::new(facts, local, &place.neighbours());
    if measured.tunnels.is_empty() {
        let text = "no IPIP tunnel device is up, so nothing would be encrypted: has Calico ipipMode: Always?";
        return vec![Item::new(Verdict::Warn, "mtu", text)];
    }
    let states = actual.iter().flat_map(|actual| &actual.sas).filter(|sa| sa.owner == Owner::Ours);
    let used: BTreeSet<Suite> = states.filter_map(|sa| Some(sa.cipher.as_ref()?.0)).collect();
    let suites = if used.is_empty() { Suite::ALL.into() } else { used.clone() };
    let item = |suite: Suite| {
        let Some(finding) = Finding::with(&measured, suite) else {
            return Item::new(Verdict::Unknown, "mtu", format!("no interface that is up has {local}"));
        };
        let verdict = match finding.valid() {
            true => Verdict::Ok,
            false if used.contains(&suite) || suite == Suite::default() => Verdict::Fail,
            false => Verdict::Warn,
        };
        let finding = if verdict == Verdict::Fail { finding.advised(setting) } else { finding };
        Item::new(verdict, "mtu", finding)
    };
    suites.into_iter().map(item).collect()
}

/// What lets traffic past the policies.
pub fn surroundings(facts: &Facts, place: &Place) -> Vec<Item> {
    let seen = Surroundings::new(facts, place.local, &place.neighbours(), &Pods::Guessed);
    let known = !place.peers.is_empty() && place.local.is_some();
    let with_peers = |verdict, text: String| match known {
        true => Item::new(verdict, "", text),
        false => Item::new(Verdict::Unknown, "", "no peers are known"),
    };
    let sysctls = match &seen.unread {
        Some(error) => Item::new(Verdict::Unknown, "", error),
        None => {
            let text = "neither disable_xfrm nor disable_policy is set where the tunnel's packets pass";
            with_peers(Verdict::Ok, text.to_owned())
        }
    };
    let ways = match seen.coverage.covered {
        0 => {
            let text = "no route leads to a peer's pods: none are there yet, or Calico does not use IPIP";
            with_peers(Verdict::Warn, text.to_owned())
        }
        count => with_peers(Verdict::Ok, format!("{count} routes lead into the tunnel, and none around it")),
    };
    let local = place.local.map_or_else(String::new, |local| local.to_string());
    let text = format!("packets to {} of {} peers leave from {local}", facts.routes.len(), place.peers.len());
    let source =
        with_peers(if facts.routes.len() < place.peers.len() { Verdict::Warn } else { Verdict::Ok }, text);
    let uncovered = seen.uncovered().into_iter().map(|(_, text)| text).collect();
    [("sysctl", &seen.switches, sysctls), ("source", &seen.sources, source), ("coverage", &uncovered, ways)]
        .into_iter()
        .flat_map(|(what, failing, well)| all(what, failing, well))
        .collect()
}

/// Policies of others that come before ours.
pub fn policies(actual: &Actual, place: &Place) -> Vec<Item> {
    let pairs = place.pairs();
    let failing = overruling(&actual.policies, &pairs.iter().copied());
    let count = |owner| actual.policies.iter().filter(|policy| policy.owner == owner).count();
    let (ours, others) = (count(Owner::Ours), count(Owner::Foreign));
    let well = match pairs.is_empty() {
        true => Item::new(Verdict::Unknown, "policy", "no peers are known"),
        false => {
            let text =
                format!("{ours} policies are ours, {others} are not, and none of those comes before ours");
            Item::new(Verdict::Ok, "policy", text)
        }
    };
    all("policy", &failing, well)
}

/// A line for each fault, else the one that says that there is none.
fn all(what: &'static str, failing: &BTreeSet<String>, well: Item) -> Vec<Item> {
    if failing.is_empty() {
        return vec![Item { what, ..well }];
    }
    failing.iter().map(|text| Item::new(Verdict::Fail, what, text)).collect()
}

/// What passed on the wire.
pub fn capture(counts: &WireCounts) -> Item {
    let WireCounts { milliseconds, interfaces, esp, readable } = counts;
    let Readable { ipip, vxlan, gre, routed } = readable;
    let verdict = match (readable.total(), esp) {
        (0, 0) => Verdict::Unknown,
        (0, _) => Verdict::Ok,
        _ => Verdict::Warn,
    };
    let (seconds, interfaces) = (*milliseconds as f64 / 1000.0, interfaces.join(", "));
    let text = format!(
        "in {seconds:.1} s on {interfaces}: {esp} ESP packets, {} readable ones ({ipip} IPIP, {vxlan} VXLAN, {gre} GRE, \
         {routed} of pods in no tunnel)",
        readable.total()
    );
    Item::new(verdict, "capture", text)
}

/// What the running agent says.
pub fn agent(listen: SocketAddr, answer: io::Result<(u16, String)>) -> Item {
    match answer {
        Ok((200, text)) => Item::new(Verdict::Ok, "agent", format!("ready: {text}")),
        Ok((_, text)) => Item::new(Verdict::Warn, "agent", format!("not ready: {text}")),
        Err(error) => {
            let text =
                format!("no agent answers at {listen} ({error}): the kernel goes on with what it holds");
            Item::new(Verdict::Warn, "agent", text)
        }
    }
}

#[cfg(test)]
#[path = "findings_tests.rs"]
mod tests;
