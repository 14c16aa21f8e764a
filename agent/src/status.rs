//! What this node's NodeEncryption object is to say, once for the manager and once for people.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use secureoverlay_common::{
    acknowledgement::Acknowledgement,
    ring::{Enforcement, Generation},
    uid::Uid,
};
use secureoverlay_daemon::node_encryption::NodeEncryptionStatus;

use crate::{
    agent::Target, mtu::Finding, plan::Stage, reach::Reach, roster::Peers, surroundings::Surroundings,
};

/// Characters of a message; the rest is in the log.
const MESSAGE: usize = 1_200;

/// What there is to say where nothing is wrong. No text is left empty: an API server may refuse that.
const WELL: &str = "all is well";

/// Where the ring says that this node is pending.
const PENDING: &str = "peers and this node talk in the clear until the manager knows that ESP reaches this node and fits its tunnel";

/// The status to bring the object to.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// UID of the Node, which owns the object.
    pub node: Uid,
    /// How many nodes there are beside this one: many must not write at once.
    pub peers: usize,
    /// The status, without the times at which it is written and its conditions changed.
    pub status: NodeEncryptionStatus,
}

/// What there is to say.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'s> {
    /// What the manager is told.
    pub said: &'s Acknowledgement,
    /// What the kernel was brought to last.
    pub applied: Option<&'s Target>,
    /// Why the source's ring does not count.
    pub ring_problem: Option<&'s str>,
    /// Peers with everything in place, of all peers.
    pub peers: (usize, usize),
    /// Other nodes, whether they have anything in place or not.
    pub others: usize,
    /// The tunnel's MTU.
    pub mtu: Option<&'s Finding>,
    /// What lets traffic past the policies, once that was looked at.
    pub surroundings: Option<&'s Surroundings>,
    /// Whom ESP reaches.
    pub reach: &'s Reach,
    /// What is wrong in the kernel, if anything.
    pub kernel: Option<&'s str>,
    /// What is wrong with Nodes, or that this one is excluded.
    pub nodes: Option<&'s str>,
}

/// The status that says it.
#[must_use]
pub fn wanted(seen: &Seen<'_>) -> Wanted {
    let said = seen.said;
    let ring = seen.applied.and_then(|target| Some(&target.content.as_ref()?.ring));
    let generations = || ring.iter().flat_map(|ring| &ring.generations);
    let on = seen.applied.is_some_and(|target| target.stage == Stage::Normal);
    // Beside a ring begun anew, what is said differs from what is wanted.
    let enforcement = ring.filter(|_| on).map_or(Enforcement::Off, |_| said.enforcement);
    let ids = |counts: &dyn Fn(&Generation) -> bool| {
        let ids = generations().filter(|generation| counts(generation)).map(|generation| generation.id);
        let ids: Vec<String> = ids.map(|id| id.to_string()).collect();
        if ids.is_empty() { "none".to_owned() } else { ids.join(",") }
    };
    let mtu_problem = seen.mtu.filter(|finding| !finding.valid()).map(ToString::to_string);
    let reach_problem = reach_problem(seen);
    let obstacle = said.obstacles.first().map(String::as_str);
    let pending = ring.filter(|ring| on && ring.pending.contains(&said.node)).map(|_| PENDING);
    let problems = [
        seen.ring_problem,
        seen.kernel,
        seen.nodes,
        obstacle,
        reach_problem.as_deref(),
        mtu_problem.as_deref(),
        pending,
    ];
    let message = problems.into_iter().flatten().next().unwrap_or(WELL);
    let status = NodeEncryptionStatus {
        acknowledgement: Some(said.clone()),
        revision: ring.map_or(0, |ring| ring.revision),
        enforcement: enforcement.name().to_owned(),
        // Where every peer is pending, it sends with the active one to all of the others, and there are none.
        sends: ids(&|generation| said.sends == Some(generation.uid) && !said.silent),
        receives: ids(&|generation| said.receives.contains_key(&generation.uid)),
        peers: format!("{}/{}", seen.peers.0, seen.peers.1),
        mtu: seen.mtu.map_or_else(
            || "unknown".to_owned(),
            |finding| {
                let (mtu, limit) = (finding.tunnel.mtu, finding.bound.accepted());
                if finding.valid() { mtu.to_string() } else { format!("{mtu} > {limit}") }
            },
        ),
        next_rotation: ring.and_then(|ring| ring.next_rotation),
        message: short(message),
        awaited: None,
        conditions: conditions(seen, mtu_problem.as_deref(), reach_problem.as_deref()),
        heartbeat: None,
    };
    Wanted { node: said.node, peers: seen.others.max(seen.peers.1), status }
}

