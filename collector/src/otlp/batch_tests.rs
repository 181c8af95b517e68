use std::collections::{HashMap, HashSet};

use opentelemetry_proto::tonic::{
    collector::{logs::v1::ExportLogsServiceRequest, trace::v1::ExportTraceServiceRequest},
    resource::v1::Resource,
};
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::{
    event::EventBuilder,
    model::{Reset, Trace, TraceMethod, sample},
};

const BOTH: Signals = Signals { logs: true, traces: true, metrics: false };

fn batcher(max_resets: usize, max_bytes: usize, signals: Signals) -> Batcher {
    Batcher::new(settings::Batch { max_resets, max_bytes, flush_timeout: Duration::from_millis(200) }, signals)
}

fn of(service: &str) -> Reset {
    Reset { resource: sample::resource(&[("service.name", service)]), ..sample::reset() }
}

fn read_logs(batch: &Batch) -> ExportLogsServiceRequest {
    ExportLogsServiceRequest::decode(batch.logs.clone().unwrap()).unwrap()
}

fn read_traces(batch: &Batch) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest::decode(batch.traces.clone().unwrap()).unwrap()
}

fn service(resource: &Option<Resource>) -> String {
    format!("{:?}", resource.as_ref().unwrap().attributes[0].value)
}

#[test]
fn one_group_for_each_workload() {
    let (mut batcher, mut builder, now) = (batcher(100, 1 << 20, BOTH), EventBuilder::new(true, 1), Instant::now());
    let (checkout, cart, checkout_again) = (of("checkout"), of("cart"), of("checkout"));
    for (time, reset) in [&checkout, &cart, &checkout, &checkout_again, &cart].into_iter().enumerate() {
        let reset = Reset { time_unix_ns: time as u64, ..reset.clone() };
        assert!(batcher.push(&builder.build(&reset), now));
    }
    let batch = batcher.take().unwrap();
    assert_eq!((batch.resets, batcher.take()), (5, None));
    let (logs, traces) = (read_logs(&batch).resource_logs, read_traces(&batch).resource_spans);
    assert_eq!((logs.len(), traces.len()), (2, 2));
    let times = |group: usize| logs[group].scope_logs[0].log_records.iter().map(|log| log.time_unix_nano);
    assert_eq!((times(0).collect::<Vec<_>>(), times(1).collect::<Vec<_>>()), (vec![0, 2, 3], vec![1, 4]));
    for (logs, spans) in logs.iter().zip(&traces) {
        assert_eq!(logs.resource, spans.resource);
        assert_eq!((logs.scope_logs.len(), spans.scope_spans.len()), (1, 1));
        let (scope_logs, scope_spans) = (&logs.scope_logs[0], &spans.scope_spans[0]);
        let scope = scope_logs.scope.as_ref().unwrap();
        assert_eq!((scope.name.as_str(), scope.version.as_str()), ("reset-collector", env!("CARGO_PKG_VERSION")));
        assert_eq!(scope_logs.scope, scope_spans.scope);
        for url in [&logs.schema_url, &scope_logs.schema_url, &spans.schema_url, &scope_spans.schema_url] {
            assert_eq!(url, "https://opentelemetry.io/schemas/1.44.0");
        }
        for (log, span) in scope_logs.log_records.iter().zip(&scope_spans.spans) {
            assert_eq!((&log.trace_id, &log.span_id), (&span.trace_id, &span.span_id));
        }
    }
}

#[test]
fn closed_by_number() {
    let (mut batcher, mut builder, now) = (batcher(2, 1 << 20, BOTH), EventBuilder::new(true, 1), Instant::now());
    let reset = sample::reset();
    batcher.push(&builder.build(&reset), now);
    assert_eq!(batcher.take_due(now), None);
    batcher.push(&builder.build(&reset), now);
    assert_eq!((batcher.held(), batcher.next_deadline()), (2, None));
    assert_eq!(batcher.take_due(now).unwrap().resets, 2);
    assert_eq!((batcher.take_due(now), batcher.held()), (None, 0));
}

