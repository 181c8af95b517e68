//! The current time by every clock that the pipeline uses, read in one place.

use std::time::Instant;

use rustix::time::{ClockId, DynamicClockId, Timespec, clock_gettime, clock_gettime_dynamic};

use crate::model::Clock;

/// The current time by the clocks that the pipeline uses.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Monotonic, for deadlines.
    pub instant: Instant,
    /// Wall clock, ns since 1970.
    pub unix_ns: u64,
    /// Offsets of the kernel's clocks from the wall clock.
    pub clock: Clock,
}

impl Now {
    /// Monotonic, ns: rate limits use it, so that setting the wall clock back does not stop them.
    pub fn steady_ns(&self) -> u64 {
        self.unix_ns.saturating_add_signed(self.clock.monotonic_offset_ns.saturating_neg())
    }
}

/// Reads every clock. Leap seconds are whole: the time between the readings is rounded away.
pub fn now() -> Now {
    const SECOND: i64 = 1_000_000_000;
    let [real, monotonic, boot] =
        [ClockId::Realtime, ClockId::Monotonic, ClockId::Boottime].map(|clock| ns(clock_gettime(clock)));
    // CLOCK_TAI: Linux 3.10 and later.
    let tai = clock_gettime_dynamic(DynamicClockId::Tai).map_or(real, ns);
    let tai_offset_ns = (tai - real + SECOND / 2).div_euclid(SECOND) * SECOND;
    Now {
        instant: Instant::now(),
        unix_ns: u64::try_from(real).unwrap_or(0),
        clock: Clock { tai_offset_ns, monotonic_offset_ns: real - monotonic, boot_offset_ns: real - boot },
    }
}

fn ns(time: Timespec) -> i64 {
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}
