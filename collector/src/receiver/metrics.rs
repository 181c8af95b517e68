//! What passes through the receivers, counted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::model::signal::Signal;

/// Why a request did not reach the backend, or came back without its answer. The application was told in each case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Path, method or content type of something else.
    NotOtlp,
    /// Larger than `max_request_bytes`.
    TooLarge,
    /// Not what its headers say.
    Malformed,
    /// Its body came too slowly, or not at all.
    BrokenOff,
    /// Too many bytes under way.
    Busy,
    /// The backend was not there.
    BackendAway,
}

impl Refused {
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

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Traffic {
    requests: [AtomicU64; Signal::ALL.len()],
    bytes: [AtomicU64; Signal::ALL.len()],
    refused: [AtomicU64; Refused::ALL.len()],
    malformed: AtomicU64,
}

impl Traffic {
    /// Requests that the backend answered, whatever it said, and their bytes as they came.
    pub fn passed(&self, signal: Signal) -> (u64, u64) {
        (self.requests[signal as usize].load(Relaxed), self.bytes[signal as usize].load(Relaxed))
    }

    /// Requests that got an answer of ours.
    pub fn refused(&self, why: Refused) -> u64 {
        self.refused[why as usize].load(Relaxed)
    }

    /// Trace requests that could not be read and went on as they came.
    pub fn malformed(&self) -> u64 {
        self.malformed.load(Relaxed)
    }

    pub(crate) fn count_passed(&self, signal: Signal, bytes: usize) {
        self.requests[signal as usize].fetch_add(1, Relaxed);
        self.bytes[signal as usize].fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn count_refused(&self, why: Refused) {
        self.refused[why as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn count_malformed(&self) {
        self.malformed.fetch_add(1, Relaxed);
    }
}
