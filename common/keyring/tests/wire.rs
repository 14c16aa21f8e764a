//! The wire scheme against its published vectors, and against a second implementation that shares no code with ours.

#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use aes_gcm::{
    AesGcm, KeyInit, Nonce,
    aead::{Aead, Payload},
    aes::{
        Aes128, Aes256,
        cipher::consts::{U8, U12},
    },
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use jiff::Timestamp;
use proptest::{collection::vec, prelude::*, sample::select, test_runner::TestRunner};
use secureoverlay_keyring::{
    address::NodeAddress,
    derivation::{
        Derivation, DerivationError, DerivedSa, EndpointKey, SaPath, collisions, receiver_offset, spi,
    },
    keyring::{Generation, Identities, KeyRing, Role, Traffic},
    node_key::{InvalidPublicKey, LOW_ORDER, NodeKeyPair, PublicKey, SharedSecret},
    peer::{Instance, Sender},
    probe::{self, Probe, ProbeKind},
    secret::SecretBytes,
    suite::Suite,
    uid::Uid,
};
use serde_json::{Value, json};

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn read_json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(project(path)).unwrap()).unwrap()
}

fn python(command: &str) -> Command {
    let mut python = Command::new("python3");
    python.arg(project("tests/vectors/check.py")).arg(command);
    python
}

const NO_PYTHON: &str = "python3 (3.8 or later) must be in PATH: the second implementation is written in it";

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn bytes<const N: usize>(value: &Value) -> [u8; N] {
    unhex(text(value)).try_into().unwrap()
}

fn key_pair(private: &Value) -> NodeKeyPair {
    NodeKeyPair::from_private(&SecretBytes::copy_from(&unhex(text(private)))).unwrap()
}

struct Vectors(Value);

impl Vectors {
    fn read() -> Self {
        Self(read_json("tests/vectors/wire-v1.json"))
    }

    fn list(&self, field: &str) -> &[Value] {
        list(&self.0[field])
    }

    fn generation(&self, id: &Value) -> Generation {
        let rings = ["ring", "bootIdRing"]
            .map(|ring| KeyRing::parse(self.0[ring].to_string().as_bytes()).expect("a key ring"));
        let mut all = rings.into_iter().flat_map(|ring| ring.generations);
        all.find(|generation| Some(generation.id) == id.as_u64()).unwrap()
    }

    /// The entry `a.0` and its key pair.
    fn sender(&self, name: &str) -> (Sender, NodeKeyPair) {
        let (node, at) = name.split_once('.').unwrap();
        let entry = &self.0["nodes"][node]["senders"][at.parse::<usize>().unwrap()];
        let sender: Sender = serde_json::from_value(entry.clone()).unwrap();
        (sender, key_pair(&self.0["keys"][text(&entry["key"])]["private"]))
    }

    /// The path of an entry, and what the key agreement gives at both of its ends.
    fn path(&self, entry: &Value) -> (SaPath, Option<[SharedSecret; 2]>) {
        let (src, dst) = (text(&entry["src"]), text(&entry["dst"]));
        if !src.contains('.') {
            let node = |name: &str| {
                let node = &self.0["nodes"][name];
                (text(&node["address"]).parse().unwrap(), text(&node["bootId"]).parse().unwrap())
            };
            return (SaPath::by_boot_id(node(src), node(dst)), None);
        }
        let ((src, src_keys), (dst, dst_keys)) = (self.sender(src), self.sender(dst));
        let shared = [src_keys.agree(&dst.public_key).unwrap(), dst_keys.agree(&src.public_key).unwrap()];
        (SaPath::announced(&src, &dst), Some(shared))
    }

    /// The SA of an entry, as both ends derive it.
    fn sa(&self, entry: &Value) -> (Generation, DerivedSa) {
        let generation = self.generation(&entry["generation"]);
        let derivation = Derivation::new(&generation);
        let (path, shared) = self.path(entry);
        let sa = match shared {
            None => derivation.derive_sa(&path, None).unwrap(),
            Some(shared) => {
                let [one, other] = shared.map(|shared| derivation.derive_sa(&path, Some(&shared)).unwrap());
                assert_eq!(one, other, "sender and receiver");
                one
            }
        };
        (generation, sa)
    }
}

fn hex_spi(spi: u32) -> String {
    format!("{spi:#010x}")
}

