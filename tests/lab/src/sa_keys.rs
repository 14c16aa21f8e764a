//! The keys of the SAs between nodes, derived as any program derives them that has the key ring, the announcements and
//! some nodes' private keys.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rand::rngs::SysRng;
use secureoverlay_keyring::derivation::{Derivation, EndpointKey, SaPath};
use secureoverlay_keyring::keyring::{Generation, KeyRing};
use secureoverlay_keyring::node_key::NodeKeyPair;
use secureoverlay_keyring::peer::{EncryptionPeerSpec, Sender};
use secureoverlay_keyring::secret::SecretBytes;
use secureoverlay_keyring::suite::Suite;
use secureoverlay_keyring::uid::Uid;
use serde_json::Value;

use crate::esp::{Esp, Opened};
use crate::pcap::Packet;

/// What an SA is known by on the wire: source, destination, SPI.
pub type WireId = (IpAddr, IpAddr, u32);

/// Everything that can be read in the API: generations, and what nodes announced. Grows with each look.
#[derive(Debug, Default)]
pub struct Readable {
    generations: BTreeMap<Uid, Generation>,
    senders: BTreeMap<String, BTreeSet<Sender>>,
}

/// SAs and their possible keys.
#[derive(Default)]
pub struct SaTable(BTreeMap<WireId, Vec<(Suite, SecretBytes)>>);

/// What became of a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Attempt {
    /// No ESP packet of IPv4.
    NotEsp,
    /// No SA of the table.
    UnknownSa,
    /// No key of the SA fits.
    WrongKey,
    /// Decrypted.
    Opened(Opened),
}

impl Readable {
    /// Adds the generations of a ring.
    pub fn add_ring(&mut self, ring: KeyRing) {
        self.generations.extend(ring.generations.into_iter().map(|it| (it.uid, it)));
    }

    /// Adds what `kubectl get encryptionpeers -o json` lists.
    pub fn add_peers(&mut self, list: &Value) -> Result<()> {
        for object in list["items"].as_array().context("no list of EncryptionPeers")? {
            let name = object["metadata"]["name"].as_str().context("an EncryptionPeer without a name")?;
            let spec: EncryptionPeerSpec = serde_json::from_value(object["spec"].clone())
                .with_context(|| format!("the EncryptionPeer {name}"))?;
            self.senders.entry(name.to_owned()).or_default().extend(spec.senders);
        }
        Ok(())
    }

    /// How many generations there are.
    pub fn generations(&self) -> usize {
        self.generations.len()
    }

    /// The nodes by their addresses.
    pub fn names(&self) -> BTreeMap<IpAddr, String> {
        let senders =
            self.senders.iter().flat_map(|(name, all)| all.iter().map(move |it| (it.address.ip(), name)));
        senders.map(|(address, name)| (address, name.clone())).collect()
    }

    /// Every SA that has one of these key pairs at an end, with its key.
    pub fn derive(&self, keys: &[NodeKeyPair]) -> Result<SaTable> {
        self.table(|derivation, src, dst| {
            let own = |sender: &Sender| keys.iter().find(|it| *it.public() == sender.public_key);
            let shared = match (own(src), own(dst)) {
                (Some(own), _) => own.agree(&dst.public_key)?,
                (None, Some(own)) => own.agree(&src.public_key)?,
                (None, None) => return Ok(Vec::new()),
            };
            Ok(vec![derivation.derive_sa(&SaPath::announced(src, dst), Some(&shared))?.key])
        })
    }

    /// Every SA, with the best that a program can do without any node's private key: a key pair of its own in the place
    /// of the sender's, and in that of the receiver's.
    pub fn guess(&self) -> Result<SaTable> {
        let own = NodeKeyPair::generate(&mut SysRng).context("drawing a key pair")?;
        self.table(|derivation, src, dst| {
            let mine = EndpointKey::Public(*own.public());
            let (mut as_sender, mut as_receiver) = (SaPath::announced(src, dst), SaPath::announced(src, dst));
            (as_sender.src.key, as_receiver.dst.key) = (mine, mine);
            Ok(vec![
                derivation.derive_sa(&as_sender, Some(&own.agree(&dst.public_key)?))?.key,
                derivation.derive_sa(&as_receiver, Some(&own.agree(&src.public_key)?))?.key,
            ])
        })
    }

    fn table(
        &self,
        keys: impl Fn(&Derivation<'_>, &Sender, &Sender) -> Result<Vec<SecretBytes>>,
    ) -> Result<SaTable> {
        let mut table = SaTable::default();
        for generation in self.generations.values() {
            let derivation = Derivation::new(generation);
            for (name, senders) in &self.senders {
                let others =
                    || self.senders.iter().filter(|(other, _)| *other != name).flat_map(|(_, all)| all);
                for src in senders {
                    for dst in others().filter(|dst| dst.address.same_family(src.address)) {
                        let spi = derivation.spi(&SaPath::announced(src, dst));
                        let keys =
                            keys(&derivation, src, dst)?.into_iter().map(|key| (generation.suite, key));
                        let id = (src.address.ip(), dst.address.ip(), spi);
                        table.0.entry(id).or_default().extend(keys);
                    }
                }
            }
        }
        table.0.retain(|_, keys| !keys.is_empty());
        Ok(table)
    }
}

impl SaTable {
    /// How many SAs there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tries all keys. A capture is shorter than 2³² packets, so the upper half of every sequence number is 0.
    pub fn open(&self, packet: &Packet) -> Attempt {
        self.open_at(packet, 0)
    }

