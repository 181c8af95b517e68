//! The maps: what the programs share with each other and with user space.

use core::{ffi::c_void, ptr::null};

use aya_ebpf::{
    bindings::{
        BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE,
        bpf_map_type::{
            BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_LRU_HASH, BPF_MAP_TYPE_PERCPU_ARRAY, BPF_MAP_TYPE_RINGBUF,
            BPF_MAP_TYPE_SK_STORAGE,
        },
    },
    helpers::generated::{
        bpf_ktime_get_ns, bpf_map_delete_elem, bpf_map_lookup_elem, bpf_map_update_elem, bpf_sk_storage_get,
    },
};
use reset_collector_probes::{
    COUNTERS, UNKNOWN_REASON,
    control::{self, Control},
    field::Field,
    rule::{MAX_RULES, Rule},
    sent::{BY_TCP, SENT, SentReset, answer_numbers},
};

use crate::{
    companion::MAX_HANDLED,
    listener::{ClosingListener, ListenerHolder},
    owner::{CredEntry, ExitStatus, ExitedProcess, Process},
    read::{has_socket_storage, load},
    segment::Segment,
    time_wait::{TimeWaitKey, TimeWaitState},
};

/// The definition of a map as the loader reads it from BTF: lengths of array types, never dereferenced.
#[repr(C)]
pub(crate) struct Map<K, V, const TYPE: usize, const ENTRIES: usize, const FLAGS: usize> {
    r#type: *const [i32; TYPE],
    key: *const K,
    value: *const V,
    max_entries: *const [i32; ENTRIES],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the pointers are types for the loader and are never followed.
unsafe impl<K, V, const T: usize, const E: usize, const F: usize> Sync for Map<K, V, T, E, F> {}

impl<K, V, const T: usize, const E: usize, const F: usize> Map<K, V, T, E, F> {
    pub(crate) const fn new() -> Self {
        Self { r#type: null(), key: null(), value: null(), max_entries: null(), map_flags: null() }
    }

    #[inline(always)]
    pub(crate) fn pointer(&self) -> *mut c_void {
        (&raw const *self).cast_mut().cast()
    }

    #[inline(always)]
    pub(crate) fn get(&self, key: &K) -> Option<*mut V> {
        // SAFETY: the loader has put the map here; the verifier checks key and value sizes.
        let value = unsafe { bpf_map_lookup_elem(self.pointer(), (&raw const *key).cast()) };
        (!value.is_null()).then_some(value.cast())
    }

    #[inline(always)]
    pub(crate) fn set(&self, key: &K, value: &V) {
        // SAFETY: as in `get`. A full LRU map makes room; there is nothing to do about another failure.
        unsafe { bpf_map_update_elem(self.pointer(), (&raw const *key).cast(), (&raw const *value).cast(), 0) };
    }

    #[inline(always)]
    pub(crate) fn remove(&self, key: &K) {
        // SAFETY: as in `get`; a key that is not there is no fault.
        unsafe { bpf_map_delete_elem(self.pointer(), (&raw const *key).cast()) };
    }
}

/// The definition of the ring buffer.
#[repr(C)]
pub(crate) struct Ring<const BYTES: usize> {
    r#type: *const [i32; BPF_MAP_TYPE_RINGBUF as usize],
    max_entries: *const [i32; BYTES],
}

// SAFETY: as for `Map`.
unsafe impl<const BYTES: usize> Sync for Ring<BYTES> {}

/// Records on their way to user space; user space may ask for another size.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub(crate) static RESETS: Ring<{ 16 << 20 }> = Ring { r#type: null(), max_entries: null() };

/// The definition of a plain array or hash.
type Array<V, const ENTRIES: usize> = Map<u32, V, { BPF_MAP_TYPE_ARRAY as usize }, ENTRIES, 0>;
type PerCpu<V, const ENTRIES: usize> = Map<u32, V, { BPF_MAP_TYPE_PERCPU_ARRAY as usize }, ENTRIES, 0>;

/// Resets before any rule, by `counter_index`.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub(crate) static CAPTURED: PerCpu<u64, { COUNTERS as usize }> = Map::new();

/// Resets that the ring buffer could not take, by `counter_index`.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub(crate) static RINGBUF_DROPS: PerCpu<u64, { COUNTERS as usize }> = Map::new();

/// What user space sets.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub(crate) static CONTROL: Array<Control, 1> = Map::new();

/// Two programs of rules, one after the other: the one in use, and the one that user space writes next.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub(crate) static RULES: Array<Rule, { 2 * MAX_RULES }> = Map::new();

/// The rate limit's buckets: each the time until which its tokens are spent, ns of the clock of records.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub(crate) static BUCKETS: Array<u64, { control::BUCKETS }> = Map::new();

/// Resets without a record: dropped by the rules (0), or by the rate limit (1).
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
static SUPPRESSED: PerCpu<u64, 2> = Map::new();

/// Resets on their way through devices: TCP's, and netfilter's from the first device on, by `SentReset::slot`.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
static SENT_BY_TCP: Array<SentReset, SENT> = Map::new();

/// The reset that TCP last handed to a socket on this CPU, and the socket's state. All of the segment, since its memory is
/// soon another's.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Received {
    skb: u64,
    pub(crate) segment: Segment,
    /// Why it was freed, once that is known.
    pub(crate) reason: u32,
    pub(crate) state: u8,
    /// `DropReporter` by number.
    teller: u8,
}

/// Which program emits a reset that a socket was handed and refused.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(crate) enum DropReporter {
    /// `kfree_skb`, when it is freed.
    Free = 0,
    /// The function that it was handed to, at its end.
    Function = 1,
    /// None: it was reported already.
    Reported = 2,
}

