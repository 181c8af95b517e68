//! Counters of the requests of applications.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::model::signal::Signal;

/// Why a request was answered without a response of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectReason {
    /// Path, method or content type of something else.
    NotOtlp,
    /// Larger than `max_request_size`.
    TooLarge,
    /// Not what its headers declare.
    Malformed,
    /// Its body arrived too slowly, or not at all.
    BrokenOff,
    /// Too many bytes or requests in progress.
    Busy,
    /// The backend cannot be reached, or did not respond in time.
    BackendAway,
}

impl RejectReason {
    /// Every reason.
    pub const ALL: &'static [Self] =
        &[Self::NotOtlp, Self::TooLarge, Self::Malformed, Self::BrokenOff, Self::Busy, Self::BackendAway];

    /// The word that users see.
    pub const fn word(self) -> &'static str {
        match self {
            Self::NotOtlp => "not_otlp",
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::BrokenOff => "broken_off",
            Self::Busy => "busy",
            Self::BackendAway => "backend_away",
        }
    }
}

/// Counts since start-up.
#[derive(Debug, Default)]
pub struct Traffic {
    requests: [AtomicU64; Signal::ALL.len()],
    bytes: [AtomicU64; Signal::ALL.len()],
    refused: [AtomicU64; RejectReason::ALL.len()],
    malformed: AtomicU64,
}

impl Traffic {
    /// Requests that the backend answered, in any way, and their bytes as received.
    pub fn passed(&self, signal: Signal) -> (u64, u64) {
        (self.requests[signal as usize].load(Relaxed), self.bytes[signal as usize].load(Relaxed))
    }

    /// Requests that were answered without the backend.
    pub fn refused(&self, reason: RejectReason) -> u64 {
        self.refused[reason as usize].load(Relaxed)
    }

    /// Trace requests that could not be parsed and were forwarded unchanged.
    pub fn malformed(&self) -> u64 {
        self.malformed.load(Relaxed)
    }

    pub(crate) fn count_passed(&self, signal: Signal, bytes: usize) {
        self.requests[signal as usize].fetch_add(1, Relaxed);
        self.bytes[signal as usize].fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn count_rejected(&self, reason: RejectReason) {
        self.refused[reason as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn count_malformed(&self) {
        self.malformed.fetch_add(1, Relaxed);
    }
}
