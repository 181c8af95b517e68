//! Whether a reset becomes a record: the rules that user space compiled, and the ceiling on records a second.
//!
//! Whatever is decided here, the reset has been counted before.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_loop};
use reset_collector_probes::{
    control::{self, Control},
    rule::{self, Facts, MAX_RULES},
};

use crate::map::{BUCKETS, CONTROL, RULES, count_filtered, count_over_ceiling};

/// Buckets of keys; a key that shares one with a flood shares its limit.
const BUCKET_MASK: u32 = control::BUCKETS as u32 - 1;

/// Whether a record is to be made of a reset.
pub(crate) enum Judgement {
    Record,
    Filtered,
    OverCeiling,
}

/// Whether a record is to be made of the reset; counts the ones of which none is.
#[inline(always)]
pub(crate) fn judge(facts: &Facts) -> Judgement {
    let Some(control) = CONTROL.get(&0) else { return Judgement::Record };
    // SAFETY: the slot lives as long as the map; user space writes single words.
    let control = unsafe { &*control };
    if is_filtered(control, facts) {
        count_filtered(1);
        return Judgement::Filtered;
    }
    if is_over_ceiling(control, facts) {
        count_over_ceiling(1);
        return Judgement::OverCeiling;
    }
    Judgement::Record
}

/// Whether the program of rules in use drops the reset. The object for kernels without `bpf_loop` (before 5.17) has no
/// rules at all: those refuse a program that only names a callback.
#[inline(always)]
fn is_filtered(control: &Control, facts: &Facts) -> bool {
    if !cfg!(feature = "rules") || control.program == 0 {
        return false;
    }
    let mut walk =
        Walk { facts: *facts, first: (control.program & 1) * MAX_RULES as u32, verdict: rule::END, _padding: [0; 3] };
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

/// Shares the ceiling fairly: half of it is for whoever comes first; the other half only for keys that are not hot
/// themselves, so that a scan of one port, or by one peer, or of one kind, does not hide the others.
#[inline(always)]
fn is_over_ceiling(control: &Control, facts: &Facts) -> bool {
    let interval = control.interval_ns as u64;
    if interval == 0 {
        return false;
    }
    // SAFETY: a plain helper.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(total) = BUCKETS.get(&0) else { return false };
    let burst = interval * control::BURST;
    // SAFETY: the slot lives as long as the map. CPUs may race for it: the ceiling is then a little higher, no more.
    let arrival = unsafe { core::ptr::read_volatile(total) }.max(now.saturating_sub(burst)) + interval;
    if arrival > now {
        return true;
    }
    let is_calm = arrival + burst / 2 <= now;
    if !is_calm {
        let kind = kind(facts);
        let hot = !takes(mix(kind ^ u32::from(facts.local_port), 1), now, interval * control::SHARE_OF_KEY)
            || !takes(mix_address(kind, &facts.peer_address), now, interval * control::SHARE_OF_KEY)
            || !takes(mix(kind, 3), now, interval * control::SHARE_OF_KIND);
        if hot {
            return true;
        }
    }
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(total, arrival) };
    false
}

/// Takes a token of a bucket that refills one each `interval` and holds one second's worth.
#[inline(always)]
fn takes(hash: u32, now: u64, interval: u64) -> bool {
    // Bucket 0 is the total's.
    let Some(bucket) = BUCKETS.get(&(hash & BUCKET_MASK | 1)) else { return true };
    // SAFETY: as for the total.
    unsafe {
        let arrival = core::ptr::read_volatile(bucket).max(now.saturating_sub(control::KEY_BURST_NS)) + interval;
        if arrival > now {
            return false;
        }
        core::ptr::write_volatile(bucket, arrival);
    }
    true
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
