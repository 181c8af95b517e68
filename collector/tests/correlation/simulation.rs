//! A process with many requests at once, made up at random with the truth kept: whatever is named must be true.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::trace::v1::Span;
use proptest::prelude::*;
use reset_collector::model::{Connection, Reset, TraceMethod};

use super::{correlator, pass, sender};
use crate::sdk::{Build, MS, ZERO, at_client, go_client, go_reset_text, node_client, python_client, refused};

/// How one request goes.
#[derive(Clone, Copy, Debug)]
enum CallOutcome {
    Well,
    Answered500,
    TimedOut,
    Reset,
    /// The same, and its span is never exported.
    ResetUnsampled,
    /// Reset while it was sent; it says that the stream ended.
    CutOff,
    /// The stream ended, without a reset; it says the same.
    Ended,
    Refused,
}

/// One request: its SDK, start and length in ms, outcome, how long after its reset it fails, µs.
type Request = (u8, u64, u64, CallOutcome, u64);
/// The reset of a connection on which no request is open, ms.
type Idle = u64;

fn outcome() -> impl Strategy<Value = CallOutcome> {
    prop_oneof![
        4 => Just(CallOutcome::Well),
        1 => Just(CallOutcome::Answered500),
        1 => Just(CallOutcome::TimedOut),
        3 => Just(CallOutcome::Reset),
        1 => Just(CallOutcome::ResetUnsampled),
        2 => Just(CallOutcome::CutOff),
        1 => Just(CallOutcome::Ended),
        2 => Just(CallOutcome::Refused),
    ]
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    prop::collection::vec((0..3_u8, 0..3_000_u64, 2..900_u64, outcome(), 20..20_000_u64), 1..40)
}

/// The reset of a connection that was made for a request and has sent all but some bytes of it.
fn of_connection(port: u16, start_ms: u64, reset_us: u64, unsent: u32) -> Reset {
    let connection = Connection {
        bytes_sent: Some(150),
        bytes_received: Some(0),
        duration_ns: Some((reset_us - start_ms * 1_000) * 1_000),
        unsent_bytes: Some(unsent),
        ..Connection::default()
    };
    Reset { connection, ..at_client(port, reset_us) }
}

/// The request's span, and its reset where it has one: number and port tell them apart.
fn play(number: u8, request: Request) -> (Span, Option<Reset>) {
    let (sdk, start, length, outcome, after_us) = request;
    let port = 40_000 + u16::from(number);
    let end = start + length;
    let span = match sdk {
        0 => python_client(number, start, end),
        1 => go_client(number, start, end),
        _ => node_client(number, start, end),
    };
    let reset_us = (end * 1_000).saturating_sub(after_us).max(start * 1_000 + 1);
    match outcome {
        CallOutcome::Well => (span, None),
        CallOutcome::Answered500 => (span.number("http.response.status_code", 500).failed(""), None),
        CallOutcome::TimedOut => (span.failed("context deadline exceeded"), None),
        CallOutcome::Reset | CallOutcome::ResetUnsampled => {
            let span = match sdk {
                0 => span.exception("ConnectionError", "ConnectionResetError(104, 'Connection reset by peer')"),
                1 => span.failed(&go_reset_text(port)),
                _ => span.failed("read ECONNRESET"),
            };
            (span, Some(of_connection(port, start, reset_us, 0)))
        }
        CallOutcome::CutOff => {
            (span.failed("Remote end closed connection"), Some(of_connection(port, start, reset_us, 900)))
        }
        CallOutcome::Ended => (span.failed("Remote end closed connection"), None),
        CallOutcome::Refused => (span.failed("connect: connection refused"), Some(refused(port, reset_us))),
    }
}

/// What happens, at ms of a clock that starts with [`ZERO`].
enum Step {
    Offer(Box<Reset>),
    Pass(Vec<Span>),
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_span_is_named_that_is_not_the_one(
        requests in requests(),
        idle in prop::collection::vec(0..4_000_u64, 0..6),
        export_every in prop_oneof![Just(1_u64), 200..6_000_u64],
        chunk in 1..20_usize,
        read_after in prop::collection::vec(1..150_u64, 64),
    ) {
        let idle: Vec<Idle> = idle;
        let mut steps: Vec<(u64, Step)> = Vec::new();
        let mut truth: HashMap<u16, u8> = HashMap::new();
        let mut spans: Vec<Span> = Vec::new();
        let mut offers: Vec<Reset> = idle.iter().enumerate().map(|(n, at)| at_client(50_000 + n as u16, at * 1_000)).collect();
        for (index, request) in requests.iter().enumerate() {
            let number = index as u8 + 1;
            let (span, reset) = play(number, *request);
            if !matches!(request.3, CallOutcome::ResetUnsampled) {
                spans.push(span);
            }
            if let Some(reset) = reset {
                truth.insert(reset.local.port, number);
                offers.push(reset);
            }
        }
        for (reset, read_after) in offers.iter().zip(read_after) {
            steps.push(((reset.time_unix_ns - ZERO) / MS + read_after, Step::Offer(Box::new(reset.clone()))));
        }
        spans.sort_by_key(|span| span.end_time_unix_nano);
        let batch = |span: &Span| (span.end_time_unix_nano - ZERO) / MS / export_every;
        for batch_spans in spans.chunk_by(|one, other| batch(one) == batch(other)) {
            for (number, part) in batch_spans.chunks(chunk).enumerate() {
                let at = (batch(&part[0]) + 1) * export_every + number as u64;
                steps.push((at, Step::Pass(part.to_vec())));
            }
        }
        steps.sort_by_key(|(at, _)| *at);
        let (correlator, zero) = (correlator(), Instant::now());
        let mut ready = Vec::new();
        let mut marked: HashMap<u8, usize> = HashMap::new();
        for (at, step) in steps {
            let now = zero + Duration::from_millis(at);
            match step {
                Step::Offer(reset) => correlator.submit(*reset, now),
                Step::Pass(spans) => {
                    pass(&correlator, &sender(), &spans, now).into_iter().for_each(|(span, events)| *marked.entry(span).or_default() += events);
                }
            }
            ready.extend(correlator.take_ready(now));
        }
        ready.extend(correlator.take_ready(zero + Duration::from_secs(60)));
        prop_assert_eq!(ready.len(), offers.len(), "each reset comes out once");
        let mut on_span: HashMap<u8, usize> = HashMap::new();
        for reset in &ready {
            let Some(trace) = reset.trace.as_ref().filter(|trace| trace.method == TraceMethod::Span) else { continue };
            let named = trace.span_id.map(|span| span[0]);
            prop_assert_eq!(named, truth.get(&reset.local.port).copied(), "port {}", reset.local.port);
            if trace.on_application_span {
                *on_span.entry(named.unwrap_or_default()).or_default() += 1;
            }
        }
        prop_assert_eq!(on_span, marked, "an event stands where it is said to stand");
        // Go names the connection: nothing of it may be missed.
        for (index, request) in requests.iter().enumerate() {
            if let (1, _, _, CallOutcome::Reset, _) = request {
                let port = 40_001 + index as u16;
                let found = ready.iter().any(|reset| reset.local.port == port && reset.trace.is_some());
                prop_assert!(found, "go's reset of port {port} is not found");
            }
        }
    }
}
