//! A reset in user space: the kernel's record made into types, with nothing left to check.
//!
//! Does not know owners beyond what the record says ([`crate::enrich`]), nor traces ([`crate::correlate`]).

/// Defines a closed list once: variant, name, meaning.
macro_rules! named_list {
    ($(#[$doc:meta])* $list:ident { $($item:ident $name:literal $meaning:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $list { $(#[doc = $meaning] $item,)+ }
        impl $list {
            /// Every member, in order.
            pub const ALL: &'static [Self] = &[$(Self::$item,)+];
            /// The name that users see.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$item => $name,)+ }
            }
            /// What it means, for the reference pages.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$item => $meaning,)+ }
            }
            /// The member with this name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$item),)+ _ => None }
            }
        }
    };
}
pub(crate) use named_list;

pub mod address;
pub mod attribute;
pub mod cause;
pub mod reason;
pub mod resource;
#[cfg(test)]
pub(crate) mod sample;
pub mod signal;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

pub use probes::{Cause, Direction, Hook, Origin, OwnerSource, ResetRecord, State};
use probes::{RECORD_LEN, RECORD_VERSION, UNKNOWN_REASON, UNKNOWN_U32, UNKNOWN_U64, flag};
use zerocopy::FromBytes;

use crate::{model::reason::ReasonNames, model::resource::Resource};

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
    /// Address of the listener whose process is the owner; never exported, 0 where the owner is not a listener's.
    pub listener: u64,
    /// Address of the credentials that opened the socket's file; never exported, 0 without one.
    pub credential: u64,
    /// cgroup v2 id of the socket.
    pub cgroup_id: Option<u64>,
    /// The task that did it, where the kernel says truly who acted.
    pub actor: Option<Actor>,
    /// How the owner's process ended, where its end closed the connection.
    pub exit: Option<ProcessExit>,
    /// TCP flags of the segment that was answered or received.
    pub segment_flags: u8,
    /// Whether the received reset was ignored by the socket, whose connection lives on.
    pub not_accepted: bool,
    /// The firewall of this host rejected what this host itself had sent: the reset came from no peer.
    pub own_firewall: bool,
    /// The hook that saw it.
    pub hook: Hook,
    /// The workload that owns the socket; the host alone until enriched, and where there is no owner.
    pub resource: Arc<Resource>,
    /// The request that it broke, where known.
    pub trace: Option<Trace>,
    /// How many resets this record stands for after sampling; 1.0 unless sampled.
    pub adjusted_count: f64,
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
    /// From this end's close to the reset that its TIME_WAIT sent, ns.
    pub closed_ns: Option<u64>,
    /// Whose data moved last: `Transmit` is this end's. `None` where both moved within one tick of the kernel's clock
    /// (1 to 10 ms).
    pub last_data: Option<Direction>,
}

impl Connection {
    /// Written by this end and not acknowledged by the other, sent or not.
    pub fn pending_bytes(&self) -> u64 {
        u64::from(self.unsent_bytes.unwrap_or(0)) + u64::from(self.unacked_bytes.unwrap_or(0))
    }
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
    /// Name of its main thread at the time of the reset, closed by a zero.
    pub comm: [u8; probes::COMM_LEN],
    /// It was exiting.
    pub exiting: bool,
    /// The signal that killed it.
    pub signal: Option<u8>,
}

impl Actor {
    /// Its name, if it has one.
    pub fn name(&self) -> Option<&str> {
        let name = self.comm.split(|byte| *byte == 0).next().unwrap_or_default();
        str::from_utf8(name).ok().filter(|name| !name.is_empty())
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessExit {
    /// By itself, with this exit code.
    Code(u8),
    /// By this signal.
    Signal(u8),
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
    /// The context came with a request that this end serves: `span_id` is the caller's. With [`TraceMethod::Header`] alone.
    pub incoming: bool,
    /// With [`TraceMethod::Ambiguous`]: the spans that it may be.
    pub candidates: Vec<([u8; 16], [u8; 8])>,
}

/// How a trace was found (`tcp.reset.trace.method`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TraceMethod {
    /// `traceparent` read from the connection's own bytes.
    Header,
    /// A span that passed through us.
    Span,
    /// Several spans match equally well: the reset names none of their traces.
    Ambiguous,
}

impl TraceMethod {
    /// Every method.
    pub const ALL: [Self; 3] = [Self::Header, Self::Span, Self::Ambiguous];

    /// The word that users see.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Span => "span",
            Self::Ambiguous => "ambiguous",
        }
    }
}

