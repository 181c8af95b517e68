//! A record on its way out: counted, put into the ring buffer, and the reader woken if it sleeps.

use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_ktime_get_tai_ns, bpf_ringbuf_reserve, bpf_ringbuf_submit};
use reset_collector_probes::{
    Cause, Direction, Hook, Origin, RECORD_LEN, RECORD_VERSION, ResetRecord, State, UNKNOWN_REASON,
    cause::{Holder, segment::ACK},
    flag,
};

use crate::{
    connection::{Socket, write_address, write_no_facts},
    map::{READER_SLEEPS, RESETS, count_captured, count_lost, kept},
    owner::{self, Task},
    read::has_tai_clock,
    segment::{Segment, network_namespace},
};

/// `BPF_RB_NO_WAKEUP` and `BPF_RB_FORCE_WAKEUP` (include/uapi/linux/bpf.h): the default wakes the reader for each
/// record that it has caught up with, which halves the rate of connections.
const NO_WAKEUP: u64 = 1;
const FORCE_WAKEUP: u64 = 2;

/// What is decided of a record before room is asked for it.
#[derive(Clone, Copy)]
pub(crate) struct Draft {
    hook: Hook,
    direction: Direction,
    origin: Origin,
    cause: Cause,
    pub(crate) state: Option<State>,
    pub(crate) reason: u16,
    pub(crate) flags: u16,
}

impl Draft {
    #[inline(always)]
    pub(crate) fn new(hook: Hook, direction: Direction, origin: Origin, cause: Cause) -> Self {
        Self { hook, direction, origin, cause, state: None, reason: UNKNOWN_REASON, flags: 0 }
    }

    /// A socket accepted the peer's reset.
    #[inline(always)]
    pub(crate) fn reset_from_peer(self, socket: Socket) {
        let record = self.reserve();
        if self.flags & flag::RECEIVE_IN_DOUBT != 0
            && let Some(kept) = kept(socket.pointer())
        {
            kept.receive_in_doubt = if record.is_some() { 1 } else { 2 };
        }
        let Some(record) = record else { return };
        record.segment_flags = 0;
        record.socket = socket.pointer() as u64;
        socket.write_ends(record);
        socket.write_place(record);
        socket.write_facts(record, self.state);
        owner::write_holder(record, socket);
        submit(record);
    }

    /// The socket resets its own connection.
    #[inline(always)]
    pub(crate) fn aborts(self, socket: Socket, task: Option<Task>) {
        let Some(record) = self.reserve() else { return };
        record.segment_flags = 0;
        record.socket = socket.pointer() as u64;
        socket.write_ends(record);
        socket.write_place(record);
        socket.write_facts(record, self.state);
        match task {
            Some(task) => owner::write_acting(record, socket, task, !matches!(self.cause, Cause::AdminKill)),
            None => owner::write_holder(record, socket),
        }
        submit(record);
    }

    /// TCP answers a segment.
    #[inline(always)]
    pub(crate) fn answers(self, skb: *const u8, segment: &Segment, socket: Option<Socket>, holder: Holder) {
        let record = self.reserve();
        if self.flags & flag::RETRACTS_RECEIVE != 0
            && let Some(socket) = socket
        {
            retract_receive(socket);
        }
        let Some(record) = record else { return };
        record.sequence = if segment.flags & ACK != 0 { segment.acknowledgement } else { 0 };
        write_segment(record, segment, true);
        record.network_namespace = network_namespace(skb);
        self.write_socket(record, socket, holder);
        submit(record);
    }

    /// A reset came and no connection accepted it.
    #[inline(always)]
    pub(crate) fn not_accepted(self, skb: *const u8, segment: &Segment, socket: Option<Socket>, holder: Holder) {
        let Some(record) = self.reserve() else { return };
        record.sequence = segment.sequence;
        write_segment(record, segment, true);
        record.network_namespace = network_namespace(skb);
        self.write_socket(record, socket, holder);
        submit(record);
    }

    /// netfilter sends a reset.
    #[inline(always)]
    pub(crate) fn sent_by_firewall(self, skb: *const u8, segment: &Segment) {
        let Some(record) = self.reserve() else { return };
        record.sequence = segment.sequence;
        write_segment(record, segment, false);
        record.segment_flags = 0;
        record.network_namespace = network_namespace(skb);
        submit(record);
    }

