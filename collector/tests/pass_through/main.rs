//! The receivers between real clients and a backend that keeps what it gets: bytes, answers, limits, events.

mod backend;
#[path = "../reset_of/blank.rs"]
mod blank;
mod events;
mod refusals;
mod sharing;

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use backend::{Answer, FakeBackend, Options, Setup, frame, grpc, http, post};
use blank::loopback;
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value},
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message;
use reset_collector::{
    config::settings::{Protocol, Secret},
    model::{Owner, OwnerSource, Reset, State, TraceMethod, signal::Signal},
    receiver::metrics::RejectReason,
};
use tonic_types::{StatusExt, pb};

const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";
const SECOND: u64 = 1_000_000_000;
/// When the spans of these tests start.
const START: u64 = 1_790_000_000 * SECOND;

fn traces() -> &'static str {
    Signal::Traces.grpc_path()
}

fn ok(_: usize, _: &backend::Got) -> Option<Answer> {
    Some(Answer::grpc(b"", &[("grpc-status", "0")]))
}

fn ok_http(_: usize, got: &backend::Got) -> Option<Answer> {
    let json = got.headers.get("content-type").is_some_and(|value| value == JSON);
    Some(Answer::http(200, if json { "{}" } else { "" }, &[("content-type", if json { JSON } else { PROTOBUF })]))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn span_id(port: u16) -> [u8; 8] {
    (u64::from(port) + 1).to_be_bytes()
}

/// A server's span of one second, whose peer is 127.0.0.1 with this port.
fn server_span(port: u16) -> Span {
    Span {
        trace_id: vec![7; 16],
        span_id: span_id(port).to_vec(),
        name: "GET /".into(),
        kind: 2,
        start_time_unix_nano: START,
        end_time_unix_nano: START + SECOND,
        attributes: vec![
            attribute("network.peer.address", any_value::Value::StringValue("127.0.0.1".into())),
            attribute("network.peer.port", any_value::Value::IntValue(i64::from(port))),
        ],
        ..Span::default()
    }
}

fn request(spans: Vec<Span>) -> ExportTraceServiceRequest {
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }] }
}

fn owner() -> Owner {
    Owner { pid: 4321, start_boot_ns: 0, comm: [0; 16], source: OwnerSource::File }
}

/// A reset half a second into [`server_span`], received from the client.
fn reset(port: u16) -> Reset {
    Reset {
        time_unix_ns: START + SECOND / 2,
        state: Some(State::Established),
        local: loopback(8080),
        peer: loopback(port),
        owner: Some(owner()),
        ..blank::reset()
    }
}

/// A field that no version of OTLP has, in every message around the spans.
fn with_unknown_fields(request: &ExportTraceServiceRequest) -> Vec<u8> {
    let unknown = |number: u8| [0xfa, 0x7f, 3, b'n', b'e', number];
    let wrap = |inner: &[u8], tag: u8, number: u8| {
        let mut out = unknown(number).to_vec();
        out.push(tag);
        prost::encoding::encode_varint(inner.len() as u64, &mut out);
        out.extend_from_slice(inner);
        out.extend_from_slice(&unknown(number + 1));
        out
    };
    let mut span = unknown(0).to_vec();
    span.extend(request.resource_spans[0].scope_spans[0].spans[0].encode_to_vec());
    span.extend_from_slice(&unknown(1));
    let scope = wrap(&span, 0x12, 2);
    let resource = wrap(&scope, 0x12, 4);
    wrap(&resource, 0x0a, 6)
}

#[tokio::test]
async fn bytes_pass_as_they_came() {
    let backend = FakeBackend::start(ok).await;
    let setup = Setup::start(backend.address, Options { owner: Some(owner()), ..Options::default() }).await;
    let unknown = with_unknown_fields(&request(vec![server_span(5000)]));
    let large = request((0..8_700).map(|index| Span { name: "n".repeat(350), ..server_span(index) }).collect());
    let large = large.encode_to_vec();
    assert!((3_800_000..4_194_304).contains(&large.len()), "{} bytes are not just under 4 MiB", large.len());
    let compressed = gzip(&unknown);
    type Case = (&'static str, &'static [(&'static str, &'static str)], Bytes);
    let cases: [Case; 6] = [
        (traces(), &[], frame(0, &unknown)),
        (traces(), &[("grpc-encoding", "gzip")], frame(1, &compressed)),
        (traces(), &[("grpc-encoding", "zstd")], frame(1, &zstd::encode_all(&unknown[..], 3).expect("memory"))),
        (traces(), &[("grpc-encoding", "gzip")], frame(0, b"")),
        (Signal::Logs.grpc_path(), &[("grpc-timeout", "9S")], frame(0, b"\x01 no protobuf at all")),
        (Signal::Metrics.grpc_path(), &[], frame(0, &large)),
    ];
    for (path, headers, body) in cases {
        let reply = grpc(&setup, path, headers, body.clone()).await;
        assert_eq!((reply.status, reply.grpc_status()), (200, 0));
        let got = backend.last();
        assert_eq!(got.path, path);
        assert!(got.body == body, "the bytes differ on {path}");
        if body[0] == 1 || path == Signal::Logs.grpc_path() {
            assert_eq!(got.headers.get(headers[0].0).map(|value| value.as_bytes()), Some(headers[0].1.as_bytes()));
        }
    }
    let reply = grpc(&setup, traces(), &[], frame(0, &large)).await;
    assert_eq!(reply.grpc_status(), 0);
    assert!(backend.last().body[5..] == large[..], "3.9 MiB came out different");
}

