//! Whether a reset becomes a record: the rules that user space compiled, and the limit on records a second.
//!
//! Whatever is decided here, the reset has been counted before.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_loop, bpf_ringbuf_query};
use reset_collector_probes::{
    control::Control,
    rate_limit::{self, Buckets},
    rule::{self, Facts, MAX_RULES},
};

use crate::{
    clock::Timestamp,
    map::{BUCKETS, CONTROL, RESETS, RULES, count_filtered, count_rate_limited},
    read::hash_seed,
};

/// `BPF_RB_AVAIL_DATA` and `BPF_RB_RING_SIZE` (include/uapi/linux/bpf.h).
const RING_DATA: u64 = 0;
const RING_SIZE: u64 = 1;

/// Whether a reset gets a record.
pub(crate) enum EmitDecision {
    Record,
    Filtered,
    RateLimited,
}

/// Decides whether the reset gets a record, and counts it if it gets none. `facts` are built only where they are needed.
#[inline(always)]
pub(crate) fn decide(seen: Timestamp, facts: impl Fn() -> Facts) -> EmitDecision {
    let Some(control) = CONTROL.get(&0) else { return EmitDecision::Record };
    // SAFETY: the slot lives as long as the map; user space writes single words.
    let control = unsafe { &*control };
    if is_filtered(control, &facts) {
        count_filtered(1);
        return EmitDecision::Filtered;
    }
    if is_rate_limited(control, seen.ns, &facts) {
        count_rate_limited(1);
        return EmitDecision::RateLimited;
    }
    EmitDecision::Record
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

/// Whether the limit on records refuses the reset.
#[inline(always)]
fn is_rate_limited(control: &Control, now: u64, facts: impl Fn() -> Facts) -> bool {
    let interval = control.interval_ns as u64;
    interval != 0 && !rate_limit::admits(&Map, hash_seed(), interval, now, ring_left(), facts)
}

/// The buckets in the map.
struct Map;

impl Buckets for Map {
    type Bucket = *mut u64;

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<*mut u64> {
        BUCKETS.get(&index)
    }

    #[inline(always)]
    fn read(&self, bucket: *mut u64) -> u64 {
        // SAFETY: the slot lives as long as the map.
        unsafe { core::ptr::read_volatile(bucket) }
    }

    #[inline(always)]
    fn write(&self, bucket: *mut u64, spent_until: u64) {
        // SAFETY: as in `read`.
        unsafe { core::ptr::write_volatile(bucket, spent_until) }
    }
}

/// What is free of the ring buffer, in 1,024 parts: a flood may come faster than the reader reads, well before the limit.
#[inline(always)]
fn ring_left() -> u64 {
    let ring = (&raw const RESETS).cast_mut().cast();
    // SAFETY: plain helpers on the ring buffer.
    let (data, size) = unsafe { (bpf_ringbuf_query(ring, RING_DATA), bpf_ringbuf_query(ring, RING_SIZE)) };
    // A power of two, and never 0.
    size.saturating_sub(data) / (size / 1_024).max(1)
}
