//! What the nodes' kernels hold, as `ip xfrm` shows it: what is ours, what it sends with, and whether it changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use anyhow::Result;
use secureoverlay_keyring::secret::SecretBytes;

use crate::lab::Lab;
use crate::state::Node;

/// SecureOverlay's reqid, on its states and on the templates of its policies.
const REQID: &str = "0x5ec00e5b";
/// Priorities that mark its policies without template.
const PRIORITIES: [&str; 2] = ["priority 1589643792 ", "priority 1589644048 "];

/// One kernel's states and policies, without counters. Two are equal if nothing was changed or made anew between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// Ours and others', each as one line.
    pub states: BTreeSet<String>,
    /// Ours and others', each as one line.
    pub policies: BTreeSet<String>,
}

/// The kernels of all nodes, by node.
pub fn dump(lab: &Lab) -> Result<BTreeMap<String, Kernel>> {
    let kernels = lab.on_all_nodes(|node| {
        let states = node.exec_ok(&["ip", "-s", "xfrm", "state"])?;
        let policies = node.exec_ok(&["ip", "-s", "xfrm", "policy", "list", "nosock"])?;
        Ok((node.name.clone(), parse(&states, &policies)))
    })?;
    Ok(kernels.into_iter().collect())
}

/// What `ip -s xfrm state` and `ip -s xfrm policy` printed.
pub fn parse(states: &str, policies: &str) -> Kernel {
    Kernel { states: entries(states), policies: entries(policies) }
}

impl Kernel {
    /// Number of states of ours.
    pub fn our_states(&self) -> usize {
        self.states.iter().filter(|entry| ours(entry)).count()
    }

    /// Number of policies of ours.
    pub fn our_policies(&self) -> usize {
        self.policies.iter().filter(|entry| ours(entry)).count()
    }

    /// What is not ours.
    pub fn foreign(&self) -> Self {
        let foreign = |entries: &BTreeSet<String>| entries.iter().filter(|it| !ours(it)).cloned().collect();
        Self { states: foreign(&self.states), policies: foreign(&self.policies) }
    }

    /// What does not concern this address.
    pub fn without(&self, ip: Ipv4Addr) -> Self {
        let named = [format!(" {ip} "), format!(" {ip}/32 ")];
        let others = |entries: &BTreeSet<String>| {
            entries.iter().filter(|entry| !named.iter().any(|name| entry.contains(name))).cloned().collect()
        };
        Self { states: others(&self.states), policies: others(&self.policies) }
    }

    /// Our states that lead away from a node with these addresses: key, hashed, and when it was added.
    pub fn outbound(&self, own: &[Ipv4Addr]) -> Vec<(String, String)> {
        let to_us = |entry: &str| own.iter().any(|ip| entry.contains(&format!(" dst {ip} ")));
        let away = self
            .states
            .iter()
            .filter(|entry| ours(entry) && !to_us(entry.split(" sel ").next().unwrap_or("")));
        let added = |entry: &String| entry.split_once(" added ").map(|(_, time)| time.to_owned());
        away.filter_map(|entry| Some((after(entry, " key #")?, added(entry)?))).collect()
    }

    /// The key, hashed, of the state from one address to another with this SPI.
    pub fn key_of(&self, src: Ipv4Addr, dst: Ipv4Addr, spi: &str) -> Option<String> {
        let named = format!(" spi {spi}(");
        after(self.between(src, dst).find(|entry| entry.contains(&named))?, " key ")
    }

    /// The keys of our states from one address to another, hashed.
    pub fn keys_between(&self, src: Ipv4Addr, dst: Ipv4Addr) -> BTreeSet<String> {
        self.between(src, dst).filter_map(|entry| after(entry, " key ")).collect()
    }

    /// The SPIs of our states from one address to another, as `0x…`.
    pub fn spis_between(&self, src: Ipv4Addr, dst: Ipv4Addr) -> BTreeSet<String> {
        let spi = |entry: &String| Some(after(entry, " spi ")?.split('(').next()?.to_owned());
        self.between(src, dst).filter_map(spi).collect()
    }