#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
static LAST_RECEIVED: PerCpu<Received, 1> = Map::new();

/// The state that is stored with a socket.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct SocketState {
    /// The socket itself: a child begins with a copy of its listener's.
    pub(crate) socket: u64,
    /// CLOCK_MONOTONIC at establishment, 0 before.
    pub(crate) established_ns: u64,
    /// CLOCK_MONOTONIC when this end closed, 0 before.
    pub(crate) closed_ns: u64,
    /// Who connected, listened, or was found holding it; the listener's in a child.
    pub(crate) owner: Process,
    /// The state before CLOSE, 0 before that.
    pub(crate) state_before: u8,
    /// tcp_reset() was called in FIN_WAIT1 or FIN_WAIT2, and what became of its record (`RecordOutcome::number`).
    pub(crate) receive_tentative: u8,
    /// The owner holds the socket, and another may have opened it.
    pub(crate) owner_is_guess: u8,
    pub(crate) _padding: [u8; 5],
}

impl SocketState {
    const NOTHING: Self = Self {
        socket: 0,
        established_ns: 0,
        closed_ns: 0,
        owner: Process::NONE,
        state_before: 0,
        receive_tentative: 0,
        owner_is_guess: 0,
        _padding: [0; 5],
    };
}

/// The state of each socket; the kernel copies it to the children of a listener.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
static SOCKETS: Map<
    i32,
    SocketState,
    { BPF_MAP_TYPE_SK_STORAGE as usize },
    0,
    { (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize },
> = Map::new();

/// The same by the socket's address, where tracing programs may not use the storage of sockets (before 5.11). Bounded:
/// the longest unused makes room; an address that is used again begins anew with its socket.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
static SOCKETS_BY_ADDRESS: Map<u64, SocketState, { BPF_MAP_TYPE_LRU_HASH as usize }, 65_536, 0> = Map::new();
type LruHash<K, V, const ENTRIES: usize> = Map<K, V, { BPF_MAP_TYPE_LRU_HASH as usize }, ENTRIES, 0>;

/// Processes by the address of their credentials.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub(crate) static PROCESSES: LruHash<u64, CredEntry, 32_768> = Map::new();

/// The address of its credentials, by process.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub(crate) static CREDENTIALS: LruHash<u32, u64, 32_768> = Map::new();

/// Processes that have ended, by the address of their last credentials.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub(crate) static EXITED: LruHash<u64, ExitedProcess, 8_192> = Map::new();

/// How processes ended, by pid.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub(crate) static EXIT_STATUS: LruHash<u32, ExitStatus, 8_192> = Map::new();

/// Listeners that are being closed, by the address of the task that closes them.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub(crate) static CLOSING_LISTENERS: LruHash<u64, ClosingListener, 1_024> = Map::new();

/// Who holds each listener, as the last walk through all files found it, by the listener's address.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub(crate) static LISTENERS: LruHash<u64, ListenerHolder, 4_096> = Map::new();

/// What is left of connections in TIME_WAIT.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub(crate) static TIME_WAIT: LruHash<TimeWaitKey, TimeWaitState, 16_384> = Map::new();

/// Events between the run of a program and that of its companion.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub(crate) static HANDLED: Array<u64, MAX_HANDLED> = Map::new();

/// The state stored with a full socket, if any.
#[inline(always)]
pub(crate) fn socket_state(socket: *const u8) -> Option<&'static mut SocketState> {
    if !has_socket_storage() {
        // SAFETY: the verifier knows the value's size; the map keeps the memory.
        return SOCKETS_BY_ADDRESS.get(&(socket as u64)).and_then(|stored| unsafe { stored.as_mut() });
    }
    // SAFETY: the verifier knows `socket` as a trusted `struct sock`; the value lives as long as the socket.
    unsafe {
        bpf_sk_storage_get(SOCKETS.pointer(), socket.cast_mut().cast(), core::ptr::null_mut(), 0)
            .cast::<SocketState>()
            .as_mut()
    }
}

