//! What is written is read back with opentelemetry-proto and compared field by field.

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    logs::v1::{LogRecord, SeverityNumber},
    resource::v1::Resource,
    trace::v1::{Span, Status, span},
};
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::{
    event::{EventBuilder, LogSpanContext, SpanContexts},
    model::{Cause, Connection, Trace, TraceMethod, sample},
};

fn text(value: &str) -> AnyValue {
    AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) }
}

fn any_value(value: Value<'_>) -> AnyValue {
    match value {
        Value::Text(word) => text(word),
        Value::Address(address) => text(&address.to_string()),
        Value::Integer(number) => AnyValue { value: Some(any_value::Value::IntValue(number)) },
        Value::Float(number) => AnyValue { value: Some(any_value::Value::DoubleValue(number)) },
    }
}

fn key_values(reset: &Reset, attributes: &[Attribute]) -> Vec<KeyValue> {
    attributes
        .iter()
        .filter_map(|attribute| {
            let value = Some(any_value(attribute.value(reset)?));
            Some(KeyValue { key: attribute.name().to_owned(), value, ..KeyValue::default() })
        })
        .collect()
}

fn expected_log(event: &ResetEvent<'_>) -> LogRecord {
    let identity = event.contexts.log;
    let severity = match event.severity {
        Severity::Info => SeverityNumber::Info,
        Severity::Warn => SeverityNumber::Warn,
        Severity::Error => SeverityNumber::Error,
    };
    LogRecord {
        time_unix_nano: event.reset.time_unix_ns,
        observed_time_unix_nano: event.reset.observed_unix_ns,
        severity_number: severity as i32,
        severity_text: event.severity.word().to_owned(),
        body: Some(text(event.message)),
        attributes: key_values(event.reset, Attribute::ALL),
        dropped_attributes_count: 0,
        flags: identity.map_or(0, |identity| u32::from(identity.sampled)),
        trace_id: identity.map_or_else(Vec::new, |identity| identity.trace_id.to_vec()),
        span_id: identity.and_then(|identity| identity.span_id).map_or_else(Vec::new, |id| id.to_vec()),
        event_name: "tcp.reset".to_owned(),
    }
}

fn with_description(mut attributes: Vec<KeyValue>, message: &str) -> Vec<KeyValue> {
    let key = "tcp.reset.description".to_owned();
    attributes.push(KeyValue { key, value: Some(text(message)), ..KeyValue::default() });
    attributes
}

fn expected_event(reset: &Reset, message: &str) -> span::Event {
    span::Event {
        time_unix_nano: reset.time_unix_ns,
        name: "tcp.reset".to_owned(),
        attributes: with_description(key_values(reset, Attribute::ALL), message),
        dropped_attributes_count: 0,
    }
}

fn expected_span(event: &ResetEvent<'_>, identity: &SpanContext) -> Span {
    let reset = event.reset;
    let candidates = reset.trace.iter().flat_map(|trace| &trace.candidates);
    let link = |(trace_id, span_id): &([u8; 16], [u8; 8])| span::Link {
        trace_id: trace_id.to_vec(),
        span_id: span_id.to_vec(),
        ..span::Link::default()
    };
    Span {
        trace_id: identity.trace_id.to_vec(),
        span_id: identity.span_id.to_vec(),
        parent_span_id: identity.parent.map_or_else(Vec::new, |parent| parent.to_vec()),
        flags: if identity.parent.is_some() { 0x301 } else { 0x101 },
        name: format!("tcp.reset {}", reset.cause.word()),
        kind: span::SpanKind::Internal as i32,
        start_time_unix_nano: reset.time_unix_ns.saturating_sub(reset.connection.duration_ns.unwrap_or(0).max(1)),
        end_time_unix_nano: reset.time_unix_ns,
        attributes: with_description(key_values(reset, SPAN_ATTRIBUTES), event.message),
        events: vec![expected_event(reset, event.message)],
        links: candidates.map(link).collect(),
        status: error_type(reset).map(|_| Status { message: event.message.to_owned(), code: 2 }),
        ..Span::default()
    }
}

