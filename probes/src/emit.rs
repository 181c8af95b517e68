//! A record on its way out: counted, put into the ring buffer, and the reader woken if it sleeps.

use aya_ebpf::helpers::generated::{bpf_ringbuf_reserve, bpf_ringbuf_submit};
use reset_collector_probes::{
    Cause, Direction, Hook, Origin, RECORD_LEN, RECORD_VERSION, ResetRecord, State, UNKNOWN_REASON,
    cause::segment::ACK,
    counter_index, flag,
    rule::{Facts, reason_key},
};

use crate::{
    admit::{self, Judgement},
    clock::Moment,
    connection::{Full, Holding, write_no_facts},
    ends::Ends,
    map::{CAPTURED, CONTROL, LOST, RESETS, count, count_filtered, count_over_ceiling, kept},
    owner::{self, Task},
    segment::Segment,
    time_wait, wire,
};

/// `BPF_RB_NO_WAKEUP` and `BPF_RB_FORCE_WAKEUP` (include/uapi/linux/bpf.h): the default wakes the reader for each
/// record that it has caught up with, which halves the rate of connections.
const NO_WAKEUP: u64 = 1;
const FORCE_WAKEUP: u64 = 2;

/// What is decided of a record before room is asked for it.
#[derive(Clone, Copy)]
pub(crate) struct Draft {
    seen: Moment,
    hook: Hook,
    direction: Direction,
    origin: Origin,
    cause: Cause,
    pub(crate) state: Option<State>,
    pub(crate) reason: u16,
    pub(crate) flags: u16,
}

/// A draft's numbers, none of which the verifier knows any more.
#[derive(Clone, Copy)]
struct Numbers {
    seen: Moment,
    /// Index of its counter.
    counter: u32,
    /// Direction, origin, cause and state, a byte each as in the record.
    kind: [u8; 4],
    hook: u8,
    ip_version: u8,
    /// `Holding` by number.
    holding: u8,
    reason: u16,
    flags: u16,
}

impl Draft {
    #[inline(always)]
    pub(crate) fn new(seen: Moment, hook: Hook, direction: Direction, origin: Origin, cause: Cause) -> Self {
        Self { seen, hook, direction, origin, cause, state: None, reason: UNKNOWN_REASON, flags: 0 }
    }

    /// A socket accepted the peer's reset.
    #[inline(always)]
    pub(crate) fn reset_from_peer(self, full: Full) {
        let ends = full.ends();
        let numbers = self.settle(&ends, Holding::Connection);
        let admission = numbers.reserve(&ends, full.network_namespace());
        if numbers.flags & flag::RECEIVE_IN_DOUBT != 0
            && let Some(kept) = kept(full.pointer())
        {
            kept.receive_in_doubt = admission.number();
        }
        let Admission::Record(record) = admission else { return };
        full.write_connection(record);
        owner::write_holder(record, full);
        wire::write_context(record, full, false);
        submit(record);
    }

    /// The socket resets its own connection; `acts`: the running task does it.
    #[inline(always)]
    pub(crate) fn aborts(self, full: Full, acts: bool) {
        let ends = full.ends();
        let numbers = self.settle(&ends, Holding::Connection);
        let acts = self.seen.hide(acts.into());
        let Admission::Record(record) = numbers.reserve(&ends, full.network_namespace()) else { return };
        full.write_connection(record);
        if acts != 0
            && let Some(task) = Task::current()
        {
            owner::write_acting(record, full, task, record.cause != Cause::SocketDestroyed as u8);
        } else {
            owner::write_holder(record, full);
        }
        wire::write_context(record, full, true);
        submit(record);
    }

    /// TCP answers a segment.
    #[inline(always)]
    pub(crate) fn answers(self, segment: &Segment, network_namespace: u32, holding: Holding, full: Full) {
        let ends = Ends::of_received(segment);
        let numbers = self.settle(&ends, holding);
        if numbers.flags & flag::RETRACTS_RECEIVE != 0 && !full.is_none() {
            retract_receive(full, numbers.seen);
        }
        let Admission::Record(record) = numbers.reserve(&ends, network_namespace) else { return };
        record.segment_flags = segment.flags;
        record.sequence = if segment.flags & ACK != 0 { segment.acknowledgement } else { 0 };
        write_socket(record, &numbers, full, &ends);
        if numbers.holding == Holding::Connection as u8 && !full.is_none() {
            wire::write_context(record, full, true);
        }
        submit(record);
    }

