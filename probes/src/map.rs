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
    helpers::generated::{bpf_map_delete_elem, bpf_map_lookup_elem, bpf_map_update_elem, bpf_sk_storage_get},
};
use reset_collector_probes::{
    COUNTERS, UNKNOWN_REASON,
    control::{self, Control},
    field::Field,
    rule::{MAX_RULES, Rule},
};

use crate::{
    again::MOST_MARKS,
    owner::{Ended, Known, Process},
    read::{has_socket_storage, load},
    segment::Segment,
    time_wait::Closed,
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
pub(crate) static LOST: PerCpu<u64, { COUNTERS as usize }> = Map::new();

/// What user space says.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub(crate) static CONTROL: Array<Control, 1> = Map::new();

/// Two programs of rules, one after the other: the one in use, and the one that user space writes next.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub(crate) static RULES: Array<Rule, { 2 * MAX_RULES }> = Map::new();

/// The ceiling's buckets: each the time until which its tokens are spent, ns of the clock of records.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub(crate) static BUCKETS: Array<u64, { control::BUCKETS }> = Map::new();

/// Resets of which no record was made: by the rules (0), for the ceiling (1).
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
static WITHHELD: PerCpu<u64, 2> = Map::new();

/// The last reset of netfilter's on this CPU: a segment passes net_dev_queue once for each device that it is stacked on.
#[derive(Clone, Copy)]
#[repr(C)]
struct Queued {
    skb: u64,
    ports: u64,
    numbers: u64,
    first_device: u64,
}

#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
static LAST_QUEUED: PerCpu<Queued, 1> = Map::new();

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
    /// `Teller` by number.
    teller: u8,
}

/// Who tells of a reset that was handed to a socket and that it does not accept.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(crate) enum Teller {
    /// `kfree_skb`, when it is freed.
    Free = 0,
    /// The function that it was handed to, at its end.
    Function = 1,
    /// Nobody: its function has ended.
    Nobody = 2,
}

#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
static LAST_RECEIVED: PerCpu<Received, 1> = Map::new();

/// What is kept with a socket.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Kept {
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
    /// tcp_reset() was called in FIN_WAIT1 or FIN_WAIT2, and what became of its record (`Admission::number`).
    pub(crate) receive_in_doubt: u8,
    /// The owner holds the socket, and another may have opened it.
    pub(crate) owner_is_guess: u8,
    pub(crate) _padding: [u8; 5],
}

impl Kept {
    const NOTHING: Self = Self {
        socket: 0,
        established_ns: 0,
        closed_ns: 0,
        owner: Process::NONE,
        state_before: 0,
        receive_in_doubt: 0,
        owner_is_guess: 0,
        _padding: [0; 5],
    };
}

/// What is kept with each socket; the kernel copies it to the children of a listener.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
static SOCKETS: Map<
    i32,
    Kept,
    { BPF_MAP_TYPE_SK_STORAGE as usize },
    0,
    { (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize },
> = Map::new();

/// The same by the socket's address, where tracing programs may not use the storage of sockets (before 5.11). Bounded:
/// the longest unused makes room; an address that is used again begins anew with its socket.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
static SOCKETS_BY_ADDRESS: Map<u64, Kept, { BPF_MAP_TYPE_LRU_HASH as usize }, 65_536, 0> = Map::new();
type LruHash<K, V, const ENTRIES: usize> = Map<K, V, { BPF_MAP_TYPE_LRU_HASH as usize }, ENTRIES, 0>;

/// Processes by the address of their credentials.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub(crate) static PROCESSES: LruHash<u64, Known, 32_768> = Map::new();

/// The address of its credentials, by process.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub(crate) static CREDENTIALS: LruHash<u32, u64, 32_768> = Map::new();

/// Processes that have ended, by the address of the credentials that they had.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub(crate) static ENDED: LruHash<u64, Ended, 8_192> = Map::new();

/// What is left of connections in TIME_WAIT, by `Ends::key`.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub(crate) static CLOSED: LruHash<u64, Closed, 16_384> = Map::new();

/// Events between the first and the second run of a program that is attached twice.
#[unsafe(link_section = ".maps")]
#[unsafe(no_mangle)]
pub(crate) static MARKS: Array<u64, MOST_MARKS> = Map::new();

/// What is kept with a full socket, if anything.
#[inline(always)]
pub(crate) fn kept(socket: *const u8) -> Option<&'static mut Kept> {
    if !has_socket_storage() {
        // SAFETY: the verifier knows the value's size; the map keeps the memory.
        return SOCKETS_BY_ADDRESS.get(&(socket as u64)).and_then(|kept| unsafe { kept.as_mut() });
    }
    // SAFETY: the verifier knows `socket` as a trusted `struct sock`; the value lives as long as the socket.
    unsafe {
        bpf_sk_storage_get(SOCKETS.pointer(), socket.cast_mut().cast(), core::ptr::null_mut(), 0)
            .cast::<Kept>()
            .as_mut()
    }
}

