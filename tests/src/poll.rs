//! Waiting for a condition.

use std::{
    fmt::Debug,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How much of the last observation an error shows.
const MAX_SHOWN_BYTES: usize = 4096;

/// Observes again and again until a condition holds, and returns that observation.
///
/// # Errors
/// The condition does not hold in time: `what` and the last observation. Or an observation fails.
pub fn eventually<T: Debug>(
    timeout: Duration,
    what: &str,
    mut observe: impl FnMut() -> Result<T>,
    holds: impl Fn(&T) -> bool,
) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        let observed = observe()?;
        if holds(&observed) {
            return Ok(observed);
        }
        if Instant::now() > deadline {
            let mut last = format!("{observed:?}");
            last.truncate(last.floor_char_boundary(MAX_SHOWN_BYTES));
            ensure!(false, "{what}: not within {timeout:?}; last observed {last}");
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
