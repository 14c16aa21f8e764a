//! The kernel's tables: entries that others remove, change or leave, and a kernel without ESP.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Case, Field, SEEN};
use crate::capture::Capture;
use crate::product;
use crate::scenario::Report;
use crate::scenarios::chaos::clear_for;
use crate::scenarios::cluster::until;
use crate::scenarios::processes::{AGENT, signal};
use crate::scenarios::{metrics, reachable, wire, xfrm};
use crate::state::Node;

pub const FLUSHED: Case = Case::new(
    5,
    "both tables are flushed while nodes enforce",
    "less than 100 ms in the clear, nothing lost between the others, counted and named",
    flushed,
);
pub const CLEANED_BY_HAND: Case = Case::new(
    15,
    "a node leaves the cluster while it enforces (kubeadm reset)",
    "`cleanup` refuses while an agent runs, and leaves nothing of ours in the kernel",
    cleaned_by_hand,
);
pub const OTHER_SOURCE: Case = Case::new(
    23,
    "IPIP from another address of a node while nodes enforce",
    "it does not leave",
    other_source,
);
pub const LOST_SA: Case = Case::new(
    26,
    "one SA is lost in each direction",
    "it is replaced, and no other pair gets a new one",
    lost_sa,
);
pub const ANOTHER_FORM: Case = Case::new(
    33,
    "an SA of ours with another replay window is found at the start",
    "it is replaced, not adopted",
    another_form,
);

/// Packets in the clear after a flush.
const CLEAR: Duration = Duration::from_millis(100);

fn flushed(field: &Field<'_>) -> Result<String> {
    let (lab, [_, node, _]) = (field.lab(), field.nodes);
    let others: Vec<Node> = lab.nodes().iter().filter(|it| it.name != node.name).cloned().collect();
    let watched = wire::watch(field.probe, "field: both tables are flushed", || {
        field.sh(node, "ip xfrm policy flush; ip xfrm state flush")?;
        reachable::wait(lab, node, &others).map(drop)
    })?;
    let mut checks = Report::default();
    watched.check_bystanders(&mut checks, &node.name);
    let clear = clear_for(&watched);
    ensure!(checks.ok(), "{:?}", checks.failed());
    ensure!(clear <= CLEAR, "{} packets in the clear over {clear:?}", watched.wire.ipip);
    let found = field.found(node, "PoliciesFlushed", &[])?;
    let counted = metrics::of_agent(lab, &node.name, "secureoverlay_agent_policy_flushes_total")?;
    ensure!(counted.is_some_and(|count| count >= 1.0), "the metric is {counted:?}");
    Ok(format!("{} packets in the clear over {clear:?}; {found}", watched.wire.ipip))
}

fn cleaned_by_hand(field: &Field<'_>) -> Result<String> {
    let (lab, [.., node]) = (field.lab(), field.nodes);
    let agent = lab.share(&product::programs()?.join(AGENT))?;
    let before = field.kernel(node)?;
    let refused = lab.exec(&node.name, &[&agent, "cleanup"])?;
    ensure!(refused.status != 0 && field.kernel(node)? == before, "it ran beside an agent: {refused:?}");
    ensure!(signal(lab, &node.name, AGENT, "-STOP")? == 1, "no agent to be stopped");
    let cleaned = lab.exec_ok(&node.name, &[&agent, "cleanup", "--force"]);
    let left = field.kernel(node);
    signal(lab, &node.name, AGENT, "-CONT")?;
    let (cleaned, left) = (cleaned?, left?);
    let left = (left.our_states(), left.our_policies());
    ensure!(left == (0, 0), "left: {left:?} of {} and {}", before.our_states(), before.our_policies());
    Ok(format!("refused: {}; then: {}", refused.stderr.trim(), cleaned.trim()))
}

