#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest,
        trace::v1::ExportTraceServiceRequest,
    },
    common::v1::{AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    metrics::v1::{
        Exemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint, Metric,
        NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint, exemplar,
        exponential_histogram_data_point::Buckets, metric::Data, number_data_point,
        summary_data_point::ValueAtQuantile,
    },
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status,
        span::{Event, Link},
    },
};
use proptest::prelude::*;
use prost::Message;

use super::*;

const LIMIT: usize = 1 << 20;

fn value() -> impl Strategy<Value = AnyValue> {
    let leaf = prop_oneof![
        ".{0,40}".prop_map(Value::StringValue),
        any::<bool>().prop_map(Value::BoolValue),
        any::<i64>().prop_map(Value::IntValue),
        (-1e9..1e9_f64).prop_map(Value::DoubleValue),
        prop::collection::vec(any::<u8>(), 0..200).prop_map(Value::BytesValue),
    ];
    let some = |value| AnyValue { value: Some(value) };
    leaf.prop_map(some).prop_recursive(3, 12, 4, move |inner| {
        let values = prop::collection::vec(inner.clone(), 0..4);
        let pairs = prop::collection::vec((".{0,20}", inner), 0..4);
        let pair = |(key, value)| KeyValue { key, value: Some(value), ..KeyValue::default() };
        prop_oneof![
            values.prop_map(move |values| some(Value::ArrayValue(ArrayValue { values }))),
            pairs.prop_map(move |pairs| {
                let values = pairs.into_iter().map(pair).collect();
                some(Value::KvlistValue(KeyValueList { values }))
            }),
        ]
    })
}

fn attributes() -> impl Strategy<Value = Vec<KeyValue>> {
    let pair = |(key, value)| KeyValue { key, value: Some(value), ..KeyValue::default() };
    prop::collection::vec((".{0,20}", value()).prop_map(pair), 0..4)
}

fn resource(attributes: &[KeyValue]) -> Option<Resource> {
    let entity = EntityRef {
        schema_url: "s".into(),
        r#type: "service".into(),
        id_keys: vec!["service.name".into()],
        description_keys: vec!["a".into(), "b".into()],
    };
    Some(Resource { attributes: attributes.to_vec(), dropped_attributes_count: 3, entity_refs: vec![entity] })
}

fn scope(attributes: &[KeyValue]) -> Option<InstrumentationScope> {
    let (name, version) = ("n".into(), "v".into());
    Some(InstrumentationScope { name, version, attributes: attributes.to_vec(), dropped_attributes_count: 1 })
}

fn traces(attributes: &[KeyValue], number: u64, name: &str) -> ExportTraceServiceRequest {
    let id = number.to_be_bytes();
    let attributes = attributes.to_vec();
    let link = Link {
        trace_id: [id, id].concat(),
        span_id: id.to_vec(),
        trace_state: name.into(),
        attributes: attributes.clone(),
        dropped_attributes_count: 1,
        flags: 1,
    };
    let event = Event {
        time_unix_nano: number,
        name: name.into(),
        attributes: attributes.clone(),
        dropped_attributes_count: 2,
    };
    let span = Span {
        trace_id: [id, id].concat(),
        span_id: id.to_vec(),
        parent_span_id: id.to_vec(),
        trace_state: name.into(),
        flags: 0x101,
        name: name.into(),
        kind: 2,
        start_time_unix_nano: number,
        end_time_unix_nano: u64::MAX,
        attributes: attributes.clone(),
        dropped_attributes_count: u32::MAX,
        events: vec![event],
        dropped_events_count: 1,
        links: vec![link],
        dropped_links_count: 1,
        status: Some(Status { message: name.into(), code: 2 }),
    };
    let scope_spans = ScopeSpans { scope: scope(&attributes), spans: vec![span; 2], schema_url: name.into() };
    let resource_spans =
        ResourceSpans { resource: resource(&attributes), scope_spans: vec![scope_spans], schema_url: "s".into() };
    ExportTraceServiceRequest { resource_spans: vec![resource_spans] }
}

fn logs(attributes: &[KeyValue], number: u64, name: &str) -> ExportLogsServiceRequest {
    let id = number.to_be_bytes();
    let record = LogRecord {
        time_unix_nano: number,
        observed_time_unix_nano: 1,
        severity_number: 9,
        severity_text: name.into(),
        body: attributes.first().and_then(|pair| pair.value.clone()),
        attributes: attributes.to_vec(),
        dropped_attributes_count: 4,
        flags: 1,
        trace_id: [id, id].concat(),
        span_id: id.to_vec(),
        event_name: name.into(),
    };
    let scope_logs = ScopeLogs { scope: scope(attributes), log_records: vec![record], schema_url: name.into() };
    let resource_logs =
        ResourceLogs { resource: resource(attributes), scope_logs: vec![scope_logs], schema_url: String::new() };
    ExportLogsServiceRequest { resource_logs: vec![resource_logs] }
}