fn reach_problem(seen: &Seen<'_>) -> Option<String> {
    let none = Peers::new();
    let program = seen.applied.and_then(|target| target.content.as_ref());
    seen.reach.problem(program.map_or(&none, |program| &program.peers))
}

fn conditions(seen: &Seen<'_>, mtu_problem: Option<&str>, reach_problem: Option<&str>) -> Vec<Condition> {
    let has_ring = seen.applied.is_some_and(|target| target.content.is_some());
    let keys = match seen.ring_problem {
        Some(problem) => condition("KeysValid", "False", "RingDoesNotCount", problem),
        None if has_ring => condition("KeysValid", "True", "RingApplied", "the key ring is applied"),
        None => {
            let why = seen.nodes.unwrap_or("encryption is off, or there is no key ring yet");
            condition("KeysValid", "Unknown", "NotEncrypting", why)
        }
    };
    let mtu = match (seen.mtu, mtu_problem) {
        (_, Some(problem)) => condition("MtuValid", "False", "TunnelTooLarge", problem),
        (Some(_), None) => condition("MtuValid", "True", "TunnelFits", "the tunnel leaves room for ESP"),
        (None, None) => condition("MtuValid", "Unknown", "NotMeasured", "no tunnel device, or no keys"),
    };
    let around = seen.surroundings.map(|surroundings| surroundings.around.first());
    let coverage = match (around, seen.said.obstacles.first()) {
        (Some(Some(around)), _) => condition("CoverageComplete", "False", "RoutesAroundTunnel", around),
        (_, Some(obstacle)) => condition("CoverageComplete", "False", "TrafficPasses", obstacle),
        (Some(None), None) => {
            let covered = "nothing is known that lets traffic past encryption";
            condition("CoverageComplete", "True", "TunnelTakesAll", covered)
        }
        (None, None) => condition("CoverageComplete", "Unknown", "NotLookedAt", "no keys yet"),
    };
    let (programmed, desired) = seen.peers;
    let missing = format!("{} of {desired} peers lack an SA or a policy", desired.saturating_sub(programmed));
    let peers = match (programmed == desired, seen.kernel) {
        (true, _) => {
            condition("PeersProgrammed", "True", "AllProgrammed", "every peer has its SAs and policies")
        }
        (false, Some(problem)) => condition("PeersProgrammed", "False", "PeersMissing", problem),
        (false, None) => condition("PeersProgrammed", "False", "PeersMissing", &missing),
    };
    let esp = match (seen.reach, reach_problem) {
        (_, Some(problem)) => condition("EspReachable", "False", "NoAnswer", problem),
        (Reach::Known(_), None) => {
            condition("EspReachable", "True", "AllAnswered", "ESP passes to every probed peer and back")
        }
        (Reach::Trying, None) => {
            condition("EspReachable", "Unknown", "Trying", "not every peer was tried yet")
        }
        (Reach::Unable(why), None) => condition("EspReachable", "Unknown", "CannotProbe", why),
        (Reach::NotProbed, None) => {
            let why = "nothing to prove: no keys, no peers, or probing is off";
            condition("EspReachable", "Unknown", "NotProbed", why)
        }
    };
    let failing = [&keys, &peers].into_iter().find(|condition| condition.status != "True");
    let ready = match failing {
        None => condition("Ready", "True", "Encrypting", WELL),
        Some(cause) => condition("Ready", "False", &cause.reason, &cause.message),
    };
    vec![ready, keys, mtu, peers, coverage, esp]
}

/// Its time is filled in by whoever writes it, and knows what was written before.
fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Condition {
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: short(message),
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
        observed_generation: None,
    }
}

