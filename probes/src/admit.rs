//! Whether a reset becomes a record: the rules that user space compiled, and the ceiling on records a second.
//!
//! Whatever is decided here, the reset has been counted before.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_loop, bpf_ringbuf_query};
use reset_collector_probes::{
    control::{self, Control},
    rule::{self, Facts, MAX_RULES},
};

use crate::{
    clock::Moment,
    map::{BUCKETS, CONTROL, RESETS, RULES, count_filtered, count_over_ceiling},
};

/// Buckets of keys; a key that shares one with a flood shares its limit.
const BUCKET_MASK: u32 = control::BUCKETS as u32 - 1;

/// `BPF_RB_AVAIL_DATA` and `BPF_RB_RING_SIZE` (include/uapi/linux/bpf.h).
const RING_DATA: u64 = 0;
const RING_SIZE: u64 = 1;

/// Whether a record is to be made of a reset.
pub(crate) enum Judgement {
    Record,
    Filtered,
    OverCeiling,
}

/// Whether a record is to be made of the reset; counts the ones of which none is. `facts` are put together where they are
/// asked for.
#[inline(always)]
pub(crate) fn judge(seen: Moment, facts: impl Fn() -> Facts) -> Judgement {
    let Some(control) = CONTROL.get(&0) else { return Judgement::Record };
    // SAFETY: the slot lives as long as the map; user space writes single words.
    let control = unsafe { &*control };
    if is_filtered(control, &facts) {
        count_filtered(1);
        return Judgement::Filtered;
    }
    if is_over_ceiling(control, seen.ns, &facts) {
        count_over_ceiling(1);
        return Judgement::OverCeiling;
    }
    Judgement::Record
}

/// Whether the program of rules in use drops the reset. The object for kernels without `bpf_loop` (before 5.17) has no
/// rules at all: those refuse a program that only names a callback.
#[inline(always)]
fn is_filtered(control: &Control, facts: impl Fn() -> Facts) -> bool {
    if !cfg!(feature = "rules") || control.program == 0 {
        return false;
    }
    let mut walk =
        Walk { facts: facts(), first: (control.program & 1) * MAX_RULES as u32, verdict: rule::END, _padding: [0; 3] };
    // SAFETY: the helper calls `try_rule` at most MAX_RULES times with this frame's `walk`.
    unsafe { bpf_loop(MAX_RULES as u32, try_rule as *mut c_void, (&raw mut walk).cast(), 0) };
    walk.verdict == rule::DROP
}

/// A reset on its way through a program of rules.
#[repr(C)]
struct Walk {
    facts: Facts,
    /// Where the program begins in the map.
    first: u32,
    /// Of the rule that matched.
    verdict: u8,
    _padding: [u8; 3],
}

/// Tries one rule; 1 ends the loop. A function of its own, so that the verifier follows its paths once and not for each
/// rule.
extern "C" fn try_rule(index: u32, walk: *mut Walk) -> i64 {
    // SAFETY: the helper passes the frame that `is_filtered` gave it.
    let walk = unsafe { &mut *walk };
    let Some(rule) = RULES.get(&(walk.first + index)) else { return 1 };
    // SAFETY: user space writes the program that is not in use, then names it.
    let rule = unsafe { &*rule };
    if rule.verdict == rule::END {
        return 1;
    }
    if !rule::matches(rule, &walk.facts) {
        return 0;
    }
    walk.verdict = rule.verdict;
    1
}

/// Shares the ceiling fairly: half of what may come at once, and of the ring buffer, is for whoever comes first; the rest
/// only for keys that are not hot themselves, so that a scan of one port, or by one peer, or of one kind, does not hide
/// the others.
#[inline(always)]
fn is_over_ceiling(control: &Control, now: u64, facts: impl Fn() -> Facts) -> bool {
    let interval = control.interval_ns as u64;
    if interval == 0 {
        return false;
    }
    let Some(total) = BUCKETS.get(&0) else { return false };
    let burst = interval * control::BURST;
    // SAFETY: the slot lives as long as the map.
    let arrival = unsafe { spent_until(total, now) }.max(now.saturating_sub(burst)) + interval;
    if arrival > now {
        return true;
    }
    let is_calm = arrival + burst / 2 <= now && !is_ring_half_full();
    if !is_calm && is_hot(&facts(), interval, now) {
        return true;
    }
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(total, arrival) };
    false
}

