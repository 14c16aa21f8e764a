//! What lets traffic past our policies, so that this node cannot guarantee encryption: from facts that the kernel shows.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;
use secureoverlay_agent_core::{
    coverage::{
        COVERAGE_UNKNOWN, Coverage, Device, Encapsulation, MAIN_TABLE, PodNetworks, Route, RouteFacts,
    },
    xfrm::{ActualPolicy, Direction, IPPROTO_IPIP, Net, Owner, PRIORITY_PEER, PolicyId},
};
use secureoverlay_agent_kernel::{Link, RouteTo, Switches, Way};
use secureoverlay_keyring::{acknowledgement::EnforcementBlocker, peer::PodNetwork};

/// Number of the loopback device in every network namespace (`LOOPBACK_IFINDEX` in `net/flow.h`). Both its switches are
/// set from the beginning, and nothing of another node comes or goes by it.
const LOOPBACK: u32 = 1;
/// Of many routes or peers with the same fault, this many are named.
const EXAMPLES: usize = 3;

/// The other nodes that take part: name, empty where only the kernel knows of them, by tunnel address.
pub type Neighbours<'n> = BTreeMap<IpAddr, &'n str>;

/// What the kernel shows of this node's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// All interfaces.
    pub links: Vec<Link>,
    /// The route to each peer that there is one to.
    pub routes: Vec<(IpAddr, RouteTo)>,
    /// The main table's routes.
    pub ways: Vec<Way>,
    /// Routes of the other tables that rules lead to.
    pub other_ways: Vec<(u32, Way)>,
    /// The switches for all interfaces.
    pub all: Switches,
    /// Why some of that could not be read.
    pub unread: Option<String>,
}

/// What there is to say of it, in sentences for people: what is wrong and what to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Sysctls that take traffic out of IPsec.
    pub switches: BTreeSet<String>,
    /// Peers that this node does not send to from its tunnel address.
    pub sources: BTreeSet<String>,
    /// How the pods of peers are reached.
    pub coverage: Coverage,
    /// Why that can't be told any more.
    pub unseen: Option<String>,
    /// Why something could not be seen: no obstacle.
    pub unread: Option<String>,
}

impl Surroundings {
    /// Judges what the kernel shows, of a node with the tunnel address `local`, where that is known, and with `pods`.
    #[must_use]
    pub fn new(facts: &Facts, local: Option<IpAddr>, peers: &Neighbours<'_>, pods: &Pods<'_>) -> Self {
        Self {
            switches: switches(facts, local),
            sources: local.map(|local| sources(facts, local, peers)).unwrap_or_default(),
            coverage: coverage(facts, peers, pods),
            unseen: None,
            unread: facts.unread.clone(),
        }
    }

    /// What was seen last, now that the kernel can't be asked: for all that is known, traffic goes anywhere.
    #[must_use]
    pub fn unseen(mut self, error: &str) -> Self {
        self.unseen = Some(format!("what leads around the tunnel can't be seen: {error}"));
        self
    }

    /// What of it keeps traffic from being covered, for people.
    #[must_use]
    pub fn uncovered(&self) -> BTreeSet<(&'static str, String)> {
        let unseen = self.unseen.iter().map(|text| (COVERAGE_UNKNOWN, text.clone()));
        self.coverage.findings().into_iter().chain(unseen).collect()
    }

    /// All of it that keeps this node from enforcing.
    #[must_use]
    pub fn blockers(&self) -> BTreeSet<EnforcementBlocker> {
        let all = [("IPsecDisabled", &self.switches), ("SourceAddress", &self.sources)];
        let all =
            all.into_iter().flat_map(|(reason, details)| details.iter().map(move |it| (reason, it.clone())));
        let blocker =
            |(reason, detail): (&str, String)| EnforcementBlocker { reason: reason.to_owned(), detail };
        all.chain(self.uncovered()).map(blocker).collect()
    }
}

/// The networks of pods.
#[derive(Clone, Copy, Debug)]
pub enum Pods<'p> {
    /// As nodes announce them.
    Announced {
        /// This node's.
        own: &'p BTreeSet<PodNetwork>,
        /// Those of the peers.
        peers: &'p PodNetworks,
    },
    /// They are not announced (under MKE's manifest, or before the installation): routes with a peer as next hop are
    /// taken for routes to its pods.
    Guessed,
}

