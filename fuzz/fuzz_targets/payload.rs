//! Any bytes as a compressed body, cut anywhere: never more than the limit, never a panic.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use reset_collector::{receive::{payload::{Coding, Format, Payload}}, export::signal::Signal};

const LIMIT: usize = 1 << 16;

fuzz_target!(|input: (u8, bool, u16, &[u8])| {
    let (coding, json, cut, bytes) = input;
    let coding = [Coding::Identity, Coding::Gzip, Coding::Zstd][usize::from(coding) % 3].clone();
    let (one, other) = bytes.split_at(usize::from(cut).min(bytes.len()));
    let chunks = vec![Bytes::copy_from_slice(one), Bytes::new(), Bytes::copy_from_slice(other)];
    let format = if json { Format::Json } else { Format::Protobuf };
    let payload = Payload { chunks, coding, format };
    let plain = payload.plain(LIMIT);
    if let Ok(plain) = &plain {
        assert!(plain.len() <= LIMIT, "{} bytes came out", plain.len());
        assert!(payload.check_size(LIMIT).is_ok(), "what opens within the limit is within it");
    }
    for signal in Signal::ALL {
        assert!(plain.is_ok() || payload.protobuf(*signal, LIMIT).is_err());
    }
});
