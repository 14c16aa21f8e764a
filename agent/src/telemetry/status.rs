//! What this node's NodeEncryption object says, once for the manager and once for people.

use jiff::Timestamp;
use secureoverlay_agent_core::{
    Time,
    agent::{Agent, GATEWAY_UNKNOWN, IdentityStore, Notice},
    coverage::COVERAGE_UNKNOWN,
    exclusion::Exclusion,
    identity::LocalIdentity,
    plan::DesiredInput,
    reconcile::ReconcileReport,
    teardown::TeardownPhase,
    xfrm::SaId,
};
use secureoverlay_k8s::node_encryption::{
    Condition, ConditionStatus, Durability, Finding, KernelCounts, MAX_FINDINGS, MAX_MESSAGE,
    NodeEncryptionStatus, NodeInfo, NodeState, PairCounts, TunnelMtu,
};
use secureoverlay_keyring::{
    acknowledgement::Acknowledgement,
    keyring::{Enforcement, KeyRing},
    uid::Uid,
};

use crate::{
    network::{mtu, surroundings::Surroundings},
    telemetry::swap::SwapDevice,
};

/// What there is to say where nothing is wrong.
const NO_PROBLEM: &str = "pod traffic to every peer is encrypted";
/// … where some nodes take no part.
const NO_PROBLEM_BUT_EXCLUDED: &str = "pod traffic to every peer that is not excluded is encrypted";

/// The status to bring the object to.
#[derive(Clone, Debug, PartialEq)]
pub struct DesiredStatus {
    /// UID of the Node, which owns the object.
    pub node: Uid,
    /// How many nodes there are beside this one: many must not write at once.
    pub peers: usize,
    /// Another number than was written: what is there may be older, and is written anew.
    pub renewal: u64,
    /// The status, without the times at which its conditions changed.
    pub status: NodeEncryptionStatus,
}

/// What there is to say beside what the agent knows.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'s> {
    /// Why the source's ring does not count.
    pub ring_problem: Option<(&'static str, &'s str)>,
    /// The tunnel's MTU.
    pub mtu: Option<&'s mtu::Finding>,
    /// What lets traffic past the policies, once that was looked at.
    pub surroundings: Option<&'s Surroundings>,
    /// What is wrong in the kernel, if anything.
    pub kernel: Option<&'s str>,
    /// How long identity and journal last.
    pub durability: Durability,
    /// Where the kernel swaps to.
    pub swap: &'s [SwapDevice],
    /// How often the API server's history went back.
    pub renewal: u64,
    /// The kernel's release.
    pub kernel_release: &'s str,
    /// Now, since boot.
    pub now: Time,
}

/// The status that says it; `None` while there is no acknowledgement.
#[must_use]
pub fn desired<S: IdentityStore>(agent: &Agent<S>, seen: &Seen<'_>) -> Option<DesiredStatus> {
    let ack = agent.acknowledgement()?;
    let report = agent.report()?;
    let target = agent.applied()?;
    let input = target.input.as_ref().filter(|_| target.teardown == TeardownPhase::Inactive);
    let pairs = count(agent, report, input.map(|input| input.exclusion.as_ref()), ack, seen.now);
    let ring = input.map(|input| input.ring.as_ref());
    let excluded = input.is_some_and(|input| input.exclusion.accepts.local);
    let conditions = conditions(ack, ring, (&pairs, excluded), seen);
    let status = NodeEncryptionStatus {
        state: state(ack, input, seen),
        revision: ring.map_or(0, |ring| ring.revision),
        key: ring.and_then(|ring| ring.active()).filter(|_| pairs.pinned > 0).map(|active| active.id),
        accepts: ring.map(|ring| accepts(ring, ack)).unwrap_or_default(),
        pairs,
        kernel: kernel(report),
        mtu: seen.mtu.map(|finding| TunnelMtu {
            tunnel: finding.tunnel.mtu,
            limit: finding.bound.accepted(),
            interface: finding.tunnel.interface.clone(),
        }),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: NodeInfo {
            addresses: input
                .map(|input| input.network.tunnel_addresses.iter().take(4).copied().collect())
                .unwrap_or_default(),
            kernel: seen.kernel_release.chars().take(64).collect(),
            durability: if matches!(**agent.identity(), LocalIdentity::BootId(_)) {
                Durability::Volatile
            } else {
                seen.durability
            },
        },
        findings: findings(
            ack,
            may_swap(agent, seen.swap)
                .into_iter()
                .chain(is_volatile(agent, seen.durability))
                .chain(agent.notices(seen.now)),
        ),
        conditions,
        acknowledgement: Some(ack.clone()),
    };
    Some(DesiredStatus { node: ack.node_uid, peers: agent.table().len(), renewal: seen.renewal, status })
}