    /// A reset came and no connection accepted it.
    #[inline(always)]
    pub(crate) fn not_accepted(self, segment: &Segment, network_namespace: u32, holding: Holding, full: Full) {
        let ends = Ends::of_received(segment);
        let numbers = self.settle(&ends, holding);
        let Admission::Record(record) = numbers.reserve(&ends, network_namespace) else { return };
        record.segment_flags = segment.flags;
        record.sequence = segment.sequence;
        write_socket(record, &numbers, full, &ends);
        submit(record);
    }

    /// netfilter sends a reset.
    #[inline(always)]
    pub(crate) fn sent_by_firewall(self, segment: &Segment, network_namespace: u32) {
        let ends = Ends::of_sent(segment);
        let numbers = self.settle(&ends, Holding::Nothing);
        let Admission::Record(record) = numbers.reserve(&ends, network_namespace) else { return };
        record.sequence = segment.sequence;
        write_socket(record, &numbers, Full::NONE, &ends);
        submit(record);
    }

    /// Ends the deciding: what follows is the same program for every outcome.
    #[inline(always)]
    fn settle(&self, ends: &Ends, holding: Holding) -> Numbers {
        let seen = self.seen;
        let state = match self.state {
            Some(state) => state as u8,
            None => 0,
        };
        let kind = [self.direction as u8, self.origin as u8, self.cause as u8, state];
        let others = [self.hook as u8, ends.version, holding as u8, 0];
        let [hook, ip_version, holding, _] = seen.hide(u32::from_ne_bytes(others)).to_ne_bytes();
        let words = seen.hide(u32::from(self.reason) << 16 | u32::from(self.flags | seen.flags()));
        Numbers {
            seen,
            counter: seen.hide(counter_index(self.cause, self.origin, self.direction)),
            kind: seen.hide(u32::from_ne_bytes(kind)).to_ne_bytes(),
            hook,
            ip_version,
            holding,
            reason: (words >> 16) as u16,
            flags: words as u16,
        }
    }
}

impl Numbers {
    #[inline(always)]
    fn facts(&self, ends: &Ends, network_namespace: u32) -> Facts {
        let [direction, origin, cause, state] = self.kind;
        // Zeros on the stack are known to the verifier.
        let nothing = self.seen.hide(0);
        Facts {
            reason: if self.reason == UNKNOWN_REASON {
                u32::MAX
            } else {
                reason_key(self.reason, self.flags & flag::REASON_IS_DROP != 0)
            },
            network_namespace: network_namespace ^ nothing,
            local_address: ends.local.map(|word| word ^ nothing),
            peer_address: ends.peer.map(|word| word ^ nothing),
            local_port: ends.local_port,
            peer_port: ends.peer_port,
            cause,
            state,
            direction,
            origin,
            ip_version: self.ip_version,
            reserved: [0; 3],
        }
    }

    /// Counts the reset and, if it is to become a record, asks for room; the record comes with all that the draft and
    /// the ends know, and without what a socket would.
    #[inline(always)]
    fn reserve(&self, ends: &Ends, network_namespace: u32) -> Admission {
        count(&CAPTURED, self.counter, 1);
        match admit::judge(self.seen, || self.facts(ends, network_namespace)) {
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
            count(&LOST, self.counter, 1);
            return Admission::Lost;
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
        ends.write(record);
        Admission::Record(record)
    }
}

/// Writes what is known of the socket that a segment met.
#[inline(always)]
fn write_socket(record: &mut ResetRecord, numbers: &Numbers, full: Full, ends: &Ends) {
    if !full.is_none() {
        if numbers.holding == Holding::Connection as u8 {
            full.write_connection(record);
        } else {
            record.socket = 0;
            full.write_cgroup(record);
            write_no_facts(record);
        }
        owner::write_holder(record, full);
        return;
    }
    record.socket = 0;
    record.cgroup_id = 0;
    write_no_facts(record);
    owner::write_none(record);
    if numbers.holding == Holding::TimeWait as u8 {
        time_wait::write(record, ends);
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
fn retract_receive(full: Full, seen: Moment) {
    let Some(kept) = kept(full.pointer()) else { return };
    let counter = seen.hide(counter_index(Cause::ResetByPeer, Origin::Peer, Direction::Receive));
    count(&CAPTURED, counter, -1);
    match kept.receive_in_doubt {
        2 => count(&LOST, counter, -1),
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
