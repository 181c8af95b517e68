//! Spans as the SDKs send them at their defaults, and the resets that they are matched with.

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span::Event},
};
use reset_collector::model::{Cause, Connection, Direction, Hook, Origin, Owner, OwnerSource, Reset, State};

use crate::blank::{self, loopback};

pub(crate) const MS: u64 = 1_000_000;
/// Zero of the times in these tests: no whole millisecond, which only Node's spans start at.
pub(crate) const ZERO: u64 = 1_790_000_000_000_123_456;
pub(crate) const SERVER_PORT: u16 = 8080;
const SERVER: i32 = 2;
const CLIENT: i32 = 3;

/// A span with this number as its id, in a trace of its own, from and to ms after [`ZERO`].
fn span(number: u8, kind: i32, from_ms: u64, to_ms: u64) -> Span {
    Span {
        trace_id: vec![number; 16],
        span_id: vec![number; 8],
        kind,
        start_time_unix_nano: ZERO + from_ms * MS,
        end_time_unix_nano: ZERO + to_ms * MS,
        ..Span::default()
    }
}

pub(crate) trait Build: Sized {
    fn text(self, key: &str, value: &str) -> Self;
    fn number(self, key: &str, value: i64) -> Self;
    fn failed(self, message: &str) -> Self;
    fn exception(self, kind: &str, message: &str) -> Self;
    fn parent(self, number: u8) -> Self;
    fn on_whole_ms(self) -> Self;
}

impl Build for Span {
    fn text(mut self, key: &str, value: &str) -> Self {
        self.attributes.push(any_attribute(key, Value::StringValue(value.into())));
        self
    }

    fn number(mut self, key: &str, value: i64) -> Self {
        self.attributes.push(any_attribute(key, Value::IntValue(value)));
        self
    }

    fn failed(mut self, message: &str) -> Self {
        self.status = Some(Status { message: message.into(), code: 2 });
        self
    }

    fn exception(mut self, kind: &str, message: &str) -> Self {
        let text = |key: &str, value: &str| any_attribute(key, Value::StringValue(value.into()));
        let attributes = vec![text("exception.type", kind), text("exception.message", message)];
        self.events.push(Event { name: "exception".into(), attributes, ..Event::default() });
        self.failed(&format!("{kind}: {message}"))
    }

    fn parent(mut self, number: u8) -> Self {
        self.trace_id = vec![number; 16];
        self.parent_span_id = vec![number; 8];
        self
    }

    /// Node: the start is cut to a millisecond, and the end comes as much too early.
    fn on_whole_ms(mut self) -> Self {
        let cut = self.start_time_unix_nano % MS;
        self.start_time_unix_nano -= cut;
        self.end_time_unix_nano -= cut;
        self
    }
}

/// A text attribute.
pub(crate) fn attribute(key: &str, value: &str) -> KeyValue {
    any_attribute(key, Value::StringValue(value.into()))
}