    /// Writes what a socket other than the segment's own hook knows; only full sockets may be read.
    #[inline(always)]
    fn write_socket(&self, record: &mut ResetRecord, socket: Option<Socket>, holder: Holder) {
        let Some(socket) = socket else { return };
        match holder {
            Holder::Connection(state) => {
                record.socket = socket.pointer() as u64;
                socket.write_cgroup(record);
                socket.write_facts(record, state);
                owner::write_holder(record, socket);
            }
            Holder::Listener => {
                socket.write_cgroup(record);
                owner::write_holder(record, socket);
            }
            Holder::None | Holder::Request | Holder::TimeWait => {}
        }
    }

    /// Counts the reset and asks for room; the record comes with all that the draft knows and nothing else.
    #[inline(always)]
    fn reserve(&self) -> Option<&'static mut ResetRecord> {
        count_captured(self.cause, self.origin, self.direction, 1);
        // SAFETY: the helper gives room for exactly one record or null; every member is written before it is submitted.
        let record = unsafe {
            bpf_ringbuf_reserve((&raw const RESETS).cast_mut().cast(), RECORD_LEN as u64, 0)
                .cast::<ResetRecord>()
                .as_mut()
        };
        let Some(record) = record else {
            count_lost(self.cause, self.origin, self.direction, 1);
            return None;
        };
        record.version = RECORD_VERSION;
        record.flags = self.flags;
        record.reason = self.reason;
        // SAFETY: plain helpers.
        if has_tai_clock() {
            record.flags |= flag::TIME_IS_TAI;
            record.time_ns = unsafe { bpf_ktime_get_tai_ns() };
        } else {
            record.time_ns = unsafe { bpf_ktime_get_ns() };
        }
        record.socket = 0;
        record.cgroup_id = 0;
        record.network_namespace = 0;
        record.sequence = 0;
        record.trace_id = [0; 16];
        record.span_id = [0; 8];
        record.direction = self.direction as u8;
        record.origin = self.origin as u8;
        record.cause = self.cause as u8;
        record.state = match self.state {
            Some(state) => state as u8,
            None => 0,
        };
        record.hook = self.hook as u8;
        write_no_facts(record);
        owner::write_none(record);
        Some(record)
    }
}

/// Writes a segment's ends: this host's is the destination of one that came, the source of one that goes.
#[inline(always)]
fn write_segment(record: &mut ResetRecord, segment: &Segment, came: bool) {
    record.segment_flags = segment.flags;
    record.ip_version = segment.version;
    if came {
        write_address(&mut record.local_address, segment.destination);
        write_address(&mut record.peer_address, segment.source);
        record.local_port = segment.destination_port;
        record.peer_port = segment.source_port;
    } else {
        write_address(&mut record.local_address, segment.source);
        write_address(&mut record.peer_address, segment.destination);
        record.local_port = segment.source_port;
        record.peer_port = segment.destination_port;
    }
}

/// Takes back the count of a reset that was none.
#[inline(always)]
fn retract_receive(socket: Socket) {
    let Some(kept) = kept(socket.pointer()) else { return };
    count_captured(Cause::ResetByPeer, Origin::Peer, Direction::Receive, -1);
    if kept.receive_in_doubt == 2 {
        count_lost(Cause::ResetByPeer, Origin::Peer, Direction::Receive, -1);
    }
    kept.receive_in_doubt = 0;
}

/// Hands the record over; the first one wakes a reader that sleeps, the others ride along.
#[inline(always)]
fn submit(record: &'static mut ResetRecord) {
    let mut wakeup = NO_WAKEUP;
    if let Some(sleeps) = READER_SLEEPS.get(&0) {
        // SAFETY: the slot lives as long as the map; two CPUs that both read 1 wake the reader twice, which is no harm.
        unsafe {
            if core::ptr::read_volatile(sleeps) != 0 {
                core::ptr::write_volatile(sleeps, 0);
                wakeup = FORCE_WAKEUP;
            }
        }
    }
    // SAFETY: the record came from the ring buffer and every member has been written.
    unsafe { bpf_ringbuf_submit((&raw mut *record).cast(), wakeup) };
}