impl Reset {
    /// Where the segment came from.
    pub fn source(&self) -> Endpoint {
        if self.went_out() { self.local } else { self.peer }
    }

    /// Where the segment went.
    pub fn destination(&self) -> Endpoint {
        if self.went_out() { self.peer } else { self.local }
    }

    /// Whether the segment went from the local end to the peer. A firewall that rejects this host's own segments sends
    /// resets to the local end, in the peer's name.
    fn went_out(&self) -> bool {
        self.direction == Direction::Transmit && !self.own_firewall
    }
}

/// Why bytes from the ring buffer are not a reset. Such a record is counted and skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Truncated, or something else's.
    #[error("a record of {0} bytes, not {RECORD_LEN}")]
    Length(usize),
    /// Written by other probes than ours.
    #[error("a record of version {0:#x}, not {RECORD_VERSION:#x}: other probes than this program's wrote it")]
    Version(u32),
    /// No [`Direction`].
    #[error("a record of direction {0}, which does not exist")]
    Direction(u8),
    /// No [`Origin`].
    #[error("a record of origin {0}, which does not exist")]
    Origin(u8),
    /// No [`Hook`].
    #[error("a record of hook {0}, which does not exist")]
    Hook(u8),
    /// Neither 4 nor 6.
    #[error("a record of IP version {0}")]
    IpVersion(u8),
}

/// Takes a record out of bytes of the ring buffer, which are trusted for nothing.
///
/// # Errors
/// Bytes of another length or version.
pub fn read_record(bytes: &[u8]) -> Result<ResetRecord, RecordError> {
    let record = ResetRecord::read_from_bytes(bytes).map_err(|_| RecordError::Length(bytes.len()))?;
    if record.version != RECORD_VERSION {
        return Err(RecordError::Version(record.version));
    }
    Ok(record)
}

/// The kernel's clocks against the wall clock, measured shortly before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// CLOCK_TAI minus CLOCK_REALTIME, ns: the leap seconds, which a stepped clock does not change.
    pub tai_offset_ns: i64,
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC, ns.
    pub monotonic_offset_ns: i64,
    /// CLOCK_REALTIME minus CLOCK_BOOTTIME, ns.
    pub boot_offset_ns: i64,
}

impl Clock {
    /// The wall clock, ns since 1970, at a record's time.
    fn unix_ns(&self, record: &ResetRecord) -> u64 {
        if record.flags & flag::TIME_IS_TAI != 0 {
            record.time_ns.saturating_add_signed(self.tai_offset_ns.saturating_neg())
        } else {
            record.time_ns.saturating_add_signed(self.monotonic_offset_ns)
        }
    }
}

/// Makes records into resets.
#[derive(Debug)]
pub struct Decoder {
    reasons: ReasonNames,
    host: Arc<Resource>,
}

impl Decoder {
    /// A decoder with the running kernel's names of reasons. `host`: the workload of a reset until it is enriched.
    pub fn new(reasons: ReasonNames, host: Arc<Resource>) -> Self {
        Self { reasons, host }
    }

    /// A record as a reset. `observed_unix_ns`: now, by the wall clock.
    ///
    /// # Errors
    /// A number that names no direction, origin, hook or IP version. An unknown cause is [`Cause::Unknown`].
    pub fn decode(&self, record: &ResetRecord, clock: Clock, observed_unix_ns: u64) -> Result<Reset, RecordError> {
        Ok(Reset {
            time_unix_ns: clock.unix_ns(record),
            observed_unix_ns,
            direction: Direction::from_number(record.direction).ok_or(RecordError::Direction(record.direction))?,
            origin: Origin::from_number(record.origin).ok_or(RecordError::Origin(record.origin))?,
            cause: Cause::from_number(record.cause).unwrap_or(Cause::Unknown),
            reason: self.reason(record),
            state: State::from_number(record.state),
            local: endpoint(record.ip_version, record.local_address, record.local_port)?,
            peer: endpoint(record.ip_version, record.peer_address, record.peer_port)?,
            connection: connection(record),
            network_namespace: (record.network_namespace != 0).then_some(record.network_namespace),
            owner: owner(record),
            socket: record.socket,
            listener: record.listener,
            credential: record.credential,
            cgroup_id: (record.cgroup_id != 0).then_some(record.cgroup_id),
            actor: actor(record),
            exit: exit(record),
            segment_flags: record.segment_flags,
            not_accepted: record.flags & flag::NOT_ACCEPTED != 0,
            own_firewall: record.flags & flag::OWN_FIREWALL != 0,
            hook: Hook::from_number(record.hook).ok_or(RecordError::Hook(record.hook))?,
            resource: Arc::clone(&self.host),
            trace: trace(record),
            adjusted_count: 1.0,
        })
    }