fn coverage(facts: &Facts, peers: &Neighbours<'_>, pods: &Pods<'_>) -> Coverage {
    let route = |(table, way): (u32, &Way)| {
        let to = IpNet::new(way.to.addr, way.to.prefix).ok()?;
        Some(Route { table, to, device: way.oif, gateway: way.gateway })
    };
    let main = facts.ways.iter().map(|way| (MAIN_TABLE, way));
    let others = facts.other_ways.iter().map(|(table, way)| (*table, way));
    let device = |link: &Link| Device {
        name: link.name.clone(),
        encapsulation: Encapsulation::of_kind(link.kind.as_deref()),
        remote: link.remote,
    };
    let routes = RouteFacts {
        routes: main.chain(others).filter_map(route).collect(),
        tables: facts.other_ways.iter().map(|(table, _)| *table).collect(),
        devices: facts.links.iter().filter(|link| link.up).map(|link| (link.index, device(link))).collect(),
    };
    let announced = peers.keys().copied().collect();
    match pods {
        Pods::Announced { own, peers: networks } => {
            let taking_part: BTreeSet<&str> = peers.values().copied().collect();
            let networks = networks.iter().filter(|(name, _)| taking_part.contains(name.as_str()));
            let networks = networks.map(|(name, nets)| (name.clone(), nets.clone())).collect();
            Coverage::new(&routes, own, &networks, &announced)
        }
        Pods::Guessed => Coverage::new(&routes, &BTreeSet::new(), &guessed(facts, peers), &announced),
    }
}

fn guessed(facts: &Facts, peers: &Neighbours<'_>) -> PodNetworks {
    let mut networks = PodNetworks::new();
    for way in &facts.ways {
        let link = facts.links.iter().find(|link| link.index == way.oif);
        let network =
            || IpNet::new(way.to.addr, way.to.prefix).ok().and_then(|net| PodNetwork::try_from(net).ok());
        if let (Some(peer), Some(network)) = (pods_of(way, link, peers), network()) {
            networks.entry(called(peer, peers)).or_default().networks.insert(network);
        }
    }
    networks
}

/// The kernel looks at `disable_xfrm` of the interface by which the tunnel's packet leaves (`__mkroute_output` in
/// `net/ipv4/route.c`: `DST_NOXFRM`, on which `xfrm_lookup` looks for no policy), and at `disable_policy` of the one by
/// which it came in, whichever that is (`IPSKB_NOPOLICY`, on which `xfrm_policy_check` lets everything pass). Those of
/// the tunnel device are for the packets inside.
fn switches(facts: &Facts, local: Option<IpAddr>) -> BTreeSet<String> {
    let carries = |link: &Link| {
        local.is_some_and(|local| link.addresses.contains(&local))
            || facts.routes.iter().any(|(_, route)| route.unicast && route.oif == link.index)
    };
    let outer = facts.links.iter().filter(|link| link.up && link.index != LOOPBACK && !link.is_ipip());
    let mut found = BTreeSet::new();
    if facts.all.disable_xfrm == Some(true) {
        found.insert(switch("all", "disable_xfrm", "packets leave unencrypted by every interface"));
    }
    if facts.all.disable_policy == Some(true) {
        found.insert(switch("all", "disable_policy", "unencrypted packets are let in by every interface"));
    }
    for link in outer {
        if link.switches.disable_policy == Some(true) {
            found.insert(switch(&link.name, "disable_policy", "unencrypted packets are let in by it"));
        }
        if link.switches.disable_xfrm == Some(true) && carries(link) {
            found.insert(switch(&link.name, "disable_xfrm", "packets leave by it unencrypted"));
        }
    }
    found
}

/// With slashes, for names of interfaces may have dots.
fn switch(interface: &str, name: &str, effect: &str) -> String {
    format!(
        "the sysctl net/ipv4/conf/{interface}/{name} is set: {effect}. Run on the node: sysctl -w \
         net/ipv4/conf/{interface}/{name}=0, and see what sets it"
    )
}