/// Until when a bucket's tokens are spent. CPUs may race for it: the ceiling is then a little higher, no more.
///
/// # Safety
/// The bucket lives.
#[inline(always)]
unsafe fn spent_until(bucket: *const u64, now: u64) -> u64 {
    /// Nobody spends what is still to come but another CPU, a little: so much ahead, and the clock was set back.
    const SET_BACK_NS: u64 = 1_000_000_000;
    // SAFETY: by the caller.
    let spent = unsafe { core::ptr::read_volatile(bucket) };
    if spent > now + SET_BACK_NS { 0 } else { spent }
}

/// Whether the reader has fallen behind: a flood may come faster than it reads, well before the ceiling is reached.
#[inline(always)]
fn is_ring_half_full() -> bool {
    let ring = (&raw const RESETS).cast_mut().cast();
    // SAFETY: plain helpers on the ring buffer.
    unsafe { bpf_ringbuf_query(ring, RING_DATA) > bpf_ringbuf_query(ring, RING_SIZE) / 2 }
}

/// Whether one of the reset's keys has had its share; else it takes from each. A reset that one key refuses takes nothing
/// from the others: they are shared with resets that are not of the flood.
#[inline(always)]
fn is_hot(facts: &Facts, interval: u64, now: u64) -> bool {
    let kind = kind(facts);
    let of_key = interval * control::SHARE_OF_KEY;
    let Some(port) = Share::of(mix(kind ^ u32::from(facts.local_port), 1), now, of_key) else { return true };
    let Some(peer) = Share::of(mix_address(kind, &facts.peer_address), now, of_key) else { return true };
    let Some(kind) = Share::of(mix(kind, 3), now, interval * control::SHARE_OF_KIND) else { return true };
    port.take();
    peer.take();
    kind.take();
    false
}

/// A token that a key may take.
struct Share {
    bucket: *mut u64,
    arrival: u64,
}

impl Share {
    /// The next token of a bucket that refills one each `interval` and holds one second's worth, if there is one.
    #[inline(always)]
    fn of(hash: u32, now: u64, interval: u64) -> Option<Self> {
        // Bucket 0 is the total's.
        let bucket = BUCKETS.get(&(hash & BUCKET_MASK | 1))?;
        // SAFETY: as for the total.
        let spent = unsafe { spent_until(bucket, now) };
        let arrival = spent.max(now.saturating_sub(control::KEY_BURST_NS)) + interval;
        (arrival <= now).then_some(Self { bucket, arrival })
    }

    #[inline(always)]
    fn take(self) {
        // SAFETY: as for the total.
        unsafe { core::ptr::write_volatile(self.bucket, self.arrival) };
    }
}

/// Namespace, cause and direction in one word.
#[inline(always)]
fn kind(facts: &Facts) -> u32 {
    mix(
        facts.network_namespace,
        u32::from(facts.cause) << 8 | u32::from(facts.direction) << 4 | u32::from(facts.origin),
    )
}

#[inline(always)]
fn mix_address(kind: u32, address: &[u32; 4]) -> u32 {
    mix(mix(kind ^ address[0] ^ address[2].rotate_left(7), 2) ^ address[1].rotate_left(13) ^ address[3], 2)
}

/// Mixes bits (the finalizer of MurmurHash3).
#[inline(always)]
fn mix(value: u32, salt: u32) -> u32 {
    let mut hash = value ^ salt.wrapping_mul(0x9e37_79b9);
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}
