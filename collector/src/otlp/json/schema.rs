//! The messages of OTLP 1.11 by their JSON keys: number and type of each field (opentelemetry-proto, `*.proto`).

use super::schema::Kind::{
    Base64, Bool, Double, Fixed32, Fixed64, Hex, Int32, Int64, Message as Nested, Sfixed64, Sint32, Text, Uint32,
    Uint64,
};

/// The fields of one message.
pub(super) struct Message(pub(super) &'static [Field]);

/// One field.
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) number: u32,
    pub(super) kind: Kind,
    pub(super) repeated: bool,
}

/// How a value is written in JSON and in protobuf.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Text,
    /// Bytes in base64.
    Base64,
    /// Bytes in hex: ids.
    Hex,
    Bool,
    /// Enumerations too.
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Fixed32,
    Fixed64,
    Sfixed64,
    Double,
    Message(&'static Message),
}

impl Kind {
    /// Numbers of a list share one key.
    pub(super) fn is_packed(self) -> bool {
        !matches!(self, Text | Base64 | Hex | Nested(_))
    }

    pub(super) const fn expected(self) -> &'static str {
        match self {
            Text => "text",
            Base64 => "base64",
            Hex => "hexadecimal text",
            Bool => "true or false",
            Nested(_) => "an object",
            Double => "a number",
            _ => "an integer",
        }
    }
}

const fn one(name: &'static str, number: u32, kind: Kind) -> Field {
    Field { name, number, kind, repeated: false }
}

const fn list(name: &'static str, number: u32, kind: Kind) -> Field {
    Field { name, number, kind, repeated: true }
}

pub(super) static TRACES_REQUEST: Message = Message(&[list("resourceSpans", 1, Nested(&RESOURCE_SPANS))]);
pub(super) static LOGS_REQUEST: Message = Message(&[list("resourceLogs", 1, Nested(&RESOURCE_LOGS))]);
pub(super) static METRICS_REQUEST: Message = Message(&[list("resourceMetrics", 1, Nested(&RESOURCE_METRICS))]);

static ANY_VALUE: Message = Message(&[
    one("stringValue", 1, Text),
    one("boolValue", 2, Bool),
    one("intValue", 3, Int64),
    one("doubleValue", 4, Double),
    one("arrayValue", 5, Nested(&ARRAY_VALUE)),
    one("kvlistValue", 6, Nested(&KEY_VALUE_LIST)),
    one("bytesValue", 7, Base64),
]);
static ARRAY_VALUE: Message = Message(&[list("values", 1, Nested(&ANY_VALUE))]);
static KEY_VALUE_LIST: Message = Message(&[list("values", 1, Nested(&KEY_VALUE))]);
static KEY_VALUE: Message = Message(&[one("key", 1, Text), one("value", 2, Nested(&ANY_VALUE))]);
static SCOPE: Message = Message(&[
    one("name", 1, Text),
    one("version", 2, Text),
    list("attributes", 3, Nested(&KEY_VALUE)),
    one("droppedAttributesCount", 4, Uint32),
]);
static ENTITY_REF: Message = Message(&[
    one("schemaUrl", 1, Text),
    one("type", 2, Text),
    list("idKeys", 3, Text),
    list("descriptionKeys", 4, Text),
]);
static RESOURCE: Message = Message(&[
    list("attributes", 1, Nested(&KEY_VALUE)),
    one("droppedAttributesCount", 2, Uint32),
    list("entityRefs", 3, Nested(&ENTITY_REF)),
]);

static RESOURCE_SPANS: Message = Message(&[
    one("resource", 1, Nested(&RESOURCE)),
    list("scopeSpans", 2, Nested(&SCOPE_SPANS)),
    one("schemaUrl", 3, Text),
]);
static SCOPE_SPANS: Message =
    Message(&[one("scope", 1, Nested(&SCOPE)), list("spans", 2, Nested(&SPAN)), one("schemaUrl", 3, Text)]);
static SPAN: Message = Message(&[
    one("traceId", 1, Hex),
    one("spanId", 2, Hex),
    one("traceState", 3, Text),
    one("parentSpanId", 4, Hex),
    one("name", 5, Text),
    one("kind", 6, Int32),
    one("startTimeUnixNano", 7, Fixed64),
    one("endTimeUnixNano", 8, Fixed64),
    list("attributes", 9, Nested(&KEY_VALUE)),
    one("droppedAttributesCount", 10, Uint32),
    list("events", 11, Nested(&SPAN_EVENT)),
    one("droppedEventsCount", 12, Uint32),
    list("links", 13, Nested(&SPAN_LINK)),
    one("droppedLinksCount", 14, Uint32),
    one("status", 15, Nested(&STATUS)),
    one("flags", 16, Fixed32),
]);
static SPAN_EVENT: Message = Message(&[
    one("timeUnixNano", 1, Fixed64),
    one("name", 2, Text),
    list("attributes", 3, Nested(&KEY_VALUE)),
    one("droppedAttributesCount", 4, Uint32),
]);
static SPAN_LINK: Message = Message(&[
    one("traceId", 1, Hex),
    one("spanId", 2, Hex),
    one("traceState", 3, Text),
    list("attributes", 4, Nested(&KEY_VALUE)),
    one("droppedAttributesCount", 5, Uint32),
    one("flags", 6, Fixed32),
]);
static STATUS: Message = Message(&[one("message", 2, Text), one("code", 3, Int32)]);

