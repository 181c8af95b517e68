//! The time of a reset, and numbers that the verifier is not to know.

use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_ktime_get_tai_ns};
use reset_collector_probes::flag;

use crate::read::has_tai_clock;

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
