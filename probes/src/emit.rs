//! A record on its way out: counted, put into the ring buffer, and the reader woken if it sleeps.

use aya_ebpf::helpers::generated::{bpf_ringbuf_reserve, bpf_ringbuf_submit};
use reset_collector_probes::{
    Cause, Direction, Hook, Origin, OwnerSource, RECORD_LEN, RECORD_VERSION, ResetRecord, State, UNKNOWN_REASON,
    cause::segment::ACK,
    counter_index, flag,
    rule::{Facts, reason_key},
};

use crate::{
    clock::Timestamp,
    connection::{FullSocket, SocketKindTag, write_no_facts},
    decision::{self, EmitDecision},
    http_hook,
    map::{CAPTURED, CONTROL, RESETS, RINGBUF_DROPS, count, count_filtered, count_rate_limited, socket_state},
    owner::{self, Task},
    segment::Segment,
    time_wait,
    tuple::Tuple,
};

/// `BPF_RB_NO_WAKEUP` and `BPF_RB_FORCE_WAKEUP` (include/uapi/linux/bpf.h): the default wakes the reader for each
/// record that it has caught up with, which halves the rate of connections.
const NO_WAKEUP: u64 = 1;
const FORCE_WAKEUP: u64 = 2;

/// What is known of a record before its space is reserved.
#[derive(Clone, Copy)]
pub(crate) struct Draft {
    seen: Timestamp,
    hook: Hook,
    direction: Direction,
    origin: Origin,
    cause: Cause,
    pub(crate) state: Option<State>,
    pub(crate) reason: u16,
    pub(crate) flags: u16,
    /// The owner's exit status, where the flags say that it ended.
    pub(crate) exit_code: u32,
}

/// A draft's numbers, all opaque to the verifier.
#[derive(Clone, Copy)]
struct Numbers {
    seen: Timestamp,
    /// Index of its counter.
    counter: u32,
    /// Direction, origin, cause and state, a byte each as in the record.
    kind: [u8; 4],
    hook: u8,
    ip_version: u8,
    /// `SocketKindTag` by number.
    tag: u8,
    reason: u16,
    flags: u16,
    exit_code: u32,
}

impl Draft {
    #[inline(always)]
    pub(crate) fn new(seen: Timestamp, hook: Hook, direction: Direction, origin: Origin, cause: Cause) -> Self {
        Self { seen, hook, direction, origin, cause, state: None, reason: UNKNOWN_REASON, flags: 0, exit_code: 0 }
    }

    /// A socket accepted the peer's reset.
    #[inline(always)]
    pub(crate) fn reset_from_peer(self, full: FullSocket) {
        let tuple = full.tuple();
        let numbers = self.settle(&tuple, SocketKindTag::Connection);
        let outcome = numbers.reserve(&tuple, full.network_namespace());
        if numbers.flags & flag::RECEIVE_TENTATIVE != 0
            && let Some(stored) = socket_state(full.pointer())
        {
            stored.receive_tentative = outcome.number();
        }
        let RecordOutcome::Record(record) = outcome else { return };
        full.write_connection(record);
        owner::write_owner(record, full);
        http_hook::write_context(record, full, false);
        submit(record);
    }

    /// The socket resets its own connection; `acts`: the running task does it.
    #[inline(always)]
    pub(crate) fn aborts(self, full: FullSocket, acts: bool) {
        let tuple = full.tuple();
        let numbers = self.settle(&tuple, SocketKindTag::Connection);
        let acts = self.seen.opaque(acts.into());
        let RecordOutcome::Record(record) = numbers.reserve(&tuple, full.network_namespace()) else { return };
        full.write_connection(record);
        if acts != 0
            && let Some(task) = Task::current()
        {
            owner::write_acting(record, full, task, record.cause != Cause::SocketDestroyed as u8);
        } else {
            owner::write_owner(record, full);
        }
        http_hook::write_context(record, full, true);
        submit(record);
    }