    /// Plaintext is refused: what comes from so many peers must be ESP, and all else of protocol 4 is blocked.
    pub fn enforces(&self, peers: usize) -> bool {
        let inbound = || self.policies.iter().filter(|entry| ours(entry) && entry.contains(" dir in "));
        inbound().any(|entry| entry.contains(" action block "))
            && inbound().filter(|entry| entry.contains(" tmpl ") && !entry.contains(" dport ")).count()
                >= peers
    }

    fn between(&self, src: Ipv4Addr, dst: Ipv4Addr) -> impl Iterator<Item = &String> {
        let pair = format!("src {src} dst {dst} ");
        self.states.iter().filter(move |entry| ours(entry) && entry.starts_with(&pair))
    }

    /// Number of our policies that drop plaintext from and to anywhere.
    pub fn blocks(&self) -> usize {
        self.policies.iter().filter(|entry| ours(entry) && entry.contains(" action block ")).count()
    }

    /// The SPI, as `0x…`, with which protocol 4 goes to an address.
    pub fn sends_to(&self, dst: Ipv4Addr) -> Option<String> {
        self.sends_with().get(&format!("{dst}/32"))?.split('(').next().map(str::to_owned)
    }

    /// The SPIs of all our states.
    pub fn spis(&self) -> BTreeSet<String> {
        let spi = |entry: &String| Some(after(entry, " spi ")?.split('(').next()?.to_owned());
        self.states.iter().filter(|entry| ours(entry)).filter_map(spi).collect()
    }

    /// The SPI sent with, by peer; policies for a port are the agents' probes.
    pub fn sends_with(&self) -> BTreeMap<String, String> {
        self.policies
            .iter()
            .filter(|entry| ours(entry) && entry.contains(" dir out ") && !entry.contains(" dport "))
            .filter_map(|entry| Some((after(entry, " dst ")?, after(entry, " spi ")?)))
            .collect()
    }
}

/// Whether a node has a policy to send ESP to each of these, but for itself.
pub fn sends_to_all(kernels: &BTreeMap<String, Kernel>, node: &Node, all: &[Node]) -> bool {
    let others = || all.iter().filter(|other| other.name != node.name);
    kernels.get(&node.name).is_some_and(|kernel| others().all(|other| kernel.sends_to(other.ip).is_some()))
}

/// States and policies of ours in all kernels together.
pub fn ours_in(kernels: &BTreeMap<String, Kernel>) -> (usize, usize) {
    (kernels.values().map(Kernel::our_states).sum(), kernels.values().map(Kernel::our_policies).sum())
}

/// What differs, a line each, without keys.
pub fn changes(before: &BTreeMap<String, Kernel>, now: &BTreeMap<String, Kernel>) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, old) in before {
        let gone = Kernel::default();
        let new = now.get(name).unwrap_or(&gone);
        for (old, new) in [(&old.states, &new.states), (&old.policies, &new.policies)] {
            lines.extend(old.difference(new).map(|entry| format!("{name} lost {entry}")));
            lines.extend(new.difference(old).map(|entry| format!("{name} got {entry}")));
        }
    }
    lines
}

fn ours(entry: &str) -> bool {
    entry.contains(REQID) || PRIORITIES.iter().any(|priority| entry.contains(priority))
}

fn after(entry: &str, word: &str) -> Option<String> {
    entry.split_once(word)?.1.split_whitespace().next().map(str::to_owned)
}

/// A key of `ip xfrm` as the agents' journals name it.
fn fingerprint(key: &str) -> String {
    let digits = key.strip_prefix("0x").unwrap_or(key).as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Vec<u8> = digits.chunks(2).filter_map(byte).collect();
    format!("{:016x}", SecretBytes::copy_from(&bytes).fingerprint())
}

