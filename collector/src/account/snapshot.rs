//! A snapshot of the account: the terms of the accounting invariant, and how each queue is doing.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use probes::{Cause, Direction, Origin};

use crate::{account::drop_reason::DropReason, model::signal::Signal};

pub(crate) const REASONS: usize = DropReason::ALL.len();

/// Resets by reason.
pub type Dropped = [u64; REASONS];

/// Upper bounds of the export duration histogram, seconds (OpenTelemetry's advice for durations).
pub const DURATION_BOUNDS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// How a queue is doing.
#[derive(Clone, Debug, Default)]
pub struct QueueHealth {
    /// Requests by the upper bound of their duration; the last counts those above every bound.
    pub durations: [u64; DURATION_BOUNDS.len() + 1],
    /// Sum of the durations.
    pub duration_sum: Duration,
    /// Requests that were sent again.
    pub retries: u64,
    /// Requests that the backend did not accept.
    pub failed_requests: u64,
    /// Resets accepted after an earlier attempt with an unknown outcome: the backend may have them twice.
    pub resent: u64,
    /// Seconds since 1970 of the last failure.
    pub last_error_unix_s: Option<f64>,
    /// Seconds since 1970 of the last acceptance.
    pub last_success_unix_s: Option<f64>,
    /// The backend does not support this signal: its batches are dropped.
    pub signal_disabled: bool,
    /// What is wrong now, empty where all is well.
    pub degraded: Vec<Degraded>,
    /// Maximum number of queued resets.
    pub capacity: u64,
    /// Bytes on disk.
    pub storage_bytes: u64,
}

/// Why a queue is degraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Degradation {
    /// Requests fail, and none was accepted since.
    ExportFailing,
    /// The backend refuses a signal that it never accepted; it is retried, and the queue holds.
    SignalRefused,
    /// The backend does not support the signal: its batches are dropped.
    SignalDisabled,
    /// The storage directory cannot be written.
    StorageFailing,
}

impl Degradation {
    /// The name that users see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ExportFailing => "export_failing",
            Self::SignalRefused => "signal_refused",
            Self::SignalDisabled => "signal_disabled",
            Self::StorageFailing => "storage_failing",
        }
    }
}

/// A degradation that lasts.
#[derive(Clone, Debug, PartialEq)]
pub struct Degraded {
    /// What it is.
    pub kind: Degradation,
    /// Since when, seconds since 1970.
    pub since_unix_s: f64,
    /// The latest error.
    pub error: String,
}

/// Whether a hook sees its resets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookCoverage {
    /// The hook's kernel name.
    pub hook: &'static str,
    /// It is attached.
    pub active: bool,
    /// Without it the collector is not ready: resets go unseen.
    pub essential: bool,
    /// Why it is not attached, with a remedy; empty when active.
    pub why: String,
    /// Runs that the kernel missed, each of which may have been a reset; of essential hooks.
    pub missed_runs: u64,
}

/// All counters at one instant.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Resets that the kernel counted.
    pub captured: u64,
    /// The same by direction, origin and cause, without zeros.
    pub resets: Vec<(Direction, Origin, Cause, u64)>,
    /// Dropped by the filters.
    pub filtered: u64,
    /// Not chosen by sampling.
    pub sampled_out: u64,
    /// Lost before any queue, by [`DropReason`] number.
    pub dropped_before_queues: Dropped,
    /// In the ring buffer: counted by the kernel, not read yet.
    pub in_ring_buffer: u64,
    /// The queue of each destination and signal.
    pub queues: Vec<QueueSnapshot>,
    /// The hooks.
    pub hooks: Vec<HookCoverage>,
    /// The steps of the hardening, and whether each was done; empty where it is off.
    pub hardening: Vec<(&'static str, bool)>,
    /// How long a request for a heartbeat has been open; `None` before the first heartbeat.
    pub heartbeat_age: Option<Duration>,
    /// When the account was created, seconds since 1970.
    pub started_unix_s: f64,
}

/// A queue's terms at one instant.
#[derive(Clone, Debug)]
pub struct QueueSnapshot {
    /// The destination's name: its endpoint.
    pub destination: Arc<str>,
    /// The signal.
    pub signal: Signal,
    /// Resets of an earlier run: found in storage, or lost there.
    pub recovered: u64,
    /// Accepted by the backend.
    pub exported: u64,
    /// Lost, by [`DropReason`] number, with those lost before the queues.
    pub dropped: Dropped,
    /// Without an outcome: in the ring buffer, in the pipeline, waiting, in flight.
    pub queued: u64,
    /// Of these: in the queue itself.
    pub waiting: u64,
    /// Of these: in a request.
    pub in_flight: u64,
    /// How it is doing.
    pub health: QueueHealth,
}

impl Snapshot {
    /// The reader answers a request for a heartbeat within its next turn; one that is open longer means that it hangs.
    pub const MAX_HEARTBEAT_AGE: Duration = Duration::from_secs(15);

    /// How long the reader has been hanging; `None` while it is not.
    pub fn stuck_for(&self) -> Option<Duration> {
        self.heartbeat_age.filter(|age| *age > Self::MAX_HEARTBEAT_AGE)
    }

    /// What the accounting invariant leaves unexplained for a queue: always 0.
    pub fn imbalance(&self, queue: &QueueSnapshot) -> i128 {
        let sources = i128::from(self.captured) + i128::from(queue.recovered);
        let outcomes = [queue.exported, self.filtered, self.sampled_out, queue.queued];
        let dropped: i128 = queue.dropped.iter().map(|count| i128::from(*count)).sum();
        sources - outcomes.iter().map(|count| i128::from(*count)).sum::<i128>() - dropped
    }
}

impl QueueHealth {
    /// Counts one request that took this long.
    pub(crate) fn request_took(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = DURATION_BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(DURATION_BOUNDS.len());
        self.durations[bucket] += 1;
        self.duration_sum += duration;
    }

    /// Notes a request that was accepted.
    pub(crate) fn request_succeeded(&mut self) {
        self.last_success_unix_s = Some(unix_seconds(SystemTime::now()));
    }

    /// Notes a request that was not accepted.
    pub(crate) fn request_failed(&mut self) {
        self.failed_requests += 1;
        self.last_error_unix_s = Some(unix_seconds(SystemTime::now()));
    }

    /// Notes a degradation with its latest error.
    pub(crate) fn degrade(&mut self, kind: Degradation, error: &str) {
        match self.degraded.iter_mut().find(|degraded| degraded.kind == kind) {
            Some(degraded) => error.clone_into(&mut degraded.error),
            None => {
                let since_unix_s = unix_seconds(SystemTime::now());
                self.degraded.push(Degraded { kind, since_unix_s, error: error.to_owned() });
            }
        }
    }

    /// Ends degradations.
    pub(crate) fn recovered_from(&mut self, kinds: &[Degradation]) {
        self.degraded.retain(|degraded| !kinds.contains(&degraded.kind));
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
