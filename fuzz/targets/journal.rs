//! The journal of used keys, which a killed agent or a full disk may have left in any state.

#![no_main]

use libfuzzer_sys::fuzz_target;
use secureoverlay_agent_core::journal::{Line, Record};

fuzz_target!(|text: &[u8]| {
    let Ok(record) = Record::parse(text) else { return };
    let written = record.to_text();
    let mut again = Record::parse(written.as_bytes()).expect("what is written can be read");
    assert_eq!(again, record);
    for generation in record.generations() {
        again.note(&Line::Gone(*generation));
        assert!(again.used(generation, 0), "no key of a generation that is gone is fresh");
    }
});
