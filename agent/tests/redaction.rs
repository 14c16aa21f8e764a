//! Formats every public type that holds keys, from the ring to the kernel and back, and searches for them.

#![allow(clippy::unwrap_used)]

#[path = "../../common/keyring/tests/shown/mod.rs"]
mod shown;

use secureoverlay_agent_core::{
    entry::Entry,
    exclusion::Exclusion,
    identity::{Identity, LocalIdentity},
    journal::{Journal, NoStore, Record},
    kernel::{Kernel, OpError, OpErrorKind},
    network::LocalNetwork,
    peers::{Peer, Peers},
    plan::{DesiredInput, Planner, ReconcileTarget},
    reconcile::{Reconciler, SaLimits},
    teardown::TeardownPhase,
    xfrm::{Actual, Op},
};
use secureoverlay_agent_kernel::parse_sa;
use secureoverlay_keyring::{
    derivation::EndpointKey, keyring::KeyRing, node_key::NodeKeyPair, secret::SecretBytes, uid::Uid,
};
use shown::{KEY, SEED, assert_hidden, document, shows};
use std::{convert::Infallible, sync::Arc};

const PRIVATE: [u8; 32] = [
    0x81, 0x23, 0x5c, 0x9d, 0x17, 0xe4, 0x62, 0xab, 0x3f, 0x90, 0x4e, 0xd8, 0x55, 0x0a, 0xc6, 0x71, 0x2b,
    0xfe, 0x84, 0x39, 0x6d, 0xb2, 0x18, 0xe7, 0x50, 0x9c, 0x43, 0xda, 0x05, 0x76, 0xcf, 0x2e,
];

fn identity(last: u8) -> Identity {
    let mut private = PRIVATE;
    private[31] = last;
    let key_pair = NodeKeyPair::from_private(&SecretBytes::copy_from(&private)).unwrap();
    Identity { instance: Uid::from_random([last; 16]).into(), key_pair }
}

fn target() -> ReconcileTarget {
    let peer = |last: u8| {
        let identity = identity(last);
        let key = EndpointKey::Public(*identity.key_pair.public());
        let address = format!("192.0.2.{last}").parse().unwrap();
        (format!("node{last}"), Peer { entries: vec![Entry { instance: identity.instance, address, key }] })
    };
    let network =
        LocalNetwork { tunnel_addresses: vec!["192.0.2.1".parse().unwrap()], ..LocalNetwork::default() };
    let input = DesiredInput {
        ring: Arc::new(KeyRing::parse(document().as_bytes()).unwrap()),
        identity: Arc::new(LocalIdentity::Announced(identity(1))),
        network: Arc::new(network),
        peers: Arc::new(Peers { by_name: [peer(2), peer(3)].into(), ..Peers::default() }),
        exclusion: Arc::new(Exclusion::default()),
        pairs: Some(Arc::default()),
        announced: true,
    };
    ReconcileTarget { teardown: TeardownPhase::Inactive, input: Some(input) }
}

/// A kernel without memory, which refuses everything and says what it was asked.
#[derive(Debug, Default)]
struct Refusing(Vec<Op>);

impl Kernel for Refusing {
    type Error = Infallible;

    fn dump(&mut self) -> Result<Actual, Infallible> {
        Ok(Actual::default())
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>> {
        self.0.extend(ops.iter().cloned());
        let refuse = |op: &Op| {
            let what = format!("{op:?}");
            Err(OpError { what, kind: OpErrorKind::Refused, detail: "no".to_owned() })
        };
        ops.iter().map(refuse).collect()
    }
}

#[test]
fn what_is_to_be_done_shows_no_key() {
    let target = target();
    let plan = Planner::default().plan(&target);
    // Two peers, both directions. The generations of this ring have one seed, so that only one of them gets the SPIs.
    assert_eq!(plan.sas.len(), 2 * 2);
    let mut secrets = vec![KEY.to_vec(), SEED.to_vec(), PRIVATE[..31].to_vec()];
    secrets.extend(plan.sas.values().map(|planned| planned.sa.key.expose().to_vec()));
    let journal = Journal::new(Record::default(), NoStore);
    let mut reconciler = Reconciler::new(Refusing::default(), journal, SaLimits::default());
    let report = reconciler.run(&target).unwrap();
    assert!(!report.failed.is_empty());
    let errors: String = report.failed.iter().map(OpError::to_string).collect();
    let text = format!(
        "{plan:?} {plan:#?} {reconciler:?} {reconciler:#?} {report:?} {errors} {target:?} {target:#?} {:?}",
        identity(1)
    );
    assert_hidden(&text, &secrets.iter().map(Vec::as_slice).collect::<Vec<_>>());
}

/// A dump's SA as a kernel sent it: its key is 00 01 02 …
#[test]
fn what_the_kernel_shows_is_not_shown_on() {
    let payload = include_bytes!("../../fuzz/seeds/sa/ours");
    let key: Vec<u8> = (0..20).collect();
    assert!(shows(&String::from_utf8_lossy(payload), &key[..5]), "the payload holds the key");
    let message = parse_sa(payload).unwrap().unwrap();
    let (suite, found) = message.sa.cipher.clone().unwrap();
    assert_eq!((suite.key_len() + 4, found.expose()), (20, &key[..]));
    // Three bytes in a row are also elsewhere in small numbers: five are not.
    let text =
        format!("{message:?} {message:#?} {:?}", Actual { sas: vec![message.sa.clone()], policies: vec![] });
    for five in key.windows(5) {
        let hex: String = five.iter().map(|byte| format!("{byte:02x}")).collect();
        let decimal = format!("{five:?}");
        assert!(!text.contains(&hex) && !text.contains(decimal.trim_matches(['[', ']'])), "{text}");
    }
    assert!(text.contains("20 secret bytes"), "{text}");
}