    fn reason(&self, record: &ResetRecord) -> Option<&'static str> {
        match record.reason {
            UNKNOWN_REASON => None,
            number if record.flags & flag::REASON_IS_DROP != 0 => self.reasons.dropped(number),
            number => self.reasons.reset(number),
        }
    }
}

fn endpoint(ip_version: u8, address: [u8; 16], port: u16) -> Result<Endpoint, RecordError> {
    let [.., a, b, c, d] = address;
    let address = match ip_version {
        4 => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        6 => IpAddr::V6(Ipv6Addr::from(address)).to_canonical(),
        other => return Err(RecordError::IpVersion(other)),
    };
    Ok(Endpoint { address, port })
}

fn connection(record: &ResetRecord) -> Connection {
    let known_u64 = |number| (number != UNKNOWN_U64).then_some(number);
    let known_u32 = |number| (number != UNKNOWN_U32).then_some(number);
    Connection {
        bytes_sent: known_u64(record.bytes_sent),
        bytes_received: known_u64(record.bytes_received),
        unread_bytes: known_u32(record.unread_bytes),
        unsent_bytes: known_u32(record.unsent_bytes),
        unacked_bytes: known_u32(record.unacked_bytes),
        retransmits: known_u32(record.retransmits),
        smoothed_rtt_us: known_u32(record.smoothed_rtt_us).filter(|&rtt| rtt != 0),
        duration_ns: known_u64(record.duration_ns),
        closed_ns: known_u64(record.closed_ns),
        last_data: match (record.flags & flag::SENT_LAST != 0, record.flags & flag::RECEIVED_LAST != 0) {
            (true, false) => Some(Direction::Transmit),
            (false, true) => Some(Direction::Receive),
            _ => None,
        },
    }
}

fn owner(record: &ResetRecord) -> Option<Owner> {
    (record.owner_pid != 0).then(|| Owner {
        pid: record.owner_pid,
        start_boot_ns: record.owner_start_ns,
        comm: record.owner_comm,
        source: OwnerSource::from_number(record.owner_source).unwrap_or(OwnerSource::None),
    })
}

/// The owner's exit status (`kernel/exit.c`: the signal in the low seven bits, the exit code in the second byte).
fn exit(record: &ResetRecord) -> Option<ProcessExit> {
    let exited = record.flags & flag::EXITING != 0;
    exited.then_some(match (record.exit_code & 0x7f) as u8 {
        0 => ProcessExit::Code((record.exit_code >> 8) as u8),
        signal => ProcessExit::Signal(signal),
    })
}

/// The acting task: known only where the kernel was in its context (`thread_id`).
fn actor(record: &ResetRecord) -> Option<Actor> {
    /// The signal in a task's exit code (`kernel/exit.c`: the low seven bits, the eighth is the core dump).
    const SIGNAL: u32 = 0x7f;
    let (pid, comm) = match record.actor_pid {
        0 => (record.owner_pid, record.owner_comm),
        pid => (pid, record.actor_comm),
    };
    let exiting = record.flags & flag::EXITING != 0;
    (record.thread_id != 0 && pid != 0).then(|| Actor {
        pid,
        thread_id: record.thread_id,
        comm: printable(comm),
        exiting,
        signal: exiting.then_some((record.exit_code & SIGNAL) as u8).filter(|&signal| signal != 0),
    })
}

/// The name with `?` for each control character and each byte that is not UTF-8: a process chooses its own name.
fn printable(mut comm: [u8; probes::COMM_LEN]) -> [u8; probes::COMM_LEN] {
    let is_plain = |byte: &u8| *byte == 0 || !byte.is_ascii_control();
    let is_text = str::from_utf8(&comm).is_ok_and(|text| text.chars().all(|c| c == '\0' || !c.is_control()));
    if !is_text {
        for byte in comm.iter_mut().filter(|byte| !is_plain(byte) || !byte.is_ascii()) {
            *byte = b'?';
        }
    }
    comm
}

fn trace(record: &ResetRecord) -> Option<Trace> {
    (record.trace_id != [0; 16]).then(|| Trace {
        trace_id: record.trace_id,
        span_id: (record.span_id != [0; 8]).then_some(record.span_id),
        method: TraceMethod::Header,
        on_application_span: false,
        incoming: record.flags & flag::TRACE_INCOMING != 0,
        candidates: Vec::new(),
    })
}

#[cfg(test)]
mod tests;
