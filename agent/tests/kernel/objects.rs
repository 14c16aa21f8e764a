//! SAs and policies to test with.

use secureoverlay_agent_core::xfrm::{Direction, Net, Op, Policy, PolicyAction, PolicyId, Sa, SaId};
use secureoverlay_keyring::{secret::SecretBytes, suite::Suite};
use std::net::IpAddr;

/// An SA whose key depends on the SPI.
pub fn sa(suite: Suite, src: IpAddr, dst: IpAddr, spi: u32) -> Sa {
    let len = suite.key_len() + Suite::SALT_LEN;
    let key: Vec<u8> =
        spi.to_be_bytes().into_iter().cycle().zip(0x51_u8..).map(|(a, b)| a ^ b).take(len).collect();
    Sa { src, id: SaId { dst, spi }, suite, key: SecretBytes::copy_from(&key) }
}

/// [`sa`] with the default suite, as an operation.
pub fn add(src: IpAddr, dst: IpAddr, spi: u32) -> Op {
    Op::AddSa(sa(Suite::default(), src, dst, spi))
}

pub fn policy(direction: Direction, src: IpAddr, dst: IpAddr, action: PolicyAction) -> Policy {
    Policy { id: PolicyId::tunnel(direction, Net::host(src), Net::host(dst)), action }
}

/// An outbound policy that pins `spi`.
pub fn outbound(src: IpAddr, dst: IpAddr, spi: u32) -> Policy {
    policy(Direction::Out, src, dst, PolicyAction::Esp(Some(spi)))
}

/// The `n`th of 65,536 addresses.
pub fn address(n: u16) -> IpAddr {
    let [high, low] = n.to_be_bytes();
    [198, 18, high, low].into()
}

/// Asserts that every operation succeeded.
#[track_caller]
pub fn all_done<E: std::fmt::Display>(outcomes: Vec<Result<(), E>>) {
    let failures: Vec<String> = outcomes.into_iter().filter_map(Result::err).map(|e| e.to_string()).collect();
    assert!(failures.is_empty(), "{} failed, first: {}", failures.len(), failures[0]);
}
