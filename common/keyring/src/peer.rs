//! `EncryptionPeer.spec`: what a node announces, and all that its peers derive SAs from.

use std::{collections::BTreeSet, fmt, str::FromStr};

use ipnet::IpNet;
use rand_core::TryCryptoRng;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de::Error};

use crate::{
    address::NodeAddress,
    node_key::PublicKey,
    uid::{InvalidUid, Uid},
};

/// Most entries of [`EncryptionPeerSpec::senders`].
pub const MAX_SENDERS: usize = 4;
/// Most entries of [`EncryptionPeerSpec::pod_networks`].
pub const MAX_POD_NETWORKS: usize = 256;

/// Says who sends: drawn with the key pair, and anew whenever an outbound key might be used a second time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Instance(Uid);

impl Instance {
    /// Draws an instance.
    ///
    /// # Errors
    /// The random number generator's.
    pub fn generate<R: TryCryptoRng>(rng: &mut R) -> Result<Self, R::Error> {
        Uid::generate(rng).map(Self)
    }

    /// The UUID.
    #[must_use]
    pub const fn uid(&self) -> &Uid {
        &self.0
    }

    /// The text's bytes, as they enter the key derivation.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 36] {
        self.0.as_bytes()
    }
}

impl From<Uid> for Instance {
    fn from(uid: Uid) -> Self {
        Self(uid)
    }
}

impl FromStr for Instance {
    type Err = InvalidUid;

    fn from_str(text: &str) -> Result<Self, InvalidUid> {
        text.parse().map(Self)
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One of the identities that a node may send with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sender {
    /// Who sends.
    pub instance: Instance,
    /// The address that its packets come from.
    pub address: NodeAddress,
    /// Its X25519 public key, base64.
    pub public_key: PublicKey,
}

/// A network of pods that a node routes to: an address with a prefix length, and no bits behind that.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PodNetwork(IpNet);

/// The text is not the network of one node's pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a network of pods: an address and a prefix length, at least /8 for IPv4 and /32 for IPv6, with no bits set \
     behind it"
)]
pub struct InvalidPodNetwork;

impl PodNetwork {
    /// The network.
    #[must_use]
    pub const fn net(&self) -> IpNet {
        self.0
    }
}

impl TryFrom<IpNet> for PodNetwork {
    type Error = InvalidPodNetwork;

    fn try_from(net: IpNet) -> Result<Self, InvalidPodNetwork> {
        let shortest = if net.addr().is_ipv4() { 8 } else { 32 };
        let mapped = net.addr().to_canonical() != net.addr();
        if net.prefix_len() < shortest || net.trunc() != net || mapped {
            return Err(InvalidPodNetwork);
        }
        Ok(Self(net))
    }
}

impl FromStr for PodNetwork {
    type Err = InvalidPodNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidPodNetwork> {
        text.parse::<IpNet>().map_err(|_| InvalidPodNetwork)?.try_into()
    }
}

impl TryFrom<String> for PodNetwork {
    type Error = InvalidPodNetwork;

    fn try_from(text: String) -> Result<Self, InvalidPodNetwork> {
        text.parse()
    }
}

impl From<PodNetwork> for String {
    fn from(network: PodNetwork) -> Self {
        network.to_string()
    }
}

impl fmt::Display for PodNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for PodNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl JsonSchema for PodNetwork {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PodNetwork".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "minLength": 5, "maxLength": 43})
    }
}

/// What a node announces: what its peers derive SAs from, and the networks of its pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EncryptionPeerSpec {
    /// UID of the Node that announces.
    pub node_uid: Uid,
    /// Everything that this node may send with, newest first. Peers send toward the first one's key.
    #[schemars(length(min = 1, max = 4))]
    pub senders: Vec<Sender>,
    /// Networks of the node's pods, as its kernel routes them.
    #[schemars(length(max = 256))]
    pub pod_networks: BTreeSet<PodNetwork>,
}

/// Entries that contradict each other or are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPeer {
    /// None or too many.
    #[error("senders has {0} entries; 1 to {MAX_SENDERS} are needed")]
    Senders(usize),
    /// One entry twice.
    #[error("senders lists one entry twice")]
    DuplicateSender,
    /// A new key pair means a new instance.
    #[error("senders lists instance {0} with two public keys")]
    InstanceWithTwoKeys(Instance),
    /// Too many.
    #[error("podNetworks has {0} entries; at most {MAX_POD_NETWORKS} are read")]
    PodNetworks(usize),
}

