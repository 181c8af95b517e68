//! Whether a request is retried: the table of gRPC codes and HTTP statuses, and the backoff.
//!
//! Pure: time and randomness are arguments. The table is OTLP 1.11's ("Failures" of gRPC and of HTTP).

use std::time::{Duration, SystemTime};

use crate::{
    account::DropReason,
    config::settings,
    model::signal::Signal,
    otlp::response::{Answer, one_line},
};

/// What a response means for its request.
#[derive(Clone, Debug, PartialEq)]
pub enum RetryDecision {
    /// The backend has accepted it, except `rejected` records; a message that is not empty is a warning.
    Accepted {
        /// Lost records.
        rejected: u64,
        /// The backend's message, on one line.
        message: String,
    },
    /// Retry.
    Retry {
        /// The pause that the backend asks for, clamped to [`MAX_RETRY_AFTER`].
        after: Option<Duration>,
        /// What happened, for the log.
        reason: String,
    },
    /// Never retry.
    NonRetryable {
        /// How the loss is counted.
        dropped: DropReason,
        /// What happened, with a remedy, for the log.
        reason: String,
    },
    /// The backend, or a proxy before it, does not know the signal ([`crate::export::signal_state`]).
    Unsupported {
        /// A gRPC server answered `UNIMPLEMENTED`; else an HTTP status, as proxies send too.
        certain: bool,
        /// What happened, for the log.
        reason: String,
    },
}

/// Upper bound of the pause that a server asks for.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// Lower bound of the pause between two attempts, whatever is configured.
pub const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// Decides by the response.
pub fn classify(answer: &Answer, now: SystemTime) -> RetryDecision {
    let after = answer.retry_after(now).map(|after| after.min(MAX_RETRY_AFTER));
    match (&answer.grpc, answer.asked_by_grpc) {
        (Some(status), _) => classify_grpc(answer, status.code, after),
        (None, true) => classify_without_grpc_status(answer),
        (None, false) => classify_http(answer, after),
    }
}

fn classify_grpc(answer: &Answer, code: u32, after: Option<Duration>) -> RetryDecision {
    let reason = with_explanation(grpc_name(code), answer);
    match code {
        0 => accepted(answer),
        // CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS
        1 | 4 | 10 | 11 | 14 | 15 => RetryDecision::Retry { after, reason },
        // RESOURCE_EXHAUSTED: retryable only with a RetryInfo (OTLP 1.11).
        8 if after.is_some() => RetryDecision::Retry { after, reason },
        8 => RetryDecision::NonRetryable { dropped: DropReason::TooLarge, reason },
        12 => RetryDecision::Unsupported { certain: true, reason },
        _ => RetryDecision::NonRetryable { dropped: DropReason::NonRetryableError, reason },
    }
}

/// No gRPC status came: something between us and the backend answered, or no gRPC server at all. The retryable
/// statuses are those of gRPC's "HTTP to gRPC Status Code Mapping".
fn classify_without_grpc_status(answer: &Answer) -> RetryDecision {
    let status = answer.http_status;
    match status {
        429 | 502 | 503 | 504 => {
            RetryDecision::Retry { after: None, reason: with_explanation(&format!("HTTP {status}"), answer) }
        }
        // The stream ended without a status: cut off half-way.
        200 if answer.content_type.as_deref().is_some_and(|kind| kind.starts_with("application/grpc")) => {
            RetryDecision::Retry { after: None, reason: "the answer ended before its gRPC status".into() }
        }
        404 | 405 | 501 => RetryDecision::Unsupported { certain: false, reason: without_grpc_status(answer) },
        _ => {
            RetryDecision::NonRetryable { dropped: DropReason::NonRetryableError, reason: without_grpc_status(answer) }
        }
    }
}

fn without_grpc_status(answer: &Answer) -> String {
    let status = with_explanation(&format!("HTTP {}", answer.http_status), answer);
    format!(
        "{status} instead of a gRPC status: no gRPC server at this endpoint? \
         set protocol: http/protobuf, or take the backend's gRPC port (4317)"
    )
}

