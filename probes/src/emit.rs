//! A record on its way out: counted, put into the ring buffer, and the reader woken if it sleeps.

use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_ktime_get_tai_ns, bpf_ringbuf_reserve, bpf_ringbuf_submit};
use reset_collector_probes::{
    Cause, Direction, Hook, Origin, RECORD_LEN, RECORD_VERSION, ResetRecord, State, UNKNOWN_REASON,
    cause::{Holder, segment::ACK},
    flag,
    rule::{Facts, reason_key},
};

use crate::{
    admit::{self, Judgement},
    connection::{Socket, write_no_facts},
    ends::Ends,
    map::{CONTROL, RESETS, count_captured, count_filtered, count_lost, count_over_ceiling, kept},
    owner::{self, Task},
    read::has_tai_clock,
    segment::{Segment, network_namespace},
    wire,
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
        let admission = self.reserve(&socket.ends(), socket.network_namespace());
        if self.flags & flag::RECEIVE_IN_DOUBT != 0
            && let Some(kept) = kept(socket.pointer())
        {
            kept.receive_in_doubt = admission.number();
        }
        let Admission::Record(record) = admission else { return };
        record.segment_flags = 0;
        record.socket = socket.pointer() as u64;
        socket.write_cgroup(record);
        socket.write_facts(record, self.state);
        owner::write_holder(record, socket);
        wire::write_context(record, socket, false);
        submit(record);
    }

    /// The socket resets its own connection.
    #[inline(always)]
    pub(crate) fn aborts(self, socket: Socket, task: Option<Task>) {
        let Admission::Record(record) = self.reserve(&socket.ends(), socket.network_namespace()) else { return };
        record.segment_flags = 0;
        record.socket = socket.pointer() as u64;
        socket.write_cgroup(record);
        socket.write_facts(record, self.state);
        match task {
            Some(task) => owner::write_acting(record, socket, task, !matches!(self.cause, Cause::AdminKill)),
            None => owner::write_holder(record, socket),
        }
        wire::write_context(record, socket, true);
        submit(record);
    }

    /// TCP answers a segment.
    #[inline(always)]
    pub(crate) fn answers(self, skb: *const u8, segment: &Segment, socket: Option<Socket>, holder: Holder) {
        if self.flags & flag::RETRACTS_RECEIVE != 0
            && let Some(socket) = socket
        {
            retract_receive(socket);
        }
        let ends = Ends::of_received(segment);
        let Admission::Record(record) = self.reserve(&ends, network_namespace(skb)) else { return };
        record.segment_flags = segment.flags;
        record.sequence = if segment.flags & ACK != 0 { segment.acknowledgement } else { 0 };
        self.write_socket(record, socket, holder, &ends);
        if let (Some(socket), Holder::Connection(_)) = (socket, holder) {
            wire::write_context(record, socket, true);
        }
        submit(record);
    }

    /// A reset came and no connection accepted it.
    #[inline(always)]
    pub(crate) fn not_accepted(self, skb: *const u8, segment: &Segment, socket: Option<Socket>, holder: Holder) {
        let ends = Ends::of_received(segment);
        let Admission::Record(record) = self.reserve(&ends, network_namespace(skb)) else { return };
        record.segment_flags = segment.flags;
        record.sequence = segment.sequence;
        self.write_socket(record, socket, holder, &ends);
        submit(record);
    }

    /// netfilter sends a reset.
    #[inline(always)]
    pub(crate) fn sent_by_firewall(self, skb: *const u8, segment: &Segment) {
        let admission = self.reserve(&Ends::of_sent(segment), network_namespace(skb));
        let Admission::Record(record) = admission else { return };
        record.segment_flags = 0;
        record.sequence = segment.sequence;
        submit(record);
    }

    /// Writes what a socket other than the segment's own hook knows; only full sockets may be read.
    #[inline(always)]
    fn write_socket(&self, record: &mut ResetRecord, socket: Option<Socket>, holder: Holder, ends: &Ends) {
        if matches!(holder, Holder::TimeWait) {
            owner::write_of_time_wait(record, ends);
            return;
        }
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

    /// Counts the reset and, if it is to become a record, asks for room; the record comes with all that the draft and
    /// the ends know and nothing else.
    #[inline(always)]
    fn reserve(&self, ends: &Ends, network_namespace: u32) -> Admission {
        count_captured(self.cause, self.origin, self.direction, 1);
        let state = match self.state {
            Some(state) => state as u8,
            None => 0,
        };
        let facts = Facts {
            reason: if self.reason == UNKNOWN_REASON {
                u32::MAX
            } else {
                reason_key(self.reason, self.flags & flag::REASON_IS_DROP != 0)
            },
            network_namespace,
            local_address: ends.local,
            peer_address: ends.peer,
            local_port: ends.local_port,
            peer_port: ends.peer_port,
            cause: self.cause as u8,
            state,
            direction: self.direction as u8,
            origin: self.origin as u8,
            ip_version: ends.version(),
            reserved: [0; 3],
        };
        match admit::judge(&facts) {
            Judgement::Record => {}
            Judgement::Filtered => return Admission::Filtered,
            Judgement::OverCeiling => return Admission::OverCeiling,
        }
        // SAFETY: the helper gives room for exactly one record or null; every member is written before it is submitted.
        let record = unsafe {
            bpf_ringbuf_reserve((&raw const RESETS).cast_mut().cast(), RECORD_LEN as u64, 0)
                .cast::<ResetRecord>()
                .as_mut()
        };
        let Some(record) = record else {
            count_lost(self.cause, self.origin, self.direction, 1);
            return Admission::Lost;
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
        record.network_namespace = network_namespace;
        record.sequence = 0;
        record.trace_id = [0; 16];
        record.span_id = [0; 8];
        record.direction = self.direction as u8;
        record.origin = self.origin as u8;
        record.cause = self.cause as u8;
        record.state = state;
        record.hook = self.hook as u8;
        write_no_facts(record);
        owner::write_none(record);
        ends.write(record);
        Admission::Record(record)
    }
}

/// What becomes of a reset.
enum Admission {
    Record(&'static mut ResetRecord),
    Filtered,
    OverCeiling,
    Lost,
}

impl Admission {
    /// Kept with a socket while its receive is in doubt.
    #[inline(always)]
    fn number(&self) -> u8 {
        match self {
            Self::Record(_) => 1,
            Self::Lost => 2,
            Self::Filtered => 3,
            Self::OverCeiling => 4,
        }
    }
}

/// Takes back the count of a reset that was none.
#[inline(always)]
fn retract_receive(socket: Socket) {
    let Some(kept) = kept(socket.pointer()) else { return };
    count_captured(Cause::ResetByPeer, Origin::Peer, Direction::Receive, -1);
    match kept.receive_in_doubt {
        2 => count_lost(Cause::ResetByPeer, Origin::Peer, Direction::Receive, -1),
        3 => count_filtered(-1),
        4 => count_over_ceiling(-1),
        _ => {}
    }
    kept.receive_in_doubt = 0;
}

/// Hands the record over; the first one wakes a reader that sleeps, the others ride along.
#[inline(always)]
fn submit(record: &'static mut ResetRecord) {
    let mut wakeup = NO_WAKEUP;
    if let Some(control) = CONTROL.get(&0) {
        // SAFETY: the slot lives as long as the map; two CPUs that both read 1 wake the reader twice, which is no harm.
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
