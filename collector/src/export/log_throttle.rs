//! Lines of the log that could come once per request, come once per while.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Between two lines of one kind.
const QUIET: Duration = Duration::from_secs(60);

/// Lets one line through per minute and counts those held back.
#[derive(Debug, Default)]
pub(crate) struct Notice {
    state: Mutex<(Option<Instant>, u64)>,
}

impl Notice {
    /// How many were held back since the last one, when a line is due; `None` when not.
    pub(crate) fn due(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, held_back) = &mut *state;
        if last.is_some_and(|last| now.saturating_duration_since(last) < QUIET) {
            *held_back += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute_that_says_how_many_there_were() {
        let (notice, start) = (Notice::default(), Instant::now());
        assert_eq!(notice.due(start), Some(0));
        assert_eq!(notice.due(start + QUIET / 2), None);
        assert_eq!(notice.due(start + QUIET / 2), None);
        assert_eq!(notice.due(start + QUIET), Some(2));
        assert_eq!(notice.due(start + QUIET), None);
    }
}
