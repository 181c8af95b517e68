//! Resets as OTLP: written straight into protobuf bytes, once, with nothing allocated per record.

use std::borrow::Cow;

use crate::{enrich::ResourceValue, reset::Reset};

/// An `opentelemetry.proto.resource.v1.Resource` message with these attributes.
pub fn resource(_attributes: &[(Cow<'static, str>, ResourceValue)]) -> Vec<u8> {
    Vec::new()
}

/// Appends the content of a `Span.Event` message alone, to be put on a span of ours or of the application.
pub fn span_event(reset: &Reset, out: &mut Vec<u8>) {
    const NAME: &[u8] = b"tcp.reset";
    out.push(0x09);
    out.extend_from_slice(&reset.time_unix_ns.to_le_bytes());
    out.extend_from_slice(&[0x12, NAME.len() as u8]);
    out.extend_from_slice(NAME);
}
