//! The attributes of a reset: their names on the wire, in one place, and how each is read.
//!
//! The encoder, the filters, the terminal and the reference page all read this list; resource attributes are the
//! workload's ([`crate::enrich`]).

use std::net::IpAddr;

use crate::model::{Actor, Cause, ProcessExit, Reset, cause::severity};

/// A value of an attribute, borrowed where it can be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// A word or text.
    Text(&'a str),
    /// An address; text on the wire, compared as an address.
    Address(IpAddr),
    /// A whole number.
    Integer(i64),
    /// A number, seconds where it is a time.
    Float(f64),
}

named_list! {
    /// An attribute of the record (not of the resource), in the order of export.
    Attribute {
        Cause "tcp.reset.cause" "Why, the same word on every kernel; `explain` lists them",
        Origin "tcp.reset.origin" "Who wanted it: active, passive, firewall or peer",
        Severity "tcp.reset.severity" "INFO, WARN or ERROR, by what was lost",
        Reason "tcp.reset.reason" "The kernel's own name for the reason",
        Direction "network.io.direction" "transmit or receive, seen from this host",
        Transport "network.transport" "Always tcp",
        NetworkType "network.type" "ipv4 or ipv6; IPv4-mapped addresses are ipv4",
        LocalAddress "network.local.address" "Address of this host's end",
        LocalPort "network.local.port" "Port of this host's end",
        PeerAddress "network.peer.address" "Address of the other end",
        PeerPort "network.peer.port" "Port of the other end",
        ConnectionState "network.connection.state" "State of the connection before the reset",
        ErrorType "error.type" "Error that the local application gets: connection_refused, connection_reset or timed_out",
        ExitCode "process.exit.code" "Exit code of the owner, where it ended by itself and its end closed the connection",
        ExitSignal "process.exit.signal" "Signal that ended the owner, where its end closed the connection",
        ActorPid "tcp.reset.actor.pid" "Process that destroyed the connection, where it is not the owner",
        ActorName "tcp.reset.actor.name" "Its name at the time of the reset",
        BytesSent "tcp.connection.bytes_sent" "Bytes that this end sent on the connection",
        BytesReceived "tcp.connection.bytes_received" "Bytes that this end received on the connection",
        UnreadBytes "tcp.connection.unread_bytes" "Bytes received that the application had not read",
        UnsentBytes "tcp.connection.unsent_bytes" "Bytes written that had not been sent",
        UnackedBytes "tcp.connection.unacked_bytes" "Bytes sent that the peer had not acknowledged",
        Retransmits "tcp.connection.retransmits" "Segments sent again over the connection's life",
        SmoothedRtt "tcp.connection.smoothed_rtt" "Smoothed round trip, seconds",
        Duration "tcp.connection.duration" "From establishment to the reset, seconds",
        NetworkNamespace "network.namespace.inode" "Inode of the network namespace",
        TraceMethod "tcp.reset.trace.method" "How the trace was found: header, span or ambiguous",
        AdjustedCount "tcp.reset.adjusted_count" "How many resets the record stands for; left out when one",
    }
}

/// The message as an attribute of the span and the span event; the log record has it as its body.
pub const DESCRIPTION: &str = "tcp.reset.description";
/// What [`DESCRIPTION`] means, for the reference page.
pub const DESCRIPTION_MEANING: &str = "One sentence that explains the reset; on spans and span events only";

const NS_PER_S: f64 = 1e9;
const US_PER_S: f64 = 1e6;

impl Attribute {
    /// The value for one reset, or `None` where it is not known: then the attribute is left out.
    pub fn value(self, reset: &Reset) -> Option<Value<'_>> {
        let connection = &reset.connection;
        Some(match self {
            Self::Cause => Value::Text(reset.cause.word()),
            Self::Origin => Value::Text(reset.origin.word()),
            Self::Severity => Value::Text(severity(reset).word()),
            Self::Reason => Value::Text(reset.reason?),
            Self::Direction => Value::Text(reset.direction.word()),
            Self::Transport => Value::Text("tcp"),
            Self::NetworkType => Value::Text(if reset.local.address.is_ipv4() { "ipv4" } else { "ipv6" }),
            Self::LocalAddress => Value::Address(reset.local.address),
            Self::LocalPort => port(reset.local.port),
            Self::PeerAddress => Value::Address(reset.peer.address),
            Self::PeerPort => port(reset.peer.port),
            Self::ConnectionState => Value::Text(reset.state?.word()),
            Self::ErrorType => Value::Text(error_type(reset)?),
            Self::ExitCode => match reset.exit? {
                ProcessExit::Code(code) => count(code),
                ProcessExit::Signal(_) => return None,
            },
            Self::ExitSignal => match reset.exit? {
                ProcessExit::Signal(signal) => count(signal),
                ProcessExit::Code(_) => return None,
            },
            Self::ActorPid => count(other_actor(reset)?.pid),
            Self::ActorName => Value::Text(other_actor(reset)?.name()?),
            Self::BytesSent => count(connection.bytes_sent?),
            Self::BytesReceived => count(connection.bytes_received?),
            Self::UnreadBytes => count(connection.unread_bytes?),
            Self::UnsentBytes => count(connection.unsent_bytes?),
            Self::UnackedBytes => count(connection.unacked_bytes?),
            Self::Retransmits => count(connection.retransmits?),
            Self::SmoothedRtt => Value::Float(f64::from(connection.smoothed_rtt_us?) / US_PER_S),
            Self::Duration => Value::Float(connection.duration_ns? as f64 / NS_PER_S),
            Self::NetworkNamespace => Value::Integer(i64::from(reset.network_namespace?)),
            Self::TraceMethod => Value::Text(reset.trace.as_ref()?.method.word()),
            Self::AdjustedCount if reset.adjusted_count != 1.0 => Value::Float(reset.adjusted_count),
            Self::AdjustedCount => return None,
        })
    }
}

fn port(port: u16) -> Value<'static> {
    Value::Integer(i64::from(port))
}

fn count(count: impl Into<u64>) -> Value<'static> {
    Value::Integer(i64::try_from(count.into()).unwrap_or(i64::MAX))
}

/// The process that acted, where it is not the owner.
pub fn other_actor(reset: &Reset) -> Option<&Actor> {
    reset.actor.as_ref().filter(|actor| reset.owner.is_none_or(|owner| owner.pid != actor.pid))
}

/// The error that the local application gets; `None` if it gets none, for instance because it chose the reset itself.
pub fn error_type(reset: &Reset) -> Option<&'static str> {
    match reset.cause {
        Cause::RefusedByPeer => Some("connection_refused"),
        Cause::ResetByPeer if reset.owner.is_some() => Some("connection_reset"),
        Cause::SocketDestroyed | Cause::OutOfMemory => Some("connection_reset"),
        Cause::KeepaliveTimeout | Cause::UserTimeout => Some("timed_out"),
        _ => None,
    }
}
