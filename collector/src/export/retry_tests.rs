#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::UNIX_EPOCH;

use bytes::Bytes;
use prost::Message;

use super::*;
use crate::otlp::response::GrpcStatus;

const NOW: SystemTime = UNIX_EPOCH;

fn grpc(code: u32, details: Bytes) -> Answer {
    let status = GrpcStatus { code, message: "words".into(), details };
    Answer { http_status: 200, grpc: Some(status), asked_by_grpc: true, ..Answer::default() }
}

fn http(http_status: u16) -> Answer {
    Answer { http_status, ..Answer::default() }
}

fn retry_info(seconds: i64, nanos: i32) -> Bytes {
    let info = tonic_types::pb::RetryInfo { retry_delay: Some(prost_types::Duration { seconds, nanos }) };
    let any =
        |name: &str, value| prost_types::Any { type_url: format!("type.googleapis.com/google.rpc.{name}"), value };
    let details = vec![any("Help", vec![1, 2, 3]), any("RetryInfo", info.encode_to_vec())];
    tonic_types::pb::Status { details, ..Default::default() }.encode_to_vec().into()
}

#[test]
fn every_grpc_code() {
    let name = |decision: RetryDecision| match decision {
        RetryDecision::Accepted { .. } => "accepted",
        RetryDecision::Retry { .. } => "retry",
        RetryDecision::NonRetryable { dropped: DropReason::TooLarge, .. } => "too large",
        RetryDecision::NonRetryable { .. } => "permanent",
        RetryDecision::Unsupported { .. } => "unsupported",
    };
    let table = [
        "accepted",    // OK
        "retry",       // CANCELLED
        "permanent",   // UNKNOWN
        "permanent",   // INVALID_ARGUMENT
        "retry",       // DEADLINE_EXCEEDED
        "permanent",   // NOT_FOUND
        "permanent",   // ALREADY_EXISTS
        "permanent",   // PERMISSION_DENIED
        "too large",   // RESOURCE_EXHAUSTED
        "permanent",   // FAILED_PRECONDITION
        "retry",       // ABORTED
        "retry",       // OUT_OF_RANGE
        "unsupported", // UNIMPLEMENTED
        "permanent",   // INTERNAL
        "retry",       // UNAVAILABLE
        "retry",       // DATA_LOSS
        "permanent",   // UNAUTHENTICATED
        "permanent",   // outside of the list
    ];
    for (code, expected) in table.iter().enumerate() {
        assert_eq!(name(classify(&grpc(code as u32, Bytes::new()), NOW)), *expected, "{}", grpc_name(code as u32));
    }
}

#[test]
fn retry_info_is_obeyed_and_makes_resource_exhausted_pass() {
    for code in [8, 14] {
        let decision = classify(&grpc(code, retry_info(2, 500_000_000)), NOW);
        assert!(
            matches!(decision, RetryDecision::Retry { after: Some(after), .. } if after == Duration::from_millis(2500))
        );
    }
    let decision = classify(&grpc(3, retry_info(2, 0)), NOW);
    assert!(matches!(decision, RetryDecision::NonRetryable { .. }), "INVALID_ARGUMENT stays permanent: {decision:?}");
    let decision = classify(&grpc(14, Bytes::from_static(b"\xff\xff no protobuf")), NOW);
    assert!(matches!(decision, RetryDecision::Retry { after: None, .. }));
    let decision = classify(&grpc(14, retry_info(-5, 0)), NOW);
    assert!(matches!(decision, RetryDecision::Retry { after: Some(Duration::ZERO), .. }), "{decision:?}");
}

#[test]
fn retry_after_in_seconds_and_as_a_date() {
    let now = UNIX_EPOCH + Duration::from_secs(784_111_777 - 30);
    let cases = [
        ("7", Some(7)),
        (" 7 ", Some(7)),
        ("Sun, 06 Nov 1994 08:49:37 GMT", Some(30)),
        ("Sun, 06 Nov 1994 08:48:37 GMT", Some(0)),
        ("99999999", Some(MAX_RETRY_AFTER.as_secs())),
        ("18446744073709551615", Some(MAX_RETRY_AFTER.as_secs())),
        ("18446744073709551616000", Some(MAX_RETRY_AFTER.as_secs())),
        ("Fri, 31 Dec 9999 23:59:59 GMT", Some(MAX_RETRY_AFTER.as_secs())),
        ("", None),
        ("soon", None),
        ("-3", None),
    ];
    for (value, seconds) in cases {
        let answer = Answer { retry_after: Some(value.into()), ..http(503) };
        let RetryDecision::Retry { after, .. } = classify(&answer, now) else { panic!("{value}") };
        assert_eq!(after, seconds.map(Duration::from_secs), "{value}");
    }
}

#[test]
fn by_grpc_without_a_status_the_http_status_decides() {
    for status in 100..600 {
        let decision = classify(&Answer { asked_by_grpc: true, ..http(status) }, NOW);
        let retried = matches!(decision, RetryDecision::Retry { .. });
        assert_eq!(retried, matches!(status, 429 | 502 | 503 | 504), "HTTP {status}: {decision:?}");
        let refused = matches!(decision, RetryDecision::Unsupported { certain: false, .. });
        assert_eq!(refused, matches!(status, 404 | 405 | 501), "HTTP {status}: {decision:?}");
        if let RetryDecision::NonRetryable { reason, .. } | RetryDecision::Unsupported { reason, .. } = decision {
            assert!(reason.contains("no gRPC server at this endpoint"), "{reason}");
        }
    }
}

