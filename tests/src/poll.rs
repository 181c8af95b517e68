//! Waiting for what comes when it comes.

use std::time::{Duration, Instant};

use anyhow::Result;

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Looks again and again until what is seen is enough or the time is up; returns what was seen last, enough or not.
///
/// # Errors
/// A look's own.
pub fn look_until<T>(
    patience: Duration,
    mut look: impl FnMut() -> Result<T>,
    is_enough: impl Fn(&T) -> bool,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        let seen = look()?;
        if is_enough(&seen) || Instant::now() > deadline {
            return Ok(seen);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
