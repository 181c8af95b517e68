//! What it costs to look at an application's spans, and to put an event on one: figures per request of 512 spans with
//! 20 attributes; the time of one element is that of one span.

#![allow(missing_docs, reason = "criterion_group makes a public function")]

use std::{hint::black_box, time::Instant};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message;
use reset_collector::{
    config::settings::Correlation,
    correlate::{Correlator, Sender, span_info},
    otlp::{
        payload::{Encoding, Format, Payload},
        splice,
    },
};

const SPANS: u64 = 512;

fn request() -> Bytes {
    let text = |key: &str, value: &str| KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(Value::StringValue(value.into())) }),
        ..KeyValue::default()
    };
    let span = |number: u64| {
        let mut attributes: Vec<KeyValue> =
            (0..18).map(|n| text(&format!("app.attribute.number_{n}"), "some value of a usual length")).collect();
        attributes.push(text("network.peer.address", "10.1.2.3"));
        attributes.push(text("network.peer.port", "40001"));
        Span {
            trace_id: vec![7; 16],
            span_id: number.to_be_bytes().to_vec(),
            name: "GET /api/orders/{id}".into(),
            kind: 2 + (number % 2) as i32,
            start_time_unix_nano: 1_790_000_000_000_000_000 + number,
            end_time_unix_nano: 1_790_000_000_100_000_000 + number,
            attributes,
            ..Span::default()
        }
    };
    let scope_spans = vec![ScopeSpans { spans: (1..=SPANS).map(span).collect(), ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec().into()
}

fn receive(criterion: &mut Criterion) {
    let bytes = request();
    let mut group = criterion.benchmark_group("receive");
    group.throughput(Throughput::Elements(SPANS));
    group.bench_function("walk", |bencher| {
        bencher.iter(|| {
            let mut ends = 0_u64;
            splice::visit(black_box(&bytes), |_, span| ends ^= span.end_unix_ns).map(|()| ends)
        });
    });
    group.bench_function("scan", |bencher| {
        bencher.iter(|| {
            let mut read = 0;
            splice::visit(black_box(&bytes), |_, span| read += usize::from(span_info::read(span).is_ok()))
                .map(|()| read)
        });
    });
    group.bench_function("splice one", |bencher| {
        let mut events = Vec::new();
        let visited = splice::visit(&bytes, |place, _| {
            if events.is_empty() {
                events.push((place, vec![0; 400]));
            }
        });
        assert_eq!(visited, Ok(()));
        bencher.iter(|| splice::splice(black_box(&bytes), &events));
    });
    group.bench_function("splice all", |bencher| {
        let mut events = Vec::new();
        assert_eq!(splice::visit(&bytes, |place, _| events.push((place, vec![0; 400]))), Ok(()));
        bencher.iter(|| splice::splice(black_box(&bytes), &events));
    });
    group.bench_function("prost, for comparison", |bencher| {
        bencher
            .iter(|| ExportTraceServiceRequest::decode(black_box(&bytes[..])).map(|request| request.encode_to_vec()));
    });
    group.bench_function("pass, no reset waits", |bencher| {
        let settings = Correlation { http: Some(([127, 0, 0, 1], 0).into()), ..Correlation::default() };
        let correlator = Correlator::new(&settings, true);
        let payload =
            || Payload { chunks: vec![bytes.clone()], encoding: Encoding::Identity, format: Format::Protobuf };
        let now = Instant::now();
        bencher.iter_batched(
            payload,
            |payload| correlator.needs_correlation(&Sender::Remote, &payload, now),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, receive);
criterion_main!(benches);
