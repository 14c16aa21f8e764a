//! Whether encrypted packets of the tunnel fit through the network.

use std::{fmt, net::IpAddr};

use secureoverlay_common::{mtu::Bound, ring::Ring, suite::Suite};

use crate::kernel::{Link, RouteTo};

/// The kind of Calico's tunnel devices.
pub(crate) const IPIP: &str = "ipip";

/// An interface or route and its MTU in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Name of the interface.
    pub interface: String,
    /// Bytes of the largest IP packet.
    pub mtu: u32,
}

/// The MTUs that matter on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The tunnel device with the largest MTU among those that are up.
    pub tunnel: Option<Measured>,
    /// The smallest MTU among the interfaces with the node's address and the routes to its peers.
    pub external: Option<Measured>,
}

impl Facts {
    /// Picks them out of what the kernel says.
    #[must_use]
    pub fn new(links: &[Link], local: IpAddr, routes: &[RouteTo]) -> Self {
        let measured = |link: &Link, mtu: u32| Measured { interface: link.name.clone(), mtu };
        let tunnelled = |link: &Link| link.kind.as_deref() == Some(IPIP);
        let up = || links.iter().filter(|link| link.up);
        let own = up()
            .filter(|link| !tunnelled(link) && link.addresses.contains(&local))
            .map(|link| measured(link, link.mtu));
        let routed = routes.iter().filter(|route| route.unicast).filter_map(|route| {
            let link = up().find(|link| link.index == route.oif && !tunnelled(link))?;
            Some(measured(link, route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu))))
        });
        Self {
            tunnel: up()
                .filter(|link| tunnelled(link))
                .max_by_key(|link| link.mtu)
                .map(|link| measured(link, link.mtu)),
            external: own.chain(routed).min_by_key(|measured| measured.mtu),
        }
    }
}

/// The tunnel's MTU beside both bounds for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The tunnel device.
    pub tunnel: Measured,
    /// What carries the encrypted packets.
    pub external: Measured,
    /// The suite in the ring with the largest overhead.
    pub suite: Suite,
    /// MKE's rule and the kernel's.
    pub bound: Bound,
}

impl Finding {
    /// `None` where there is nothing to compare: no tunnel, no external interface, or no generation in the ring.
    #[must_use]
    pub fn new(facts: &Facts, ring: &Ring) -> Option<Self> {
        let suites = ring.generations.iter().map(|generation| generation.suite);
        Self::with(facts, suites.max_by_key(|suite| suite.icv_len())?)
    }

    /// The finding for one suite; `None` where there is no tunnel or no external interface.
    #[must_use]
    pub fn with(facts: &Facts, suite: Suite) -> Option<Self> {
        let (tunnel, external) = (facts.tunnel.clone()?, facts.external.clone()?);
        let bound = Bound::new(external.mtu, suite);
        Some(Self { tunnel, external, suite, bound })
    }

