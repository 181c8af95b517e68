//! A reset in user space: the kernel's record made into types, with nothing left to check.
//!
//! Does not know owners beyond what the record says ([`crate::enrich`]), nor traces ([`crate::correlate`]).

use std::{net::IpAddr, sync::Arc};

pub use probes::{Cause, Direction, Hook, Origin, OwnerSource, State};

use crate::enrich::Workload;

/// One reset on its way through the collector.
#[derive(Clone, Debug)]
pub struct Reset {
    /// When the kernel saw it, ns since 1970.
    pub time_unix_ns: u64,
    /// When we read it, ns since 1970.
    pub observed_unix_ns: u64,
    /// Sent or received.
    pub direction: Direction,
    /// Who wanted it.
    pub origin: Origin,
    /// Why, in our words.
    pub cause: Cause,
    /// Why, in the kernel's (`enum sk_rst_reason` or `enum skb_drop_reason`, by the running kernel's BTF).
    pub reason: Option<&'static str>,
    /// The connection's state before the reset.
    pub state: Option<State>,
    /// This host's end.
    pub local: Endpoint,
    /// The other end.
    pub peer: Endpoint,
    /// What the connection had done.
    pub connection: Connection,
    /// Inode of the network namespace.
    pub network_namespace: Option<u32>,
    /// What the kernel knows of the owner.
    pub owner: Option<Owner>,
    /// Key of the socket, for pairing records; never exported.
    pub socket: u64,
    /// Address of the credentials that opened the socket's file; never exported, 0 without one.
    pub credential: u64,
    /// cgroup v2 id of the socket.
    pub cgroup_id: Option<u64>,
    /// The task that did it, where the kernel says truly who acted.
    pub actor: Option<Actor>,
    /// TCP flags of the segment that was answered or received.
    pub segment_flags: u8,
    /// Whether the received reset was ignored by the socket, whose connection lives on.
    pub not_accepted: bool,
    /// The hook that saw it.
    pub hook: Hook,
    /// The workload that owns the socket; the host alone until enriched, and where there is no owner.
    pub workload: Arc<Workload>,
    /// The request that it broke, where known.
    pub trace: Option<Trace>,
    /// How many resets this record stands for after sampling; 1.0 unless sampled.
    pub sample_weight: f64,
}

/// An address and port. IPv4-mapped IPv6 addresses are IPv4 here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
}

/// Facts on the connection, each left out where it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// `tcp_sock.bytes_sent`.
    pub bytes_sent: Option<u64>,
    /// `tcp_sock.bytes_received`.
    pub bytes_received: Option<u64>,
    /// Received and not read.
    pub unread_bytes: Option<u32>,
    /// Written and not sent.
    pub unsent_bytes: Option<u32>,
    /// Sent and not acknowledged.
    pub unacked_bytes: Option<u32>,
    /// Segments sent again.
    pub retransmits: Option<u32>,
    /// Smoothed round trip, µs.
    pub smoothed_rtt_us: Option<u32>,
    /// From establishment to the reset, ns.
    pub duration_ns: Option<u64>,
}

/// The process that holds the socket, as the kernel knew it at the reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Process id (thread group) in the first pid namespace.
    pub pid: u32,
    /// Start, ns of CLOCK_BOOTTIME: with the pid, one process for ever.
    pub start_boot_ns: u64,
    /// Name of its main thread, closed by a zero.
    pub comm: [u8; probes::COMM_LEN],
    /// How it was found.
    pub source: OwnerSource,
}

/// The task that was in the kernel for this reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Actor {
    /// Process id; the owner's unless another process killed the socket.
    pub pid: u32,
    /// Thread id.
    pub thread_id: u32,
    /// It was exiting.
    pub exiting: bool,
    /// The signal that killed it.
    pub signal: Option<u8>,
}

/// The request that a reset belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// W3C trace id, never zeros.
    pub trace_id: [u8; 16],
    /// The application's span, or its parent's; `None` where the trace alone is known.
    pub span_id: Option<[u8; 8]>,
    /// How it was found.
    pub method: TraceMethod,
    /// The event already stands on the application's own span, so that no span of ours is needed.
    pub on_application_span: bool,
    /// With [`TraceMethod::Ambiguous`]: the spans that it may be.
    pub candidates: Vec<([u8; 16], [u8; 8])>,
}

/// How a trace was found (`tcp.reset.trace.method`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TraceMethod {
    /// `traceparent` read from the connection's own bytes.
    Wire,
    /// A span that passed through us.
    Span,
    /// The thread's context.
    Thread,
    /// Several could be meant and nothing tells them apart: no trace is named as the one.
    Ambiguous,
}

impl TraceMethod {
    /// The word that users see.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Wire => "wire",
            Self::Span => "span",
            Self::Thread => "thread",
            Self::Ambiguous => "ambiguous",
        }
    }
}

impl Reset {
    /// Where the segment came from.
    pub fn source(&self) -> Endpoint {
        match self.direction {
            Direction::Transmit => self.local,
            Direction::Receive => self.peer,
        }
    }

    /// Where the segment went.
    pub fn destination(&self) -> Endpoint {
        match self.direction {
            Direction::Transmit => self.peer,
            Direction::Receive => self.local,
        }
    }
}