fn state(ack: &Acknowledgement, input: Option<&DesiredInput>, seen: &Seen<'_>) -> NodeState {
    match input {
        None if seen.ring_problem.is_some() => NodeState::Waiting,
        None => NodeState::Off,
        Some(input) if input.exclusion.accepts.local => NodeState::Excluded,
        Some(_) if ack.enforcement == Enforcement::Enforcing => NodeState::Enforcing,
        Some(input) if input.ring.active().is_none() => NodeState::Waiting,
        Some(_) => NodeState::Permissive,
    }
}

fn accepts(ring: &KeyRing, ack: &Acknowledgement) -> Vec<u64> {
    let received = ring.generations.iter().filter(|generation| ack.receivable.contains(&generation.uid));
    received.map(|generation| generation.id).collect()
}

fn count<S: IdentityStore>(
    agent: &Agent<S>,
    report: &ReconcileReport,
    exclusion: Option<&Exclusion>,
    ack: &Acknowledgement,
    now: Time,
) -> PairCounts {
    let mut counts = PairCounts::default();
    for pair in report.pairs.keys() {
        counts.total += 1;
        let pin = report.pins.get(pair);
        let there = pin.is_some_and(|spi| report.sas.contains(&SaId { dst: pair.dst.ip(), spi: *spi }));
        if exclusion.is_some_and(|exclusion| exclusion.sends_plaintext(pair.dst)) {
            counts.excluded += 1;
        } else if there {
            counts.pinned += 1;
        } else if pin.is_some() {
            counts.held += 1;
        } else {
            counts.open += 1;
        }
        let grace = secureoverlay_agent_core::proof::GRACE;
        if agent.proofs().unanswered(pair).is_some_and(|since| since + grace <= now) {
            counts.unanswered += 1;
        }
    }
    let ring = agent.applied_ring();
    let active = ring.and_then(|ring| ring.active()).map(|active| active.uid);
    counts.unproven = active.and_then(|active| ack.unproven(&active)).map_or(0, |pairs| pairs.count);
    counts
}

fn kernel(report: &ReconcileReport) -> KernelCounts {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let inbound = report.inbound.len();
    let planned = report.planned.0 + report.planned.1;
    let failed = report.failed.len();
    KernelCounts {
        inbound_sas: number(inbound),
        outbound_sas: number(report.sas.len().saturating_sub(inbound)),
        policies: report.counts.map_or(0, |counts| counts.policies),
        missing: number(failed.min(planned)),
    }
}

/// A key pair may reach a disk.
fn may_swap<S: IdentityStore>(agent: &Agent<S>, swap: &[SwapDevice]) -> Option<Notice> {
    let device = swap.first().filter(|_| matches!(**agent.identity(), LocalIdentity::Announced(_)))?;
    let text = format!(
        "this node swaps ({}): its private key may reach a disk. Switch swap off, or encrypt it",
        device.name
    );
    Some(("KeyMaySwap", text))
}

/// What this process keeps in memory is lost with it.
fn is_volatile<S: IdentityStore>(agent: &Agent<S>, durability: Durability) -> Option<Notice> {
    let announces = matches!(**agent.identity(), LocalIdentity::Announced(_));
    (announces && durability == Durability::Volatile).then(|| {
        let text = "the state directory can't be used, so identity and journal are kept in memory only: with each start of \
                    the agent this node draws a new identity. Mount the host's /run/secureoverlay, on a tmpfs, so that the \
                    container may write it (read-only? SELinux label?)";
        ("StateDirectoryVolatile", text.to_owned())
    })
}

fn findings(ack: &Acknowledgement, notices: impl Iterator<Item = Notice>) -> Vec<Finding> {
    let blockers = ack.enforcement_blockers.iter();
    let blockers =
        blockers.map(|blocker| Finding { reason: blocker.reason.clone(), message: short(&blocker.detail) });
    let notices = notices.map(|(reason, text)| Finding { reason: reason.to_owned(), message: short(&text) });
    blockers.chain(notices).take(MAX_FINDINGS).collect()
}

