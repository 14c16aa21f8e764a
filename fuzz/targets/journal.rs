//! The journal of used keys, which a killed agent or a full disk may have left in any state.

#![no_main]

use libfuzzer_sys::fuzz_target;
use secureoverlay_fuzz::journal::Record;

fuzz_target!(|text: &[u8]| {
    let boot = "00000000-0000-4000-8000-000000000001".parse().expect("a UUID");
    let Ok(record) = Record::parse(text, boot) else { return };
    let written = record.text(boot);
    let again = Record::parse(written.as_bytes(), boot).expect("what we write can be read");
    assert_eq!(again.text(boot), written);
    for entry in record.finish(|_| false) {
        let mut record = again.clone();
        record.note(&entry);
        assert!(record.knows(&entry));
    }
});
