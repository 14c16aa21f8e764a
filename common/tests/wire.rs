//! The wire scheme against its published vectors, and against a second implementation that shares no code with ours.

#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hkdf::Hkdf;
use jiff::Timestamp;
use proptest::{collection::vec, prelude::*, sample::select, test_runner::TestRunner};
use secureoverlay_common::{
    ring::{Generation, Ring, Role},
    secret::SecretBytes,
    suite::Suite,
    uid::Uid,
    wire::{End, sa_key, spi},
};
use serde_json::{Value, json};
use sha2::Sha256;

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn end(node: &Value) -> End {
    End {
        addr: text(&node["addr"]).parse().unwrap(),
        node: text(&node["node"]).parse().unwrap(),
        boot: text(&node["boot"]).parse().unwrap(),
    }
}

/// SPI, key and salt as the vectors write them.
fn derived(generation: &Generation, src: &End, dst: &End) -> (u32, String, String) {
    let key = sa_key(generation, src, dst);
    let (key, salt) = key.expose().split_at(generation.suite.key_len());
    (spi(generation, src), hex(key), hex(salt))
}

#[test]
fn the_vectors_are_met() {
    let vectors = read_json("tests/vectors/wire-v1.json");
    let ring = Ring::parse(vectors["ring"].to_string().as_bytes()).unwrap();
    let derivations = vectors["derivations"].as_array().unwrap();
    for entry in derivations {
        let generation =
            ring.generations.iter().find(|g| Some(g.id) == entry["generation"].as_u64()).unwrap();
        let node = |name: &str| end(&vectors["nodes"][text(&entry[name])]);
        let spi = u32::from_str_radix(text(&entry["spi"]).trim_start_matches("0x"), 16).unwrap();
        let expected = (spi, text(&entry["key"]).to_owned(), text(&entry["salt"]).to_owned());
        assert_eq!(derived(generation, &node("src"), &node("dst")), expected, "{entry}");
    }
    for suite in Suite::ALL {
        for v6 in [false, true] {
            let covers = |entry: &&Value| {
                let generation =
                    ring.generations.iter().find(|g| Some(g.id) == entry["generation"].as_u64()).unwrap();
                generation.suite == suite && end(&vectors["nodes"][text(&entry["src"])]).addr.is_ipv6() == v6
            };
            assert!(derivations.iter().any(|entry| covers(&entry)), "no vector for {suite}, IPv6: {v6}");
        }
    }
}

#[test]
fn the_published_collision_is_one() {
    let vectors = read_json("tests/vectors/wire-v1.json");
    let collision = &vectors["collision"];
    let ring = Ring::parse(vectors["ring"].to_string().as_bytes()).unwrap();
    let generation =
        ring.generations.iter().find(|g| Some(g.id) == collision["generation"].as_u64()).unwrap();
    for addr in collision["addrs"].as_array().unwrap() {
        let end = End { addr: text(addr).parse().unwrap(), ..end(&vectors["nodes"]["d"]) };
        assert_eq!(format!("{:#010x}", spi(generation, &end)), text(&collision["spi"]));
    }
}

#[test]
fn the_document_shows_the_ring_of_the_vectors() {
    let document = std::fs::read_to_string(project("docs/wire-scheme.md")).unwrap();
    let shown = document.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let vectors = read_json("tests/vectors/wire-v1.json");
    assert_eq!(Ring::parse(shown.as_bytes()), Ring::parse(vectors["ring"].to_string().as_bytes()));
}