/// The state stored with a full socket, inserted if need be.
#[inline(always)]
pub(crate) fn socket_state_or_insert(socket: *const u8) -> Option<&'static mut SocketState> {
    if !has_socket_storage() {
        return socket_state(socket).or_else(|| {
            SOCKETS_BY_ADDRESS.set(&(socket as u64), &SocketState::NOTHING);
            socket_state(socket)
        });
    }
    // SAFETY: as in `socket_state`.
    let stored = unsafe {
        bpf_sk_storage_get(
            SOCKETS.pointer(),
            socket.cast_mut().cast(),
            core::ptr::null_mut(),
            BPF_SK_STORAGE_GET_F_CREATE as u64,
        )
        .cast::<SocketState>()
        .as_mut()
    }?;
    Some(stored)
}

/// Forgets what an earlier socket left at the address of a child that begins; in the storage of sockets there is none.
#[inline(always)]
pub(crate) fn forget(socket: *const u8) {
    if !has_socket_storage() {
        SOCKETS_BY_ADDRESS.remove(&(socket as u64));
    }
}

/// Adds to the counter of a kind of reset: before any rule in `CAPTURED`, for which the ring buffer had no room in `RINGBUF_DROPS`.
///
/// With an index that the verifier knows (6.15 on, `get_constant_map_key`), it follows the rest of the program anew for
/// each: it must be opaque.
#[inline(always)]
pub(crate) fn count(map: &PerCpu<u64, { COUNTERS as usize }>, index: u32, by: i64) {
    if let Some(counter) = map.get(&index) {
        // SAFETY: the slot is this CPU's own, and lives as long as the map.
        unsafe { *counter = (*counter).wrapping_add_signed(by) };
    }
}

#[inline(always)]
fn count_suppressed(index: u32, by: i64) {
    if let Some(counter) = SUPPRESSED.get(&index) {
        // SAFETY: the slot is this CPU's own, and lives as long as the map.
        unsafe { *counter = (*counter).wrapping_add_signed(by) };
    }
}

/// Counts a reset that the rules drop.
#[inline(always)]
pub(crate) fn count_filtered(by: i64) {
    count_suppressed(0, by);
}