    /// The same of an SA that has carried `high` times 2³² packets.
    fn open_at(&self, packet: &Packet, high: u32) -> Attempt {
        let Some((id, esp)) = esp(packet) else { return Attempt::NotEsp };
        let Some(keys) = self.0.get(&id) else { return Attempt::UnknownSa };
        let opened = keys.iter().find_map(|(suite, key)| esp.open(*suite, key, high));
        opened.map_or(Attempt::WrongKey, Attempt::Opened)
    }
}

/// The ESP packet in a frame, and the SA that it names.
pub fn esp(packet: &Packet) -> Option<(WireId, Esp<'_>)> {
    if packet.ip_protocol() != Some(50) {
        return None;
    }
    let esp = packet.payload().and_then(Esp::parse)?;
    Some(((packet.source()?.into(), packet.destination()?.into(), esp.spi), esp))
}

/// The key pair in a node's identity file.
pub fn key_pair(identity: &str) -> Result<NodeKeyPair> {
    let private = identity.lines().find_map(|line| line.strip_prefix("private "));
    let private = private.context("the identity file has no line `private`")?;
    let private =
        BASE64.decode(private.trim()).map_err(|_| anyhow::anyhow!("the private key is not base64"))?;
    NodeKeyPair::from_private(&SecretBytes::copy_from(&private)).context("the private key")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::frames::{frame, ipip};

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../vectors/wire-v1.json")).unwrap()
    }

    fn readable(vectors: &Value) -> Readable {
        let mut readable = Readable::default();
        readable.add_ring(KeyRing::parse(vectors["ring"].to_string().as_bytes()).unwrap());
        let object = |(name, node): (&String, &Value)| {
            let senders: Vec<Value> = node["senders"].as_array().unwrap().clone();
            json!({"metadata": {"name": name}, "spec": {"nodeUid": node["nodeUid"], "senders": senders}})
        };
        let items: Vec<Value> = vectors["nodes"].as_object().unwrap().iter().map(object).collect();
        readable.add_peers(&json!({ "items": items })).unwrap();
        readable
    }

    fn unhex(text: &Value) -> Vec<u8> {
        let text = text.as_str().unwrap();
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// The published packets of IPv4 nodes, as they are on the wire, with their sender's and receiver's key.
    fn packets(vectors: &Value) -> Vec<(Packet, u32, [NodeKeyPair; 2])> {
        let announced = |entry: &&Value| entry["src"].as_str().unwrap().contains('.');
        let end = |name: &Value| -> (Option<Ipv4Addr>, NodeKeyPair) {
            let (node, at) = name.as_str().unwrap().split_once('.').unwrap();
            let sender = &vectors["nodes"][node]["senders"][at.parse::<usize>().unwrap()];
            let private = BASE64.encode(unhex(&vectors["keys"][sender["key"].as_str().unwrap()]["private"]));
            let keys = key_pair(&format!("secureoverlay-identity 1\nprivate {private}\n")).unwrap();
            (sender["address"].as_str().unwrap().parse().ok(), keys)
        };
        let packet = |entry: &Value| {
            let ((src, one), (dst, other)) = (end(&entry["src"]), end(&entry["dst"]));
            let mut packet = ipip(src?, dst?, &unhex(&entry["esp"]));
            packet[9] = 50;
            let high = (entry["sequence"].as_u64().unwrap() >> 32) as u32;
            Some((Packet { time: Duration::ZERO, frame: frame([1; 6], [2; 6], &packet) }, high, [one, other]))
        };
        vectors["packets"].as_array().unwrap().iter().filter(announced).filter_map(packet).collect()
    }

    #[test]
    fn packet_is_opened_with_a_key_of_either_end_and_with_no_other() {
        let vectors = vectors();
        let (readable, packets) = (readable(&vectors), packets(&vectors));
        assert!(packets.len() >= 2, "{} packets", packets.len());
        let stranger = NodeKeyPair::generate(&mut SysRng).unwrap();
        for (packet, high, [one, other]) in &packets {
            for own in [one, other] {
                let table = readable.derive(std::slice::from_ref(own)).unwrap();
                assert!(matches!(table.open_at(packet, *high), Attempt::Opened(_)));
            }
            assert!(readable.derive(std::slice::from_ref(&stranger)).unwrap().is_empty());
            let guess = readable.guess().unwrap();
            assert_eq!(guess.open_at(packet, *high), Attempt::WrongKey);
        }
    }

    #[test]
    fn key_pair_is_read_from_an_identity_file_alone() {
        for text in ["", "private\n", "private AAEC\n", "private not base64\n", "instance 1\n"] {
            assert!(key_pair(text).is_err(), "{text}");
        }
    }
}