fn short(message: &str) -> String {
    message.chars().take(MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use secureoverlay_common::{mtu::Bound, ring::Ring, suite::Suite, wire::End};

    use super::*;
    use crate::{
        agent::Program,
        mtu::{Measured, MtuSource, Tunnel},
        mtu_setting::MtuSetting,
    };

    fn uid(n: u8) -> Uid {
        Uid::from_random([n; 16])
    }

    fn target(stage: Stage) -> Target {
        let generation = |id: u64, role: &str| {
            format!(
                "- {{id: {id}, uid: {}, role: {role}, suite: aes128gcm8, key: AAECAwQFBgcICQoLDA0ODw==, \
                 spiSeed: EBESExQVFhcYGRobHB0eHw==, createdAt: 2026-11-20T03:00:00Z, \
                 roleSince: 2026-11-20T03:05:00Z}}\n",
                uid(u8::try_from(id).unwrap())
            )
        };
        let ring = format!(
            "version: 1\nrevision: 118\nenforcement: permissive\nnextRotation: 2026-11-21T03:00:00Z\n\
             generations:\n{}{}",
            generation(42, "active"),
            generation(43, "staged")
        );
        let ring = Arc::new(Ring::parse(ring.as_bytes()).unwrap());
        let local = End { addr: [192, 0, 2, 1].into(), node: uid(1), boot: uid(101) };
        Target { stage, content: Some(Program { ring, local, peers: Arc::default(), probe_port: 0 }) }
    }

    fn said() -> Acknowledgement {
        Acknowledgement {
            node: uid(1),
            boot: uid(101),
            installation: None,
            receives: [uid(42), uid(43)].map(|uid| (uid, [].into())).into(),
            sends: Some(uid(42)),
            silent: false,
            revision: 1,
            encrypts: false,
            burnt: [].into(),
            spent: [].into(),
            newest: 43,
            enforcement: Enforcement::Permissive,
            obstacles: [].into(),
            unreachable: None,
            oversized: false,
        }
    }

    fn mtu(mtu: u32) -> Finding {
        let tunnel =
            Tunnel { interface: "tunl0".to_owned(), mtu, source: MtuSource::Device, point_to_point: false };
        let external = Measured { interface: "eth0".to_owned(), mtu: 1500 };
        let suite = Suite::Aes128Gcm8;
        let bound = Bound::new(1500, suite);
        Finding { tunnel, others: vec![], external, suite, bound, setting: MtuSetting::FelixConfiguration }
    }

    fn states(status: &NodeEncryptionStatus) -> Vec<(&str, &str, &str)> {
        let conditions = status.conditions.iter();
        conditions.map(|c| (c.type_.as_str(), c.status.as_str(), c.reason.as_str())).collect()
    }

    #[test]
    fn a_healthy_node_tells_its_story_in_one_line() {
        let (said, target, mtu) = (said(), target(Stage::Normal), mtu(1440));
        let reach = Reach::Known([].into());
        let seen = Seen {
            said: &said,
            applied: Some(&target),
            ring_problem: None,
            peers: (42, 42),
            others: 42,
            mtu: Some(&mtu),
            surroundings: Some(&Surroundings::default()),
            reach: &reach,
            kernel: None,
            nodes: None,
        };
        let Wanted { node, peers, status } = wanted(&seen);
        assert_eq!((node, peers, status.revision), (uid(1), 42, 118));
        let line = [&status.enforcement, &status.sends, &status.receives, &status.peers, &status.mtu];
        assert_eq!(line, ["permissive", "42", "42,43", "42/42", "1440"]);
        assert_eq!((status.message.as_str(), &status.awaited, &status.heartbeat), (WELL, &None, &None));
        assert_eq!(
            states(&status),
            [
                ("Ready", "True", "Encrypting"),
                ("KeysValid", "True", "RingApplied"),
                ("MtuValid", "True", "TunnelFits"),
                ("PeersProgrammed", "True", "AllProgrammed"),
                ("CoverageComplete", "True", "TunnelTakesAll"),
                ("EspReachable", "True", "AllAnswered"),
            ]
        );
        assert_eq!(status.next_rotation, Some("2026-11-21T03:00:00Z".parse().unwrap()));
        assert!(status.conditions.iter().all(|condition| !condition.message.is_empty()));
        let mut pending = target.clone();
        let program = pending.content.as_mut().unwrap();
        program.ring = Arc::new(Ring { pending: [uid(1)].into(), ..(*program.ring).clone() });
        assert_eq!(wanted(&Seen { applied: Some(&pending), ..seen }).status.message, PENDING);
        let off = Target { stage: Stage::Silent, ..target.clone() };
        assert_eq!(wanted(&Seen { applied: Some(&off), ..seen }).status.enforcement, "off");
        // Its kernel goes on insisting beside a ring begun anew.
        let insists = Acknowledgement { enforcement: Enforcement::Enforcing, ..said.clone() };
        assert_eq!(wanted(&Seen { said: &insists, ..seen }).status.enforcement, "enforcing");
    }

    #[test]
    fn what_lets_traffic_past_is_named() {
        let (target, around) = (target(Stage::Normal), BTreeSet::from(["around it".to_owned()]));
        let said = Acknowledgement { obstacles: around.clone(), ..said() };
        let surroundings = Surroundings { around, ..Surroundings::default() };
        let seen = Seen {
            said: &said,
            applied: Some(&target),
            ring_problem: None,
            peers: (42, 42),
            others: 42,
            mtu: None,
            surroundings: Some(&surroundings),
            reach: &Reach::NotProbed,
            kernel: None,
            nodes: None,
        };
        let status = wanted(&seen).status;
        assert_eq!(states(&status)[4], ("CoverageComplete", "False", "RoutesAroundTunnel"));
        assert_eq!(
            (status.message.as_str(), status.conditions[4].message.as_str()),
            ("around it", "around it")
        );
        let obstacles = ["a policy".to_owned(), "a sysctl".to_owned()].into();
        let said = Acknowledgement { obstacles, ..said.clone() };
        for surroundings in [None, Some(&Surroundings::default())] {
            let status = wanted(&Seen { said: &said, surroundings, ..seen }).status;
            assert_eq!(states(&status)[4], ("CoverageComplete", "False", "TrafficPasses"));
            assert_eq!(status.conditions[4].message, "a policy");
        }
    }

    #[test]
    fn a_node_that_encrypts_to_nobody_sends_with_nothing() {
        let (said, target) = (Acknowledgement { silent: true, ..said() }, target(Stage::Normal));
        let seen = Seen {
            said: &said,
            applied: Some(&target),
            ring_problem: None,
            peers: (2, 2),
            others: 2,
            mtu: None,
            kernel: None,
            nodes: None,
            surroundings: None,
            reach: &Reach::NotProbed,
        };
        assert_eq!(wanted(&seen).status.sends, "none");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let (said, target, mtu) = (said(), target(Stage::Normal), mtu(1480));
        let reach = Reach::NotProbed;
        let seen = Seen {
            said: &Acknowledgement { sends: None, ..said.clone() },
            applied: Some(&target),
            ring_problem: None,
            peers: (41, 42),
            others: 42,
            mtu: Some(&mtu),
            surroundings: None,
            reach: &reach,
            kernel: None,
            nodes: None,
        };
        let status = wanted(&seen).status;
        assert_eq!((status.sends.as_str(), status.mtu.as_str()), ("none", "1480 > 1452"));
        assert!(status.message.contains("is too large"), "{}", status.message);
        assert_eq!(states(&status)[0], ("Ready", "False", "PeersMissing"));
        assert_eq!(
            states(&status)[2..],
            [
                ("MtuValid", "False", "TunnelTooLarge"),
                ("PeersProgrammed", "False", "PeersMissing"),
                ("CoverageComplete", "Unknown", "NotLookedAt"),
                ("EspReachable", "Unknown", "NotProbed"),
            ]
        );
        assert_eq!(status.conditions[3].message, "1 of 42 peers lack an SA or a policy");
        let long = "x".repeat(3 * MESSAGE);
        let worse =
            Seen { kernel: Some(&long), nodes: Some("a node"), ring_problem: Some("no ring"), ..seen };
        let status = wanted(&worse).status;
        assert_eq!((status.message.as_str(), states(&status)[1].2), ("no ring", "RingDoesNotCount"));
        assert_eq!(status.conditions[3].message.len(), MESSAGE);
        let gone = Target { stage: Stage::Gone, content: None };
        let status = wanted(&Seen { applied: Some(&gone), ..seen }).status;
        assert_eq!((status.enforcement.as_str(), status.receives.as_str()), ("off", "none"));
        assert_eq!(
            states(&status)[..2],
            [("Ready", "False", "NotEncrypting"), ("KeysValid", "Unknown", "NotEncrypting")]
        );
    }
}
