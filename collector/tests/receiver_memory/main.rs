//! Small requests that become large: the memory that the receivers take for each, counted byte by byte.

#[path = "../pass_through/backend.rs"]
#[allow(dead_code, reason = "not every helper is needed here")]
mod backend;
#[path = "../reset_of/blank.rs"]
mod blank;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    io::Write,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use backend::{Answer, FakeBackend, Options, Setup, post};
use blank::loopback;
use flate2::{Compression, write::GzEncoder};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message;
use reset_collector::{
    config::settings::Protocol,
    model::{Owner, OwnerSource, Reset, State},
};
use tokio::sync::Mutex;

/// Counts the bytes that are allocated, and the most that ever were.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the pointer is from `alloc` above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test at a time: they share the count.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

const MIB: usize = 1 << 20;
const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_790_000_000 * SECOND;
const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";

/// The bytes that were allocated at most while this ran.
async fn growth<T>(work: impl Future<Output = T>) -> (T, usize) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = work.await;
    (result, PEAK.load(Relaxed).saturating_sub(before))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn owner() -> Owner {
    Owner { pid: 4321, start_boot_ns: 0, comm: [0; 16], source: OwnerSource::File }
}

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

/// A server's span whose peer is 127.0.0.1 with this port.
fn span(port: u16) -> Span {
    let attribute = |key: &str, value| KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    };
    Span {
        trace_id: vec![7; 16],
        span_id: (u64::from(port) + 1).to_be_bytes().to_vec(),
        kind: 2,
        start_time_unix_nano: START,
        end_time_unix_nano: START + SECOND,
        attributes: vec![
            attribute("network.peer.address", Value::StringValue("127.0.0.1".into())),
            attribute("network.peer.port", Value::IntValue(i64::from(port))),
        ],
        ..Span::default()
    }
}

fn request(spans: Vec<Span>) -> Vec<u8> {
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

/// `{}` again and again, as spans.
fn json_bomb(bytes: usize) -> Vec<u8> {
    let spans = "{},".repeat(bytes / 3);
    format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{spans}{{}}]}}]}}]}}"#).into_bytes()
}

async fn setup(protocol: Protocol) -> (FakeBackend, Setup) {
    let backend = match protocol {
        Protocol::Grpc => FakeBackend::start(|_, _| Some(Answer::grpc(b"", &[("grpc-status", "0")]))).await,
        Protocol::HttpProtobuf => FakeBackend::start(|_, _| Some(Answer::http(200, "", &[]))).await,
    };
    let setup = Setup::start(backend.address, Options { protocol, owner: Some(owner()), ..Options::default() }).await;
    (backend, setup)
}

