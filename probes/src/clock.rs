//! The time of a reset, and numbers that the verifier is not to know.

use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_ktime_get_tai_ns};
use reset_collector_probes::{UNKNOWN_U64, flag};

use crate::read::has_tai_clock;

/// From then, by CLOCK_MONOTONIC, to now; [`UNKNOWN_U64`] where it is 0, which is not known.
#[inline(always)]
pub(crate) fn since(then_ns: u64) -> u64 {
    match then_ns {
        0 => UNKNOWN_U64,
        // SAFETY: a plain helper.
        then_ns => unsafe { bpf_ktime_get_ns() }.wrapping_sub(then_ns),
    }
}

/// When a reset was seen, by the clock that records tell the time of.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) ns: u64,
}

impl Moment {
    /// Now: by CLOCK_TAI where the kernel tells it, which user space need not correct when the clock is set.
    #[inline(always)]
    pub(crate) fn now() -> Self {
        // SAFETY: plain helpers.
        Self { ns: if has_tai_clock() { unsafe { bpf_ktime_get_tai_ns() } } else { unsafe { bpf_ktime_get_ns() } } }
    }

    /// What a record's flags say of the clock.
    #[inline(always)]
    pub(crate) fn flags(self) -> u16 {
        if has_tai_clock() { flag::TIME_IS_TAI } else { 0 }
    }

    /// The same number, which the verifier does not know any more: for what follows from a decision, it would else follow
    /// the rest of the program anew for each outcome.
    #[inline(always)]
    pub(crate) fn hide(self, number: u32) -> u32 {
        // The highest bit of a time is 0 for another 270 years.
        number ^ 0u32.wrapping_sub((self.ns >> 63) as u32)
    }
}