/// One line for each entry of `ip -s xfrm …`: what it is and when it was added; keys hashed, counters left out.
fn entries(dump: &str) -> BTreeSet<String> {
    let mut entries: Vec<String> = Vec::new();
    let mut counting = false;
    for line in dump.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match (words.as_slice(), entries.last_mut()) {
            (["src", ..], _) if line.starts_with("src ") => {
                entries.push(words.join(" "));
                counting = false;
            }
            (["add", day, time, ..], Some(entry)) => *entry += &format!(" added {day} {time}"),
            (["aead" | "auth" | "auth-trunc" | "enc", name, key, rest @ ..], Some(entry)) => {
                *entry += &format!(" {name} key #{} {}", fingerprint(key), rest.join(" "));
            }
            (["lifetime" | "anti-replay" | "stats:" | "lastused", ..], _) => counting = true,
            (["tmpl" | "sel" | "proto" | "dir" | "mark" | "if_id" | "encap", ..], Some(entry)) => {
                counting = false;
                *entry += &format!(" {} ", words.join(" "));
            }
            (["replay-window", ..], Some(entry)) if !counting => *entry += &format!(" {}", words.join(" ")),
            _ => {}
        }
    }
    entries.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &str = "\
src 10.96.64.2 dst 10.96.64.1
\tproto esp spi 0x1f2e3d4c(523124044) reqid 1589644891(0x5ec00e5b) mode transport
\treplay-window 0 seq 0x00000000 flag esn (0x10000000)
\taead rfc4106(gcm(aes)) 0x000102030405060708090a0b0c0d0e0f10111213 (160 bits) 64
\tanti-replay esn context:
\t seq-hi 0x0, seq 0x7, oseq-hi 0x0, oseq 0x0
\tsel src 10.96.64.2/32 dst 10.96.64.1/32 uid 0
\tlifetime config:
\t  limit: soft (INF)(bytes), hard (INF)(bytes)
\tlifetime current:
\t  7000(bytes), 7(packets)
\t  add 2026-11-20 20:30:01 use 2026-11-20 20:30:09
\tstats:
\t  replay-window 0 replay 0 failed 0
src 10.96.64.1 dst 10.96.64.3
\tproto esp spi 0x00000101(257) reqid 7(0x00000007) mode tunnel
";
    const POLICY: &str = "\
src 10.96.64.1/32 dst 10.96.64.2/32 proto 4 uid 0
\tdir out action allow index 9 priority 24256 share any flag  (0x00000000)
\tlifetime config:
\t  limit: soft (INF)(bytes), hard (INF)(bytes)
\tlifetime current:
\t  0(bytes), 0(packets)
\t  add 2026-11-20 20:30:01 use -
\ttmpl src 0.0.0.0 dst 0.0.0.0
\t\tproto esp spi 0x1f2e3d4c(523124044) reqid 1589644891(0x5ec00e5b) mode transport
\t\tlevel required share any
src 10.96.64.1/32 dst 10.96.64.3/32 proto udp sport 9468 dport 9468 uid 0
\tdir out action allow index 17 priority 24256 share any flag  (0x00000000)
\ttmpl src 0.0.0.0 dst 0.0.0.0
\t\tproto esp spi 0x1f2e3d4c(523124044) reqid 1589644891(0x5ec00e5b) mode transport
src 0.0.0.0/0 dst 0.0.0.0/0 proto 4 uid 0
\tdir in action block index 16 priority 1589644048 share any flag  (0x00000000)
";

    #[test]
    fn ours_are_told_from_others() {
        let kernel = Kernel { states: entries(STATE), policies: entries(POLICY) };
        assert_eq!((kernel.states.len(), kernel.our_states()), (2, 1));
        assert_eq!((kernel.policies.len(), kernel.our_policies()), (3, 3));
        assert_eq!(
            kernel.sends_with(),
            BTreeMap::from([("10.96.64.2/32".to_owned(), "0x1f2e3d4c(523124044)".to_owned())])
        );
        let foreign = kernel.foreign();
        assert_eq!((foreign.states.len(), foreign.policies.len()), (1, 0));
    }

    #[test]
    fn a_kernel_insists_with_blocks_and_a_policy_for_each_peer() {
        let required = POLICY.replace(" dir out ", " dir in ").replace("\tdir out ", "\tdir in ");
        let of = |policies: &str| Kernel { states: BTreeSet::new(), policies: entries(policies) };
        assert!(of(&required).enforces(1));
        assert!(!of(&required).enforces(2), "a peer is missing");
        assert!(!of(POLICY).enforces(1), "nothing is required of the peer");
        assert!(!of(&required.replace("action block", "action allow")).enforces(1), "nothing is blocked");
    }

    #[test]
    fn pairs_are_told_apart() {
        let kernel = Kernel { states: entries(STATE), policies: entries(POLICY) };
        let (one, two, three) = ([10, 96, 64, 1].into(), [10, 96, 64, 2].into(), [10, 96, 64, 3].into());
        assert_eq!(kernel.keys_between(two, one).len(), 1);
        assert!(kernel.keys_between(one, two).is_empty());
        let (with_two, with_three) = (kernel.without(two), kernel.without(three));
        assert_eq!((with_two.states.len(), with_two.policies.len()), (1, 2));
        assert_eq!((with_three.states.len(), with_three.policies.len()), (1, 2));
    }

    #[test]
    fn outbound_keys_are_named_as_in_a_journal() {
        let kernel = Kernel { states: entries(STATE), policies: entries(POLICY) };
        let key: Vec<u8> = (0..20).collect();
        let named = format!("{:016x}", SecretBytes::copy_from(&key).fingerprint());
        let expected = [(named.clone(), "2026-11-20 20:30:01".to_owned())];
        assert_eq!(kernel.outbound(&[Ipv4Addr::new(10, 96, 64, 2)]), expected);
        assert!(kernel.outbound(&[Ipv4Addr::new(10, 96, 64, 1)]).is_empty(), "it leads here");
        let (one, two) = ([10, 96, 64, 1].into(), [10, 96, 64, 2].into());
        assert_eq!(kernel.key_of(two, one, "0x1f2e3d4c"), Some(format!("#{named}")));
        assert_eq!(kernel.key_of(two, one, "0x1f2e3d4"), None);
        assert_eq!(kernel.sends_to(two), Some("0x1f2e3d4c".to_owned()));
        assert_eq!(kernel.spis(), ["0x1f2e3d4c".to_owned()].into());
    }

    #[test]
    fn counters_are_no_change_and_everything_else_is() {
        let used = STATE
            .replace("7000(bytes), 7(", "9000(bytes), 9(")
            .replace("20:30:09", "20:31:00")
            .replace("seq 0x7", "seq 0x9");
        assert_eq!(entries(&used), entries(STATE));
        for (from, to) in [
            ("0f1011", "0f1012"),
            ("add 2026-11-20 20:30:01", "add 2026-11-20 20:30:02"),
            ("0x1f2e", "0x1f2f"),
            ("flag esn", "flag"),
        ] {
            assert_ne!(entries(&STATE.replace(from, to)), entries(STATE), "{from}");
        }
        assert_ne!(entries(&POLICY.replace("dir out", "dir in")), entries(POLICY));
        let shown = format!("{:?}", entries(STATE));
        assert!(!shown.contains("0001020304"), "{shown}");
    }

    #[test]
    fn changes_name_node_and_entry() {
        let kernel = Kernel { states: entries(STATE), policies: entries(POLICY) };
        let before = BTreeMap::from([("n1".to_owned(), kernel.clone())]);
        assert!(changes(&before, &before).is_empty());
        let now = BTreeMap::from([("n1".to_owned(), Kernel { states: BTreeSet::new(), ..kernel })]);
        let changes = changes(&before, &now);
        assert_eq!(changes.len(), 2);
        assert!(changes.iter().all(|line| line.starts_with("n1 lost src ")), "{changes:?}");
    }
}