/// Counts a reset that the rate limit refuses.
#[inline(always)]
pub(crate) fn count_rate_limited(by: i64) {
    count_suppressed(1, by);
}

/// Records the state of the socket that a reset was handed to, and which program emits it.
#[inline(always)]
pub(crate) fn record_drop_receiver(skb: *const u8, segment: &Segment, state: u8, teller: DropReporter) {
    let Some(last) = LAST_RECEIVED.get(&0) else { return };
    // SAFETY: the slot is this CPU's own, and lives as long as the map. Member by member, because the verifier rejects reads
    // of bytes that were not written.
    unsafe {
        (*last).skb = skb as u64;
        (*last).segment = *segment;
        (*last).reason = UNKNOWN_REASON as u32;
        (*last).state = state;
        (*last).teller = teller as u8;
    }
}

/// What was recorded of the reset that is freed now: the state of its receiver, if known. `None` where `kfree_skb` does not
/// emit it.
#[inline(always)]
pub(crate) fn freed_receiver(skb: *const u8, segment: &Segment, reason: u32) -> Option<Option<u8>> {
    let Some(last) = LAST_RECEIVED.get(&0) else { return Some(None) };
    // SAFETY: the slot is this CPU's own, and lives as long as the map.
    let last = unsafe { &mut *last };
    let same = last.skb == skb as u64
        && last.segment.both_ports() == segment.both_ports()
        && last.segment.both_numbers() == segment.both_numbers();
    if !same {
        return Some(None);
    }
    if last.teller != DropReporter::Free as u8 {
        last.reason = reason;
        return None;
    }
    Some(Some(last.state))
}

/// The reset that a function was handed and that it ends with now, unless it was emitted; from now on it is.
#[inline(always)]
pub(crate) fn ended_with(skb: *const u8) -> Option<&'static Received> {
    let last = LAST_RECEIVED.get(&0)?;
    // SAFETY: the slot is this CPU's own, and lives as long as the map.
    let last = unsafe { &mut *last };
    if last.skb != skb as u64 || last.teller != DropReporter::Function as u8 {
        return None;
    }
    last.teller = DropReporter::Reported as u8;
    Some(last)
}

/// Number of the walk through all files.
#[inline(always)]
pub(crate) fn walk() -> u32 {
    // SAFETY: the slot lives as long as the map; user space writes single words.
    CONTROL.get(&0).map_or(0, |control| unsafe { (*control).walk })
}

/// Remembers that TCP answers this segment with a reset.
#[inline(always)]
pub(crate) fn record_answer(trigger: &Segment) {
    let answer = SentReset {
        source: trigger.destination,
        destination: trigger.source,
        numbers: answer_numbers(trigger.flags, trigger.sequence, trigger.acknowledgement, trigger.length),
        ports: u64::from(trigger.destination_port) << 32 | u64::from(trigger.source_port),
        // SAFETY: a plain helper.
        time_ns: unsafe { bpf_ktime_get_ns() },
        device: BY_TCP,
    };
    SENT_BY_TCP.set(&answer.slot(), &answer);
}

/// Whether the reset that a device queues has a record: TCP sent it, or another device queued it before. If not, it is
/// remembered.
#[inline(always)]
pub(crate) fn has_record(skb: *const u8, segment: &Segment) -> bool {
    let reset = SentReset {
        source: segment.source,
        destination: segment.destination,
        numbers: segment.both_numbers(),
        ports: u64::from(segment.source_port) << 32 | u64::from(segment.destination_port),
        // SAFETY: a plain helper.
        time_ns: unsafe { bpf_ktime_get_ns() },
        device: load(skb, Field::SkbDev),
    };
    let slot = reset.slot();
    // SAFETY: the verifier knows the value's size; the map keeps the memory.
    if let Some(earlier) = SENT_BY_TCP.get(&slot).and_then(|earlier| unsafe { earlier.as_ref() })
        && reset.has_record(earlier)
    {
        return true;
    }
    SENT_BY_TCP.set(&slot, &reset);
    false
}
