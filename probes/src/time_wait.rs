//! The owner and the facts of connections in TIME_WAIT, of which the kernel itself keeps only the tuple (`tcp_time_wait`).

use reset_collector_probes::{OwnerSource, ResetRecord, field::Field};

use crate::{
    clock::since,
    connection::{last_data, namespace_of, tuple},
    map::{SocketState, TIME_WAIT},
    owner::{self, Process},
    read::load,
    tuple::Tuple,
};

/// A connection as it was when its socket ended.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct TimeWaitState {
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

/// A connection in its namespace. The whole tuple, not a hash of it: a hash would let a user choose a connection that
/// collides with another's.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct TimeWaitKey {
    local: [u32; 4],
    peer: [u32; 4],
    network_namespace: u32,
    local_port: u16,
    peer_port: u16,
}

impl TimeWaitKey {
    #[inline(always)]
    fn of(tuple: &Tuple, network_namespace: u32) -> Self {
        Self {
            local: tuple.local,
            peer: tuple.peer,
            network_namespace,
            local_port: tuple.local_port,
            peer_port: tuple.peer_port,
        }
    }
}

/// Stores the facts of a `tcp_sock` that ends in TIME_WAIT.
#[inline(always)]
pub(crate) fn keep(tcp: *const u8, stored: &SocketState) {
    if tcp.is_null() {
        return;
    }
    let state = TimeWaitState {
        owner: stored.owner,
        established_ns: stored.established_ns,
        closed_ns: stored.closed_ns,
        bytes_sent: load(tcp, Field::TcpBytesSent),
        bytes_received: load(tcp, Field::TcpBytesReceived),
        flags: last_data(tcp).into(),
    };
    TIME_WAIT.set(&TimeWaitKey::of(&tuple(tcp), namespace_of(tcp)), &state);
}

/// Writes what was stored of the connection with this tuple. The record has its namespace; all other facts are unknown.
#[inline(always)]
pub(crate) fn write(record: &mut ResetRecord, tuple: &Tuple) {
    let Some(state) = TIME_WAIT.get(&TimeWaitKey::of(tuple, record.network_namespace)) else { return };
    // SAFETY: the verifier knows the value's size; the LRU map keeps the memory, if not always this connection in it.
    let state = unsafe { *state };
    if state.owner.pid != 0 {
        owner::write(record, &owner::with_current_name(&state.owner), OwnerSource::Storage);
    }
    record.bytes_sent = state.bytes_sent;
    record.bytes_received = state.bytes_received;
    record.flags |= state.flags as u16;
    record.closed_ns = since(state.closed_ns);
    record.duration_ns = since(state.established_ns);
}
