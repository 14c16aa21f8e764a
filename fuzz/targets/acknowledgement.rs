//! What a node reports to the manager.

#![no_main]

use libfuzzer_sys::fuzz_target;
use secureoverlay_keyring::acknowledgement::Acknowledgement;

fuzz_target!(|object: &[u8]| {
    let Ok(read) = serde_json::from_slice::<Acknowledgement>(object) else { return };
    assert_eq!(read.check(), Ok(()));
    for pairs in &read.unproven_pairs {
        assert!(pairs.remaining(pairs.nodes.iter().map(String::as_str)) <= pairs.count);
    }
    let written = serde_json::to_vec(&read).expect("text, numbers and lists");
    assert_eq!(serde_json::from_slice::<Acknowledgement>(&written).ok(), Some(read), "not as it was written");
});
