//! Which span a reset is found on: for each instrumentation's spans, whatever passes first, and never a wrong one.

#[path = "../reset_of/blank.rs"]
mod blank;
mod clients;
mod concurrent_spans;
mod grpc;
mod sdk;
mod servers;
mod simulation;
mod waiting;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use opentelemetry_proto::tonic::{collector::trace::v1::ExportTraceServiceRequest, trace::v1::Span};
use prost::Message;
use reset_collector::{
    config::settings::Correlation,
    correlate::{Correlator, Sender, SplicedEvents},
    model::{Reset, Trace, TraceMethod},
    otlp::{
        payload::{Encoding, Format, Payload},
        splice,
    },
};
use sdk::{owner, request};

/// What is said of a reset: the numbers of its spans, or several that it may be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Own(u8),
    Ambiguous,
    Nothing,
}

/// What came of one run: what is said of each reset, and the spans that got events with their number.
type Outcome = (Vec<Said>, Vec<(u8, usize)>);

fn correlator() -> Arc<Correlator> {
    let settings = Correlation { http: Some(([127, 0, 0, 1], 0).into()), ..Correlation::default() };
    Correlator::new(&settings, true)
}

/// Sends one request through, as the receiver does, and tells which spans got how many events.
fn pass(correlator: &Arc<Correlator>, sender: &Sender, spans: &[Span], now: Instant) -> Vec<(u8, usize)> {
    let bytes: Bytes = request(spans).encode_to_vec().into();
    let payload = Payload { chunks: vec![bytes.clone()], encoding: Encoding::Identity, format: Format::Protobuf };
    if !correlator.needs_correlation(sender, &payload, now) {
        return Vec::new();
    }
    let Some(SplicedEvents { events, ticket }) =
        correlator.correlate_request(sender, &bytes, now).expect("valid spans")
    else {
        return Vec::new();
    };
    let events: Vec<_> = events.into_iter().map(|(_, place, event)| (place, event)).collect();
    let marked = ExportTraceServiceRequest::decode(&splice::splice(&bytes, &events)[..]).expect("valid spans");
    ticket.settle(true);
    let spans = marked.resource_spans[0].scope_spans[0].spans.iter();
    let ours = |span: &Span| span.events.iter().filter(|event| event.name == "tcp.reset").count();
    spans.map(|span| (span.span_id[0], ours(span))).filter(|(_, events)| *events > 0).collect()
}

/// The process whose spans and resets these are.
fn sender() -> Sender {
    Sender::Process(owner())
}

/// A sender in another network namespace than [`TRANSLATED`]'s receiver.
const TRANSLATED: Sender = Sender::Translated { network_namespace: 7 };

fn said(reset: &Reset) -> Said {
    match &reset.trace {
        None => Said::Nothing,
        Some(Trace { method: TraceMethod::Ambiguous, candidates, .. }) => {
            assert!(!candidates.is_empty(), "ambiguous between nothing");
            Said::Ambiguous
        }
        Some(trace) => Said::Own(trace.span_id.expect("a span")[0]),
    }
}

/// Lets all wait to the end. What is said stands in the order of the resets' ports.
fn finish(correlator: &Correlator, now: Instant, mut ready: Vec<Reset>) -> Vec<Said> {
    ready.extend(correlator.take_ready(now + Duration::from_secs(20)));
    ready.sort_by_key(|reset| (reset.local.port, reset.peer.port, reset.time_unix_ns));
    ready.iter().map(said).collect()
}

/// Resets first, then the spans in one request, in which the process's calls have gone on since.
fn resets_first(spans: &[Span], resets: &[Reset]) -> Outcome {
    let (correlator, now) = (correlator(), Instant::now());
    resets.iter().for_each(|reset| correlator.submit(reset.clone(), now));
    let later = now + Duration::from_secs(3);
    let spans = [spans, &[sdk::later()]].concat();
    let marked = pass(&correlator, &sender(), &spans, later);
    (finish(&correlator, later, correlator.take_ready(later)), marked)
}

/// The spans first, then the resets.
fn spans_first(spans: &[Span], resets: &[Reset]) -> Outcome {
    let (correlator, now) = (correlator(), Instant::now());
    let marked = pass(&correlator, &sender(), spans, now);
    resets.iter().for_each(|reset| correlator.submit(reset.clone(), now + Duration::from_millis(50)));
    (finish(&correlator, now, Vec::new()), marked)
}

/// Every order in which both can come says the same; a span gets the event if its reset waits for it.
fn check(name: &str, spans: &[Span], resets: &[Reset], expected: &[Said]) {
    let (told, marked) = resets_first(spans, resets);
    assert_eq!(told, expected, "{name}: resets first");
    let own: BTreeSet<u8> =
        expected.iter().filter_map(|said| if let Said::Own(span) = said { Some(*span) } else { None }).collect();
    let marked_spans: BTreeSet<u8> = marked.iter().map(|(span, _)| *span).collect();
    assert_eq!(marked_spans, own, "{name}: the event is on the span");
    let events: usize = marked.iter().map(|(_, events)| events).sum();
    let owned = expected.iter().filter(|said| matches!(said, Said::Own(_))).count();
    assert_eq!(events, owned, "{name}: one event for each reset");
    let (told, marked) = spans_first(spans, resets);
    assert_eq!(told, expected, "{name}: spans first");
    assert!(marked.is_empty(), "{name}: those had left");
    // One span a request, in either order, never says something else than this or less.
    for reversed in [false, true] {
        let (correlator, now) = (correlator(), Instant::now());
        resets.iter().for_each(|reset| correlator.submit(reset.clone(), now));
        let mut one_by_one = spans.to_vec();
        if reversed {
            one_by_one.reverse();
        }
        for (index, span) in one_by_one.iter().enumerate() {
            pass(&correlator, &sender(), std::slice::from_ref(span), now + Duration::from_millis(10 * index as u64));
        }
        assert_eq!(finish(&correlator, now, correlator.take_ready(now)), expected, "{name}: one by one, {reversed}");
    }
}

fn on(number: u8) -> Vec<Said> {
    vec![Said::Own(number)]
}