static RESOURCE_LOGS: Message = Message(&[
    one("resource", 1, Nested(&RESOURCE)),
    list("scopeLogs", 2, Nested(&SCOPE_LOGS)),
    one("schemaUrl", 3, Text),
]);
static SCOPE_LOGS: Message =
    Message(&[one("scope", 1, Nested(&SCOPE)), list("logRecords", 2, Nested(&LOG_RECORD)), one("schemaUrl", 3, Text)]);
static LOG_RECORD: Message = Message(&[
    one("timeUnixNano", 1, Fixed64),
    one("severityNumber", 2, Int32),
    one("severityText", 3, Text),
    one("body", 5, Nested(&ANY_VALUE)),
    list("attributes", 6, Nested(&KEY_VALUE)),
    one("droppedAttributesCount", 7, Uint32),
    one("flags", 8, Fixed32),
    one("traceId", 9, Hex),
    one("spanId", 10, Hex),
    one("observedTimeUnixNano", 11, Fixed64),
    one("eventName", 12, Text),
]);

static RESOURCE_METRICS: Message = Message(&[
    one("resource", 1, Nested(&RESOURCE)),
    list("scopeMetrics", 2, Nested(&SCOPE_METRICS)),
    one("schemaUrl", 3, Text),
]);
static SCOPE_METRICS: Message =
    Message(&[one("scope", 1, Nested(&SCOPE)), list("metrics", 2, Nested(&METRIC)), one("schemaUrl", 3, Text)]);
static METRIC: Message = Message(&[
    one("name", 1, Text),
    one("description", 2, Text),
    one("unit", 3, Text),
    one("gauge", 5, Nested(&GAUGE)),
    one("sum", 7, Nested(&SUM)),
    one("histogram", 9, Nested(&HISTOGRAM)),
    one("exponentialHistogram", 10, Nested(&EXPONENTIAL_HISTOGRAM)),
    one("summary", 11, Nested(&SUMMARY)),
    list("metadata", 12, Nested(&KEY_VALUE)),
]);
static GAUGE: Message = Message(&[list("dataPoints", 1, Nested(&NUMBER_POINT))]);
static SUM: Message = Message(&[
    list("dataPoints", 1, Nested(&NUMBER_POINT)),
    one("aggregationTemporality", 2, Int32),
    one("isMonotonic", 3, Bool),
]);
static HISTOGRAM: Message =
    Message(&[list("dataPoints", 1, Nested(&HISTOGRAM_POINT)), one("aggregationTemporality", 2, Int32)]);
static EXPONENTIAL_HISTOGRAM: Message =
    Message(&[list("dataPoints", 1, Nested(&EXPONENTIAL_POINT)), one("aggregationTemporality", 2, Int32)]);
static SUMMARY: Message = Message(&[list("dataPoints", 1, Nested(&SUMMARY_POINT))]);
static NUMBER_POINT: Message = Message(&[
    one("startTimeUnixNano", 2, Fixed64),
    one("timeUnixNano", 3, Fixed64),
    one("asDouble", 4, Double),
    list("exemplars", 5, Nested(&EXEMPLAR)),
    one("asInt", 6, Sfixed64),
    list("attributes", 7, Nested(&KEY_VALUE)),
    one("flags", 8, Uint32),
]);
static HISTOGRAM_POINT: Message = Message(&[
    one("startTimeUnixNano", 2, Fixed64),
    one("timeUnixNano", 3, Fixed64),
    one("count", 4, Fixed64),
    one("sum", 5, Double),
    list("bucketCounts", 6, Fixed64),
    list("explicitBounds", 7, Double),
    list("exemplars", 8, Nested(&EXEMPLAR)),
    list("attributes", 9, Nested(&KEY_VALUE)),
    one("flags", 10, Uint32),
    one("min", 11, Double),
    one("max", 12, Double),
]);
static EXPONENTIAL_POINT: Message = Message(&[
    list("attributes", 1, Nested(&KEY_VALUE)),
    one("startTimeUnixNano", 2, Fixed64),
    one("timeUnixNano", 3, Fixed64),
    one("count", 4, Fixed64),
    one("sum", 5, Double),
    one("scale", 6, Sint32),
    one("zeroCount", 7, Fixed64),
    one("positive", 8, Nested(&BUCKETS)),
    one("negative", 9, Nested(&BUCKETS)),
    one("flags", 10, Uint32),
    list("exemplars", 11, Nested(&EXEMPLAR)),
    one("min", 12, Double),
    one("max", 13, Double),
    one("zeroThreshold", 14, Double),
]);
static BUCKETS: Message = Message(&[one("offset", 1, Sint32), list("bucketCounts", 2, Uint64)]);
static SUMMARY_POINT: Message = Message(&[
    one("startTimeUnixNano", 2, Fixed64),
    one("timeUnixNano", 3, Fixed64),
    one("count", 4, Fixed64),
    one("sum", 5, Double),
    list("quantileValues", 6, Nested(&QUANTILE)),
    list("attributes", 7, Nested(&KEY_VALUE)),
    one("flags", 8, Uint32),
]);
static QUANTILE: Message = Message(&[one("quantile", 1, Double), one("value", 2, Double)]);
static EXEMPLAR: Message = Message(&[
    one("timeUnixNano", 2, Fixed64),
    one("asDouble", 3, Double),
    one("spanId", 4, Hex),
    one("traceId", 5, Hex),
    one("asInt", 6, Sfixed64),
    list("filteredAttributes", 7, Nested(&KEY_VALUE)),
]);
