//! The reader's liveness mark: requested at each snapshot, given by the reader's loop.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Requests and marks, without a lock: the reader never waits for it.
pub struct Heartbeat {
    created: Instant,
    /// Nanoseconds from `created` to the request that is open, or [`Self::NEVER`] or [`Self::ANSWERED`].
    requested: AtomicU64,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { created: Instant::now(), requested: AtomicU64::new(Self::NEVER) }
    }
}

impl Heartbeat {
    /// The reader has not run yet.
    const NEVER: u64 = u64::MAX;
    const ANSWERED: u64 = u64::MAX - 1;

    /// Requests a heartbeat; an earlier request that is open stays.
    pub fn request(&self) {
        let now = u64::try_from(self.created.elapsed().as_nanos()).unwrap_or(0);
        // Failing is an earlier request, or a reader that has not started.
        let _open = self.requested.compare_exchange(Self::ANSWERED, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The reader lives: called by each turn of its loop.
    pub fn beat(&self) {
        self.requested.store(Self::ANSWERED, Ordering::Relaxed);
    }

    /// How long a request has been open; `None` before the first heartbeat.
    pub fn age(&self) -> Option<Duration> {
        match self.requested.load(Ordering::Relaxed) {
            Self::NEVER => None,
            Self::ANSWERED => Some(Duration::ZERO),
            requested => Some(self.created.elapsed().saturating_sub(Duration::from_nanos(requested))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_ages_until_the_next_heartbeat() {
        let heartbeat = Heartbeat::default();
        heartbeat.request();
        assert_eq!(heartbeat.age(), None, "not started");
        heartbeat.beat();
        assert_eq!(heartbeat.age(), Some(Duration::ZERO), "nothing was requested since");
        heartbeat.request();
        std::thread::yield_now();
        let age = heartbeat.age();
        assert!(age > Some(Duration::ZERO), "{age:?}");
        heartbeat.request();
        assert!(heartbeat.age() >= age, "the first request stays open");
        heartbeat.beat();
        assert_eq!(heartbeat.age(), Some(Duration::ZERO));
    }
}
