//! Resets as OTLP: written straight into protobuf bytes, once, with nothing allocated per record.
//!
//! The messages are those of opentelemetry-proto 1.11; the tests read them back with the crate of that name. How records
//! are put together to requests is [`crate::otlp::batch`]'s.

use std::{borrow::Cow, ops::Range};

use crate::{
    event::{ResetEvent, SpanContext, message},
    model::resource::{Resource, ResourceValue},
    model::{
        Reset,
        address::AddressText,
        attribute::{Attribute, DESCRIPTION, Value, error_type},
        cause::Severity,
    },
    otlp::protobuf,
};

/// The `event_name` of a log record, and the name of the span and its event.
pub const EVENT_NAME: &str = "tcp.reset";
/// The semantic conventions that the names follow.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.44.0";
/// The instrumentation scope.
pub const SCOPE_NAME: &str = "reset-collector";

/// Field numbers of `opentelemetry.proto.logs.v1.LogRecord`.
mod log_field {
    pub(super) const TIME: u32 = 1;
    pub(super) const SEVERITY_NUMBER: u32 = 2;
    pub(super) const SEVERITY_TEXT: u32 = 3;
    pub(super) const BODY: u32 = 5;
    pub(super) const ATTRIBUTES: u32 = 6;
    pub(super) const FLAGS: u32 = 8;
    pub(super) const TRACE_ID: u32 = 9;
    pub(super) const SPAN_ID: u32 = 10;
    pub(super) const OBSERVED_TIME: u32 = 11;
    pub(super) const EVENT_NAME: u32 = 12;
}

/// Field numbers of `opentelemetry.proto.trace.v1.Span`.
mod span_field {
    pub(super) const TRACE_ID: u32 = 1;
    pub(super) const SPAN_ID: u32 = 2;
    pub(super) const PARENT: u32 = 4;
    pub(super) const NAME: u32 = 5;
    pub(super) const KIND: u32 = 6;
    pub(super) const START: u32 = 7;
    pub(super) const END: u32 = 8;
    pub(super) const ATTRIBUTES: u32 = 9;
    pub(super) const EVENTS: u32 = 11;
    pub(super) const LINKS: u32 = 13;
    pub(super) const STATUS: u32 = 15;
    pub(super) const FLAGS: u32 = 16;
}

/// Field numbers of `opentelemetry.proto.trace.v1.Span.Event`.
mod event_field {
    pub(super) const TIME: u32 = 1;
    pub(super) const NAME: u32 = 2;
    pub(super) const ATTRIBUTES: u32 = 3;
}

/// Field numbers of `opentelemetry.proto.trace.v1.Status`.
mod status_field {
    pub(super) const MESSAGE: u32 = 2;
    pub(super) const CODE: u32 = 3;
}

/// Field numbers of `opentelemetry.proto.common.v1`: `KeyValue`, `AnyValue`, `ArrayValue`, `InstrumentationScope`.
mod common_field {
    pub(super) const KEY: u32 = 1;
    pub(super) const VALUE: u32 = 2;
    pub(super) const STRING: u32 = 1;
    pub(super) const INTEGER: u32 = 3;
    pub(super) const DOUBLE: u32 = 4;
    pub(super) const ARRAY: u32 = 5;
    pub(super) const ARRAY_VALUES: u32 = 1;
    pub(super) const SCOPE_NAME: u32 = 1;
    pub(super) const SCOPE_VERSION: u32 = 2;
}

/// W3C trace flag.
const SAMPLED: u32 = 1;
/// `SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK`: it is known whether the parent is in another process.
const HAS_IS_REMOTE: u32 = 1 << 8;
/// `SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK`: the parent is in another process.
const IS_REMOTE: u32 = 1 << 9;
/// `SPAN_KIND_INTERNAL`: a client's or server's span would count as a request in service graphs.
const KIND_INTERNAL: u64 = 1;
/// `STATUS_CODE_ERROR`
const STATUS_ERROR: u64 = 2;
/// Links of a span at most; an ambiguous trace beyond that says nothing to anybody.
const MAX_LINKS: usize = 128;

