use secureoverlay_agent_core::{
    kernel::OpError,
    xfrm::{ActualPolicy, ActualSa, Direction, Net, PolicyId, SaId},
};
use secureoverlay_agent_kernel::{Link, RouteTo, Switches, Way};
use std::net::IpAddr;

use super::*;

fn addr(last: u8) -> IpAddr {
    [192, 0, 2, last].into()
}

fn here() -> Place {
    let peers = [(addr(2), "b".to_owned())].into();
    Place { name: "a".into(), local: Some(addr(1)), peers, excluded: false }
}

fn link(index: u32, name: &str, kind: Option<&str>, mtu: u32, addresses: &[IpAddr]) -> Link {
    let (name, kind, addresses) = (name.into(), kind.map(Into::into), addresses.into());
    Link { index, name, mtu, kind, remote: None, up: true, addresses, switches: Switches::default() }
}

fn facts(tunnel: u32) -> Facts {
    let route = RouteTo { oif: 2, gateway: None, prefsrc: Some(addr(1)), mtu: None, unicast: true };
    let to = Net { addr: [10, 77, 2, 0].into(), prefix: 24 };
    Facts {
        links: vec![link(2, "eth0", None, 1500, &[addr(1)]), link(3, "tunl0", Some("ipip"), tunnel, &[])],
        routes: vec![(addr(2), route)],
        ways: vec![Way { to, oif: 3, gateway: Some(addr(2)), mtu: None }],
        ..Facts::default()
    }
}

fn verdicts(items: &[Item]) -> Vec<(Verdict, &str)> {
    items.iter().map(|item| (item.verdict, item.what)).collect()
}

#[test]
fn each_trial_has_its_verdict() {
    let error = |kind| OpError { what: "adding SA".into(), kind, detail: "modprobe".into() };
    for (trial, verdict, part) in [
        (Trial::Taken, Verdict::Ok, "aes128gcm8"),
        (Trial::Refused(error(OpErrorKind::Unsupported)), Verdict::Fail, "modprobe"),
        (Trial::Refused(error(OpErrorKind::NotPermitted)), Verdict::Unknown, "adding SA"),
        (Trial::Left(error(OpErrorKind::Unknown)), Verdict::Warn, "is left"),
        (Trial::Untried("in use".into()), Verdict::Unknown, "in use"),
    ] {
        let item = suite(Suite::Aes128Gcm8, trial);
        assert!(item.verdict == verdict && item.text.contains(part), "{item}");
    }
}

#[test]
fn the_preferred_cipher_must_have_passed_its_test() {
    let block = |name: &str, driver: &str, priority: u32, selftest: &str| {
        format!(
            "name         : {name}\ndriver       : {driver}\npriority     : {priority}\nselftest     : {selftest}\n"
        )
    };
    let of = |blocks: &[String]| cipher(Ok(blocks.join("\n")));
    let (slow, fast) = (block(CIPHER, "generic", 100, "passed"), block(CIPHER, "aesni", 400, "passed"));
    let other = block("gcm(aes)", "other", 900, "unknown");
    let item = of(&[other.clone(), slow.clone(), fast, other.clone()]);
    assert!(item.verdict == Verdict::Ok && item.text.contains("by aesni passed"), "{item}");
    let item = of(&[slow, block(CIPHER, "aesni", 400, "unknown")]);
    assert!(item.verdict == Verdict::Fail && item.text.contains("by aesni is unknown"), "{item}");
    assert_eq!(of(&[other]).verdict, Verdict::Unknown);
    assert_eq!(of(&["noise".into(), format!("name: {CIPHER}")]).verdict, Verdict::Fail);
    assert_eq!(cipher(Err(io::Error::other("hidden"))).verdict, Verdict::Unknown);
}

#[test]
fn without_the_api_it_goes_on() {
    assert_eq!(api(&Ok(vec![])).verdict, Verdict::Ok);
    let item = api(&Err("no kubeconfig".into()));
    assert!(item.verdict == Verdict::Unknown && item.text.contains("no kubeconfig"), "{item}");
    assert_eq!(place(None).verdict, Verdict::Unknown);
    for (at, verdict, part) in [
        (here(), Verdict::Ok, "a (192.0.2.1) with 1 peers"),
        (Place { name: String::new(), ..here() }, Verdict::Ok, "by the SAs in the kernel"),
        (Place { excluded: true, ..here() }, Verdict::Warn, "excluded"),
        (Place { local: None, ..here() }, Verdict::Fail, "no IPv4 address"),
    ] {
        let item = place(Some(&at));
        assert!(item.verdict == verdict && item.text.contains(part), "{item}");
    }
}

