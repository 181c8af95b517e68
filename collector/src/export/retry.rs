//! Whether a request is tried again: the whole table of gRPC codes and HTTP statuses, and the wait between two tries.
//!
//! Pure: time and randomness are arguments. The table is OTLP 1.11's ("Failures" by gRPC and by HTTP).

use std::time::{Duration, SystemTime};

use crate::{account::DropReason, config::settings, otlp::response::Answer};

/// What becomes of a request after a try.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The backend has it, all but `rejected` records; the message is a warning unless empty.
    Accepted {
        /// Records that are lost.
        rejected: u64,
        /// The backend's words.
        message: String,
    },
    /// Try again, not before this wait where the backend names one.
    Retry {
        /// The wait that the backend asked for.
        after: Option<Duration>,
        /// What happened, for the log.
        reason: String,
    },
    /// Never try again.
    Permanent {
        /// How the loss is counted.
        dropped: DropReason,
        /// What happened and what helps, for the log.
        reason: String,
    },
    /// The backend does not take this signal.
    Unsupported {
        /// The backend's words.
        reason: String,
    },
}

/// The longest wait that a server may ask for; more is cut to it.
pub const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(600);

/// Between two tries at least, whatever is configured: never a busy loop.
pub const SHORTEST_WAIT: Duration = Duration::from_millis(10);

/// Judges an answer.
pub fn classify(answer: &Answer, now: SystemTime) -> Verdict {
    let after = answer.retry_after(now).map(|after| after.min(LONGEST_RETRY_AFTER));
    match (&answer.grpc, answer.asked_by_grpc) {
        (Some(status), _) => classify_grpc(answer, status.code, after),
        (None, true) => classify_without_grpc_status(answer),
        (None, false) => classify_http(answer, after),
    }
}

fn classify_grpc(answer: &Answer, code: u32, after: Option<Duration>) -> Verdict {
    let reason = said(grpc_name(code), answer);
    match code {
        0 => accepted(answer),
        // CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS
        1 | 4 | 10 | 11 | 14 | 15 => Verdict::Retry { after, reason },
        // RESOURCE_EXHAUSTED: a server that will recover says when; one that never takes this request does not.
        8 if after.is_some() => Verdict::Retry { after, reason },
        8 => Verdict::Permanent { dropped: DropReason::TooLarge, reason },
        12 => Verdict::Unsupported { reason },
        _ => Verdict::Permanent { dropped: DropReason::NonRetryableError, reason },
    }
}

/// No gRPC status came: something between us and the backend answered, or no gRPC server at all. The retryable
/// statuses are those of gRPC's "HTTP to gRPC Status Code Mapping".
fn classify_without_grpc_status(answer: &Answer) -> Verdict {
    let status = answer.http_status;
    match status {
        429 | 502 | 503 | 504 => Verdict::Retry { after: None, reason: said(&format!("HTTP {status}"), answer) },
        // The stream ended without a status: cut off half-way.
        200 if answer.content_type.as_deref().is_some_and(|kind| kind.starts_with("application/grpc")) => {
            Verdict::Retry { after: None, reason: "the answer ended before its gRPC status".into() }
        }
        _ => Verdict::Permanent {
            dropped: DropReason::NonRetryableError,
            reason: format!(
                "{} instead of a gRPC status: no gRPC server at this endpoint? \
                 set protocol: http/protobuf, or take the backend's gRPC port (4317)",
                said(&format!("HTTP {status}"), answer)
            ),
        },
    }
}

fn classify_http(answer: &Answer, after: Option<Duration>) -> Verdict {
    let status = answer.http_status;
    let reason = said(&format!("HTTP {status}"), answer);
    match status {
        200..300 if answer.is_web_page() => Verdict::Permanent {
            dropped: DropReason::NonRetryableError,
            reason: format!(
                "HTTP {status} with a web page: no OTLP receiver at this endpoint, check its port and path"
            ),
        },
        200..300 => accepted(answer),
        429 | 502..=504 => Verdict::Retry { after, reason },
        300..400 => Verdict::Permanent {
            dropped: DropReason::NonRetryableError,
            reason: format!(
                "HTTP {status}, a redirect to {}: redirects are not followed, set the endpoint to where it leads",
                answer.location.as_deref().unwrap_or("nowhere")
            ),
        },
        404 | 405 | 501 => Verdict::Unsupported { reason },
        413 => Verdict::Permanent { dropped: DropReason::TooLarge, reason },
        _ => Verdict::Permanent { dropped: DropReason::NonRetryableError, reason },
    }
}

fn accepted(answer: &Answer) -> Verdict {
    match answer.partial_success() {
        Some(partial) => Verdict::Accepted { rejected: partial.rejected, message: partial.message },
        None => Verdict::Accepted { rejected: 0, message: "accepted with an answer that is no OTLP response".into() },
    }
}

fn said(status: &str, answer: &Answer) -> String {
    match answer.explanation() {
        words if words.is_empty() => status.into(),
        words => format!("{status}: {words}"),
    }
}

/// The name of a gRPC code.
pub fn grpc_name(code: u32) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    NAMES.get(code as usize).copied().unwrap_or("a gRPC status outside of the list")
}

/// The waits of one request, growing from try to try.
#[derive(Clone, Debug)]
pub struct Backoff {
    interval: Duration,
    settings: settings::Retry,
}

impl Backoff {
    /// Before the first try.
    pub fn new(settings: &settings::Retry) -> Self {
        Self { interval: settings.initial_interval, settings: settings.clone() }
    }

    /// The wait before the next try, or `None` to give up. `elapsed` is the time since the first try, `after` what the
    /// server asked for, `random` from 0 to 1: the wait is the interval plus or minus half of it, as the Collector's.
    pub fn next(&mut self, elapsed: Duration, after: Option<Duration>, random: f64) -> Option<Duration> {
        if !self.settings.enabled {
            return None;
        }
        let wait =
            self.interval.mul_f64(0.5 + random.clamp(0.0, 1.0)).max(after.unwrap_or_default()).max(SHORTEST_WAIT);
        self.interval = self.settings.max_interval.min(self.interval.mul_f64(self.settings.multiplier.max(1.0)));
        let longest = self.settings.max_elapsed_time;
        (longest.is_zero() || elapsed + wait <= longest).then_some(wait)
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