    /// The tunnel's packets fit.
    #[must_use]
    pub const fn valid(&self) -> bool {
        self.tunnel.mtu <= self.bound.accepted()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tunnel, external, suite, bound } = self;
        let limit = bound.accepted();
        let verdict = if self.valid() { "fits" } else { "is too large" };
        write!(
            f,
            "the MTU {} of {} {verdict}: at most {limit} with {suite} over {} with MTU {} (MKE's rule {}, this \
             kernel's limit {})",
            tunnel.mtu, tunnel.interface, external.interface, external.mtu, bound.mke, bound.kernel
        )?;
        if !self.valid() {
            write!(
                f,
                "; large packets of pods may get lost. Run: kubectl patch felixconfiguration default --type merge \
                 --patch '{{\"spec\":{{\"ipipMTU\":{limit}}}}}' and restart the pods: those that run keep their MTU"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Switches;

    const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn link(index: u32, name: &str, mtu: u32, kind: Option<&str>, addresses: &[IpAddr]) -> Link {
        let (name, kind, addresses) = (name.into(), kind.map(Into::into), addresses.into());
        Link { index, name, mtu, kind, up: true, addresses, switches: Switches::default() }
    }

    fn route(oif: u32, mtu: Option<u32>) -> RouteTo {
        RouteTo { oif, gateway: None, prefsrc: None, mtu, unicast: true }
    }

    fn ring(suites: &[&str]) -> Ring {
        let generation = |(at, suite): (usize, &&str)| {
            let key = if suite.contains("256") {
                "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
            } else {
                "AAECAwQFBgcICQoLDA0ODw=="
            };
            let (id, role) = (at + 1, ["active", "staged"][at]);
            format!(
                "- {{id: {id}, uid: 0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6{id}, role: {role}, suite: {suite}, key: {key}, \
                 spiSeed: EBESExQVFhcYGRobHB0eHw==, createdAt: 2026-11-20T03:00:00Z, roleSince: 2026-11-20T03:05:00Z}}\n"
            )
        };
        let generations: String = suites.iter().enumerate().map(generation).collect();
        let document =
            format!("version: 1\nrevision: 1\nenforcement: permissive\ngenerations:\n{generations}");
        Ring::parse(document.as_bytes()).unwrap()
    }

    fn facts(tunnel: u32, external: u32) -> Facts {
        let links = [link(2, "eth0", external, None, &[LOCAL]), link(3, "tunl0", tunnel, Some(IPIP), &[])];
        Facts::new(&links, LOCAL, &[])
    }

    #[test]
    fn the_message_says_what_to_do() {
        let finding = Finding::new(&facts(1480, 1500), &ring(&["aes128gcm8"])).unwrap();
        assert!(!finding.valid());
        let text = finding.to_string();
        for part in [
            "1480 of tunl0 is too large",
            "at most 1452",
            "eth0 with MTU 1500",
            "MKE's rule 1452",
            "limit 1454",
            r#"kubectl patch felixconfiguration default --type merge --patch '{"spec":{"ipipMTU":1452}}'"#,
            "keep their MTU",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let finding = Finding::new(&facts(1452, 1500), &ring(&["aes128gcm8"])).unwrap();
        assert!(finding.valid() && !finding.to_string().contains("kubectl"));
    }

    #[test]
    fn the_largest_overhead_in_the_ring_counts() {
        let finding = Finding::new(&facts(1452, 1500), &ring(&["aes128gcm8", "aes256gcm16"])).unwrap();
        assert_eq!((finding.valid(), finding.bound.accepted()), (false, 1444));
        assert_eq!(Finding::new(&facts(1480, 1500), &Ring::off(1, None)), None);
    }

    #[test]
    fn the_smallest_way_out_and_the_largest_way_in_count() {
        let links = [
            link(1, "lo", 65536, None, &[]),
            link(2, "eth0", 1500, None, &[LOCAL]),
            link(3, "eth1", 9000, None, &[]),
            link(4, "tunl0", 1440, Some(IPIP), &[LOCAL]),
            link(5, "tunl1", 1452, Some(IPIP), &[]),
            Link { up: false, ..link(6, "tunl2", 9000, Some(IPIP), &[]) },
        ];
        let with = |routes: &[RouteTo]| Facts::new(&links, LOCAL, routes);
        assert_eq!(with(&[]).tunnel, Some(Measured { interface: "tunl1".into(), mtu: 1452 }));
        let eth0 = |mtu| Some(Measured { interface: "eth0".into(), mtu });
        assert_eq!(with(&[route(3, None)]).external, eth0(1500));
        let eth1 = Some(Measured { interface: "eth1".into(), mtu: 1400 });
        assert_eq!(with(&[route(3, Some(1400))]).external, eth1);
        // Neither a route into the tunnel itself nor one that leads nowhere says anything.
        let nowhere = RouteTo { unicast: false, ..route(3, Some(100)) };
        assert_eq!(with(&[route(4, None), nowhere, route(99, None)]).external, eth0(1500));
        assert_eq!(Facts::new(&[], LOCAL, &[]), Facts::default());
    }
}