#[test]
fn partial_success_in_every_shape() {
    use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceResponse};
    let response = |rejected_spans, error_message: &str| {
        let partial = ExportTracePartialSuccess { rejected_spans, error_message: error_message.into() };
        ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec()
    };
    let protobuf = |body: Vec<u8>| Answer { body: body.into(), ..http(200) };
    let json = |body: &'static str| Answer {
        content_type: Some("application/json; charset=utf-8".into()),
        body: Bytes::from_static(body.as_bytes()),
        ..http(200)
    };
    let cases = [
        (protobuf(vec![]), 0, ""),
        (protobuf(response(3, "no room")), 3, "no room"),
        (protobuf(response(0, "a warning")), 0, "a warning"),
        (protobuf(response(1, "no\r\nERROR forged\x1b[2J  line")), 1, "no ERROR forged [2J line"),
        (protobuf(response(-1, "")), 0, ""),
        (protobuf(b"\xff\xff\xff".to_vec()), 0, "the response is not an OTLP response"),
        (json("{}"), 0, ""),
        (json(r#"{"partialSuccess":{"rejectedSpans":"4","errorMessage":"x"}}"#), 4, "x"),
        (json(r#"{"partialSuccess":{"rejectedLogRecords":5}}"#), 5, ""),
    ];
    for (answer, rejected, message) in cases {
        let expected = RetryDecision::Accepted { rejected, message: message.into() };
        assert_eq!(classify(&answer, NOW), expected, "{answer:?}");
    }
}

#[test]
fn refusals_say_what_to_do() {
    let redirect = Answer { location: Some("https://elsewhere/v1/logs".into()), ..http(308) };
    let page = Answer { content_type: Some("text/html".into()), ..http(200) };
    let words = Answer { body: Bytes::from_static(b"bad\n\n  <b>request\x07"), ..http(400) };
    let cases = [
        (redirect, "HTTP 308, a redirect to https://elsewhere/v1/logs: redirects are not followed"),
        (page, "HTTP 200 with a web page: no OTLP receiver at this endpoint"),
        (words, "HTTP 400: bad <b>request"),
    ];
    for (answer, expected) in cases {
        let RetryDecision::NonRetryable { reason, .. } = classify(&answer, NOW) else { panic!("{answer:?}") };
        assert!(reason.starts_with(expected), "{reason}");
    }
}

#[test]
fn waits_grow_to_the_longest_and_end() {
    let settings = settings::Retry { max_elapsed_time: Duration::from_secs(300), ..settings::Retry::default() };
    let mut backoff = Backoff::new(&settings);
    let mut elapsed = Duration::ZERO;
    let mut waits = Vec::new();
    while let Some(wait) = backoff.next(elapsed, None, 0.5) {
        elapsed += wait;
        waits.push(wait);
    }
    assert_eq!(waits[..3], [1.0, 1.5, 2.25].map(Duration::from_secs_f64));
    assert_eq!(waits.iter().max(), Some(&Duration::from_secs(30)));
    assert_eq!(elapsed, settings.max_elapsed_time, "the last attempt is at the end");

    let first = |random| Backoff::new(&settings).next(Duration::ZERO, None, random).unwrap();
    assert_eq!((first(0.0), first(1.0)), (Duration::from_millis(500), Duration::from_millis(1500)));
    let asked = Backoff::new(&settings).next(Duration::ZERO, Some(Duration::from_secs(9)), 0.5);
    assert_eq!(asked, Some(Duration::from_secs(9)));
    let at_once = settings::Retry { initial_interval: Duration::ZERO, multiplier: 0.0, ..settings.clone() };
    assert_eq!(Backoff::new(&at_once).next(Duration::ZERO, None, 0.5), Some(MIN_INTERVAL));
    let for_ever = settings::Retry { max_elapsed_time: Duration::ZERO, ..settings.clone() };
    assert!(Backoff::new(&for_ever).next(Duration::from_secs(1 << 30), None, 0.5).is_some());
    let never = settings::Retry { enabled: false, ..settings };
    assert_eq!(Backoff::new(&never).next(Duration::ZERO, None, 0.5), None);
}

#[test]
fn a_server_that_asks_for_more_time_than_there_is_gets_one_last_attempt() {
    let settings = settings::Retry { max_elapsed_time: Duration::from_secs(300), ..settings::Retry::default() };
    for asked in [Duration::from_secs(301), Duration::MAX] {
        let mut backoff = Backoff::new(&settings);
        let elapsed = Duration::from_secs(5);
        assert_eq!(backoff.next(elapsed, Some(asked), 0.5), Some(Duration::from_secs(295)));
        assert_eq!(backoff.next(Duration::from_secs(300), Some(asked), 0.5), None);
        assert_eq!(backoff.next(Duration::from_secs(299), Some(asked), 0.5), None, "even where the clock is early");
    }
    let for_ever = settings::Retry { max_elapsed_time: Duration::ZERO, ..settings };
    let mut backoff = Backoff::new(&for_ever);
    for _ in 0..10 {
        assert_eq!(backoff.next(Duration::from_secs(1 << 20), Some(Duration::MAX), 0.5), Some(MAX_RETRY_AFTER));
    }
}

#[test]
fn a_huge_multiplier_is_no_panic() {
    let settings = settings::Retry { multiplier: f64::MAX, ..settings::Retry::default() };
    let mut backoff = Backoff::new(&settings);
    for _ in 0..3 {
        assert!(backoff.next(Duration::ZERO, None, 1.0).is_some());
    }
}

#[test]
fn an_endpoint_with_a_signals_path_gets_a_hint() {
    for endpoint in ["http://host:4318/v1/traces", "http://host/otlp/v1/logs/"] {
        let hint = base_url_hint(endpoint, Signal::Logs).unwrap();
        assert!(hint.contains("must be the base URL") && hint.contains("/v1/logs is appended"), "{hint}");
    }
    assert_eq!(base_url_hint("http://host:4318/otlp", Signal::Logs), None);
}