    /// TCP answers a segment.
    #[inline(always)]
    pub(crate) fn answers(self, segment: &Segment, network_namespace: u32, tag: SocketKindTag, full: FullSocket) {
        let tuple = Tuple::of_received(segment);
        let numbers = self.settle(&tuple, tag);
        if numbers.flags & flag::RETRACTS_RECEIVE != 0 && !full.is_none() {
            retract_receive(full, numbers.seen);
        }
        let RecordOutcome::Record(record) = numbers.reserve(&tuple, network_namespace) else { return };
        record.segment_flags = segment.flags;
        record.sequence = if segment.flags & ACK != 0 { segment.acknowledgement } else { 0 };
        write_socket(record, &numbers, full, &tuple);
        if numbers.tag == SocketKindTag::Connection as u8 && !full.is_none() {
            http_hook::write_context(record, full, true);
        }
        submit(record);
    }

    /// A reset came and no connection accepted it.
    #[inline(always)]
    pub(crate) fn not_accepted(self, segment: &Segment, network_namespace: u32, tag: SocketKindTag, full: FullSocket) {
        let tuple = Tuple::of_received(segment);
        let numbers = self.settle(&tuple, tag);
        let RecordOutcome::Record(record) = numbers.reserve(&tuple, network_namespace) else { return };
        record.segment_flags = segment.flags;
        record.sequence = segment.sequence;
        write_socket(record, &numbers, full, &tuple);
        submit(record);
    }

    /// netfilter sends a reset.
    #[inline(always)]
    pub(crate) fn sent_by_firewall(self, segment: &Segment, network_namespace: u32, rejects_own: bool) {
        // An egress rule resets this host's own connection, in the peer's name.
        let tuple = if rejects_own { Tuple::of_received(segment) } else { Tuple::of_sent(segment) };
        let numbers = self.settle(&tuple, SocketKindTag::Nothing);
        let RecordOutcome::Record(record) = numbers.reserve(&tuple, network_namespace) else { return };
        record.flags |= if rejects_own { flag::OWN_FIREWALL } else { 0 };
        record.sequence = segment.sequence;
        write_socket(record, &numbers, FullSocket::NONE, &tuple);
        submit(record);
    }

    /// Ends the deciding: what follows is the same program for every outcome.
    #[inline(always)]
    fn settle(&self, tuple: &Tuple, tag: SocketKindTag) -> Numbers {
        let seen = self.seen;
        let state = match self.state {
            Some(state) => state as u8,
            None => 0,
        };
        let kind = [self.direction as u8, self.origin as u8, self.cause as u8, state];
        let others = [self.hook as u8, tuple.version, tag as u8, 0];
        let [hook, ip_version, tag, _] = seen.opaque(u32::from_ne_bytes(others)).to_ne_bytes();
        let words = seen.opaque(u32::from(self.reason) << 16 | u32::from(self.flags | seen.flags()));
        Numbers {
            seen,
            counter: seen.opaque(counter_index(self.cause, self.origin, self.direction)),
            kind: seen.opaque(u32::from_ne_bytes(kind)).to_ne_bytes(),
            hook,
            ip_version,
            tag,
            reason: (words >> 16) as u16,
            flags: words as u16,
            exit_code: seen.opaque(self.exit_code),
        }
    }
}

impl Numbers {
    #[inline(always)]
    fn facts(&self, tuple: &Tuple, network_namespace: u32) -> Facts {
        let [direction, origin, cause, state] = self.kind;
        // Zeros on the stack are known to the verifier.
        let nothing = self.seen.opaque(0);
        Facts {
            reason: if self.reason == UNKNOWN_REASON {
                u32::MAX
            } else {
                reason_key(self.reason, self.flags & flag::REASON_IS_DROP != 0)
            },
            network_namespace: network_namespace ^ nothing,
            local_address: tuple.local.map(|word| word ^ nothing),
            peer_address: tuple.peer.map(|word| word ^ nothing),
            local_port: tuple.local_port,
            peer_port: tuple.peer_port,
            cause,
            state,
            direction,
            origin,
            ip_version: self.ip_version,
            reserved: [0; 3],
        }
    }