fn other_source(field: &Field<'_>) -> Result<String> {
    let [node, peer, _] = field.nodes;
    let blocked = || -> Result<u64> {
        let shown = field.sh(node, "awk '/^XfrmOutPolBlock/ {print $2}' /proc/net/xfrm_stat")?;
        shown.trim().parse().context("reading the kernel's counter")
    };
    let script = format!(
        "ip addr add 10.77.0.1/32 dev lo
         ip link add ipip.lab type ipip local 10.77.0.1 remote {}
         ip link set ipip.lab up
         ip route add 198.19.0.1/32 dev ipip.lab src 10.77.0.1",
        peer.ip
    );
    let seen = field.sh(node, &script).and_then(|_| {
        let before = blocked()?;
        let capture = Capture::start("field-source", None)?;
        field.lab().exec(&node.name, &["ping", "-q", "-i", "0.2", "-W", "1", "-c", "5", "198.19.0.1"])?;
        let clear = capture.stop()?.in_the_clear();
        ensure!(clear.is_empty(), "in the clear: {clear:?}");
        let stopped = blocked()? - before;
        ensure!(stopped >= 5, "the kernel blocked {stopped} of 5 packets");
        Ok(format!("{stopped} of 5 packets blocked"))
    });
    field.try_sh(node, "ip link del ipip.lab; ip addr del 10.77.0.1/32 dev lo")?;
    seen
}

fn lost_sa(field: &Field<'_>) -> Result<String> {
    let (lab, [node, peer, third]) = (field.lab(), field.nodes);
    let before = xfrm::dump(lab)?;
    let sends = |from: &Node, to: &Node| {
        before.get(&from.name).and_then(|it| it.sends_to(to.ip)).context("a pair without an SA")
    };
    let (inbound, outbound) = (sends(peer, node)?, sends(node, peer)?);
    let instance = field.sender(node)?["instance"].clone();
    field
        .sh(node, &format!("ip xfrm state delete src {} dst {} proto esp spi {inbound}", peer.ip, node.ip))?;
    until("the inbound SA to be there again", SEEN, || {
        let kernel = field.kernel(node)?;
        Ok(kernel.key_of(peer.ip, node.ip, &inbound).is_some())
    })?;
    ensure!(field.sender(node)?["instance"] == instance, "a lost inbound SA made the node draw anew");
    field.sh(
        node,
        &format!("ip xfrm state delete src {} dst {} proto esp spi {outbound}", node.ip, peer.ip),
    )?;
    until("another SA to be pinned", SEEN, || {
        Ok(field.kernel(node)?.sends_to(peer.ip).is_some_and(|spi| spi != outbound))
    })?;
    let after = xfrm::dump(lab)?;
    for (one, two) in [(peer, third), (third, peer)] {
        let of = |all: &std::collections::BTreeMap<String, xfrm::Kernel>| {
            all.get(&one.name).map(|kernel| kernel.without(node.ip)).unwrap_or_default()
        };
        ensure!(of(&before) == of(&after), "{} has other entries with {}", one.name, two.name);
    }
    let kept = after.get(&peer.name).and_then(|it| it.sends_to(node.ip));
    ensure!(kept.as_ref() == Some(&inbound), "{} sends with another SA: {kept:?}", peer.name);
    Ok("the inbound one was made again, the outbound one drawn anew; the others kept theirs".to_owned())
}

fn another_form(field: &Field<'_>) -> Result<String> {
    let (lab, [node, peer, _]) = (field.lab(), field.nodes);
    let kernel = field.kernel(node)?;
    let sends = xfrm::dump(lab)?.get(&peer.name).and_then(|it| it.sends_to(node.ip));
    let spi = sends.context("a pair without an SA")?;
    let key = kernel.key_of(peer.ip, node.ip, &spi).context("no SA to replace")?;
    let id = format!("src {} dst {} proto esp spi {spi}", peer.ip, node.ip);
    // With the same key, and a window of 32 packets without extended sequence numbers.
    let script = format!(
        "key=$(ip xfrm state get {id} | sed -n 's/.*aead [^ ]* \\(0x[0-9a-f]*\\) .*/\\1/p')
         ip xfrm state delete {id}
         ip xfrm state add {id} reqid 1589644891 mode transport replay-window 32 aead 'rfc4106(gcm(aes))' $key 64"
    );
    let esn = |kernel: &xfrm::Kernel| {
        let named = format!(" spi {spi}(");
        kernel.states.iter().any(|it| it.contains(&named) && it.contains(" esn"))
    };
    ensure!(signal(lab, &node.name, AGENT, "-STOP")? == 1, "no agent to be stopped");
    let replaced = field.sh(node, &script);
    signal(lab, &node.name, AGENT, "-KILL")?;
    replaced?;
    until("an SA of our form in its place", SEEN, || {
        let now = field.kernel(node)?;
        Ok(esn(&now) && now.key_of(peer.ip, node.ip, &spi).as_ref() == Some(&key))
    })?;
    Ok("the successor of the agent made it again, with extended sequence numbers".to_owned())
}