fn conditions(
    ack: &Acknowledgement,
    ring: Option<&KeyRing>,
    (pairs, excluded): (&PairCounts, bool),
    seen: &Seen<'_>,
) -> Vec<Condition> {
    use ConditionStatus::{False, True, Unknown};
    let keys = match (seen.ring_problem, ring) {
        (Some((reason, problem)), _) => condition("KeysValid", False, reason, problem),
        (None, Some(_)) => condition("KeysValid", True, "KeyRingApplied", "the key ring is applied"),
        (None, None) => {
            condition("KeysValid", Unknown, "NotEncrypting", "encryption is off, or there is no key ring yet")
        }
    };
    let mtu = match seen.mtu {
        Some(finding) if !finding.valid() => {
            condition("MTUValid", False, "MTUTooLarge", &finding.to_string())
        }
        Some(_) => condition("MTUValid", True, "TunnelFits", "the tunnel leaves room for ESP"),
        None => condition("MTUValid", Unknown, "NotMeasured", "no tunnel device, or no keys"),
    };
    // What is known to be in the clear comes before what is not known.
    let known = ack.enforcement_blockers.iter().find(|blocker| blocker.reason != COVERAGE_UNKNOWN);
    let blocker = known.or_else(|| ack.enforcement_blockers.first());
    let coverage = match (seen.surroundings, blocker) {
        (_, Some(blocker)) if blocker.reason == COVERAGE_UNKNOWN => {
            condition("CoverageComplete", Unknown, &blocker.reason, &blocker.detail)
        }
        (_, Some(blocker)) => condition("CoverageComplete", False, &blocker.reason, &blocker.detail),
        _ if ack.unknown_gateways.count > 0 => condition(
            "CoverageComplete",
            Unknown,
            GATEWAY_UNKNOWN,
            "tunnel routes lead to addresses that no node announces: see the findings",
        ),
        (Some(surroundings), None) if surroundings.coverage.covered > 0 => condition(
            "CoverageComplete",
            True,
            "NoBypassFound",
            "every route to other nodes' pods leads into the tunnel, and nothing takes it out of IPsec",
        ),
        (Some(_), None) => condition(
            "CoverageComplete",
            Unknown,
            "NoRoutes",
            "no route leads to other nodes' pods yet: whether they would be encrypted is not known",
        ),
        (None, None) => condition("CoverageComplete", Unknown, "NotChecked", "no keys yet"),
    };
    let programmed = match seen.kernel {
        Some(problem) => condition("PeersProgrammed", False, "KernelIncomplete", problem),
        None => condition("PeersProgrammed", True, "AllProgrammed", "every peer has its SAs and policies"),
    };
    let active = ring.and_then(KeyRing::active);
    let unproven = active.and_then(|active| ack.unproven(&active.uid));
    let esp = match (active, unproven) {
        (None, _) => {
            condition("ESPReachable", Unknown, "NotProbed", "nothing to prove: no generation is active")
        }
        (Some(_), Some(unproven)) => {
            let names: Vec<&str> = unproven.nodes.iter().map(String::as_str).collect();
            let text = format!(
                "{} of {} pairs are not proven: ESP toward {} got no answer yet",
                unproven.count,
                pairs.total,
                names.join(", ")
            );
            condition("ESPReachable", False, "ProbesPending", &text)
        }
        (Some(_), None) => condition("ESPReachable", True, "AllAnswered", "every peer has answered by ESP"),
    };
    let problem = [&keys, &programmed].into_iter().find(|condition| condition.status != True);
    let ready = match problem {
        Some(cause) => condition("Ready", False, &cause.reason, &cause.message),
        None => ready(ack, active.is_some(), excluded, pairs),
    };
    vec![ready, keys, mtu, programmed, coverage, esp]
}

/// Nothing goes in the clear that should not, and what does is called so.
fn ready(ack: &Acknowledgement, active: bool, excluded: bool, pairs: &PairCounts) -> Condition {
    use ConditionStatus::{False, True};
    let PairCounts { total, open, pinned, .. } = *pairs;
    if excluded {
        return condition(
            "Ready",
            True,
            "Excluded",
            "this node is excluded: its pod traffic is not encrypted",
        );
    }
    if !active && pinned == 0 {
        let text = "no key generation is active: pod traffic is not encrypted";
        return condition("Ready", False, "NoActiveKey", text);
    }
    if open > 0 {
        let (reason, effect) = match ack.enforcement {
            Enforcement::Enforcing => ("Blocked", "is blocked"),
            Enforcement::Permissive | Enforcement::Off => ("Plaintext", "goes in the clear"),
        };
        let text =
            format!("pod traffic to {open} of {total} addresses of peers {effect}: ESP got no answer yet");
        return condition("Ready", False, reason, &text);
    }
    match ack.enforcement_blockers.first() {
        Some(blocker) => condition("Ready", False, &blocker.reason, &blocker.detail),
        None if total == 0 => condition("Ready", True, "NoPeers", "there are no peers"),
        None if pairs.excluded > 0 => condition("Ready", True, "Encrypting", NO_PROBLEM_BUT_EXCLUDED),
        None => condition("Ready", True, "Encrypting", NO_PROBLEM),
    }
}