#[test]
fn vectors_and_document_are_what_the_second_implementation_computes() {
    let output = python("check").output().expect(NO_PYTHON);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn hkdf_is_that_of_rfc_5869() {
    let vectors = read_json("tests/vectors/rfc5869.json");
    for vector in vectors["sha256"].as_array().unwrap() {
        let field = |name: &str| unhex(text(&vector[name]));
        let (prk, hkdf) = Hkdf::<Sha256>::extract(Some(&field("salt")), &field("ikm"));
        assert_eq!(prk.as_slice(), field("prk"), "{}", vector["name"]);
        let mut okm = vec![0; vector["length"].as_u64().unwrap() as usize];
        hkdf.expand(&field("info"), &mut okm).unwrap();
        assert_eq!(okm, field("okm"), "{}", vector["name"]);
        // As we use it: the info in pieces.
        let info = field("info");
        let (head, tail) = info.split_at(info.len() / 3);
        hkdf.expand_multi_info(&[head, &[], tail], &mut okm).unwrap();
        assert_eq!(okm, field("okm"), "{} in pieces", vector["name"]);
    }
}

fn ends() -> impl Strategy<Value = End> {
    let uid = || any::<[u8; 16]>().prop_map(Uid::from_random);
    // An IPv4-mapped IPv6 address is the same address to the derivation.
    (any::<IpAddr>().prop_map(|addr| addr.to_canonical()), uid(), uid()).prop_map(|(addr, node, boot)| End {
        addr,
        node,
        boot,
    })
}

type Derivation = (Generation, End, End);

fn derivations() -> impl Strategy<Value = Derivation> {
    let secrets = (vec(any::<u8>(), 32), any::<[u8; 16]>(), any::<[u8; 16]>());
    let incarnations = any::<[Option<u32>; 2]>();
    (secrets, select(&Suite::ALL), incarnations, ends(), ends()).prop_map(
        |((key, seed, uid), suite, incarnations, src, dst)| {
            let both = [src.node, dst.node].into_iter().zip(incarnations);
            let generation = Generation {
                id: 1,
                uid: Uid::from_random(uid),
                role: Role::Active,
                suite,
                key: SecretBytes::copy_from(&key[..suite.key_len()]),
                spi_seed: SecretBytes::copy_from(&seed),
                created_at: Timestamp::UNIX_EPOCH,
                role_since: Timestamp::UNIX_EPOCH,
                incarnations: both.filter_map(|(node, count)| Some((node, count?))).collect(),
            };
            (generation, src, dst)
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

    fn derive(&mut self, (generation, src, dst): &Derivation) -> (u32, String, String) {
        let node = |end: &End| json!({"addr": end.addr, "node": end.node, "boot": end.boot});
        let request = json!({
            "generation": {
                "uid": generation.uid,
                "suite": generation.suite.name(),
                "key": BASE64.encode(generation.key.expose()),
                "spiSeed": BASE64.encode(generation.spi_seed.expose()),
                "incarnations": generation.incarnations,
            },
            "src": node(src),
            "dst": node(dst),
        });
        writeln!(self.requests.as_mut().unwrap(), "{request}").unwrap();
        let mut reply = String::new();
        self.replies.read_line(&mut reply).unwrap();
        let reply: Value = serde_json::from_str(&reply).expect("the second implementation failed, see above");
        let spi = reply["spi"].as_u64().unwrap().try_into().unwrap();
        (spi, text(&reply["key"]).to_owned(), text(&reply["salt"]).to_owned())
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
    let mut second = Second::start();
    let second = std::cell::RefCell::new(&mut second);
    TestRunner::new(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })
        .run(&derivations(), |derivation| {
            let (generation, src, dst) = &derivation;
            prop_assert_eq!(derived(generation, src, dst), second.borrow_mut().derive(&derivation));
            Ok(())
        })
        .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever differs between two SAs, their keys differ.
    #[test]
    fn every_part_of_the_derivation_counts((generation, src, dst) in derivations(), other in ends(), count: u32) {
        prop_assume!(src != dst && other.addr != src.addr && other.addr != dst.addr);
        prop_assume!(count != generation.incarnation(&src.node));
        let key = sa_key(&generation, &src, &dst);
        let changed = |change: &dyn Fn(&mut Generation)| {
            let mut generation = generation.clone();
            change(&mut generation);
            sa_key(&generation, &src, &dst)
        };
        let ends = [
            (dst, src),
            (src, End { boot: other.boot, ..dst }),
            (src, End { node: other.node, ..dst }),
            (src, End { addr: other.addr, ..dst }),
            (End { boot: other.boot, ..src }, dst),
            (End { node: other.node, ..src }, dst),
            (End { addr: other.addr, ..src }, dst),
        ];
        for (src, dst) in ends {
            prop_assert_ne!(&sa_key(&generation, &src, &dst), &key);
        }
        prop_assert_ne!(&changed(&|generation| generation.uid = other.node), &key);
        prop_assert_ne!(&changed(&|generation| generation.key = SecretBytes::copy_from(&[1; 16])), &key);
        let begun_anew = |generation: &mut Generation| _ = generation.incarnations.insert(src.node, count);
        prop_assert_ne!(&changed(&begun_anew), &key);
        for suite in Suite::ALL.into_iter().filter(|suite| *suite != generation.suite) {
            let other = changed(&|generation| generation.suite = suite);
            prop_assert_ne!(&other.expose()[..16], &key.expose()[..16]);
        }
        prop_assert!(spi(&generation, &src) >= 256);
    }
}
