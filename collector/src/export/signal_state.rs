//! Whether the backend accepts a signal: when a refused one is retried, and when the signal is disabled.
//!
//! One `404` or `UNIMPLEMENTED` is weak evidence: proxies send it while their backend restarts. A signal that was accepted
//! before is in an outage then, and [`crate::export::retry`] decides. One that was never accepted keeps its queue
//! and is retried with growing pauses; only after many refusals in a row is it disabled. Pure: time is an argument.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// When a signal that the backend refuses is retried, and when it is disabled.
#[derive(Clone, Debug)]
pub struct RefusalPolicy {
    /// Pause after the first refusal; doubles with each one.
    pub first_pause: Duration,
    /// Upper bound of the pause, and the interval at which a disabled signal is probed.
    pub max_pause: Duration,
    /// Limits where the evidence is good: a gRPC `UNIMPLEMENTED` from a backend that accepts another signal.
    pub certain: RefusalLimits,
    /// Limits in every other case.
    pub uncertain: RefusalLimits,
}

/// How many refusals in a row disable a signal. Both bounds must be reached.
#[derive(Clone, Copy, Debug)]
pub struct RefusalLimits {
    /// Refusals in a row.
    pub refusals: u32,
    /// Time from the first to the last.
    pub span: Duration,
}

impl Default for RefusalPolicy {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_secs(1),
            max_pause: Duration::from_secs(300),
            certain: RefusalLimits { refusals: 5, span: Duration::from_secs(10) },
            uncertain: RefusalLimits { refusals: 10, span: Duration::from_secs(300) },
        }
    }
}

/// What a worker may do with a batch now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Permission {
    /// Send it.
    Send,
    /// Keep it and check again after this pause: the backend refused the signal.
    Wait(Duration),
    /// Drop it: the signal is disabled.
    Disabled,
}

/// What a refusal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The backend accepted this signal before: an outage, retried as any other.
    Outage,
    /// Keep the batch; [`SignalState::permission`] gives the next attempt.
    Hold,
    /// The signal is disabled from now on.
    Disabled,
    /// It was disabled already: a probe was refused.
    StillDisabled,
}

/// What an accepted request ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Recovery {
    /// Failed attempts since the last accepted one.
    pub(crate) attempts: u64,
    /// The signal was disabled.
    pub(crate) was_disabled: bool,
}

/// The state of one signal of a destination, shared by its workers.
pub(crate) struct SignalState {
    policy: RefusalPolicy,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    was_accepted: bool,
    failed_attempts: u64,
    refusals: u32,
    /// The first and the last refusal of the current row.
    row: Option<(Instant, Instant)>,
    next_attempt: Option<Instant>,
    pause: Duration,
    disabled: bool,
}

impl SignalState {
    pub(crate) fn new(policy: RefusalPolicy) -> Self {
        Self { policy, state: Mutex::default() }
    }

    /// Whether a request may go out now. After a refusal one worker gets the permission at each attempt's time.
    pub(crate) fn permission(&self, now: Instant) -> Permission {
        let mut state = self.lock();
        match state.next_attempt {
            None => Permission::Send,
            Some(at) if at <= now => {
                state.next_attempt = Some(now + state.pause.max(self.policy.first_pause));
                Permission::Send
            }
            Some(_) if state.disabled => Permission::Disabled,
            Some(at) => Permission::Wait(at - now),
        }
    }

    /// The backend accepted a request.
    pub(crate) fn accepted(&self) -> Recovery {
        let mut state = self.lock();
        let recovery = Recovery { attempts: state.failed_attempts, was_disabled: state.disabled };
        *state = State { was_accepted: true, ..State::default() };
        recovery
    }

    /// An attempt failed, but not because of the signal. Returns the failed attempts since the last accepted one.
    pub(crate) fn failed(&self) -> u64 {
        let mut state = self.lock();
        state.failed_attempts += 1;
        if !state.disabled {
            (state.refusals, state.row, state.next_attempt) = (0, None, None);
        }
        state.failed_attempts
    }

    /// The backend does not know the signal, as it answered a request that was sent at `sent`. `certain`: the evidence
    /// is good ([`RefusalPolicy::certain`]). Also returns the failed attempts since the last accepted one.
    pub(crate) fn refused(&self, sent: Instant, now: Instant, certain: bool) -> (Refusal, u64) {
        let mut state = self.lock();
        state.failed_attempts += 1;
        let attempts = state.failed_attempts;
        if state.was_accepted {
            return (Refusal::Outage, attempts);
        }
        if state.disabled {
            state.next_attempt = Some(now + self.policy.max_pause);
            return (Refusal::StillDisabled, attempts);
        }
        let (first, last) = state.row.unwrap_or((now, now));
        // Requests that were under way together are one refusal.
        if state.refusals > 0 && sent < last {
            return (Refusal::Hold, attempts);
        }
        state.refusals += 1;
        state.row = Some((first, now));
        state.pause = self.pause(state.refusals);
        let limits = if certain { self.policy.certain } else { self.policy.uncertain };
        let span = now.saturating_duration_since(first);
        if state.refusals >= limits.refusals && span >= limits.span {
            state.disabled = true;
            state.pause = self.policy.max_pause;
        }
        state.next_attempt = Some(now + state.pause);
        (if state.disabled { Refusal::Disabled } else { Refusal::Hold }, attempts)
    }

