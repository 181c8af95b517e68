//! Exemplars of `tcp.resets`: for each cause, origin and direction the last reset that broke a request, with its trace,
//! so that a rise of the counter leads to one.
//!
//! The SDK's observable counters take none, so they are put into the encoded message; Prometheus gets them in
//! OpenMetrics' text.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    metrics::v1::{Exemplar as OtlpExemplar, Metric, NumberDataPoint, exemplar, metric::Data},
};
use probes::{COUNTERS, Cause, Direction, Origin, counter_index};
use prost::Message;

use crate::{
    event::{SpanContexts, SpanId, TraceId},
    model::{Reset, TraceMethod},
};

/// A reset that stands for others of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exemplar {
    /// When, ns since 1970.
    pub time_unix_ns: u64,
    /// The application's trace.
    pub trace_id: TraceId,
    /// The span that carries the event, where it is known.
    pub span_id: Option<SpanId>,
    /// Its number among all exemplars: each destination gets it once.
    number: u64,
}

/// The last exemplar of each kind.
#[derive(Debug, Default)]
pub struct Exemplars(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    number: u64,
    /// By [`counter_index`]; empty until the first.
    of_kind: Vec<Option<Exemplar>>,
}

impl Exemplars {
    /// Keeps a reset whose trace is the application's and certain.
    pub fn keep(&self, reset: &Reset, contexts: &SpanContexts) {
        let known = reset.trace.as_ref().is_some_and(|trace| trace.method != TraceMethod::Ambiguous);
        let (true, Some(log)) = (known, contexts.log) else { return };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.number += 1;
        let number = kept.number;
        kept.of_kind.resize(COUNTERS as usize, None);
        let index = counter_index(reset.cause, reset.origin, reset.direction) as usize;
        if let Some(place) = kept.of_kind.get_mut(index) {
            let (trace_id, span_id) = (log.trace_id, log.span_id);
            *place = Some(Exemplar { time_unix_ns: reset.time_unix_ns, trace_id, span_id, number });
        }
    }

    /// The last of a kind.
    pub fn of(&self, cause: Cause, origin: Origin, direction: Direction) -> Option<Exemplar> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.of_kind.get(counter_index(cause, origin, direction) as usize).copied().flatten()
    }

    /// Adds the exemplars after this number to an encoded request, and returns it with the last one's number. A request
    /// that cannot be read stays as it is.
    pub fn put_into(&self, request: Bytes, exported: u64) -> (Bytes, u64) {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner).number;
        if last == exported {
            return (request, last);
        }
        let Ok(mut message) = ExportMetricsServiceRequest::decode(request.clone()) else { return (request, exported) };
        let scopes = message.resource_metrics.iter_mut().flat_map(|resource| &mut resource.scope_metrics);
        for metric in scopes.flat_map(|scope| &mut scope.metrics).filter(|metric| metric.name == "tcp.resets") {
            for point in points(metric) {
                let exemplar = kind(point).and_then(|(cause, origin, direction)| self.of(cause, origin, direction));
                point.exemplars.extend(exemplar.filter(|exemplar| exemplar.number > exported).map(otlp));
            }
        }
        (message.encode_to_vec().into(), last)
    }
}

fn points(metric: &mut Metric) -> &mut [NumberDataPoint] {
    match &mut metric.data {
        Some(Data::Sum(sum)) => &mut sum.data_points,
        _ => &mut [],
    }
}

/// What a point counts, by its attributes.
fn kind(point: &NumberDataPoint) -> Option<(Cause, Origin, Direction)> {
    let word = |name: &str| {
        let found = point.attributes.iter().find(|KeyValue { key, .. }| key == name)?;
        match found.value.as_ref()?.value.as_ref()? {
            Value::StringValue(word) => Some(word.as_str()),
            _ => None,
        }
    };
    let [cause, origin, direction] = ["tcp.reset.cause", "tcp.reset.origin", "network.io.direction"].map(word);
    Some((
        Cause::ALL.iter().copied().find(|it| Some(it.word()) == cause)?,
        Origin::ALL.iter().copied().find(|it| Some(it.word()) == origin)?,
        Direction::ALL.iter().copied().find(|it| Some(it.word()) == direction)?,
    ))
}

fn otlp(exemplar: Exemplar) -> OtlpExemplar {
    OtlpExemplar {
        time_unix_nano: exemplar.time_unix_ns,
        trace_id: exemplar.trace_id.to_vec(),
        span_id: exemplar.span_id.map_or_else(Vec::new, |span_id| span_id.to_vec()),
        value: Some(exemplar::Value::AsInt(1)),
        filtered_attributes: Vec::new(),
    }
}
