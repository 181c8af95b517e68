//! Valid inputs to begin with.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span::Event},
};
use prost::Message;

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

fn span(kind: i32) -> Span {
    let message = "read tcp 127.0.0.1:43210->[::1]:8080: read: connection reset by peer";
    let exception = vec![text("exception.type", "httpx.ReadError"), text("exception.message", message)];
    Span {
        trace_id: vec![7; 16],
        span_id: vec![8; 8],
        parent_span_id: vec![9; 8],
        name: "GET /".into(),
        kind,
        start_time_unix_nano: 1_790_000_000_000_000_000,
        end_time_unix_nano: 1_790_000_001_000_000_000,
        attributes: vec![
            text("url.full", "http://user@[fd00::1]:8080/slow?a=b"),
            text("network.peer.address", "::ffff:127.0.0.1"),
            attribute("network.peer.port", Value::IntValue(8080)),
            attribute("http.response.status_code", Value::IntValue(200)),
            text("rpc.system", "grpc"),
            text("error.type", "503"),
        ],
        events: vec![Event { name: "exception".into(), attributes: exception, ..Event::default() }],
        status: Some(Status { message: message.into(), code: 2 }),
        ..Span::default()
    }
}

fn request(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }] }
}

fn all() -> Vec<ExportTraceServiceRequest> {
    let spans = [2, 3, 1].map(span);
    vec![request(vec![Span::default()]), request(spans[..1].to_vec()), request(spans.to_vec())]
}

/// Requests in protobuf; one with a field that OTLP does not have.
pub(crate) fn requests() -> Vec<Vec<u8>> {
    let mut requests: Vec<_> = all().iter().map(Message::encode_to_vec).collect();
    let unknown = [&requests[1][..], &[0xfa, 0x7f, 3, b'n', b'e', b'w']].concat();
    requests.push(unknown);
    requests
}

/// Requests in JSON, also with blanks in every place.
pub(crate) fn json() -> Vec<Vec<u8>> {
    let plain = all().into_iter().map(|request| serde_json::to_vec(&request).expect("it has a JSON form"));
    let wide = all().into_iter().map(|request| serde_json::to_vec_pretty(&request).expect("it has a JSON form"));
    plain.chain(wide).collect()
}

/// Bodies of every coding, with the two bytes that the target takes; one that becomes a thousand times as much.
pub(crate) fn bodies() -> Vec<Vec<u8>> {
    let gzip = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    };
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).expect("memory");
    let inner = [requests(), vec![vec![b' '; 200_000]]].concat();
    let mut bodies = Vec::new();
    for bytes in inner {
        for (how, body) in [(0, bytes.clone()), (2, gzip(&bytes)), (4, zstd(&bytes))] {
            bodies.extend([0, 1].map(|json| [&[how | json, 9][..], &body[..body.len().min(4_096)]].concat()));
        }
    }
    bodies
}

/// A record of the right length and version with every byte the same, for a few bytes.
pub(crate) fn records() -> Vec<Vec<u8>> {
    let version = probes::RECORD_VERSION.to_ne_bytes();
    let record = |byte: u8| [&version[..], &vec![byte; probes::RECORD_LEN - version.len()]].concat();
    [0, 1, 2, 4, 6, 0xff].map(record).to_vec()
}

/// Parts of `fuzz/targets/storage.rs`: records with valid checksums in three segments, a checkpoint, damage.
pub(crate) fn storage() -> Vec<Vec<u8>> {
    let part = |kind: u8, bytes: &[u8]| [&[kind, u8::try_from(bytes.len()).unwrap_or(u8::MAX)][..], bytes].concat();
    let record = |kind: u8, start: u64, resets: u32, message: &[u8]| {
        part(kind, &[&start.to_le_bytes()[..], &resets.to_le_bytes(), message].concat())
    };
    let checkpoint =
        |enqueued: u64, floor: u64, unstored: u64| part(4, &[enqueued, floor, unstored].map(u64::to_le_bytes).concat());
    let (pending, done) = (1, 131);
    let orderly =
        [record(pending, 0, 10, b"one"), record(done, 10, 5, b"two"), part(2, b""), record(pending, 15, 1, b"")];
    let gap = [record(pending, 10, 10, b"one"), part(0, b"damage RSTq"), part(2, b""), record(pending, 90, 1, b"two")];
    let disorder = [record(done, 1_000, 10, b"late"), part(2, b""), record(pending, 0, 10, b"early")];
    let far =
        [record(pending, 0, 10, b"one"), record(pending, 1 << 61, u32::MAX, b"two"), checkpoint(1 << 62, 0, 1 << 62)];
    vec![
        [orderly.concat(), checkpoint(16, 0, 3)].concat(),
        orderly.concat(),
        [gap.concat(), checkpoint(120, 10, 0)].concat(),
        disorder.concat(),
        far.concat(),
        [part(3, b"no checkpoint"), part(0, &[0; 200])].concat(),
    ]
}