#[test]
fn the_suites_in_use_must_fit_or_else_the_default_one() {
    use Verdict::{Fail, Ok, Warn};
    let of = |tunnel: u32, suites: &[Suite]| {
        let sa = |suite: &Suite| ActualSa {
            src: addr(1),
            id: SaId { dst: addr(2), spi: 256 },
            owner: Owner::Ours,
            cipher: Some((*suite, secureoverlay_keyring::secret::SecretBytes::copy_from(&[1]))),
            well_formed: true,
            packets: 0,
            bytes: 0,
        };
        let actual = Actual { sas: suites.iter().map(sa).collect(), policies: vec![] };
        let items = mtu(&facts(tunnel), &here(), &MtuSetting::FelixConfiguration, Some(&actual));
        for item in &items {
            assert_eq!(item.text.contains("kubectl patch"), item.verdict == Fail, "{item}");
        }
        items.into_iter().map(|item| item.verdict).collect::<Vec<_>>()
    };
    assert_eq!(of(1440, &[]), [Ok, Ok, Ok]);
    assert_eq!(of(1452, &[]), [Ok, Warn, Warn]);
    assert_eq!(of(1480, &[]), [Fail, Warn, Warn]);
    assert_eq!(of(1452, &[Suite::Aes128Gcm8]), [Ok]);
    assert_eq!(of(1452, &[Suite::Aes256Gcm16, Suite::Aes256Gcm16]), [Fail]);
    let without = Facts { links: vec![link(2, "eth0", None, 1500, &[addr(1)])], ..facts(1440) };
    assert_eq!(verdicts(&mtu(&without, &here(), &MtuSetting::Unknown, None)), [(Warn, "mtu")]);
    let elsewhere = Facts { links: vec![link(3, "tunl0", Some("ipip"), 1440, &[])], ..facts(1440) };
    let of = |facts: &Facts, place: &Place| mtu(facts, place, &MtuSetting::Unknown, None);
    assert!(of(&elsewhere, &here()).iter().all(|item| item.verdict == Verdict::Unknown));
    assert_eq!(of(&facts(1440), &Place::default()), []);
}

#[test]
fn every_fault_has_its_line() {
    use Verdict::{Fail, Ok, Unknown, Warn};
    let well = [(Ok, "sysctl"), (Ok, "source"), (Ok, "coverage")];
    assert_eq!(verdicts(&surroundings(&facts(1440), &here())), well);
    let mut wrong = facts(1440);
    wrong.links[0].switches = Switches { disable_xfrm: Some(true), disable_policy: Some(true) };
    wrong.routes[0].1.prefsrc = Some(addr(9));
    wrong.ways[0].oif = 2;
    let found = surroundings(&wrong, &here());
    assert_eq!(verdicts(&found), [(Fail, "sysctl"), (Fail, "sysctl"), (Fail, "source"), (Fail, "coverage")]);
    let unread = Facts { unread: Some("no /proc".into()), ways: vec![], ..facts(1440) };
    let found = surroundings(&unread, &here());
    assert_eq!(verdicts(&found), [(Unknown, "sysctl"), (Ok, "source"), (Warn, "coverage")]);
    let alone = surroundings(&facts(1440), &Place { peers: [].into(), ..here() });
    assert_eq!(verdicts(&alone), [(Unknown, "sysctl"), (Unknown, "source"), (Unknown, "coverage")]);
}

#[test]
fn policies_of_others_are_counted_and_those_before_ours_fail() {
    let any = Net { addr: [0, 0, 0, 0].into(), prefix: 0 };
    let id = PolicyId::tunnel(Direction::In, any, any);
    let owner = Owner::Foreign;
    let of = |priority| {
        let policy = ActualPolicy {
            id,
            index: 8,
            priority,
            protocol: 0,
            conditional: false,
            marked: false,
            owner,
            action: None,
        };
        Actual { sas: vec![], policies: vec![policy] }
    };
    assert_eq!(verdicts(&policies(&of(1), &here())), [(Verdict::Fail, "policy")]);
    let found = policies(&of(u32::MAX), &here());
    assert!(
        found[0].verdict == Verdict::Ok && found[0].text.contains("0 policies are ours, 1 are not"),
        "{found:?}"
    );
    assert_eq!(policies(&of(1), &Place::default())[0].verdict, Verdict::Unknown);
}

#[test]
fn the_agents_word_is_passed_on() {
    let listen = ([127, 0, 0, 1], 9467).into();
    assert_eq!(agent(listen, Ok((200, "ring: ready".into()))).verdict, Verdict::Ok);
    let item = agent(listen, Ok((503, "ring: not ready: no key ring yet\nkernel: ready".into())));
    assert!(item.verdict == Verdict::Warn && item.text.ends_with("no key ring yet; kernel: ready"), "{item}");
    let item = agent(listen, Err(io::ErrorKind::ConnectionRefused.into()));
    assert!(item.verdict == Verdict::Warn && item.text.contains("127.0.0.1:9467"), "{item}");
}