#[test]
fn vectors_are_met() {
    let vectors = Vectors::read();
    for entry in vectors.list("derivations") {
        let (generation, sa) = vectors.sa(entry);
        let (path, shared) = vectors.path(entry);
        let f = Derivation::new(&generation).sender_offset(&path.instance, path.src.address);
        let g = receiver_offset(&path.dst.key);
        assert_eq!(
            [f, g, sa.spi].map(hex_spi),
            ["f", "g", "spi"].map(|field| text(&entry[field]).to_owned())
        );
        assert_eq!(spi(f, g), sa.spi);
        let shared = shared.map(|[one, _]| hex(one.expose())).unwrap_or_default();
        assert_eq!(shared, text(&entry["shared"]));
        let (key, salt) = sa.key.expose().split_at(generation.suite.key_len());
        assert_eq!((hex(key), hex(salt)), (text(&entry["key"]).to_owned(), text(&entry["salt"]).to_owned()));
    }
}

#[test]
fn vectors_cover_suites_families_and_identities() {
    let vectors = Vectors::read();
    for suite in Suite::ALL {
        for identities in [Identities::Announced, Identities::BootId] {
            for v6 in [false, true] {
                let covers = |entry: &&Value| {
                    let generation = vectors.generation(&entry["generation"]);
                    let v6_entry = vectors.path(entry).0.src.address.ip().is_ipv6();
                    (generation.suite, generation.identities, v6_entry) == (suite, identities, v6)
                };
                let found = vectors.list("derivations").iter().find(covers);
                assert!(found.is_some(), "no vector for {suite}, {identities:?}, IPv6: {v6}");
            }
        }
    }
}

#[test]
fn key_pairs_are_those_of_the_vectors() {
    for key in Vectors::read().0["keys"].as_object().unwrap().values() {
        assert_eq!(hex(key_pair(&key["private"]).public().as_bytes()), text(&key["public"]));
    }
}

#[test]
fn key_agreement_is_that_of_rfc_7748() {
    let vectors = read_json("tests/vectors/rfc7748.json");
    let public = |bytes: [u8; 32]| PublicKey::try_from(bytes).unwrap();
    for vector in list(&vectors["multiplications"]) {
        // The second u-coordinate has its highest bit set: X25519 ignores it, and we refuse such keys.
        let u: [u8; 32] = bytes(&vector["u"]);
        let canonical = std::array::from_fn(|at| if at == 31 { u[at] & 0x7f } else { u[at] });
        assert_eq!(PublicKey::try_from(u).is_ok(), u == canonical);
        let product = key_pair(&vector["scalar"]).agree(&public(canonical)).unwrap();
        assert_eq!(hex(product.expose()), text(&vector["product"]));
    }
    let agreement = &vectors["agreement"];
    let [alice, bob] = ["alice", "bob"].map(|name| key_pair(&agreement[name]));
    assert_eq!(hex(alice.public().as_bytes()), text(&agreement["alicePublic"]));
    assert_eq!(hex(bob.public().as_bytes()), text(&agreement["bobPublic"]));
    for (own, peer) in [(&alice, &bob), (&bob, &alice)] {
        assert_eq!(hex(own.agree(peer.public()).unwrap().expose()), text(&agreement["shared"]));
    }
    for vector in list(&vectors["iterated"]) {
        let mut base = [0; 32];
        base[0] = 9;
        let (mut scalar, mut u) = (base, base);
        for _ in 0..vector["times"].as_u64().unwrap() {
            (scalar, u) = (x25519_dalek::x25519(scalar, u), scalar);
        }
        assert_eq!(hex(&scalar), text(&vector["scalar"]), "{} times", vector["times"]);
    }
}

#[test]
fn refused_keys_are_refused_for_their_reason() {
    let vectors = Vectors::read();
    for entry in vectors.list("refusedKeys") {
        let key = unhex(text(&entry["key"]));
        let refusal = BASE64.encode(&key).parse::<PublicKey>().unwrap_err();
        let why = match refusal {
            InvalidPublicKey::Length => "length",
            InvalidPublicKey::NotCanonical => "not canonical",
            InvalidPublicKey::LowOrder => "low order",
        };
        assert_eq!(why, text(&entry["why"]), "{entry}");
    }
    for point in LOW_ORDER {
        let listed = vectors.list("refusedKeys").iter().any(|entry| text(&entry["key"]) == hex(&point));
        assert!(listed, "no vector for {}", hex(&point));
        assert_eq!(x25519_dalek::x25519([0x55; 32], point), [0; 32], "not of low order");
    }
}