fn classify_http(answer: &Answer, after: Option<Duration>) -> RetryDecision {
    let status = answer.http_status;
    let reason = with_explanation(&format!("HTTP {status}"), answer);
    match status {
        200..300 if answer.is_web_page() => RetryDecision::NonRetryable {
            dropped: DropReason::NonRetryableError,
            reason: format!(
                "HTTP {status} with a web page: no OTLP receiver at this endpoint, check its port and path"
            ),
        },
        200..300 => accepted(answer),
        429 | 502..=504 => RetryDecision::Retry { after, reason },
        300..400 => RetryDecision::NonRetryable {
            dropped: DropReason::NonRetryableError,
            reason: format!(
                "HTTP {status}, a redirect to {}: redirects are not followed, set the endpoint to where it leads",
                answer.location.as_deref().unwrap_or("nowhere")
            ),
        },
        404 | 405 | 501 => RetryDecision::Unsupported { certain: false, reason },
        413 => RetryDecision::NonRetryable { dropped: DropReason::TooLarge, reason },
        _ => RetryDecision::NonRetryable { dropped: DropReason::NonRetryableError, reason },
    }
}

fn accepted(answer: &Answer) -> RetryDecision {
    match answer.partial_success() {
        Some(partial) => RetryDecision::Accepted { rejected: partial.rejected, message: one_line(&partial.message) },
        None => RetryDecision::Accepted { rejected: 0, message: "the response is not an OTLP response".into() },
    }
}

fn with_explanation(status: &str, answer: &Answer) -> String {
    match answer.explanation() {
        words if words.is_empty() => status.into(),
        words => format!("{status}: {words}"),
    }
}

/// What helps against a 404 where the endpoint is configured with a signal's path.
pub fn base_url_hint(endpoint: &str, signal: Signal) -> Option<String> {
    let endpoint = endpoint.trim_end_matches('/');
    let path = Signal::ALL.iter().map(|signal| signal.http_path()).find(|path| endpoint.ends_with(path))?;
    Some(format!(
        "; export.otlp.endpoint must be the base URL, {} is appended to it: remove {path} from the endpoint",
        signal.http_path()
    ))
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

/// The pauses between the attempts of one request.
#[derive(Clone, Debug)]
pub struct Backoff {
    interval: Duration,
    settings: settings::Retry,
    is_last: bool,
}

impl Backoff {
    /// Before the first attempt.
    pub fn new(settings: &settings::Retry) -> Self {
        Self { interval: settings.initial_interval, settings: settings.clone(), is_last: false }
    }

    /// The pause before the next attempt, or `None` to give up. `elapsed` is the time since the first attempt, `after`
    /// the pause that the server asks for, `random` from 0 to 1: the pause is the interval plus or minus half of it, as
    /// the Collector's. A pause that would end after `max_elapsed_time` is cut: the last attempt is at its end.
    pub fn next(&mut self, elapsed: Duration, after: Option<Duration>, random: f64) -> Option<Duration> {
        let max_elapsed = self.settings.max_elapsed_time;
        let left = if max_elapsed.is_zero() { Duration::MAX } else { max_elapsed.saturating_sub(elapsed) };
        if !self.settings.enabled || self.is_last || left.is_zero() {
            return None;
        }
        let jittered = self.interval.mul_f64(0.5 + random.clamp(0.0, 1.0));
        let pause = jittered.max(after.unwrap_or_default().min(MAX_RETRY_AFTER)).max(MIN_INTERVAL);
        let grown = self.interval.as_secs_f64() * self.settings.multiplier.max(1.0);
        let grown = Duration::try_from_secs_f64(grown).unwrap_or(Duration::MAX);
        self.interval = self.settings.max_interval.min(grown);
        self.is_last = pause >= left;
        Some(pause.min(left))
    }
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