    /// Counts the reset and reserves its record, if it gets one. The record has what the draft and the tuple hold; what comes
    /// from a socket is still to be written.
    #[inline(always)]
    fn reserve(&self, tuple: &Tuple, network_namespace: u32) -> RecordOutcome {
        count(&CAPTURED, self.counter, 1);
        match decision::decide(self.seen, || self.facts(tuple, network_namespace)) {
            EmitDecision::Record => {}
            EmitDecision::Filtered => return RecordOutcome::Filtered,
            EmitDecision::RateLimited => return RecordOutcome::RateLimited,
        }
        // SAFETY: the helper gives room for exactly one record or null; every member is written before it is submitted.
        let record = unsafe {
            bpf_ringbuf_reserve((&raw const RESETS).cast_mut().cast(), RECORD_LEN as u64, 0)
                .cast::<ResetRecord>()
                .as_mut()
        };
        let Some(record) = record else {
            count(&RINGBUF_DROPS, self.counter, 1);
            return RecordOutcome::Dropped;
        };
        record.version = RECORD_VERSION;
        record.flags = self.flags;
        record.reason = self.reason;
        record.time_ns = self.seen.ns;
        record.network_namespace = network_namespace;
        record.trace_id = [0; 16];
        record.span_id = [0; 8];
        [record.direction, record.origin, record.cause, record.state] = self.kind;
        record.hook = self.hook;
        record.ip_version = self.ip_version;
        record.segment_flags = 0;
        record.sequence = 0;
        record.exit_code = self.exit_code;
        tuple.write(record);
        RecordOutcome::Record(record)
    }
}

/// Writes what is known of the socket that a segment met.
#[inline(always)]
fn write_socket(record: &mut ResetRecord, numbers: &Numbers, full: FullSocket, tuple: &Tuple) {
    if !full.is_none() {
        if numbers.tag == SocketKindTag::Connection as u8 {
            full.write_connection(record);
        } else {
            record.socket = 0;
            full.write_cgroup(record);
            write_no_facts(record);
        }
        owner::write_owner(record, full);
        if numbers.tag == SocketKindTag::Listener as u8 && record.owner_source == OwnerSource::Storage as u8 {
            record.listener = full.pointer() as u64;
        }
        return;
    }
    record.socket = 0;
    record.cgroup_id = 0;
    write_no_facts(record);
    owner::write_none(record);
    if numbers.tag == SocketKindTag::TimeWait as u8 {
        time_wait::write(record, tuple);
    }
}

/// The outcome of a reset.
enum RecordOutcome {
    Record(&'static mut ResetRecord),
    Filtered,
    RateLimited,
    Dropped,
}

impl RecordOutcome {
    /// Stored with a socket while its receive is tentative.
    #[inline(always)]
    fn number(&self) -> u8 {
        match self {
            Self::Record(_) => 1,
            Self::Dropped => 2,
            Self::Filtered => 3,
            Self::RateLimited => 4,
        }
    }
}

/// Retracts the count of a tentative receive.
#[inline(always)]
fn retract_receive(full: FullSocket, seen: Timestamp) {
    let Some(stored) = socket_state(full.pointer()) else { return };
    let counter = seen.opaque(counter_index(Cause::ResetByPeer, Origin::Peer, Direction::Receive));
    count(&CAPTURED, counter, -1);
    match stored.receive_tentative {
        2 => count(&RINGBUF_DROPS, counter, -1),
        3 => count_filtered(-1),
        4 => count_rate_limited(-1),
        _ => {}
    }
    stored.receive_tentative = 0;
}

/// Hands the record over; the first one wakes a reader that sleeps, the others ride along.
#[inline(always)]
fn submit(record: &'static mut ResetRecord) {
    let mut wakeup = NO_WAKEUP;
    if let Some(control) = CONTROL.get(&0) {
        // SAFETY: the slot lives as long as the map; two CPUs that both read 1 wake the reader twice, which is harmless.
        unsafe {
            let sleeps = &raw mut (*control).reader_sleeps;
            if core::ptr::read_volatile(sleeps) != 0 {
                core::ptr::write_volatile(sleeps, 0);
                wakeup = FORCE_WAKEUP;
            }
        }
    }
    // SAFETY: the record came from the ring buffer and every member has been written.
    unsafe { bpf_ringbuf_submit((&raw mut *record).cast(), wakeup) };
}
