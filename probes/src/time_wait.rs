//! What is left of a connection in TIME_WAIT, of which the kernel keeps nothing but the ends (`tcp_time_wait`): who held
//! it, and what a reset that answers for it can still say.

use reset_collector_probes::{OwnerSource, ResetRecord, field::Field};

use crate::{
    clock::since,
    connection::{ends, last_data, namespace_of},
    ends::Ends,
    map::{CLOSED, Kept},
    owner::{self, Process},
    read::load,
};

/// A connection as it was when its socket ended.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Closed {
    owner: Process,
    /// CLOCK_MONOTONIC at establishment, 0 where that is not known.
    established_ns: u64,
    /// CLOCK_MONOTONIC when this end closed, 0 where that is not known.
    closed_ns: u64,
    bytes_sent: u64,
    bytes_received: u64,
    /// The record's flags.
    flags: u64,
}

/// Keeps the facts of a `tcp_sock` that ends in TIME_WAIT.
#[inline(always)]
pub(crate) fn keep(tcp: *const u8, kept: &Kept) {
    if tcp.is_null() || kept.owner.pid == 0 {
        return;
    }
    let closed = Closed {
        owner: kept.owner,
        established_ns: kept.established_ns,
        closed_ns: kept.closed_ns,
        bytes_sent: load(tcp, Field::TcpBytesSent),
        bytes_received: load(tcp, Field::TcpBytesReceived),
        flags: last_data(tcp).into(),
    };
    CLOSED.set(&ends(tcp).key(namespace_of(tcp)), &closed);
}

/// Writes what was kept of the connection with these ends; the record has its namespace, and says of all else that it is not
/// known.
#[inline(always)]
pub(crate) fn write(record: &mut ResetRecord, ends: &Ends) {
    let Some(closed) = CLOSED.get(&ends.key(record.network_namespace)) else { return };
    // SAFETY: the verifier knows the value's size; the LRU map keeps the memory, if not always this connection in it.
    let closed = unsafe { *closed };
    owner::write(record, &closed.owner, OwnerSource::Storage);
    record.bytes_sent = closed.bytes_sent;
    record.bytes_received = closed.bytes_received;
    record.flags |= closed.flags as u16;
    record.closed_ns = since(closed.closed_ns);
    record.duration_ns = since(closed.established_ns);
}