#[test]
fn closed_by_age_of_the_first() {
    let (mut batcher, mut builder, start) = (batcher(100, 1 << 20, BOTH), EventBuilder::new(true, 1), Instant::now());
    let reset = sample::reset();
    assert_eq!((batcher.next_deadline(), batcher.take_due(start + Duration::from_secs(9))), (None, None));
    batcher.push(&builder.build(&reset), start);
    batcher.push(&builder.build(&reset), start + Duration::from_millis(150));
    let deadline = start + Duration::from_millis(200);
    assert_eq!(batcher.next_deadline(), Some(deadline));
    assert_eq!(batcher.take_due(deadline - Duration::from_nanos(1)), None);
    assert_eq!(batcher.take_due(deadline).unwrap().resets, 2);
    assert_eq!((batcher.take_due(deadline), batcher.next_deadline()), (None, None));
}

#[test]
fn only_the_signals_that_go_out() {
    let push = |signals: Signals, on_application_span| {
        let trace = Trace {
            trace_id: [1; 16],
            span_id: None,
            method: TraceMethod::Span,
            on_application_span,
            incoming: false,
            candidates: vec![],
        };
        let reset = Reset { trace: Some(trace), ..sample::reset() };
        let mut batcher = batcher(100, 1 << 20, signals);
        let taken = batcher.push(&EventBuilder::new(signals.traces, 1).build(&reset), Instant::now());
        let batch = batcher.take();
        assert_eq!(taken, batch.is_some());
        batch.map(|batch| (batch.resets, batch.logs.is_some(), batch.traces.is_some()))
    };
    let only = |logs, traces| Signals { logs, traces, metrics: true };
    assert_eq!(push(BOTH, false), Some((1, true, true)));
    assert_eq!(push(BOTH, true), Some((1, true, false)));
    assert_eq!(push(only(true, false), false), Some((1, true, false)));
    assert_eq!(push(only(false, true), false), Some((1, false, true)));
    assert_eq!(push(only(false, true), true), None);
    assert_eq!(push(only(false, false), false), None);
}

#[test]
fn a_reset_above_the_limit_goes_alone() {
    let (mut batcher, mut builder, now) = (batcher(100, 10, BOTH), EventBuilder::new(true, 1), Instant::now());
    let reset = sample::reset();
    for _ in 0..3 {
        batcher.push(&builder.build(&reset), now);
    }
    for _ in 0..3 {
        assert_eq!(batcher.take().unwrap().resets, 1);
    }
    assert_eq!(batcher.take(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_reset_stands_in_one_request_within_the_limit(
        services in prop::collection::vec(0_usize..6, 1..80),
        max_resets in 1_usize..30,
        max_bytes in 4096_usize..20_000,
    ) {
        let (mut batcher, mut builder, now) = (batcher(max_resets, max_bytes, BOTH), EventBuilder::new(true, 1), Instant::now());
        let resets: Vec<_> = (0..6).map(|number| of(&format!("service-{number}"))).collect();
        let mut batches = Vec::new();
        for (time, number) in services.iter().enumerate() {
            let reset = Reset { time_unix_ns: time as u64, ..resets[*number].clone() };
            prop_assert!(batcher.push(&builder.build(&reset), now));
            while let Some(batch) = batcher.take_due(now) {
                batches.push(batch);
            }
            let taken: u64 = batches.iter().map(|batch| u64::from(batch.resets)).sum();
            prop_assert_eq!(taken + batcher.held(), time as u64 + 1);
        }
        while let Some(batch) = batcher.take() {
            batches.push(batch);
        }
        let mut seen = HashMap::new();
        for batch in &batches {
            let (logs, traces) = (read_logs(batch), read_traces(batch));
            prop_assert!(batch.resets as usize <= max_resets && batch.resets > 0);
            for request in [&batch.logs, &batch.traces] {
                prop_assert!(request.as_ref().unwrap().len() <= max_bytes);
            }
            let groups: HashSet<_> = logs.resource_logs.iter().map(|logs| service(&logs.resource)).collect();
            prop_assert_eq!(groups.len(), logs.resource_logs.len(), "each workload once");
            let spans: usize = traces.resource_spans.iter().map(|spans| spans.scope_spans[0].spans.len()).sum();
            prop_assert_eq!(spans, batch.resets as usize);
            for logs in &logs.resource_logs {
                for log in &logs.scope_logs[0].log_records {
                    prop_assert!(seen.insert(log.time_unix_nano, service(&logs.resource)).is_none());
                }
            }
        }
        for (time, number) in services.iter().enumerate() {
            let service = format!("service-{number}");
            prop_assert!(seen[&(time as u64)].contains(&service));
        }
        prop_assert_eq!(seen.len(), services.len());
    }
}