#[test]
fn published_collisions_are_collisions() {
    let vectors = Vectors::read();
    for entry in vectors.list("collisions") {
        let mut senders = Vec::new();
        for sa in list(&entry["sas"]) {
            let generation = vectors.generation(&sa["generation"]);
            let instance: Instance = text(&sa["src"]["instance"]).parse().unwrap();
            let address: NodeAddress = text(&sa["src"]["address"]).parse().unwrap();
            let key = PublicKey::try_from(bytes::<32>(&vectors.0["keys"][text(&sa["dstKey"])]["public"]));
            let f = Derivation::new(&generation).sender_offset(&instance, address);
            assert_eq!(
                hex_spi(spi(f, receiver_offset(&EndpointKey::Public(key.unwrap())))),
                text(&entry["spi"])
            );
            senders.push((generation, instance, address));
        }
        let [(one, first, at), (other, second, then)] = &senders[..] else { panic!("two SAs") };
        let generations: Vec<&Generation> = if one == other { vec![one] } else { vec![one, other] };
        let found = collisions(generations, [(*first, *at), (*second, *then)]);
        let same_key = entry["sas"][0]["dstKey"] == entry["sas"][1]["dstKey"];
        let expected = vec![((other.uid, *second, *then), (one.uid, *first, *at))];
        assert_eq!(found, if same_key { expected } else { vec![] }, "{}", entry["what"]);
    }
}

#[test]
fn document_shows_the_ring_of_the_vectors() {
    let document = std::fs::read_to_string(project("docs/wire-scheme.md")).unwrap();
    let shown = document.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let vectors = Vectors::read();
    let ring = KeyRing::parse(vectors.0["ring"].to_string().as_bytes()).unwrap();
    assert_eq!(KeyRing::parse(shown.as_bytes()), Ok(ring));
}

