//! Links, addresses, routes and rules (rtnetlink, RFC 3549, `linux/rtnetlink.h`): the facts for the MTU and coverage checks.
//!
//! neli knows the messages. They travel over the driver's own socket, which waits for a limited time, notices
//! interrupted dumps and takes damaged frames for errors.

mod link;
mod message;
mod routes;
mod rules;

use std::{collections::BTreeSet, net::IpAddr};

use neli::consts::rtnl::Rtm;
use secureoverlay_agent_core::coverage::MAIN_TABLE;

pub use self::{
    link::{Link, parse_address, parse_link},
    routes::{RouteTo, Way, parse_route, parse_ways},
    rules::parse_rule,
};
use crate::{
    error::{KernelError, Refusal},
    netlink::socket::{RequestSocket, Subsystem},
};

/// `RTM_GETRULE`, which neli does not name.
const RTM_GETRULE: u16 = 34;

/// A netlink socket for links and routes. Reading needs no capability.
pub struct LinkSocket {
    requests: RequestSocket,
}

impl LinkSocket {
    /// Opens the socket.
    ///
    /// # Errors
    /// The system does not let us.
    pub fn open() -> Result<Self, KernelError> {
        Ok(Self { requests: RequestSocket::open(Subsystem::Route)? })
    }

    /// All interfaces with their addresses, in the order of their numbers.
    ///
    /// # Errors
    /// The kernel refuses, or its answer can't be read.
    pub fn links(&mut self) -> Result<Vec<Link>, KernelError> {
        let mut links = self.requests.dump(
            Rtm::Getlink.into(),
            &link::links_request(),
            "reading the links",
            |payload| parse_link(payload).map(Some),
        )?;
        let addresses = self.requests.dump(
            Rtm::Getaddr.into(),
            &link::addresses_request(),
            "reading the addresses",
            parse_address,
        )?;
        links.sort_by_key(|link| link.index);
        for (index, address) in addresses {
            if let Ok(at) = links.binary_search_by_key(&index, |link| link.index) {
                links[at].addresses.push(address);
            }
        }
        Ok(links)
    }

    /// The route to `destination`, or why there is none.
    ///
    /// # Errors
    /// The kernel can't be asked, or its answer can't be read.
    pub fn route_to(&mut self, destination: IpAddr) -> Result<Result<RouteTo, Refusal>, KernelError> {
        self.requests.get(
            Rtm::Getroute.into(),
            &routes::route_request(destination),
            "looking up a route",
            parse_route,
        )
    }

    /// The IPv4 routes of the main table, each way of a multipath route by itself.
    ///
    /// # Errors
    /// The kernel refuses, or its answer can't be read.
    pub fn ways(&mut self) -> Result<Vec<Way>, KernelError> {
        let routes = self.routes()?;
        Ok(routes.into_iter().filter(|(table, _)| *table == MAIN_TABLE).map(|(_, way)| way).collect())
    }

    /// The IPv4 routes of all tables but that of local addresses, with their tables.
    ///
    /// # Errors
    /// The kernel refuses, or its answer can't be read.
    pub fn routes(&mut self) -> Result<Vec<(u32, Way)>, KernelError> {
        let routes = self.requests.dump(
            Rtm::Getroute.into(),
            &routes::ways_request(),
            "reading the routes",
            |payload| parse_ways(payload).map(Some),
        )?;
        Ok(routes.into_iter().flatten().collect())
    }

    /// The tables that IPv4 rules lead to.
    ///
    /// # Errors
    /// The kernel refuses, or its answer can't be read.
    pub fn tables(&mut self) -> Result<BTreeSet<u32>, KernelError> {
        let tables =
            self.requests.dump(RTM_GETRULE, &rules::request(), "reading the routing rules", parse_rule)?;
        Ok(tables.into_iter().collect())
    }
}

#[cfg(test)]
mod tests;