/// Packets with another source match none of our policies: they leave in the clear.
fn sources(facts: &Facts, local: IpAddr, peers: &Neighbours<'_>) -> BTreeSet<String> {
    let mut others: BTreeMap<IpAddr, Vec<IpAddr>> = BTreeMap::new();
    for (peer, route) in facts.routes.iter().filter(|(_, route)| route.unicast) {
        if let Some(source) = route.prefsrc.filter(|source| *source != local) {
            others.entry(source).or_default().push(*peer);
        }
    }
    let sentence = |(source, to): (IpAddr, Vec<IpAddr>)| {
        let to = listed(&to, "peers", |peer| called(*peer, peers));
        format!(
            "the route to {to} takes the source {source}, not this node's tunnel address {local}: such packets match no \
             policy and leave unencrypted. Correct the route's src, or the address that Calico has for this node"
        )
    };
    others.into_iter().map(sentence).collect()
}

/// The peer to whose pods a route leads over `link`: it is the next hop, or the other end of the tunnel device. A default
/// route, or one to a node itself, is not for pods.
#[must_use]
pub fn pods_of(way: &Way, link: Option<&Link>, peers: &Neighbours<'_>) -> Option<IpAddr> {
    let peer = way.gateway.or_else(|| link?.remote)?;
    (way.to.prefix > 0 && peers.contains_key(&peer) && !peers.contains_key(&way.to.addr)).then_some(peer)
}

/// Policies of others that the kernel takes before ours, or that stand in the place of one of ours, for the traffic of a
/// pair of nodes. The kernel takes the lowest priority, and among equal ones the older (`xfrm_policy_lookup_bytype` in
/// `net/xfrm/xfrm_policy.c`).
#[must_use]
pub fn overruling(
    policies: &[ActualPolicy],
    pairs: &(impl Iterator<Item = PolicyId> + Clone),
) -> BTreeSet<String> {
    let others = policies.iter().filter(|policy| {
        policy.owner == Owner::Foreign && !policy.conditional && [0, IPPROTO_IPIP].contains(&policy.protocol)
    });
    let sentence = |policy: &ActualPolicy| {
        if let Some(pair) = pairs.clone().find(|pair| in_the_way(policy, pair)) {
            return Some(overrules(policy, pair));
        }
        (policy.protocol == IPPROTO_IPIP && !policy.marked && blocks().contains(&policy.id)).then(|| {
            format!(
                "a policy that is not ours ({}, priority {}) is where one has to be that turns all other plaintext away: \
                 remove it",
                policy.id, policy.priority
            )
        })
    };
    others.filter_map(sentence).collect()
}

/// What turns plaintext away while a node enforces, where no pair's policy comes first.
#[must_use]
pub fn blocks() -> [PolicyId; 2] {
    let anywhere = Net { addr: Ipv4Addr::UNSPECIFIED.into(), prefix: 0 };
    [Direction::In, Direction::Out].map(|direction| PolicyId::tunnel(direction, anywhere, anywhere))
}

fn in_the_way(policy: &ActualPolicy, pair: &PolicyId) -> bool {
    let id = policy.id;
    id.direction == pair.direction
        && id.src.covers(pair.src.addr)
        && id.dst.covers(pair.dst.addr)
        && (policy.priority <= PRIORITY_PEER
            || (id == *pair && policy.protocol == IPPROTO_IPIP && !policy.marked))
}

fn overrules(policy: &ActualPolicy, pair: PolicyId) -> String {
    let (direction, peer) = match pair.direction {
        Direction::In => ("in", pair.src.addr),
        Direction::Out => ("out", pair.dst.addr),
    };
    let PolicyId { src, dst, .. } = policy.id;
    let protocol = if policy.protocol == 0 { "any protocol" } else { "protocol 4" };
    format!(
        "a policy that is not ours ({direction} {src} → {dst}, {protocol}, priority {}) comes before ours for the tunnel with {peer}: remove it, \
         or give it a selector without that traffic or a priority above {PRIORITY_PEER}",
        policy.priority
    )
}

fn called(addr: IpAddr, peers: &Neighbours<'_>) -> String {
    match peers.get(&addr) {
        Some(name) if !name.is_empty() => format!("{name} ({addr})"),
        _ => addr.to_string(),
    }
}

/// The first of many, and how many more there are.
fn listed<T>(all: &[T], what: &str, name: impl Fn(&T) -> String) -> String {
    let first: Vec<String> = all.iter().take(EXAMPLES).map(name).collect();
    match all.len().saturating_sub(EXAMPLES) {
        0 => first.join(", "),
        more => format!("{} and {more} more {what}", first.join(", ")),
    }
}

#[cfg(test)]
#[path = "surroundings_tests.rs"]
mod tests;
