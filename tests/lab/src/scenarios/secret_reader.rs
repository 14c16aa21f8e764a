//! A reader of the Secret, with every generation in it, who records all traffic, decrypts nothing; with one node's
//! directory as well, that node's traffic and no other's.

use std::net::IpAddr;

use anyhow::{Context, Result};
use secureoverlay_keyring::node_key::NodeKeyPair;

use super::decrypt::{private_key, readable, ring};
use super::rotate_timed::Leftovers;
use super::{manager, rotate_timed, wire};
use crate::pcap::Packet;
use crate::progress::note;
use crate::sa_keys::{Attempt, SaTable, esp};
use crate::scenario::{Installed, Profile, Report, Run, Scenario, Tier};

pub const SCENARIO: Scenario = Scenario {
    name: "secret-reader",
    about: "the Secret of every generation and a capture of all traffic decrypt nothing; one node's directory its own",
    tier: Tier::Gate,
    estimate: 40,
    alone: false,
    run: Run::Installed(run),
};

fn run(Installed { overlay, probe }: &Installed<'_>, report: &mut Report, profile: Profile) -> Result<()> {
    let lab = overlay.lab;
    let rotations = profile.pick(1, 3);
    let mut read = readable(lab)?;
    let watched = wire::watch(probe, "while the Secret is read", || {
        for _ in 0..rotations {
            let before = rotate_timed::steady(lab)?;
            manager::rotate(lab, &[])?;
            // What is staged is in the Secret for longer than this takes.
            crate::wait::wait_until("a generation to be staged", super::overlay::PATIENCE, || {
                let now = ring(lab)?;
                let staged = now.generations.len() > 1;
                read.add_ring(now);
                Ok(staged.then_some(()))
            })?;
            rotate_timed::wait_rotated(lab, &before, Leftovers::Go)?;
        }
        std::thread::sleep(profile.lasting(3, 20));
        Ok(())
    })?;
    watched.check_delivered(report);
    watched.check_encrypted(report);
    read.add_ring(ring(lab)?);
    read.add_peers(&lab.kubectl_json(&["get", "encryptionpeers"])?)?;
    report.figure("generations", read.generations());
    report.check(read.generations() > rotations, "the Secret of every generation was read");

    let keys = lab.on_all_nodes(|node| private_key(lab, node))?;
    let (node, own) = lab.nodes().iter().zip(&keys).next_back().context("a lab without nodes")?;
    let packets: Vec<&Packet> = watched.captured.packets.iter().filter(|it| esp(it).is_some()).collect();
    report.figure("packets", packets.len());
    report.check(packets.len() as u64 >= watched.probes.sent, "every probe was captured");

    note(format!("{} packets, with the Secret alone", packets.len()));
    let alone = opened(&read.guess()?, &packets);
    report.expect("unknown_sa", alone.unknown, 0);
    report.expect("decrypted", alone.opened.len() as u64, 0);
    report.check(read.derive(&[])?.is_empty(), "without a private key there is nothing to derive");

    note(format!("with the directory of {}", node.name));
    let one = opened(&read.derive(std::slice::from_ref(own))?, &packets);
    let of_it = |packet: &&&Packet| concerns(packet, node.ip.into());
    let others = one.opened.iter().filter(|packet| !of_it(packet)).count() as u64;
    let its = packets.iter().filter(of_it).count();
    report.figure("decrypted_with_one_directory", one.opened.len());
    report.check(
        !one.opened.is_empty() && one.opened.len() == its,
        format!(
            "{} packets decrypted with the directory of {}, which has {its}",
            one.opened.len(),
            node.name
        ),
    );
    report.expect("decrypted_of_others", others, 0);

    note("with both keys: the same decoder");
    let control = opened(&read.derive(&keys as &[NodeKeyPair])?, &packets).opened.len();
    report.figure("control_decrypted", control);
    report.check(
        control > 0 && control == packets.len(),
        format!(
            "{control} of {} packets decrypted with all keys, or the decoder proves nothing",
            packets.len()
        ),
    );
    report.figure("sent", watched.probes.sent);
    report.figure("lost", watched.probes.lost);
    Ok(())
}

/// What a table opens.
struct Opened<'p> {
    opened: Vec<&'p Packet>,
    /// Packets of SAs that the table does not know.
    unknown: u64,
}

fn opened<'p>(table: &SaTable, packets: &[&'p Packet]) -> Opened<'p> {
    let mut all = Opened { opened: Vec::new(), unknown: 0 };
    for packet in packets {
        match table.open(packet) {
            Attempt::Opened(_) => all.opened.push(packet),
            Attempt::UnknownSa | Attempt::NotEsp => all.unknown += 1,
            Attempt::WrongKey => {}
        }
    }
    all
}

/// Whether a node sent the packet or is to receive it.
fn concerns(packet: &Packet, node: IpAddr) -> bool {
    [packet.source(), packet.destination()].into_iter().flatten().any(|address| IpAddr::from(address) == node)
}