/// The encoded `opentelemetry.proto.resource.v1.Resource` message, made once for each resource.
pub fn resource(resource: &Resource) -> &[u8] {
    resource.encoded_by(|resource| resource_message(&resource.attributes))
}

fn resource_message(attributes: &[(Cow<'static, str>, ResourceValue)]) -> Vec<u8> {
    const ATTRIBUTES: u32 = 1;
    let mut out = Vec::new();
    for (name, value) in attributes {
        protobuf::message(&mut out, ATTRIBUTES, |out| {
            protobuf::bytes(out, common_field::KEY, name.as_bytes());
            protobuf::message(out, common_field::VALUE, |out| resource_value(out, value));
        });
    }
    out
}

fn resource_value(out: &mut Vec<u8>, value: &ResourceValue) {
    match value {
        ResourceValue::Text(text) => protobuf::bytes(out, common_field::STRING, text.as_bytes()),
        ResourceValue::Integer(number) => protobuf::integer(out, common_field::INTEGER, number.cast_unsigned()),
        ResourceValue::List(texts) => protobuf::message(out, common_field::ARRAY, |out| {
            for text in texts {
                protobuf::message(out, common_field::ARRAY_VALUES, |out| {
                    protobuf::bytes(out, common_field::STRING, text.as_bytes());
                });
            }
        }),
    }
}

/// An `InstrumentationScope` message: us.
pub fn scope() -> Vec<u8> {
    let mut out = Vec::new();
    protobuf::bytes(&mut out, common_field::SCOPE_NAME, SCOPE_NAME.as_bytes());
    protobuf::bytes(&mut out, common_field::SCOPE_VERSION, env!("CARGO_PKG_VERSION").as_bytes());
    out
}

/// Appends a `LogRecord` message.
pub fn log_record(event: &ResetEvent<'_>, out: &mut Vec<u8>) {
    write_log_record(event, out);
}

/// Appends a `LogRecord` message and then a `Span` message; gives the place between. The same as [`log_record`] and
/// [`span`], with the attributes encoded once for both.
pub fn log_record_and_span(event: &ResetEvent<'_>, identity: &SpanContext, out: &mut Vec<u8>) -> usize {
    let encoded = write_log_record(event, out);
    let between = out.len();
    write_span(event, identity, out, |out| {
        let start = out.len();
        out.extend_from_within(encoded);
        set_field(&mut out[start..], event_field::ATTRIBUTES);
        description(event.message, event_field::ATTRIBUTES, out);
    });
    between
}

/// Gives every field of these bytes, each with a length, another number; both numbers are below 16.
fn set_field(mut fields: &mut [u8], number: u32) {
    while let [key, rest @ ..] = fields {
        *key = protobuf::length_key(number) as u8;
        let Some((length, head)) = protobuf::read_varint(rest) else { return };
        let end = rest.len().min(head + length as usize);
        fields = &mut rest[end..];
    }
}

/// Gives where the attributes lie in `out`.
fn write_log_record(event: &ResetEvent<'_>, out: &mut Vec<u8>) -> Range<usize> {
    let reset = event.reset;
    protobuf::fixed64(out, log_field::TIME, reset.time_unix_ns);
    protobuf::integer(out, log_field::SEVERITY_NUMBER, severity_number(event.severity));
    protobuf::bytes(out, log_field::SEVERITY_TEXT, event.severity.word().as_bytes());
    protobuf::length(out, log_field::BODY, protobuf::field_length(common_field::STRING, event.message.len()));
    protobuf::bytes(out, common_field::STRING, event.message.as_bytes());
    let start = out.len();
    attributes(reset, log_field::ATTRIBUTES, out);
    let encoded = start..out.len();
    if let Some(identity) = event.contexts.log {
        if identity.sampled {
            protobuf::fixed32(out, log_field::FLAGS, SAMPLED);
        }
        protobuf::bytes(out, log_field::TRACE_ID, &identity.trace_id);
        if let Some(span_id) = identity.span_id {
            protobuf::bytes(out, log_field::SPAN_ID, &span_id);
        }
    }
    protobuf::fixed64(out, log_field::OBSERVED_TIME, reset.observed_unix_ns);
    protobuf::bytes(out, log_field::EVENT_NAME, EVENT_NAME.as_bytes());
    encoded
}

/// OpenTelemetry's number of a severity.
pub const fn severity_number(severity: Severity) -> u64 {
    match severity {
        Severity::Info => 9,
        Severity::Warn => 13,
        Severity::Error => 17,
    }
}

/// Appends a `Span` message with these ids, carrying the event. The span runs from the connection's establishment to
/// the reset; where that time is not known it is the reset's alone, and as short as a span can be: Jaeger puts a warning
/// on a span without a duration.
pub fn span(event: &ResetEvent<'_>, identity: &SpanContext, out: &mut Vec<u8>) {
    write_span(event, identity, out, |out| event_attributes(event.reset, event.message, out));
}

fn write_span(
    event: &ResetEvent<'_>,
    identity: &SpanContext,
    out: &mut Vec<u8>,
    write_event_attributes: impl FnOnce(&mut Vec<u8>),
) {
    let reset = event.reset;
    let duration = reset.connection.duration_ns.unwrap_or(0).max(MIN_SPAN_NS);
    let start = reset.time_unix_ns.saturating_sub(duration);
    protobuf::bytes(out, span_field::TRACE_ID, &identity.trace_id);
    protobuf::bytes(out, span_field::SPAN_ID, &identity.span_id);
    if let Some(parent) = identity.parent {
        protobuf::bytes(out, span_field::PARENT, &parent);
    }
    let cause = reset.cause.word();
    protobuf::length(out, span_field::NAME, EVENT_NAME.len() + 1 + cause.len());
    for part in [EVENT_NAME, " ", cause] {
        out.extend_from_slice(part.as_bytes());
    }
    protobuf::integer(out, span_field::KIND, KIND_INTERNAL);
    protobuf::fixed64(out, span_field::START, start);
    protobuf::fixed64(out, span_field::END, reset.time_unix_ns);
    for attribute in SPAN_ATTRIBUTES {
        write_attribute(reset, *attribute, span_field::ATTRIBUTES, out);
    }
    description(event.message, span_field::ATTRIBUTES, out);
    protobuf::message(out, span_field::EVENTS, |out| {
        event_head(reset, out);
        write_event_attributes(out);
    });
    links(reset, out);
    if error_type(reset).is_some() {
        let message = event.message.as_bytes();
        let code = 1 + protobuf::varint_length(STATUS_ERROR);
        protobuf::length(out, span_field::STATUS, protobuf::field_length(status_field::MESSAGE, message.len()) + code);
        protobuf::bytes(out, status_field::MESSAGE, message);
        protobuf::integer(out, status_field::CODE, STATUS_ERROR);
    }
    let remote = if identity.parent.is_some() { IS_REMOTE } else { 0 };
    protobuf::fixed32(out, span_field::FLAGS, SAMPLED | HAS_IS_REMOTE | remote);
}

/// A span without a duration is none to backends.
const MIN_SPAN_NS: u64 = 1;

/// Attributes of the collector's own spans, beside the description: some backends search spans but not their events.
const SPAN_ATTRIBUTES: &[Attribute] = &[
    Attribute::Cause,
    Attribute::Severity,
    Attribute::Direction,
    Attribute::LocalAddress,
    Attribute::LocalPort,
    Attribute::PeerAddress,
    Attribute::PeerPort,
    Attribute::ErrorType,
];

/// The spans that an ambiguous reset may belong to, or the other calls of an HTTP/2 connection that died.
fn links(reset: &Reset, out: &mut Vec<u8>) {
    const TRACE_ID: u32 = 1;
    const SPAN_ID: u32 = 2;
    let candidates = reset.trace.iter().flat_map(|trace| &trace.candidates);
    for (trace_id, span_id) in candidates.take(MAX_LINKS) {
        protobuf::message(out, span_field::LINKS, |out| {
            protobuf::bytes(out, TRACE_ID, trace_id);
            protobuf::bytes(out, SPAN_ID, span_id);
        });
    }
}

/// Appends the content of a `Span.Event` message for a span of the application (`Span.events` is field 11).
pub fn span_event(reset: &Reset, out: &mut Vec<u8>) {
    let mut text = String::new();
    message::render(reset, &mut text);
    event_head(reset, out);
    event_attributes(reset, &text, out);
}

fn event_attributes(reset: &Reset, message: &str, out: &mut Vec<u8>) {
    attributes(reset, event_field::ATTRIBUTES, out);
    description(message, event_field::ATTRIBUTES, out);
}

fn description(message: &str, field: u32, out: &mut Vec<u8>) {
    static KEY: Key = Key::new(DESCRIPTION);
    write_text(out, field, &KEY, message.as_bytes());
}

fn event_head(reset: &Reset, out: &mut Vec<u8>) {
    protobuf::fixed64(out, event_field::TIME, reset.time_unix_ns);
    protobuf::bytes(out, event_field::NAME, EVENT_NAME.as_bytes());
}

/// Every known attribute as a `KeyValue` in this field.
fn attributes(reset: &Reset, field: u32, out: &mut Vec<u8>) {
    for attribute in Attribute::ALL {
        write_attribute(reset, *attribute, field, out);
    }
}

fn write_attribute(reset: &Reset, attribute: Attribute, field: u32, out: &mut Vec<u8>) {
    let Some(value) = attribute.value(reset) else { return };
    let key = &KEYS[attribute as usize];
    match value {
        Value::Text(word) => write_text(out, field, key, word.as_bytes()),
        Value::Address(address) => write_text(out, field, key, AddressText::new(address).as_bytes()),
        Value::Integer(number) => {
            let number = number.cast_unsigned();
            write_head(out, field, key, 1 + protobuf::varint_length(number));
            protobuf::integer(out, common_field::INTEGER, number);
        }
        Value::Float(number) => {
            write_head(out, field, key, 1 + size_of::<f64>());
            protobuf::double(out, common_field::DOUBLE, number);
        }
    }
}

fn write_text(out: &mut Vec<u8>, field: u32, key: &Key, text: &[u8]) {
    write_head(out, field, key, protobuf::field_length(common_field::STRING, text.len()));
    protobuf::bytes(out, common_field::STRING, text);
}

/// A `KeyValue` up to its `AnyValue` of `value` bytes, which the caller writes next. The usual short one is put together
/// on the stack with copies of fixed length, and appended at once: this is half of what a record costs.
fn write_head(out: &mut Vec<u8>, field: u32, key: &Key, value: usize) {
    const SHORT: usize = 0x80;
    let length = key.length + protobuf::varint_length(value as u64) + value;
    if length < SHORT {
        let mut head = [0; 2 + MAX_KEY_LEN + 1];
        head[0] = protobuf::length_key(field) as u8;
        head[1] = length as u8;
        head[2..2 + MAX_KEY_LEN].copy_from_slice(&key.bytes);
        head[2 + key.length] = value as u8;
        let end = out.len() + key.length + 3;
        out.extend_from_slice(&head);
        out.truncate(end);
    } else {
        protobuf::length(out, field, length);
        out.extend_from_slice(&key.bytes[..key.length]);
        protobuf::varint(out, value as u64);
    }
}

/// Longest [`Key`], bytes; a longer name does not compile.
const MAX_KEY_LEN: usize = 40;

/// What every `KeyValue` of an attribute begins with: its name's field, and the key of the value's field.
struct Key {
    bytes: [u8; MAX_KEY_LEN],
    length: usize,
}

impl Key {
    const fn new(name: &str) -> Self {
        let name = name.as_bytes();
        let mut bytes = [0; MAX_KEY_LEN];
        bytes[0] = protobuf::length_key(common_field::KEY) as u8;
        bytes[1] = name.len() as u8;
        let mut place = 0;
        while place < name.len() {
            bytes[2 + place] = name[place];
            place += 1;
        }
        bytes[2 + name.len()] = protobuf::length_key(common_field::VALUE) as u8;
        Self { bytes, length: name.len() + 3 }
    }
}

/// The keys of [`Attribute::ALL`], by number.
static KEYS: [Key; Attribute::ALL.len()] = {
    let mut keys = [const { Key::new("") }; Attribute::ALL.len()];
    let mut place = 0;
    while place < keys.len() {
        keys[place] = Key::new(Attribute::ALL[place].name());
        place += 1;
    }
    keys
};

#[cfg(test)]
mod tests;
