//! Any bytes as a compressed body, cut anywhere: never more than the limit, never a panic. The first two bytes say
//! how it is compressed and where it is cut.

use bytes::Bytes;
use reset_collector::{
    model::signal::Signal,
    otlp::payload::{Encoding, Format, Payload},
};

const LIMIT: usize = 1 << 16;

pub(crate) fn run(bytes: &[u8]) {
    let [how, cut, bytes @ ..] = bytes else { return };
    let coding = [Encoding::Identity, Encoding::Gzip, Encoding::Zstd][usize::from(how >> 1) % 3].clone();
    let (one, other) = bytes.split_at(usize::from(*cut).min(bytes.len()));
    let chunks = vec![Bytes::copy_from_slice(one), Bytes::new(), Bytes::copy_from_slice(other)];
    let format = if how & 1 == 1 { Format::Json } else { Format::Protobuf };
    let payload = Payload { chunks, encoding: coding, format };
    let plain = payload.plain(LIMIT);
    if let Ok(plain) = &plain {
        assert!(plain.len() <= LIMIT, "{} bytes came out", plain.len());
        assert!(payload.check_size(LIMIT).is_ok(), "what opens within the limit is within it");
    }
    for signal in Signal::ALL {
        assert!(plain.is_ok() || payload.protobuf(*signal, LIMIT).is_err());
    }
}
