//! Any bytes as the kernel's record: read without a panic, or refused with a reason.

use reset_collector::model::{Clock, Decoder, read_record, reason::ReasonNames};

pub(crate) fn run(bytes: &[u8]) {
    let Ok(record) = read_record(bytes) else { return };
    let decoder = Decoder::new(ReasonNames::new([], []), Default::default());
    let clock = Clock { tai_offset_ns: i64::MIN, monotonic_offset_ns: i64::MAX, ..Clock::default() };
    for clock in [Clock::default(), clock] {
        if let Err(error) = decoder.decode(&record, clock, u64::MAX) {
            assert!(!error.to_string().is_empty());
        }
    }
}