#[tokio::test]
async fn http_bodies_pass_as_they_came() {
    let backend = FakeBackend::start(ok_http).await;
    let secret = vec![("authorization".to_owned(), Secret("Bearer ours".into()))];
    let options = Options { protocol: Protocol::HttpProtobuf, headers: secret, ..Options::default() };
    let setup = Setup::start(backend.address, options).await;
    let unknown = with_unknown_fields(&request(vec![server_span(5000)]));
    let cases: [(&str, &'static str, &'static str, Vec<u8>); 4] = [
        ("/v1/traces", PROTOBUF, "", unknown.clone()),
        ("/v1/traces", PROTOBUF, "gzip", gzip(&unknown)),
        ("/v1/logs", PROTOBUF, "zstd", zstd::encode_all(&unknown[..], 3).expect("memory")),
        ("/v1/metrics", JSON, "", br#"{ "resourceMetrics": [], "newField": 1.50 }"#.to_vec()),
    ];
    for (path, content_type, coding, body) in cases {
        let mut headers =
            vec![("content-type", content_type), ("authorization", "Bearer app"), ("user-agent", "app/1")];
        if !coding.is_empty() {
            headers.push(("content-encoding", coding));
        }
        let reply = post(setup.http, path, &headers, body.clone().into(), false).await;
        assert_eq!(reply.status, 200, "{path}");
        let got = backend.last();
        assert_eq!(got.path, path);
        assert!(got.body == body, "the bytes differ on {path}");
        let header = |name: &str| got.headers.get(name).map_or("", |value| value.to_str().expect("text"));
        assert_eq!((header("content-type"), header("content-encoding")), (content_type, coding));
        assert_eq!((header("authorization"), header("user-agent")), ("Bearer ours", "app/1"));
    }
}

#[tokio::test]
async fn the_application_gets_the_backends_answer() {
    let answers = [
        Answer::grpc(b"\x0a\x07\x08\x03\x12\x03why", &[("grpc-status", "0")]),
        Answer::grpc_error(&[
            ("grpc-status", "8"),
            ("grpc-message", "slow%20down"),
            ("grpc-status-details-bin", "CAgSCXNsb3cgZG93bg"),
        ]),
        Answer::grpc_error(&[("grpc-status", "99"), ("x-own", "kept")]),
    ];
    let script = answers.clone();
    let backend = FakeBackend::start(move |number, _| Some(script[number].clone())).await;
    let setup = Setup::start(backend.address, Options::default()).await;
    for answer in &answers {
        let reply = grpc(&setup, traces(), &[], frame(0, b"")).await;
        assert_eq!(reply.body, answer.body, "the body, partial success and all");
        assert_eq!(reply.trailers, answer.trailers.clone().unwrap_or_default());
        for (name, value) in &answer.headers {
            assert_eq!(reply.headers.get(name), Some(value), "{name}");
        }
    }
}

#[tokio::test]
async fn http_answers_pass_with_status_and_retry_after() {
    let answers = [
        Answer::http(429, "later", &[("retry-after", "17"), ("content-type", "text/plain")]),
        Answer::http(200, b"\x0a\x02\x08\x03".to_vec(), &[("content-type", PROTOBUF)]),
        Answer::http(503, "", &[("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT")]),
        Answer::http(418, "short and stout", &[]),
    ];
    let script = answers.clone();
    let backend = FakeBackend::start(move |number, _| Some(script[number].clone())).await;
    let options = Options { protocol: Protocol::HttpProtobuf, ..Options::default() };
    let setup = Setup::start(backend.address, options).await;
    for answer in &answers {
        let reply = http(&setup, "/v1/traces", PROTOBUF, "").await;
        assert_eq!((reply.status, &reply.body), (answer.status.as_u16(), &answer.body));
        assert_eq!(reply.headers.get("retry-after"), answer.headers.get("retry-after"));
        assert_eq!(reply.headers.get("content-type"), answer.headers.get("content-type"));
    }
}

#[tokio::test]
async fn http_speaks_to_a_grpc_backend() {
    let info = tonic_types::ErrorDetails::with_retry_info(Some(Duration::from_millis(2500)));
    let full = tonic::Status::with_error_details(tonic::Code::ResourceExhausted, "full", info);
    let answers = move |number: usize, _: &backend::Got| {
        Some(match number {
            0 => Answer::grpc(b"\x0a\x07\x08\x03\x12\x03why", &[("grpc-status", "0")]),
            // As grpc-go does to a compressed request.
            1 => {
                let mut answer = Answer::grpc(b"", &[("grpc-status", "0")]);
                answer.headers.extend(backend::header_map(&[("grpc-encoding", "gzip")]));
                Answer { body: frame(1, &gzip(b"\x0a\x07\x08\x03\x12\x03why")), ..answer }
            }
            2 => Answer::grpc_error(&[("grpc-status", "12"), ("grpc-message", "unknown service")]),
            3 => {
                let mut answer = Answer::grpc_error(&[]);
                full.add_header(&mut answer.headers).expect("a header");
                answer
            }
            _ => Answer::grpc_error(&[("grpc-status", "3"), ("grpc-message", "bad data")]),
        })
    };
    let backend = FakeBackend::start(answers).await;
    let setup = Setup::start(backend.address, Options::default()).await;
    let sent = request(vec![server_span(1)]);

    let reply = http(&setup, "/v1/traces", PROTOBUF, sent.encode_to_vec()).await;
    assert_eq!((reply.status, &reply.body[..]), (200, &b"\x0a\x07\x08\x03\x12\x03why"[..]));
    assert_eq!(backend.last().path, traces());
    assert_eq!(backend.last().body, frame(0, &sent.encode_to_vec()));

    let reply = http(&setup, "/v1/traces", JSON, serde_json::to_vec(&sent).expect("JSON")).await;
    assert_eq!(reply.status, 200);
    let body: serde_json::Value = serde_json::from_slice(&reply.body).expect("JSON for JSON");
    assert_eq!(body["partialSuccess"]["errorMessage"], "why");
    let converted = ExportTraceServiceRequest::decode(&backend.last().body[5..]).expect("protobuf");
    assert_eq!(converted, sent);

    let reply = http(&setup, "/v1/logs", PROTOBUF, "").await;
    assert_eq!(reply.status, 404);
    let status = pb::Status::decode(reply.body).expect("google.rpc.Status");
    assert_eq!((status.code, status.message.as_str()), (12, "unknown service"));

    let reply = http(&setup, "/v1/logs", PROTOBUF, "").await;
    assert_eq!(reply.status, 429);
    assert_eq!(reply.headers["retry-after"], "3", "whole seconds, never too early");

    let reply = http(&setup, "/v1/logs", JSON, "{}").await;
    assert_eq!((reply.status, &reply.body[..]), (400, &br#"{"code":3,"message":"bad data"}"#[..]));
}

#[tokio::test]
async fn grpc_speaks_to_an_http_backend() {
    let answers = |number: usize, _: &backend::Got| {
        Some(match number {
            0 => Answer::http(200, b"\x0a\x02\x08\x03".to_vec(), &[("content-type", PROTOBUF)]),
            1 => Answer::http(503, "", &[("retry-after", "7")]),
            _ => Answer::http(413, "", &[]),
        })
    };
    let backend = FakeBackend::start(answers).await;
    let options = Options { protocol: Protocol::HttpProtobuf, ..Options::default() };
    let setup = Setup::start(backend.address, options).await;
    let body = gzip(&request(vec![server_span(1)]).encode_to_vec());
    let reply = grpc(&setup, traces(), &[("grpc-encoding", "gzip")], frame(1, &body)).await;
    assert_eq!((reply.grpc_status(), &reply.body), (0, &frame(0, b"\x0a\x02\x08\x03")));
    let got = backend.last();
    assert_eq!((got.path.as_str(), &got.body[..]), ("/v1/traces", &body[..]));
    assert_eq!(got.headers["content-encoding"], "gzip");
    assert_eq!(got.headers["content-type"], PROTOBUF);

    let reply = grpc(&setup, traces(), &[], frame(0, b"")).await;
    assert_eq!(reply.grpc_status(), 14);
    let status = tonic::Status::from_header_map(&reply.headers).expect("a status");
    let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
    assert_eq!(delay, Some(Duration::from_secs(7)));
    let reply = grpc(&setup, traces(), &[], frame(0, b"")).await;
    assert_eq!(reply.grpc_status(), 8, "not to be tried again: no RetryInfo");
}

#[tokio::test]
async fn a_backend_that_is_away_is_said_so() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let setup = Setup::start(closed, Options::default()).await;
    assert_eq!(grpc(&setup, traces(), &[], frame(0, b"")).await.grpc_status(), 14);
    let reply = http(&setup, "/v1/traces", JSON, "{}").await;
    assert_eq!(reply.status, 503);
    let said: serde_json::Value = serde_json::from_slice(&reply.body).expect("JSON");
    assert_eq!(said["code"], 14);
    assert!(said["message"].as_str().expect("text").contains("refused"), "{said}");

    let stalled = FakeBackend::start(|_, _| None).await;
    let options = Options { timeout: Duration::from_millis(200), ..Options::default() };
    let setup = Setup::start(stalled.address, options).await;
    assert_eq!(grpc(&setup, traces(), &[], frame(0, b"")).await.grpc_status(), 14);
    assert_eq!(setup.traffic.refused(RejectReason::BackendAway), 1);
}