/// What is kept with a full socket, begun now if need be.
#[inline(always)]
pub(crate) fn kept_or_new(socket: *const u8) -> Option<&'static mut Kept> {
    if !has_socket_storage() {
        return kept(socket).or_else(|| {
            SOCKETS_BY_ADDRESS.set(&(socket as u64), &Kept::NOTHING);
            kept(socket)
        });
    }
    // SAFETY: as in `kept`.
    let kept = unsafe {
        bpf_sk_storage_get(
            SOCKETS.pointer(),
            socket.cast_mut().cast(),
            core::ptr::null_mut(),
            BPF_SK_STORAGE_GET_F_CREATE as u64,
        )
        .cast::<Kept>()
        .as_mut()
    }?;
    Some(kept)
}

/// Forgets what an earlier socket left at the address of a child that begins; in the storage of sockets there is none.
#[inline(always)]
pub(crate) fn forget(socket: *const u8) {
    if !has_socket_storage() {
        SOCKETS_BY_ADDRESS.remove(&(socket as u64));
    }
}

/// Adds to the counter of a kind of reset: before any rule in `CAPTURED`, for which the ring buffer had no room in `LOST`.
///
/// With an index that the verifier knows (6.15 on, `get_constant_map_key`), it follows the rest of the program anew for
/// each: it must be a hidden one.
#[inline(always)]
pub(crate) fn count(map: &PerCpu<u64, { COUNTERS as usize }>, index: u32, by: i64) {
    if let Some(counter) = map.get(&index) {
        // SAFETY: the slot is this CPU's own, and lives as long as the map.
        unsafe { *counter = (*counter).wrapping_add_signed(by) };
    }
}

#[inline(always)]
fn count_withheld(index: u32, by: i64) {
    if let Some(counter) = WITHHELD.get(&index) {
        // SAFETY: the slot is this CPU's own, and lives as long as the map.
        unsafe { *counter = (*counter).wrapping_add_signed(by) };
    }
}

/// Counts a reset that the rules drop.
#[inline(always)]
pub(crate) fn count_filtered(by: i64) {
    count_withheld(0, by);
}

/// Counts a reset that is over the ceiling.
#[inline(always)]
pub(crate) fn count_over_ceiling(by: i64) {
    count_withheld(1, by);
}

/// Notes the state of the socket that a reset was handed to, and who tells of it.
#[inline(always)]
pub(crate) fn note_receiver(skb: *const u8, segment: &Segment, state: u8, teller: Teller) {
    let Some(last) = LAST_RECEIVED.get(&0) else { return };
    // SAFETY: the slot is this CPU's own, and lives as long as the map. Member by member, for the verifier wants no byte
    // read that nobody wrote.
    unsafe {
        (*last).skb = skb as u64;
        (*last).segment = *segment;
        (*last).reason = UNKNOWN_REASON as u32;
        (*last).state = state;
        (*last).teller = teller as u8;
    }
}

/// What was noted of the reset that is freed now, for the one who tells of it then: the state of its receiver, if it is
/// known. `None` where `kfree_skb` is not to tell.
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
    if last.teller != Teller::Free as u8 {
        last.reason = reason;
        return None;
    }
    Some(Some(last.state))
}

/// The reset that a function was handed and now ends with, unless it was told; from now on it is.
#[inline(always)]
pub(crate) fn ended_with(skb: *const u8) -> Option<&'static Received> {
    let last = LAST_RECEIVED.get(&0)?;
    // SAFETY: the slot is this CPU's own, and lives as long as the map.
    let last = unsafe { &mut *last };
    if last.skb != skb as u64 || last.teller != Teller::Function as u8 {
        return None;
    }
    last.teller = Teller::Nobody as u8;
    Some(last)
}

/// Whether this very segment was the last that was queued on this CPU, on another device; remembers it.
#[inline(always)]
pub(crate) fn is_repeated(skb: *const u8, segment: &Segment) -> bool {
    let Some(last) = LAST_QUEUED.get(&0) else { return false };
    // SAFETY: the slot is this CPU's own, and lives as long as the map.
    let last = unsafe { &mut *last };
    let device: u64 = load(skb, Field::SkbDev);
    let (ports, numbers) = (segment.both_ports(), segment.both_numbers());
    if last.skb == skb as u64 && last.ports == ports && last.numbers == numbers && last.first_device != device {
        return true;
    }
    *last = Queued { skb: skb as u64, ports, numbers, first_device: device };
    false
}
