//! `check`: looks for what keeps this node's pod traffic from being encrypted, for a person.
//!
//! It asks the kernel itself, as the agent does, and changes nothing but for the trial SA: it may run beside the agent.

mod api;
mod capture;
mod findings;
mod place;
mod readyz;
mod report;
mod trial;

use std::{fs, iter, net::IpAddr, time::Duration};

use rand::{TryRng, rngs::SysRng};
use rustix::io::Errno;
use secureoverlay_k8s::node::NodeFacts;
use secureoverlay_keyring::suite::Suite;

pub use self::{
    place::Place,
    report::{Item, Report, Verdict},
    trial::{Trial, try_suite},
};
use secureoverlay_agent_core::{kernel::Kernel, xfrm::Actual};
use secureoverlay_agent_kernel::{KernelError, XfrmSocket};

use crate::{
    config::Node,
    network::{measure::look_around, mtu_setting::MtuSetting},
};

/// The kernel's list of ciphers.
const CRYPTO: &str = "/proc/crypto";

/// Looks at everything, and counts for a while what passes on the wire, if that is asked for.
pub async fn check(node: &Node, capture: Option<Duration>) -> Report {
    let mut report = Report::default();
    let actual = look_at_kernel(&mut report);
    let (nodes, setting) = api::read().await;
    report.push(findings::api(&nodes));
    let place = look_at_network(&mut report, node.name().as_deref(), &nodes, &setting, actual.as_ref());
    report.push(findings::agent(node.metrics_bind_address, readyz::ask(node.metrics_bind_address)));
    if let Some(duration) = capture {
        let scope = capture::Scope::new(place.as_ref(), nodes.as_deref().unwrap_or_default());
        match scope.and_then(|scope| capture::count(&scope, duration)) {
            Ok(counts) => report.captured(findings::capture(&counts), Some(counts)),
            Err(error) => report.blind(Item::new(Verdict::Unknown, "capture", error)),
        }
    }
    report
}

/// Tries every suite; what the kernel holds, if it can be asked.
fn look_at_kernel(report: &mut Report) -> Option<Actual> {
    let opened = XfrmSocket::open().and_then(|mut kernel| {
        let actual = kernel.dump()?;
        Ok((kernel, actual))
    });
    let (mut kernel, actual) = match opened {
        Ok(opened) => opened,
        Err(error) if lacks_xfrm(&error) => {
            report.push(Item::new(Verdict::Fail, "kernel", error));
            return None;
        }
        Err(error) => {
            report.blind(Item::new(Verdict::Unknown, "kernel", error));
            return None;
        }
    };
    for suite in Suite::ALL {
        let trial = try_suite(&mut kernel, &actual, suite, |bytes| SysRng.try_fill_bytes(bytes));
        report.push(findings::suite(suite, trial));
    }
    // The trial has brought the cipher up, and with it the kernel's test of it.
    let ciphers = fs::read(CRYPTO).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    report.push(findings::cipher(ciphers));
    Some(actual)
}

/// Whether it is the kernel that has no XFRM, rather than us who may not ask it.
fn lacks_xfrm(error: &KernelError) -> bool {
    let KernelError::Open { source, .. } = error else { return false };
    let errno = source.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::PROTONOSUPPORT | Errno::CONNREFUSED))
}

/// Finds out which node this is, and looks at its interfaces, routes and policies.
fn look_at_network(
    report: &mut Report,
    name: Option<&str>,
    nodes: &Result<Vec<NodeFacts>, String>,
    setting: &MtuSetting,
    actual: Option<&Actual>,
) -> Option<Place> {
    let own = match look_around(iter::empty()) {
        Ok(facts) => facts.links.into_iter().flat_map(|link| link.addresses).collect::<Vec<IpAddr>>(),
        Err(error) => {
            report.blind(Item::new(Verdict::Unknown, "network", error));
            return None;
        }
    };
    let by_api = nodes.as_ref().ok().and_then(|nodes| Place::among(nodes, name, &own));
    let by_kernel = || Place::by_states(&actual?.sas, &own);
    let place = by_api.or_else(by_kernel);
    report.push(findings::place(place.as_ref()));
    let found = place.clone();
    let place = place.unwrap_or_default();
    match look_around(place.peers.keys().copied()) {
        Ok(facts) => {
            report.extend(findings::mtu(&facts, &place, setting, actual));
            report.extend(findings::surroundings(&facts, &place));
        }
        Err(error) => report.blind(Item::new(Verdict::Unknown, "network", error)),
    }
    if let Some(actual) = actual {
        report.extend(findings::policies(actual, &place));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_xfrm_fails_and_one_that_forbids_leaves_us_blind() {
        let open = |errno: Errno| KernelError::Open { subsystem: "XFRM", source: errno.into() };
        assert!(lacks_xfrm(&open(Errno::PROTONOSUPPORT)) && lacks_xfrm(&open(Errno::CONNREFUSED)));
        assert!(!lacks_xfrm(&open(Errno::PERM)) && !lacks_xfrm(&KernelError::NoAnswer { doing: "asking" }));
    }

    #[tokio::test]
    async fn wherever_it_runs_everything_has_a_line() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut report = Report::default();
        let unreachable = Err("no API here".to_owned());
        look_at_network(&mut report, None, &unreachable, &MtuSetting::Unknown, Some(&Actual::default()));
        report.push(findings::api(&unreachable));
        report.push(findings::agent(closed, readyz::ask(closed)));
        let text = report.to_string();
        for what in ["node", "sysctl", "source", "coverage", "policy", "api", "agent"] {
            let named = |line: &str| line.split_whitespace().nth(1) == Some(what);
            assert!(text.lines().any(named), "{what} is missing:\n{text}");
        }
    }
}