fn any_attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.into(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

pub(crate) type ServerSpan = fn(u8, u16, u64, u64) -> Span;

/// Every HTTP server instrumentation: (name, span by number, client's port, from, to).
pub(crate) const SERVERS: &[(&str, ServerSpan)] = &[
    ("python", |number, port, from, to| {
        span(number, SERVER, from, to)
            .text("net.peer.ip", "127.0.0.1")
            .number("net.peer.port", port.into())
            .number("net.host.port", SERVER_PORT.into())
            .number("http.status_code", 200)
    }),
    ("python, stable names", |number, port, from, to| {
        span(number, SERVER, from, to)
            .text("client.address", "127.0.0.1")
            .number("client.port", port.into())
            .text("server.address", "127.0.0.1:8080")
            .number("http.response.status_code", 200)
    }),
    ("go", |number, port, from, to| {
        span(number, SERVER, from, to)
            .text("network.peer.address", "127.0.0.1")
            .number("network.peer.port", port.into())
            .text("client.address", "203.0.113.9")
            .text("server.address", "shop.example")
            .number("http.response.status_code", 200)
    }),
    ("node", |number, port, from, to| {
        span(number, SERVER, from, to)
            .on_whole_ms()
            .text("network.peer.address", "::ffff:127.0.0.1")
            .number("network.peer.port", port.into())
            .text("client.address", "203.0.113.9")
            .number("server.port", SERVER_PORT.into())
            .number("http.response.status_code", 200)
    }),
];

/// otelgrpc's: where it listens, not who called.
pub(crate) fn go_grpc_server(number: u8, from: u64, to: u64, code: i64) -> Span {
    span(number, SERVER, from, to)
        .text("rpc.system", "grpc")
        .text("server.address", "127.0.0.1")
        .number("server.port", SERVER_PORT.into())
        .number("rpc.grpc.status_code", code)
}

pub(crate) fn python_client(number: u8, from: u64, to: u64) -> Span {
    span(number, CLIENT, from, to).text("http.method", "GET").text("http.url", "http://127.0.0.1:8080/slow?a=b")
}

pub(crate) fn go_client(number: u8, from: u64, to: u64) -> Span {
    span(number, CLIENT, from, to)
        .text("server.address", "127.0.0.1")
        .number("server.port", SERVER_PORT.into())
        .text("url.full", "http://127.0.0.1:8080/slow")
}

pub(crate) fn go_grpc_client(number: u8, from: u64, to: u64) -> Span {
    span(number, CLIENT, from, to).text("rpc.system", "grpc").number("rpc.grpc.status_code", 14)
}

pub(crate) fn node_client(number: u8, from: u64, to: u64) -> Span {
    span(number, CLIENT, from, to)
        .on_whole_ms()
        .text("server.address", "localhost")
        .number("server.port", SERVER_PORT.into())
        .text("network.peer.address", "127.0.0.1")
        .number("network.peer.port", SERVER_PORT.into())
}

/// Go's own text of a broken connection from this port.
pub(crate) fn go_reset_text(port: u16) -> String {
    format!("read tcp 127.0.0.1:{port}->127.0.0.1:{SERVER_PORT}: read: connection reset by peer")
}

pub(crate) fn owner() -> Owner {
    Owner { pid: 4321, start_boot_ns: 5_000_000_000, comm: [0; 16], source: OwnerSource::File }
}

/// A reset at this time (µs after [`ZERO`]) that the server gets from a client's port.
pub(crate) fn at_server(port: u16, at_us: u64) -> Reset {
    Reset {
        time_unix_ns: ZERO + at_us * 1_000,
        state: Some(State::Established),
        local: loopback(SERVER_PORT),
        peer: loopback(port),
        connection: Connection { bytes_sent: Some(150), bytes_received: Some(80), ..Connection::default() },
        network_namespace: Some(1),
        owner: Some(owner()),
        ..blank::reset()
    }
}

/// An internal span of the same process that ends long after: what was about to be exported before it has been.
pub(crate) fn later() -> Span {
    const INTERNAL: i32 = 1;
    span(250, INTERNAL, 0, 3_000)
}

/// Moves a reset to another time.
pub(crate) trait At {
    fn at(self, time_unix_ns: u64) -> Self;
}

impl At for Reset {
    fn at(self, time_unix_ns: u64) -> Self {
        Self { time_unix_ns, ..self }
    }
}

/// The same, sent by the server for this cause.
pub(crate) fn by_server(port: u16, at_us: u64, cause: Cause) -> Reset {
    let (direction, origin) = (Direction::Transmit, Origin::Active);
    Reset { direction, origin, cause, hook: Hook::SendReset, ..at_server(port, at_us) }
}

/// A reset that a client's port gets from the server.
pub(crate) fn at_client(port: u16, at_us: u64) -> Reset {
    Reset { local: loopback(port), peer: loopback(SERVER_PORT), ..at_server(port, at_us) }
}

/// A reset by a client that had closed, of the answer that came afterwards.
pub(crate) fn answered_late(at_ms: u64, connection: Connection) -> Reset {
    let Reset { local, peer, .. } = at_client(40_001, 0);
    Reset { local, peer, connection, ..by_server(1, at_ms * 1_000, Cause::DataAfterClose) }
}

/// Go's span of a call of 20 ms that gave up.
pub(crate) fn go_client_that_gave_up(number: u8) -> Span {
    go_client(number, 0, 20).text("error.type", "timeout").failed("context deadline exceeded")
}

/// A refused connection.
pub(crate) fn refused(port: u16, at_us: u64) -> Reset {
    Reset { cause: Cause::RefusedByPeer, state: Some(State::SynSent), ..at_client(port, at_us) }
}

pub(crate) fn request(spans: &[Span]) -> ExportTraceServiceRequest {
    let scope_spans = vec![ScopeSpans { spans: spans.to_vec(), ..ScopeSpans::default() }];
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }] }
}
