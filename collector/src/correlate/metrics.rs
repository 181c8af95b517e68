//! What became of resets and requests on the way through the correlation, counted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::model::{Trace, TraceMethod};

/// Counts since the start, of resets.
#[derive(Debug, Default)]
pub struct Tally {
    on_span: AtomicU64,
    passed: AtomicU64,
    ambiguous: AtomicU64,
    unmatched: AtomicU64,
    overflow: AtomicU64,
}

/// The counts at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tallied {
    /// The event went onto the application's own span.
    pub on_span: u64,
    /// The trace was found, its span had passed or never came.
    pub passed: u64,
    /// Several spans could be meant.
    pub ambiguous: u64,
    /// Waited, and no span fitted.
    pub unmatched: u64,
    /// Too many waited: went out at once.
    pub overflow: u64,
}

impl Tally {
    /// The counts now.
    pub fn read(&self) -> Tallied {
        Tallied {
            on_span: self.on_span.load(Relaxed),
            passed: self.passed.load(Relaxed),
            ambiguous: self.ambiguous.load(Relaxed),
            unmatched: self.unmatched.load(Relaxed),
            overflow: self.overflow.load(Relaxed),
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

    pub(crate) fn count(&self, trace: Option<&Trace>, resets: usize) {
        let counter = match trace.map(|trace| trace.method) {
            Some(TraceMethod::Ambiguous) => &self.ambiguous,
            Some(_) => &self.passed,
            None => &self.unmatched,
        };
        counter.fetch_add(resets as u64, Relaxed);
    }
}