fn metrics(attributes: &[KeyValue], number: u64, name: &str) -> ExportMetricsServiceRequest {
    let attributes = attributes.to_vec();
    let exemplar = Exemplar {
        filtered_attributes: attributes.clone(),
        time_unix_nano: number,
        span_id: vec![1; 8],
        trace_id: vec![2; 16],
        value: Some(exemplar::Value::AsInt(-1)),
    };
    let point = |value| NumberDataPoint {
        attributes: attributes.clone(),
        start_time_unix_nano: number,
        time_unix_nano: number,
        exemplars: vec![exemplar.clone()],
        flags: 1,
        value: Some(value),
    };
    let points = vec![point(number_data_point::Value::AsInt(i64::MIN)), point(number_data_point::Value::AsDouble(0.5))];
    let histogram = HistogramDataPoint {
        attributes: attributes.clone(),
        start_time_unix_nano: number,
        time_unix_nano: number,
        count: number,
        sum: Some(1.25),
        bucket_counts: vec![number, 0, 7],
        explicit_bounds: vec![0.5, 1e9],
        exemplars: vec![exemplar.clone()],
        flags: 1,
        min: Some(-1.0),
        max: None,
    };
    let exponential = ExponentialHistogramDataPoint {
        attributes: attributes.clone(),
        start_time_unix_nano: number,
        time_unix_nano: number,
        count: number,
        sum: None,
        scale: -3,
        zero_count: 2,
        positive: Some(Buckets { offset: -9, bucket_counts: vec![number, 300, 1] }),
        negative: Some(Buckets { offset: 9, bucket_counts: Vec::new() }),
        flags: 0,
        exemplars: Vec::new(),
        min: None,
        max: Some(4.5),
        zero_threshold: 0.25,
    };
    let summary = SummaryDataPoint {
        attributes: attributes.clone(),
        start_time_unix_nano: 1,
        time_unix_nano: number,
        count: 3,
        sum: 1.5,
        quantile_values: vec![ValueAtQuantile { quantile: 0.5, value: 2.5 }],
        flags: 0,
    };
    let all = [
        Data::Gauge(Gauge { data_points: points.clone() }),
        Data::Sum(Sum { data_points: points, aggregation_temporality: 2, is_monotonic: true }),
        Data::Histogram(Histogram { data_points: vec![histogram], aggregation_temporality: 1 }),
        Data::ExponentialHistogram(ExponentialHistogram { data_points: vec![exponential], aggregation_temporality: 2 }),
        Data::Summary(Summary { data_points: vec![summary] }),
    ];
    let metric = |data| Metric {
        name: name.into(),
        description: "d".into(),
        unit: "By".into(),
        metadata: attributes.clone(),
        data: Some(data),
    };
    let scope_metrics =
        ScopeMetrics { scope: None, metrics: all.into_iter().map(metric).collect(), schema_url: String::new() };
    let resource_metrics =
        ResourceMetrics { resource: resource(&attributes), scope_metrics: vec![scope_metrics], schema_url: "s".into() };
    ExportMetricsServiceRequest { resource_metrics: vec![resource_metrics] }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_field_arrives(attributes in attributes(), number in any::<u64>(), name in ".{0,200}") {
        let request = traces(&attributes, number, &name);
        let bytes = to_protobuf(Signal::Traces, &serde_json::to_vec(&request).unwrap(), LIMIT).unwrap();
        prop_assert_eq!(ExportTraceServiceRequest::decode(&bytes[..]).unwrap(), request);
        let request = logs(&attributes, number, &name);
        let bytes = to_protobuf(Signal::Logs, &serde_json::to_vec(&request).unwrap(), LIMIT).unwrap();
        prop_assert_eq!(ExportLogsServiceRequest::decode(&bytes[..]).unwrap(), request);
        let request = metrics(&attributes, number, &name);
        let bytes = to_protobuf(Signal::Metrics, &serde_json::to_vec(&request).unwrap(), LIMIT).unwrap();
        prop_assert_eq!(ExportMetricsServiceRequest::decode(&bytes[..]).unwrap(), request);
    }
}

