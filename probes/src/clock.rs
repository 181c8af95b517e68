//! The time of a reset, and values that are opaque to the verifier.

use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_ktime_get_tai_ns};
use reset_collector_probes::{UNKNOWN_U64, flag};

use crate::read::has_tai_clock;

/// Nanoseconds since a time of CLOCK_MONOTONIC; [`UNKNOWN_U64`] for 0, an unknown time.
#[inline(always)]
pub(crate) fn since(then_ns: u64) -> u64 {
    match then_ns {
        0 => UNKNOWN_U64,
        // SAFETY: a plain helper.
        then_ns => unsafe { bpf_ktime_get_ns() }.wrapping_sub(then_ns),
    }
}

/// When a reset was seen, on the clock that records use.
#[derive(Clone, Copy)]
pub(crate) struct Timestamp {
    pub(crate) ns: u64,
}

impl Timestamp {
    /// The current time: of CLOCK_TAI where the kernel has it, because user space need not correct it after the clock is set.
    #[inline(always)]
    pub(crate) fn now() -> Self {
        // SAFETY: plain helpers.
        Self { ns: if has_tai_clock() { unsafe { bpf_ktime_get_tai_ns() } } else { unsafe { bpf_ktime_get_ns() } } }
    }

    /// The record flags for the clock.
    #[inline(always)]
    pub(crate) fn flags(self) -> u16 {
        if has_tai_clock() { flag::TIME_IS_TAI } else { 0 }
    }

    /// The same number, with a value unknown to the verifier. Otherwise the verifier would walk the rest of the program once
    /// for each value that a decision can yield.
    #[inline(always)]
    pub(crate) fn opaque(self, number: u32) -> u32 {
        // The highest bit of a time is 0 for another 270 years.
        number ^ 0u32.wrapping_sub((self.ns >> 63) as u32)
    }
}