/// Encodes a reset and holds the bytes to what the official messages say.
fn check(reset: &Reset, spans: bool) -> (LogRecord, Option<Span>) {
    let mut builder = EventBuilder::new(spans, 7);
    let event = builder.build(reset);
    let mut out = Vec::new();
    log_record(&event, &mut out);
    let log = LogRecord::decode(out.as_slice()).unwrap();
    assert_eq!(log, expected_log(&event));
    // Times of zero are left out by prost; here they are written, which says the same.
    let minimal = reset.observed_unix_ns > 0 && reset.time_unix_ns > reset.connection.duration_ns.unwrap_or(0).max(1);
    assert!(!minimal || out.len() == log.encoded_len(), "no byte more than needed");
    let span = event.contexts.span.map(|identity| {
        out.clear();
        span(&event, &identity, &mut out);
        let span = Span::decode(out.as_slice()).unwrap();
        assert_eq!(span, expected_span(&event, &identity));
        assert!(!minimal || out.len() == span.encoded_len(), "no byte more than needed");
        out.clear();
        let between = log_record_and_span(&event, &identity, &mut out);
        assert_eq!(LogRecord::decode(&out[..between]).unwrap(), log);
        assert_eq!(Span::decode(&out[between..]).unwrap(), span);
        span
    });
    out.clear();
    span_event(reset, &mut out);
    assert_eq!(span::Event::decode(out.as_slice()).unwrap(), expected_event(reset, event.message));
    (log, span)
}

proptest! {
    #[test]
    fn any_reset_reads_back(reset in sample::any_reset(), spans: bool) {
        let (log, span) = check(&reset, spans);
        let ambiguous = reset.trace.as_ref().is_some_and(|trace| trace.method == TraceMethod::Ambiguous);
        let on_application_span = reset.trace.as_ref().is_some_and(|trace| trace.on_application_span);
        prop_assert_eq!(span.is_some(), spans && !on_application_span);
        if ambiguous {
            prop_assert!(log.trace_id.is_empty() && log.span_id.is_empty());
        } else if let Some(span) = span {
            prop_assert_eq!((&log.trace_id, &log.span_id), (&span.trace_id, &span.span_id));
            let others = reset.trace.map_or(0, |trace| trace.candidates.len());
            prop_assert_eq!(span.links.len(), others, "the other calls on the connection");
        }
    }
}

/// Jaeger: "Negative duration", for anything below a nanosecond.
#[test]
fn no_span_is_without_a_duration() {
    for duration_ns in [None, Some(0), Some(1)] {
        let connection = Connection { duration_ns, ..sample::reset().connection };
        let span = check(&Reset { connection, ..sample::reset() }, true).1.unwrap();
        assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 1);
    }
}

fn trace(method: TraceMethod) -> Trace {
    Trace {
        trace_id: [1; 16],
        span_id: Some([2; 8]),
        method,
        on_application_span: false,
        incoming: false,
        candidates: Vec::new(),
    }
}

#[test]
fn a_span_of_ours_is_the_child_of_the_applications() {
    let reset = Reset { trace: Some(trace(TraceMethod::Header)), ..sample::reset() };
    let (log, span) = check(&reset, true);
    let span = span.unwrap();
    assert_eq!((span.trace_id, span.parent_span_id), (vec![1; 16], vec![2; 8]));
    assert!(span.span_id != [2; 8] && log.span_id == span.span_id && log.flags == 1);
    assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 1_500_000_000);
}

#[test]
fn without_spans_of_ours_the_log_names_the_applications() {
    for (spans, on_application_span) in [(false, false), (true, true), (false, true)] {
        let trace = Trace { on_application_span, ..trace(TraceMethod::Span) };
        let (log, span) = check(&Reset { trace: Some(trace), ..sample::reset() }, spans);
        assert_eq!((log.trace_id, log.span_id, span), (vec![1; 16], vec![2; 8], None));
    }
    let (log, _) = check(&sample::reset(), false);
    assert!(log.trace_id.is_empty() && log.span_id.is_empty());
}

#[test]
fn a_trace_without_a_span_takes_a_span_of_ours_without_a_parent() {
    let trace = Trace { span_id: None, ..trace(TraceMethod::Header) };
    let (_, span) = check(&Reset { trace: Some(trace), ..sample::reset() }, true);
    let span = span.unwrap();
    assert_eq!((span.trace_id, span.parent_span_id), (vec![1; 16], vec![]));
}