    fn pause(&self, refusals: u32) -> Duration {
        let doubled = 2_u32.saturating_pow(refusals.saturating_sub(1));
        self.policy.first_pause.saturating_mul(doubled).min(self.policy.max_pause)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Refuses until the signal is disabled; the times of the attempts, in seconds from the first.
    fn attempts_until_disabled(certain: bool) -> Vec<u64> {
        let state = SignalState::new(RefusalPolicy::default());
        let start = Instant::now();
        let (mut now, mut times) = (start, Vec::new());
        loop {
            match state.permission(now) {
                Permission::Send => {
                    times.push((now - start).as_secs());
                    match state.refused(now, now, certain).0 {
                        Refusal::Hold => assert!(matches!(state.permission(now), Permission::Wait(_))),
                        other => {
                            assert_eq!(other, Refusal::Disabled);
                            return times;
                        }
                    }
                }
                Permission::Wait(pause) => now += pause,
                Permission::Disabled => panic!("disabled without a refusal"),
            }
        }
    }

    #[test]
    fn the_pauses_grow_until_the_signal_is_disabled() {
        assert_eq!(attempts_until_disabled(true), [0, 1, 3, 7, 15]);
        assert_eq!(attempts_until_disabled(false), [0, 1, 3, 7, 15, 31, 63, 127, 255, 511]);
    }

    #[test]
    fn a_signal_that_was_accepted_once_is_never_disabled() {
        let (state, mut now) = (SignalState::new(RefusalPolicy::default()), Instant::now());
        assert_eq!(state.accepted(), Recovery::default());
        for attempt in 1..=1_000 {
            now += Duration::from_secs(60);
            assert_eq!(state.refused(now, now, true), (Refusal::Outage, attempt));
            assert_eq!(state.permission(now), Permission::Send, "its retries are not held back");
        }
        assert_eq!(state.accepted(), Recovery { attempts: 1_000, was_disabled: false });
    }

    #[test]
    fn requests_that_were_under_way_together_are_one_refusal() {
        let (state, start) = (SignalState::new(RefusalPolicy::default()), Instant::now());
        let answered = start + Duration::from_millis(5);
        for _ in 0..100 {
            assert_eq!(state.refused(start, answered, true).0, Refusal::Hold);
        }
        assert_eq!(state.permission(answered), Permission::Wait(Duration::from_secs(1)));
    }

    #[test]
    fn one_worker_asks_at_a_time() {
        let (state, start) = (SignalState::new(RefusalPolicy::default()), Instant::now());
        state.refused(start, start, false);
        let due = start + Duration::from_secs(1);
        assert_eq!(state.permission(due), Permission::Send);
        assert_eq!(state.permission(due), Permission::Wait(Duration::from_secs(1)), "another one asks already");
        state.accepted();
        assert_eq!(state.permission(due), Permission::Send, "accepted: everyone may send");
    }

    #[test]
    fn another_failure_breaks_the_row() {
        let (state, mut now) = (SignalState::new(RefusalPolicy::default()), Instant::now());
        for _ in 0..100 {
            now += Duration::from_secs(600);
            assert_eq!(state.refused(now, now, true).0, Refusal::Hold);
            state.failed();
            assert_eq!(state.permission(now), Permission::Send);
        }
    }

    #[test]
    fn a_disabled_signal_is_probed_and_comes_back() {
        let (state, mut now) = (SignalState::new(RefusalPolicy::default()), Instant::now());
        while state.refused(now, now, false).0 != Refusal::Disabled {
            now += Duration::from_secs(300);
        }
        assert_eq!(state.permission(now), Permission::Disabled);
        now += Duration::from_secs(300);
        assert_eq!(state.permission(now), Permission::Send, "a probe");
        assert_eq!(state.permission(now), Permission::Disabled, "one probe");
        assert_eq!(state.refused(now, now, false).0, Refusal::StillDisabled);
        assert_eq!(state.permission(now), Permission::Disabled);
        now += Duration::from_secs(300);
        assert_eq!(state.permission(now), Permission::Send);
        assert!(state.accepted().was_disabled);
        assert_eq!(state.permission(now), Permission::Send);
    }
}
