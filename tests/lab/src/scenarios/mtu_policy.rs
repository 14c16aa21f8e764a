//! A tunnel without room for ESP: switching on loses nothing and says so, and when there is room, everything is encrypted
//! without anybody's doing.

use std::time::Duration;

use anyhow::Result;

use super::cluster::until;
use super::enforcing::{self, Totals};
use super::manager;
use super::overlay::PATIENCE;
use super::ring::Ring;
use crate::lab::{Lab, TUNNEL_MTU};
use crate::scenario::{Installed, Profile, Report, Run, Scenario};

pub const SCENARIO: Scenario = Scenario {
    name: "mtu-policy",
    about: "where the tunnel leaves no room for ESP, switching on loses nothing and says so; with room, all is encrypted",
    estimate: "1 min",
    run: Run::Installs(run),
};

/// What MKE's rule leaves of 1500 bytes, and what the kernel would carry.
const ROOM: u32 = 1452;

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, _: Profile) -> Result<()> {
    let lab = overlay.lab;
    let mut totals = Totals::default();
    let cramped = totals.event(report, probe, "kubectl apply, without room in the tunnel", false, || {
        overlay.apply_with("SECUREOVERLAY_MTU_POLICY", "block")?;
        until("the first key to be in use, by nobody", PATIENCE, || {
            let ring = Ring::read(lab)?;
            Ok(ring.is_some_and(|ring| {
                ring.generation("active").is_some() && ring.pending() == lab.nodes().len()
            }))
        })?;
        until("every node to name the MTU", PATIENCE, || Ok(named(lab)? == lab.nodes().len()))?;
        std::thread::sleep(Duration::from_secs(3));
        Ok(())
    })?;
    let (clear, sent) = (cramped.wire.ipip, cramped.probes.sent);
    report.check(clear >= sent, format!("{clear} packets in the clear for {sent} probes"));
    // Probes of whether ESP passes are ESP, two packets for each direction, and two more a minute.
    let most = 12 * probe.pairs() as u64;
    let esp = cramped.wire.esp;
    report.check(
        esp <= most,
        format!("{esp} ESP packets without room in the tunnel, at most {most} of probes"),
    );

    totals.event(report, probe, "room in the tunnel", false, || {
        lab.set_tunnel_mtu(ROOM)?;
        enforcing::wait(lab)
    })?;
    totals.event(report, probe, "while every node insists", true, || {
        std::thread::sleep(Duration::from_secs(3));
        Ok(())
    })?;
    totals.event(report, probe, "no room any more: who has begun goes on", true, || {
        lab.set_tunnel_mtu(TUNNEL_MTU)?;
        until("every node to name the MTU", PATIENCE, || Ok(named(lab)? == lab.nodes().len()))
    })?;
    totals.tell(report);
    overlay.apply()?;
    overlay.wait_rolled_out()
}

/// How many nodes say that their tunnel is too large.
fn named(lab: &Lab) -> Result<usize> {
    let wanted = format!("{TUNNEL_MTU} > {ROOM}");
    Ok(manager::statuses(lab, "mtu")?.into_values().filter(|mtu| *mtu == wanted.as_str()).count())
}
