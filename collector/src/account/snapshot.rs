//! What the account says at one instant: the terms of the law, and how each lane is doing.

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

/// How a lane is doing, beside the law.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Requests by the bound of their duration; the last is those above every bound.
    pub durations: [u64; DURATION_BOUNDS.len() + 1],
    /// Sum of the durations.
    pub duration_sum: Duration,
    /// Requests that were sent again.
    pub retries: u64,
    /// Requests that ended without the backend's acceptance.
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
    /// Resets that may wait at most.
    pub capacity: u64,
    /// Bytes on disk.
    pub storage_bytes: u64,
}

/// Why a queue is degraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Degradation {
    /// Requests fail, and none was accepted since.
    ExportFailing,
    /// The backend refuses a signal that it never accepted; it is asked again, and the queue holds.
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
    /// The hook by its kernel name.
    pub hook: &'static str,
    /// It is attached.
    pub active: bool,
    /// Without it the collector is not ready: resets go unseen.
    pub essential: bool,
    /// Why not, and what helps; empty when active.
    pub why: String,
    /// Runs that the kernel passed over, each of which may have been a reset; of hooks that tell of resets.
    pub passed_over: u64,
}

/// All counters at one instant.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Resets that the kernel counted.
    pub captured: u64,
    /// The same by direction, origin and cause; zeros left out.
    pub resets: Vec<(Direction, Origin, Cause, u64)>,
    /// Dropped by the filters' rules.
    pub filtered: u64,
    /// Not chosen by sampling.
    pub sampled_out: u64,
    /// Lost before any destination, by [`DropReason`] number.
    pub dropped_before_lanes: Dropped,
    /// In the ring buffer: counted by the kernel, not read.
    pub in_ring_buffer: u64,
    /// Each destination and signal.
    pub lanes: Vec<LaneSnapshot>,
    /// The hooks.
    pub hooks: Vec<HookCoverage>,
    /// Each step of the hardening by its word, and whether it was done; empty where it is switched off.
    pub hardening: Vec<(&'static str, bool)>,
    /// How long the pipeline has left a question for a sign of life unanswered; `None` before its first sign.
    pub since_beat: Option<Duration>,
    /// When the account was opened, seconds since 1970.
    pub started_unix_s: f64,
}

/// A lane's terms at one instant.
#[derive(Clone, Debug)]
pub struct LaneSnapshot {
    /// The destination's name: its endpoint.
    pub destination: Arc<str>,
    /// The signal.
    pub signal: Signal,
    /// Found in storage at the start, with what storage had lost.
    pub recovered: u64,
    /// Accepted by the backend.
    pub exported: u64,
    /// Lost, by [`DropReason`] number; what was lost before the lanes is in it.
    pub dropped: Dropped,
    /// Without a fate: ring buffer, pipeline, waiting, in flight.
    pub queued: u64,
    /// Of these: in the lane's own queue.
    pub waiting: u64,
    /// Of these: in a request.
    pub in_flight: u64,
    /// How it is doing.
    pub health: Health,
}

impl Snapshot {
    /// Without a sign of life for so long the pipeline is broken; asked, it gives one within its next turn.
    pub const LONGEST_SILENCE: Duration = Duration::from_secs(15);

    /// For how long the pipeline has been broken; `None` while it is not.
    pub fn stuck_for(&self) -> Option<Duration> {
        self.since_beat.filter(|silence| *silence > Self::LONGEST_SILENCE)
    }

    /// What the law leaves unexplained for a lane: always 0.
    pub fn imbalance(&self, lane: &LaneSnapshot) -> i128 {
        let sources = i128::from(self.captured) + i128::from(lane.recovered);
        let fates = [lane.exported, self.filtered, self.sampled_out, lane.queued];
        let dropped: i128 = lane.dropped.iter().map(|count| i128::from(*count)).sum();
        sources - fates.iter().map(|count| i128::from(*count)).sum::<i128>() - dropped
    }
}

impl Health {
    /// Counts one request that took this long.
    pub(crate) fn request_took(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = DURATION_BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(DURATION_BOUNDS.len());
        self.durations[bucket] += 1;
        self.duration_sum += duration;
    }

    /// Notes a request that was not accepted.
    pub(crate) fn request_failed(&mut self) {
        self.failed_requests += 1;
        self.last_error_unix_s = Some(unix_seconds(SystemTime::now()));
    }
}

impl Health {
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