/// Its time is filled in by the writer, which knows what was written before.
fn condition(kind: &str, status: ConditionStatus, reason: &str, message: &str) -> Condition {
    Condition {
        r#type: kind.to_owned(),
        status,
        reason: reason.to_owned(),
        message: short(if message.is_empty() { reason } else { message }),
        last_transition_time: Timestamp::UNIX_EPOCH,
    }
}

fn short(message: &str) -> String {
    message.chars().take(MAX_MESSAGE / 4).collect()
}

#[cfg(test)]
mod tests {
    use secureoverlay_keyring::acknowledgement::{EnforcementBlocker, UnknownGateways};

    use super::*;

    fn ack(enforcement: Enforcement) -> Acknowledgement {
        let uid = Uid::from_random([1; 16]);
        Acknowledgement {
            ack_id: uid,
            node_uid: uid,
            instance: uid.into(),
            receivable: [].into(),
            proven_generations: [].into(),
            active_generation: None,
            sends_none: false,
            all_pairs_proven: true,
            exhausted_generations: [].into(),
            highest_generation_seen: 1,
            enforcement,
            enforcement_blockers: [].into(),
            unproven_pairs: Vec::new(),
            tunnel_mtu_too_large: false,
            unknown_gateways: UnknownGateways::default(),
            no_peers: false,
        }
    }

    #[test]
    fn what_goes_in_the_clear_is_not_ready_and_called_so() {
        use ConditionStatus::{False, True};
        let pairs = |total, pinned, open| PairCounts { total, pinned, open, ..PairCounts::default() };
        for (enforcement, active, excluded, pairs, status, reason) in [
            (Enforcement::Permissive, true, false, pairs(3, 3, 0), True, "Encrypting"),
            (Enforcement::Permissive, true, false, pairs(3, 2, 1), False, "Plaintext"),
            (Enforcement::Enforcing, true, false, pairs(3, 2, 1), False, "Blocked"),
            (Enforcement::Permissive, false, false, pairs(3, 0, 3), False, "NoActiveKey"),
            (Enforcement::Permissive, false, false, pairs(0, 0, 0), False, "NoActiveKey"),
            (Enforcement::Enforcing, false, false, pairs(3, 3, 0), True, "Encrypting"),
            (Enforcement::Permissive, false, false, pairs(3, 2, 1), False, "Plaintext"),
            (Enforcement::Permissive, true, true, pairs(3, 0, 0), True, "Excluded"),
            (Enforcement::Permissive, true, false, pairs(0, 0, 0), True, "NoPeers"),
        ] {
            let condition = ready(&ack(enforcement), active, excluded, &pairs);
            assert_eq!((condition.status, condition.reason.as_str()), (status, reason), "{pairs:?}");
            if reason == "Excluded" {
                assert!(condition.message.contains("not encrypted"));
            }
        }
        let some_excluded = PairCounts { total: 3, pinned: 2, excluded: 1, ..PairCounts::default() };
        let condition = ready(&ack(Enforcement::Permissive), true, false, &some_excluded);
        assert_eq!(condition.message, NO_PROBLEM_BUT_EXCLUDED);
    }

    #[test]
    fn blocker_is_why_a_node_is_not_ready() {
        let mut blocked = ack(Enforcement::Enforcing);
        let blocker =
            EnforcementBlocker { reason: "PlaintextBypass".to_owned(), detail: "a route".to_owned() };
        blocked.enforcement_blockers.insert(blocker);
        let pairs = PairCounts { total: 1, pinned: 1, ..PairCounts::default() };
        let condition = ready(&blocked, true, false, &pairs);
        assert_eq!(
            (condition.status, condition.reason.as_str()),
            (ConditionStatus::False, "PlaintextBypass")
        );
    }
}