impl EncryptionPeerSpec {
    /// What reading checks beyond the shape; an agent checks it before it writes.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), InvalidPeer> {
        if !(1..=MAX_SENDERS).contains(&self.senders.len()) {
            return Err(InvalidPeer::Senders(self.senders.len()));
        }
        for (at, sender) in self.senders.iter().enumerate() {
            for earlier in &self.senders[..at] {
                if earlier == sender {
                    return Err(InvalidPeer::DuplicateSender);
                }
                if earlier.instance == sender.instance && earlier.public_key != sender.public_key {
                    return Err(InvalidPeer::InstanceWithTwoKeys(sender.instance));
                }
            }
        }
        if self.pod_networks.len() > MAX_POD_NETWORKS {
            return Err(InvalidPeer::PodNetworks(self.pod_networks.len()));
        }
        Ok(())
    }

    /// The entries of the newest instance: what peers send toward, one for each address.
    pub fn newest(&self) -> impl Iterator<Item = &Sender> {
        let newest = self.senders.first().map(|sender| sender.instance);
        self.senders.iter().filter(move |sender| Some(sender.instance) == newest)
    }
}

impl<'de> Deserialize<'de> for EncryptionPeerSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Unchecked {
            node_uid: Uid,
            senders: Vec<Sender>,
            #[serde(default)]
            pod_networks: BTreeSet<PodNetwork>,
        }
        let Unchecked { node_uid, senders, pod_networks } = Unchecked::deserialize(deserializer)?;
        let spec = Self { node_uid, senders, pod_networks };
        spec.check().map_err(D::Error::custom)?;
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json, to_value};

    use super::*;

    const INSTANCE: &str = "9d0f5a37-62a5-4d5f-8a3d-1c1ad0f2b00";

    fn sender(instance: u8, last: u8, key: u8) -> Value {
        let key: String = PublicKey::try_from([key; 32]).unwrap().into();
        json!({"instance": format!("{INSTANCE}{instance}"), "address": format!("192.0.2.{last}"), "publicKey": key})
    }

    fn read(senders: &[Value], networks: &Value) -> Result<EncryptionPeerSpec, String> {
        let spec = json!({"nodeUid": format!("{INSTANCE}0"), "senders": senders, "podNetworks": networks});
        from_value(spec).map_err(|error| error.to_string())
    }

    #[test]
    fn spec_is_written_as_it_was_read() {
        let senders = [sender(2, 1, 2), sender(2, 9, 2), sender(1, 1, 1)];
        let spec = read(&senders, &json!(["10.244.1.0/26", "2001:db8:1::/64"])).unwrap();
        assert_eq!(
            spec.newest().map(|sender| sender.address.to_string()).collect::<Vec<_>>(),
            ["192.0.2.1", "192.0.2.9"]
        );
        let written = to_value(&spec).unwrap();
        assert_eq!(written["senders"], json!(senders));
        assert_eq!(from_value::<EncryptionPeerSpec>(written).unwrap(), spec);
    }

    #[test]
    fn senders_that_contradict_each_other_are_refused() {
        let refused = |senders: &[Value]| read(senders, &json!([])).unwrap_err();
        assert!(refused(&[]).contains("0 entries"));
        assert!(refused(&[1, 2, 3, 4, 5].map(|n| sender(n, n, n))).contains("5 entries"));
        assert!(refused(&[sender(1, 1, 1), sender(1, 1, 1)]).contains("twice"));
        assert!(refused(&[sender(1, 1, 1), sender(1, 2, 3)]).contains("two public keys"));
        // An instance that is redrawn keeps its key.
        assert!(read(&[sender(2, 1, 1), sender(1, 1, 1)], &json!([])).is_ok());
    }

    #[test]
    fn malformed_entries_are_refused() {
        for (field, value) in [
            ("instance", json!("me")),
            ("instance", json!("00000000-0000-0000-0000-000000000000")),
            ("address", json!("127.0.0.1")),
            ("address", json!(1)),
            ("publicKey", json!("AAEC")),
            ("publicKey", json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")),
            ("publicKey", Value::Null),
        ] {
            let mut entry = sender(1, 1, 1);
            entry[field] = value;
            assert!(read(&[entry.clone()], &json!([])).is_err(), "{entry}");
        }
    }

    #[test]
    fn networks_that_no_node_has_are_refused() {
        for network in
            ["10.244.1.1/26", "0.0.0.0/0", "10.0.0.0/7", "::/0", "10.0.0.0", "::ffff:10.0.0.0/104", ""]
        {
            assert!(read(&[sender(1, 1, 1)], &json!([network])).is_err(), "{network}");
        }
        let many: Vec<String> = (0..257).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
        assert!(read(&[sender(1, 1, 1)], &json!(many)).unwrap_err().contains("257 entries"));
        assert!(read(&[sender(1, 1, 1)], &json!(many[1..])).is_ok());
    }
}
