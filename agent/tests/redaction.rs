//! Formats every public type that holds keys, from the ring to the kernel and back, and searches for them.

#![allow(clippy::unwrap_used)]

#[path = "../../common/tests/shown/mod.rs"]
mod shown;

use std::{sync::Arc, time::Instant};

use secureoverlay_agent::{
    agent::{Program, Target},
    diff::{Memory, diff},
    journal::Record,
    kernel::{Kernel, KernelError, OpError, OpErrorKind, parse_sa},
    plan::{Stage, desired},
    reconcile::Reconciler,
    roster::{Peer, Peers},
    xfrm::{Actual, Op},
};
use secureoverlay_common::{
    ring::Ring,
    wire::{End, sa_key},
};
use shown::{KEY, SEED, assert_hidden, document, shows};

fn end(last: u8) -> End {
    End {
        addr: [192, 0, 2, last].into(),
        node: format!("9d0f5a37-62a5-4d5f-8a3d-1c1ad0f2b00{last}").parse().unwrap(),
        boot: format!("1c6e2f7a-0b9d-4e8c-b3a4-77d5e0c1a00{last}").parse().unwrap(),
    }
}

fn program() -> Program {
    let ring = Ring::parse(document().as_bytes()).unwrap();
    let peer = |last| {
        (end(last).addr, Peer { name: format!("node{last}"), end: end(last), excluded: false, new: false })
    };
    let peers = Arc::new(Peers::from([peer(2), peer(3)]));
    Program { ring: Arc::new(ring), local: end(1), peers, probe_port: 9468 }
}

/// Everything secret in the program: what is in the ring, and what is derived.
fn secrets(program: &Program) -> Vec<Vec<u8>> {
    let mut secrets = vec![KEY.to_vec(), SEED.to_vec()];
    for generation in &program.ring.generations {
        for peer in program.peers.values() {
            for (src, dst) in [(&program.local, &peer.end), (&peer.end, &program.local)] {
                secrets.push(sa_key(generation, src, dst).expose().to_vec());
            }
        }
    }
    secrets
}

fn assert_all_hidden(text: &str, program: &Program) {
    let secrets = secrets(program);
    assert_eq!(secrets.len(), 2 + 3 * 2 * 2);
    assert_hidden(text, &secrets.iter().map(Vec::as_slice).collect::<Vec<_>>());
}

/// A kernel without memory, which refuses everything and says what it was asked.
#[derive(Debug, Default)]
struct Refusing(Vec<Op>);

impl Kernel for Refusing {
    fn dump(&mut self) -> Result<Actual, KernelError> {
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
    let program = program();
    let plan = desired(&program.ring, &program.local, &program.peers, Stage::Normal);
    assert!(!plan.states.is_empty());
    let mut memory = Memory::default();
    let steps = diff(&Actual::default(), &plan, (&Record::default(), false), &mut memory, Instant::now());
    let mut reconciler = Reconciler::new(Refusing::default());
    let outcome = reconciler.run(&plan, Instant::now()).unwrap();
    assert!(!outcome.failed.is_empty());
    let errors: String = outcome.failed.iter().map(OpError::to_string).collect();
    let target = Target { stage: Stage::Normal, content: Some(program.clone()) };
    assert_all_hidden(
        &format!(
            "{plan:?} {plan:#?} {steps:?} {steps:#?} {memory:?} {reconciler:?} {reconciler:#?} {outcome:?} {errors} \
             {target:?} {target:#?}"
        ),
        &program,
    );
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
    let text = format!(
        "{message:?} {message:#?} {:?}",
        Actual { states: vec![message.sa.clone()], policies: vec![] }
    );
    for five in key.windows(5) {
        let hex: String = five.iter().map(|byte| format!("{byte:02x}")).collect();
        let decimal = format!("{five:?}");
        assert!(!text.contains(&hex) && !text.contains(decimal.trim_matches(['[', ']'])), "{text}");
    }
    assert!(text.contains("20 secret bytes"), "{text}");
}