fn span(text: &str) -> Result<Span, JsonError> {
    let text = format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{text}]}}]}}]}}"#);
    let bytes = to_protobuf(Signal::Traces, text.as_bytes(), LIMIT)?;
    let mut request = ExportTraceServiceRequest::decode(&bytes[..]).unwrap();
    Ok(request.resource_spans[0].scope_spans[0].spans.remove(0))
}

#[test]
fn what_json_may_write_in_several_ways() {
    let expected = Span { start_time_unix_nano: 1_000, kind: 3, name: "a\"\u{e9}".into(), ..Span::default() };
    for text in [
        r#"{"startTimeUnixNano":"1000","kind":3,"name":"a\"\u00e9"}"#,
        r#"{"startTimeUnixNano":1000,"kind":"3","name":"a\"é"}"#,
        r#"{"startTimeUnixNano":1e3,"kind":3.0,"name":"a\"é","unknown":{"deep":[1,{"x":null}]},"events":null}"#,
        r#"{"kind":1,"\u006bind":3,"name":"first","name":"a\"é","startTimeUnixNano":1000,"links":[],"status":null}"#,
    ] {
        assert_eq!(span(text).unwrap(), expected, "{text}");
    }
    assert_eq!(span(r#"{"spanId":"0aFF","traceId":""}"#).unwrap().span_id, [0x0a, 0xff]);
    let attribute = r#"{"attributes":[{"key":"k","value":{"doubleValue":"-Infinity"}}]}"#;
    let value = span(attribute).unwrap().attributes.remove(0).value.unwrap().value;
    assert_eq!(value, Some(Value::DoubleValue(f64::NEG_INFINITY)));
}

#[test]
fn what_is_not_otlp_is_refused() {
    for (text, reason) in [
        (r#"{"kind":"client"}"#, "kind"),
        (r#"{"kind":9999999999}"#, "out of range for `kind`"),
        (r#"{"kind":1.5}"#, "an integer of `kind`"),
        (r#"{"kind":true}"#, "an integer of `kind`"),
        (r#"{"name":7}"#, "text of `name`"),
        (r#"{"name":["a"]}"#, "text of `name`"),
        (r#"{"events":{}}"#, "`events` is a list"),
        (r#"{"events":[null]}"#, "`events`"),
        (r#"{"spanId":"0"}"#, "`spanId` is not hexadecimal"),
        (r#"{"spanId":"é"}"#, "`spanId` is not hexadecimal"),
        (r#"{"startTimeUnixNano":-1}"#, "out of range"),
        (r#"{"attributes":[{"value":{"bytesValue":"*"}}]}"#, "`bytesValue` is not base64"),
        (r#"{"status":{"code":3]}"#, "expected"),
        (r#"{"name":"a"#, "EOF"),
        ("[]", "an object"),
    ] {
        let error = span(text).expect_err(text).to_string();
        assert!(error.contains(reason), "{text}: {error}");
    }
    let deep = format!(r#"{{"attributes":[{{"value":{}"#, r#"{"arrayValue":{"values":["#.repeat(10_000));
    assert!(span(&deep).expect_err("deep").to_string().contains("recursion limit"));
    // An error does not repeat the text.
    let long = format!(r#"{{"kind":"{}"}}"#, "x".repeat(100_000));
    assert!(span(&long).expect_err("a text").to_string().len() < 200);
}

#[test]
fn small_texts_stay_small() {
    let spans = r#"{"resourceSpans":[{"scopeSpans":[{"spans":["#.to_owned() + &"{},".repeat(100_000) + "{}]}]}]}";
    let bytes = to_protobuf(Signal::Traces, spans.as_bytes(), LIMIT).unwrap();
    assert!(bytes.len() < spans.len() && bytes.capacity() <= LIMIT, "{} bytes", bytes.len());
    assert!(matches!(to_protobuf(Signal::Traces, spans.as_bytes(), 1000), Err(JsonError::TooLarge)));
    // The most that a byte of text becomes: a number of a list.
    let points = |zeros: String| {
        format!(
            r#"{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{{"histogram":{{"dataPoints":[{{"explicitBounds":[{zeros}]}}]}}}}]}}]}}]}}"#
        )
    };
    let text = points("0,".repeat(50_000) + "0");
    let bytes = to_protobuf(Signal::Metrics, text.as_bytes(), 4 * text.len()).unwrap();
    assert!(bytes.len() > 3 * text.len(), "{} bytes of {}", bytes.len(), text.len());
}