async fn send(setup: &Setup, path: &str, content_type: &'static str, coding: &'static str, body: Vec<u8>) -> u16 {
    let headers = [("content-type", content_type), ("content-encoding", coding)];
    post(setup.http, path, &headers, body.into(), false).await.status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_for_a_grpc_backend() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let (_backend, setup) = setup(Protocol::Grpc).await;
    let body = gzip(&json_bomb(6_000_000));
    // 520 MiB by structs: 6 MB of text, 4 MB of protobuf (twice: the fake backend keeps it).
    let (status, bytes) = growth(send(&setup, "/v1/traces", JSON, "gzip", body)).await;
    assert!(status == 200 && bytes < 48 * MIB, "{status}, {bytes} bytes");
    // Larger than a request may be.
    let body = gzip(&json_bomb(60_000_000));
    let (status, bytes) = growth(send(&setup, "/v1/traces", JSON, "gzip", body)).await;
    assert!(status == 413 && bytes < 4 * MIB, "{status}, {bytes} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_while_a_reset_waits_and_json_before_one() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let (_backend, setup) = setup(Protocol::HttpProtobuf).await;
    setup.correlator.start_search_thread().expect("a thread");
    let body = gzip(&json_bomb(6_000_000));
    // Nothing waits: it is remembered, and opened for the first reset, in the thread of the history.
    let (status, bytes) = growth(send(&setup, "/v1/traces", JSON, "gzip", body.clone())).await;
    assert!(status == 200 && bytes < 4 * MIB, "{status}, {bytes} bytes");
    let searched = async {
        setup.correlator.submit(reset(5000), Instant::now());
        let later = Instant::now() + Duration::from_secs(60);
        while setup.correlator.take_ready(later).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let ((), bytes) = growth(searched).await;
    assert!(bytes < 40 * MIB, "{bytes} bytes for the history");
    setup.correlator.submit(reset(5001), Instant::now());
    let (status, bytes) = growth(send(&setup, "/v1/traces", JSON, "gzip", body)).await;
    assert!(status == 200 && bytes < 48 * MIB, "{status}, {bytes} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_spans_and_the_same_span_many_times() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let (backend, setup) = setup(Protocol::HttpProtobuf).await;
    let small = Span { trace_id: vec![7; 16], span_id: vec![9; 8], kind: 2, ..Span::default() };
    for (name, spans) in [("small", vec![small; 200_000]), ("matching", vec![span(5000); 50_000])] {
        (0..16).for_each(|_| setup.correlator.submit(reset(5000), Instant::now()));
        let body = request(spans);
        let length = body.len();
        let (status, bytes) = growth(send(&setup, "/v1/traces", PROTOBUF, "identity", body)).await;
        // The body here, on its way, with events, and twice at the fake backend.
        assert!(status == 200 && bytes < 6 * length + 16 * MIB, "{name}: {status}, {bytes} bytes of {length}");
        let added = backend.last().body.len() - length;
        assert!(added < 8 * MIB, "{name}: {added} bytes of events");
        setup.correlator.take_ready(Instant::now() + Duration::from_secs(60));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_in_chunks_of_one_byte() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let (backend, setup) = setup(Protocol::HttpProtobuf).await;
    const LENGTH: usize = 1 << 20;
    let mut text =
        b"POST /v1/logs HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/x-protobuf\r\n\
                     transfer-encoding: chunked\r\n\r\n"
            .to_vec();
    (0..LENGTH).for_each(|_| text.extend_from_slice(b"1\r\nx\r\n"));
    text.extend_from_slice(b"0\r\n\r\n");
    let sent = async {
        let mut stream = tokio::net::TcpStream::connect(setup.http).await.expect("a connection");
        let (mut read, mut write) = stream.split();
        let mut answer = Vec::new();
        let (written, answered) = tokio::join!(
            tokio::io::AsyncWriteExt::write_all(&mut write, &text),
            tokio::io::AsyncReadExt::read_to_end(&mut read, &mut answer),
        );
        written.and(answered.map(drop)).expect("an exchange");
        answer
    };
    let (answer, bytes) = growth(sent).await;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert!(bytes < 8 * LENGTH, "{bytes} bytes: 32 for each chunk, and more");
    assert!(backend.last().body == vec![b'x'; LENGTH]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressed_bodies_are_decoded_into_one_allocation() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let plain = vec![b' '; 16 * MIB];
    for (encoding, body) in [("gzip", gzip(&plain)), ("zstd", zstd::bulk::compress(&plain, 1).expect("memory"))] {
        use reset_collector::otlp::payload::{Encoding, Format, Payload};
        let kind = if encoding == "gzip" { Encoding::Gzip } else { Encoding::Zstd };
        let payload = Payload { chunks: vec![body.into()], encoding: kind, format: Format::Protobuf };
        let (decoded, bytes) = growth(async { payload.plain(20 * MIB).map(|bytes| bytes.len()) }).await;
        assert_eq!(decoded.expect("a body"), plain.len());
        // zstd's window is 8 MiB at most and outside of this allocator.
        assert!(bytes <= plain.len() + MIB, "{encoding}: {bytes} bytes");
    }
}
