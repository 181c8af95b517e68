//! Limits log lines that could come once per request to one per interval and event.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Between two lines of one event.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Lets one line per event and interval through, and counts those that it suppressed.
#[derive(Debug, Default)]
pub(crate) struct LogThrottle {
    events: Mutex<Vec<Event>>,
}

#[derive(Debug)]
struct Event {
    name: &'static str,
    last: Instant,
    suppressed: u64,
}

impl LogThrottle {
    /// The lines suppressed since the last one if a line is due, else `None`.
    pub(crate) fn due(&self, name: &'static str, now: Instant) -> Option<u64> {
        let mut events = self.lock();
        let Some(event) = events.iter_mut().find(|event| event.name == name) else {
            events.push(Event { name, last: now, suppressed: 0 });
            return Some(0);
        };
        if now.saturating_duration_since(event.last) < LOG_INTERVAL {
            event.suppressed += 1;
            return None;
        }
        event.last = now;
        Some(std::mem::take(&mut event.suppressed))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_event_and_interval_counts_the_suppressed() {
        let (throttle, start) = (LogThrottle::default(), Instant::now());
        assert_eq!(throttle.due("export_failed", start), Some(0));
        assert_eq!(throttle.due("export_failed", start + LOG_INTERVAL / 2), None);
        assert_eq!(throttle.due("export_failed", start + LOG_INTERVAL / 2), None);
        assert_eq!(throttle.due("batch_dropped", start), Some(0), "another event");
        assert_eq!(throttle.due("export_failed", start + LOG_INTERVAL), Some(2));
        assert_eq!(throttle.due("export_failed", start + LOG_INTERVAL), None);
    }
}