#[test]
fn vectors_and_document_are_what_the_second_implementation_computes() {
    let output = python("check").output().expect(NO_PYTHON);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Decrypts as a receiver does, with another AES-GCM than the second implementation's.
fn open(suite: Suite, sa: &DerivedSa, sequence: u64, esp: &[u8]) -> (Vec<u8>, u8) {
    let (head, rest) = esp.split_at(16);
    assert_eq!(head[..4], sa.spi.to_be_bytes());
    assert_eq!(head[4..8], sequence.to_be_bytes()[4..]);
    let (key, salt) = sa.key.expose().split_at(suite.key_len());
    let nonce: Nonce<U12> = [salt, &head[8..]].concat().as_slice().try_into().unwrap();
    let aad = [&head[..4], &sequence.to_be_bytes()].concat();
    let message = Payload { msg: rest, aad: &aad };
    let mut plaintext = match suite {
        Suite::Aes128Gcm8 => AesGcm::<Aes128, U12, U8>::new_from_slice(key).unwrap().decrypt(&nonce, message),
        Suite::Aes128Gcm16 => AesGcm::<Aes128, U12>::new_from_slice(key).unwrap().decrypt(&nonce, message),
        Suite::Aes256Gcm16 => AesGcm::<Aes256, U12>::new_from_slice(key).unwrap().decrypt(&nonce, message),
    }
    .expect("the ICV");
    let next_header = plaintext.pop().unwrap();
    let padding = usize::from(plaintext.pop().unwrap());
    let payload = plaintext.len() - padding;
    assert_eq!(plaintext[payload..], [1, 2, 3][..padding], "padding");
    plaintext.truncate(payload);
    (plaintext, next_header)
}

#[test]
fn packets_decrypt_to_what_they_carry() {
    let vectors = Vectors::read();
    for entry in vectors.list("packets") {
        let (generation, sa) = vectors.sa(entry);
        let sequence = entry["sequence"].as_u64().unwrap();
        let opened = open(generation.suite, &sa, sequence, &unhex(text(&entry["esp"])));
        assert_eq!(opened, (unhex(text(&entry["inner"])), 4));
    }
}

#[test]
fn probes_are_those_of_the_vectors() {
    let vectors = Vectors::read();
    for entry in vectors.list("probes") {
        let (generation, sa) = vectors.sa(entry);
        let sequence = entry["sequence"].as_u64().unwrap();
        let (udp, next_header) = open(generation.suite, &sa, sequence, &unhex(text(&entry["esp"])));
        assert_eq!((hex(&udp).as_str(), next_header), (text(&entry["udp"]), 17));
        let (header, data) = udp.split_at(8);
        let port = u16::try_from(entry["port"].as_u64().unwrap()).unwrap();
        assert!([probe::PINNED_PORT, probe::CANDIDATE_PORT].contains(&port));
        assert_eq!(header[..4], [port.to_be_bytes(), port.to_be_bytes()].concat());
        let kind = if entry["kind"] == "ping" { ProbeKind::Ping } else { ProbeKind::Answer };
        let tested = vectors.sa(&entry["tested"]).1.spi;
        let expected = Probe { kind, spi: tested, nonce: bytes(&entry["nonce"]) };
        assert_eq!(Probe::parse(data), Some(expected));
        assert_eq!(hex(&expected.to_bytes()), text(&entry["probe"]));
    }
}

/// Everything that a derivation is made of.
#[derive(Clone, Debug)]
struct Case {
    generation: Generation,
    src: (Sender, NodeKeyPair),
    dst: (Sender, NodeKeyPair),
}

impl Case {
    fn path(&self) -> SaPath {
        let (
            Sender { address: src, instance: src_boot, .. },
            Sender { address: dst, instance: dst_boot, .. },
        ) = (self.src.0, self.dst.0);
        match self.generation.identities {
            Identities::Announced => SaPath::announced(&self.src.0, &self.dst.0),
            Identities::BootId => SaPath::by_boot_id((src, *src_boot.uid()), (dst, *dst_boot.uid())),
        }
    }

    fn derive(&self) -> DerivedSa {
        let shared = self.src.1.agree(self.dst.1.public()).unwrap();
        let shared = (self.generation.identities == Identities::Announced).then_some(&shared);
        Derivation::new(&self.generation).derive_sa(&self.path(), shared).unwrap()
    }
}

fn addresses() -> impl Strategy<Value = (NodeAddress, NodeAddress, NodeAddress)> {
    let three = |v6: bool| {
        let one = move |random: [u8; 16]| -> NodeAddress {
            let v4 = std::net::Ipv4Addr::new(10, random[0], random[1], random[2]);
            let mut v6_octets = random;
            v6_octets[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
            let ip = if v6 { std::net::Ipv6Addr::from(v6_octets).into() } else { v4.into() };
            std::net::IpAddr::try_into(ip).unwrap()
        };
        any::<[[u8; 16]; 3]>().prop_map(move |[a, b, c]| (one(a), one(b), one(c)))
    };
    prop_oneof![three(false), three(true)]
}

fn sender(address: NodeAddress, (instance, private): ([u8; 16], [u8; 32])) -> (Sender, NodeKeyPair) {
    let keys = NodeKeyPair::from_private(&SecretBytes::copy_from(&private)).unwrap();
    (Sender { instance: Uid::from_random(instance).into(), address, public_key: *keys.public() }, keys)
}

fn cases() -> impl Strategy<Value = (Case, (Sender, NodeKeyPair))> {
    let secrets = (vec(any::<u8>(), 32), any::<[u8; 16]>(), any::<[u8; 16]>());
    let ids = || any::<([u8; 16], [u8; 32])>();
    let identities = select(&[Identities::Announced, Identities::BootId]);
    (secrets, select(&Suite::ALL), identities, addresses(), ids(), ids(), ids()).prop_map(
        |((key, seed, uid), suite, identities, (a, b, c), src, dst, other)| {
            let generation = Generation {
                id: 1,
                uid: Uid::from_random(uid),
                role: Role::Active,
                suite,
                traffic: Traffic::Ipip,
                identities,
                key: SecretBytes::copy_from(&key[..suite.key_len()]),
                spi_seed: SecretBytes::copy_from(&seed),
                created_at: Timestamp::UNIX_EPOCH,
                role_since: Timestamp::UNIX_EPOCH,
            };
            (Case { generation, src: sender(a, src), dst: sender(b, dst) }, sender(c, other))
        },
    )
}

/// The second implementation as a process: a derivation in, its result out.
struct Second {
    process: Child,
    requests: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
}

impl Second {
    fn start() -> Self {
        let mut process =
            python("serve").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect(NO_PYTHON);
        let (requests, replies) = (process.stdin.take(), BufReader::new(process.stdout.take().unwrap()));
        Self { process, requests, replies }
    }

    fn derive(&mut self, case: &Case) -> (u32, String) {
        let end = |(sender, keys): &(Sender, NodeKeyPair)| {
            json!({
                "instance": sender.instance, "bootId": sender.instance, "address": sender.address,
                "private": hex(keys.private().expose()),
            })
        };
        let generation = serde_json::to_value(&case.generation).unwrap();
        let request = json!({"generation": generation, "src": end(&case.src), "dst": end(&case.dst)});
        writeln!(self.requests.as_mut().unwrap(), "{request}").unwrap();
        let mut reply = String::new();
        self.replies.read_line(&mut reply).unwrap();
        let reply: Value = serde_json::from_str(&reply).expect("the second implementation failed, see above");
        let spi = reply["spi"].as_u64().unwrap().try_into().unwrap();
        (spi, text(&reply["key"]).to_owned() + text(&reply["salt"]))
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        self.requests = None;
        let _ = self.process.wait();
    }
}

#[test]
fn both_implementations_derive_the_same() {
    let second = std::cell::RefCell::new(Second::start());
    TestRunner::new(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })
        .run(&cases(), |(case, _)| {
            let ours = case.derive();
            prop_assert_eq!((ours.spi, hex(ours.key.expose())), second.borrow_mut().derive(&case));
            Ok(())
        })
        .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// Whatever differs between two SAs, their keys differ; the receiver's instance is no difference.
    #[test]
    fn every_part_of_the_derivation_counts((case, other) in cases()) {
        let addresses = [case.src.0.address, case.dst.0.address, other.0.address];
        prop_assume!(addresses[0] != addresses[1] && addresses[1] != addresses[2] && addresses[0] != addresses[2]);
        let key = case.derive().key;
        let changed = |change: &dyn Fn(&mut Case)| {
            let mut case = case.clone();
            change(&mut case);
            case.derive().key
        };
        prop_assert_ne!(&changed(&|case| std::mem::swap(&mut case.src, &mut case.dst)), &key);
        prop_assert_ne!(&changed(&|case| case.src.0.instance = other.0.instance), &key);
        prop_assert_ne!(&changed(&|case| case.src.0.address = other.0.address), &key);
        prop_assert_ne!(&changed(&|case| case.dst.0.address = other.0.address), &key);
        prop_assert_ne!(&changed(&|case| case.generation.uid = *other.0.instance.uid()), &key);
        let len = case.generation.suite.key_len();
        prop_assert_ne!(&changed(&|case| case.generation.key = SecretBytes::copy_from(&vec![1; len])), &key);
        let with_other_key =
            |sender: &Sender| (Sender { public_key: other.0.public_key, ..*sender }, other.1.clone());
        let src_key = changed(&|case| case.src = with_other_key(&case.src.0));
        let dst_key = changed(&|case| case.dst = with_other_key(&case.dst.0));
        let dst_instance = changed(&|case| case.dst.0.instance = other.0.instance);
        match case.generation.identities {
            Identities::Announced => {
                prop_assert_ne!(&src_key, &key);
                prop_assert_ne!(&dst_key, &key);
                prop_assert_eq!(&dst_instance, &key);
            }
            Identities::BootId => prop_assert_ne!(&dst_instance, &key),
        }
        for suite in Suite::ALL.into_iter().filter(|suite| *suite != case.generation.suite) {
            let other = changed(&|case| case.generation.suite = suite);
            prop_assert_ne!(&other.expose()[..16], &key.expose()[..16]);
        }
    }

    /// One ring key in both kinds of identities gives unrelated keys, and parts that do not go together none.
    #[test]
    fn parts_that_do_not_go_together_derive_nothing((mut case, other) in cases()) {
        case.generation.identities = Identities::Announced;
        let shared = case.src.1.agree(case.dst.1.public()).unwrap();
        let foreign = case.src.1.agree(other.1.public()).unwrap();
        let path = case.path();
        let key = case.derive().key;
        {
            let derivation = Derivation::new(&case.generation);
            prop_assert_eq!(derivation.derive_sa(&path, None), Err(DerivationError::SharedSecret));
            prop_assert_eq!(derivation.derive_sa(&path, Some(&foreign)), Err(DerivationError::SharedSecret));
            let mut mixed = path;
            let other_family = if path.src.address.ip().is_ipv4() { "2001:db8::1" } else { "192.0.2.1" };
            mixed.dst.address = other_family.parse().unwrap();
            let refused = derivation.derive_sa(&mixed, Some(&shared));
            prop_assert_eq!(refused, Err(DerivationError::Families(mixed.src.address, mixed.dst.address)));
        }
        case.generation.identities = Identities::BootId;
        let derivation = Derivation::new(&case.generation);
        let identities = Err(DerivationError::Identities(Identities::BootId));
        prop_assert_eq!(derivation.derive_sa(&path, Some(&shared)), identities.clone());
        prop_assert_eq!(derivation.derive_sa(&path, None), identities);
        prop_assert_eq!(derivation.derive_sa(&case.path(), Some(&shared)), Err(DerivationError::SharedSecret));
        prop_assert_ne!(&case.derive().key, &key);
    }

    #[test]
    fn spis_are_in_range_and_offsets_wrap(f: u32, g: u32) {
        let modulus = (1_u64 << 32) - 256;
        let expected = 256 + (u64::from(f) + u64::from(g)) % modulus;
        prop_assert_eq!(u64::from(spi(f, g)), expected);
        prop_assert!(spi(f, g) >= 256);
    }
}