#[test]
fn an_ambiguous_reset_links_to_its_candidates_and_names_none() {
    let candidates = vec![([3; 16], [4; 8]), ([5; 16], [6; 8])];
    let trace = Trace { candidates, ..trace(TraceMethod::Ambiguous) };
    let (log, span) = check(&Reset { trace: Some(trace), ..sample::reset() }, true);
    let span = span.unwrap();
    assert!(log.trace_id.is_empty());
    assert_eq!(span.links.len(), 2);
    assert!(![[1; 16], [3; 16], [5; 16]].iter().any(|id| span.trace_id == *id), "a trace of its own");
}

#[test]
fn each_reset_has_ids_of_its_own() {
    let (mut builder, reset) = (EventBuilder::from_os(true), sample::reset());
    let mut seen = std::collections::HashSet::new();
    for _ in 0..1000 {
        let span = builder.build(&reset).contexts.span.unwrap();
        assert!(seen.insert(span.trace_id.to_vec()) && seen.insert(span.span_id.to_vec()));
    }
    assert_ne!(EventBuilder::from_os(true).build(&reset).contexts, builder.build(&reset).contexts);
}

/// A span has failed exactly where the application gets an error: a process that its master kills gets none.
#[test]
fn a_span_has_failed_where_the_application_gets_an_error() {
    let span = |cause| check(&Reset { cause, ..sample::reset() }, true).1.unwrap();
    for cause in [Cause::LingerZero, Cause::ProcessKilled, Cause::ClosedWithUnreadData] {
        assert_eq!(span(cause).status, None, "{}", cause.word());
    }
    let failed = span(Cause::KeepaliveTimeout);
    assert_eq!(failed.name, "tcp.reset keepalive_timeout");
    let status = failed.status.unwrap();
    assert_eq!((status.code, status.message.contains("keepalive")), (2, true));
}

#[test]
fn a_long_sentence_and_long_names_keep_their_lengths() {
    let long = "x".repeat(40_000);
    let resource = sample::resource(&[("service.name", &long)]);
    let (log, span) = check(&Reset { cause: Cause::KeepaliveTimeout, resource, ..sample::reset() }, true);
    assert!(log.encoded_len() > 40_000 && span.unwrap().encoded_len() > 40_000);
}

#[test]
fn a_resource_reads_back() {
    let attributes = vec![
        (Cow::Borrowed("service.name"), ResourceValue::Text("check".to_owned() + &"out".repeat(100))),
        (Cow::Borrowed("process.pid"), ResourceValue::Integer(-1)),
        (Cow::Borrowed("args"), ResourceValue::List(vec!["a".to_owned(), String::new()])),
        (Cow::Borrowed("none"), ResourceValue::List(Vec::new())),
    ];
    let read = Resource::decode(resource_message(&attributes).as_slice()).unwrap();
    let list =
        |values| Some(any_value::Value::ArrayValue(opentelemetry_proto::tonic::common::v1::ArrayValue { values }));
    let expected = [
        ("service.name", text(&("check".to_owned() + &"out".repeat(100)))),
        ("process.pid", AnyValue { value: Some(any_value::Value::IntValue(-1)) }),
        ("args", AnyValue { value: list(vec![text("a"), text("")]) }),
        ("none", AnyValue { value: list(Vec::new()) }),
    ];
    let key_value =
        |(key, value): (&str, AnyValue)| KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() };
    assert_eq!(read.attributes, expected.map(key_value));
}

#[test]
fn the_scope_is_this_program() {
    let scope = InstrumentationScope::decode(scope().as_slice()).unwrap();
    assert_eq!((scope.name.as_str(), scope.version.as_str()), ("reset-collector", env!("CARGO_PKG_VERSION")));
}

#[test]
fn flags_of_a_log_are_written_only_where_known() {
    let reset = sample::reset();
    let log = Some(LogSpanContext { trace_id: [1; 16], span_id: None, sampled: false });
    let mut builder = EventBuilder::new(false, 1);
    let event = ResetEvent { contexts: SpanContexts { log, span: None }, ..builder.build(&reset) };
    let mut out = Vec::new();
    log_record(&event, &mut out);
    assert_eq!(LogRecord::decode(out.as_slice()).unwrap().flags, 0);
}
