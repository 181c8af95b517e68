//! What became of resets and requests in the correlation, counted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::model::{Trace, TraceMethod};

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Stats {
    on_span: AtomicU64,
    passed: AtomicU64,
    ambiguous: AtomicU64,
    unmatched: AtomicU64,
    overflow: AtomicU64,
    comparisons: AtomicU64,
    incomplete_requests: AtomicU64,
    unattributed_requests: AtomicU64,
}

/// The counts at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatsSnapshot {
    /// Resets whose event went onto the application's own span.
    pub on_span: u64,
    /// Resets whose trace was found, but the span had passed or never came.
    pub passed: u64,
    /// Resets that several spans match equally.
    pub ambiguous: u64,
    /// Resets that waited and matched no span.
    pub unmatched: u64,
    /// Resets that did not wait because too many did.
    pub overflow: u64,
    /// Comparisons of a span with a reset.
    pub comparisons: u64,
    /// Requests of which some spans were not compared, because their comparisons were too many.
    pub incomplete_requests: u64,
    /// Requests over a socket that is on this host and has no process to be attributed to; their spans match nothing.
    pub unattributed_requests: u64,
}

impl Stats {
    /// The counts now.
    pub fn read(&self) -> StatsSnapshot {
        StatsSnapshot {
            on_span: self.on_span.load(Relaxed),
            passed: self.passed.load(Relaxed),
            ambiguous: self.ambiguous.load(Relaxed),
            unmatched: self.unmatched.load(Relaxed),
            overflow: self.overflow.load(Relaxed),
            comparisons: self.comparisons.load(Relaxed),
            incomplete_requests: self.incomplete_requests.load(Relaxed),
            unattributed_requests: self.unattributed_requests.load(Relaxed),
        }
    }

    pub(crate) fn count_on_span(&self, resets: usize) {
        self.on_span.fetch_add(resets as u64, Relaxed);
    }

    pub(crate) fn count_passed(&self, resets: usize) {
        self.passed.fetch_add(resets as u64, Relaxed);
    }

    pub(crate) fn count_overflow(&self) {
        self.overflow.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_comparisons(&self, comparisons: usize) {
        self.comparisons.fetch_add(comparisons as u64, Relaxed);
    }

    pub(crate) fn count_incomplete_request(&self) {
        self.incomplete_requests.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_unattributed_request(&self) {
        self.unattributed_requests.fetch_add(1, Relaxed);
    }

    pub(crate) fn count(&self, trace: Option<&Trace>, resets: usize) {
        let counter = match trace.map(|trace| trace.method) {
            Some(TraceMethod::Ambiguous) => &self.ambiguous,
            Some(_) => &self.passed,
            None => &self.unmatched,
        };
        counter.fetch_add(resets as u64, Relaxed);
    }
}
