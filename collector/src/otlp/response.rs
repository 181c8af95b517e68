//! A backend's answer as it came, by gRPC or HTTP alike, and what can be read out of it.
//!
//! Judges nothing ([`crate::export::retry`] does).

use std::time::{Duration, SystemTime};

use base64::{Engine, alphabet, engine};
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use prost::Message;

/// Bytes of an answer that are kept; what comes beyond is read and forgotten.
pub const BODY_LIMIT: usize = 64 << 10;

/// What a backend answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The HTTP status, of a gRPC answer as well.
    pub http_status: u16,
    /// The gRPC status, when the answer has one; by HTTP never.
    pub grpc: Option<GrpcStatus>,
    /// The request went by gRPC.
    pub asked_by_grpc: bool,
    /// The HTTP body, or the first gRPC message; at most [`BODY_LIMIT`] bytes.
    pub body: Bytes,
    /// Whether the body was longer than what is kept.
    pub truncated: bool,
    /// `Content-Type`
    pub content_type: Option<String>,
    /// `Retry-After`
    pub retry_after: Option<String>,
    /// `Location`
    pub location: Option<String>,
}

/// A gRPC status as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrpcStatus {
    /// `grpc-status`; a number outside of the list is kept.
    pub code: u32,
    /// `grpc-message`, decoded.
    pub message: String,
    /// `grpc-status-details-bin`, decoded: a `google.rpc.Status`.
    pub details: Bytes,
}

/// What a response says of a request that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartialSuccess {
    /// Records that the backend rejected.
    pub rejected: u64,
    /// Why, or a warning where none is.
    pub message: String,
}

/// Accepts what gRPC implementations send: with padding or without.
const BASE64: engine::GeneralPurpose = engine::GeneralPurpose::new(
    &alphabet::STANDARD,
    engine::GeneralPurposeConfig::new().with_decode_padding_mode(engine::DecodePaddingMode::Indifferent),
);

impl Answer {
    /// The backend took the request, perhaps not all of it.
    pub fn is_acceptance(&self) -> bool {
        match &self.grpc {
            Some(status) => status.code == 0,
            None => !self.asked_by_grpc && (200..300).contains(&self.http_status),
        }
    }

    /// The partial success in the body, `None` when the body is no OTLP response. An empty body is a full success.
    pub fn partial_success(&self) -> Option<PartialSuccess> {
        if !self.asked_by_grpc && self.is_json() {
            return json_partial_success(&self.body);
        }
        // The responses of all signals have the same shape on the wire: field 1 { rejected = 1, error_message = 2 }.
        let response = ExportLogsServiceResponse::decode(self.body.clone()).ok()?;
        let partial = response.partial_success.unwrap_or_default();
        Some(PartialSuccess {
            rejected: u64::try_from(partial.rejected_log_records).unwrap_or(0),
            message: partial.error_message,
        })
    }

    /// The wait that the server asks for: gRPC's RetryInfo, or HTTP's Retry-After in seconds or as a date.
    pub fn retry_after(&self, now: SystemTime) -> Option<Duration> {
        match &self.grpc {
            Some(status) => status.retry_delay(),
            None => {
                let value = self.retry_after.as_deref()?.trim();
                if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
                }
                let date = httpdate::parse_http_date(value).ok()?;
                Some(date.duration_since(now).unwrap_or_default())
            }
        }
    }

    /// What the server says in words, short enough for one line of a log.
    pub fn explanation(&self) -> String {
        let text = match &self.grpc {
            Some(status) => status.message.clone(),
            None if self.is_protobuf() => {
                tonic_types::pb::Status::decode(self.body.clone()).map(|status| status.message).unwrap_or_default()
            }
            None => String::from_utf8_lossy(&self.body).into_owned(),
        };
        one_line(&text)
    }

    pub(crate) fn is_web_page(&self) -> bool {
        self.content_type.as_deref().is_some_and(|kind| kind.starts_with("text/html"))
    }

    fn is_protobuf(&self) -> bool {
        self.content_type.as_deref().is_some_and(|kind| kind.starts_with("application/x-protobuf"))
    }

    fn is_json(&self) -> bool {
        self.content_type.as_deref().is_some_and(|kind| kind.starts_with("application/json"))
    }
}

impl GrpcStatus {
    /// Reads the three fields of a gRPC trailer; `None` without a status.
    pub(crate) fn from_headers(headers: &hyper::HeaderMap) -> Option<Self> {
        // RFC-less but written down: a status that is no number is UNKNOWN (gRPC, PROTOCOL-HTTP2).
        const UNKNOWN: u32 = 2;
        let code = headers.get("grpc-status")?;
        let code = code.to_str().ok().and_then(|code| code.parse().ok()).unwrap_or(UNKNOWN);
        let message = headers.get("grpc-message").map_or(&[][..], |value| value.as_bytes());
        let details = headers.get("grpc-status-details-bin").and_then(|value| BASE64.decode(value.as_bytes()).ok());
        Some(Self {
            code,
            message: percent_encoding::percent_decode(message).decode_utf8_lossy().into_owned(),
            details: details.unwrap_or_default().into(),
        })
    }

    /// The delay of a `google.rpc.RetryInfo` among the details.
    pub fn retry_delay(&self) -> Option<Duration> {
        let details = tonic_types::pb::Status::decode(self.details.clone()).ok()?.details;
        let info = details.iter().find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
        let delay = tonic_types::pb::RetryInfo::decode(info.value.as_slice()).ok()?.retry_delay.unwrap_or_default();
        Some(Duration::try_from(delay).unwrap_or_default())
    }
}

fn json_partial_success(body: &[u8]) -> Option<PartialSuccess> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let partial = value.get("partialSuccess");
    let rejected = ["rejectedLogRecords", "rejectedSpans", "rejectedDataPoints"]
        .iter()
        .find_map(|name| partial?.get(name))
        // protobuf's JSON writes 64-bit numbers as text.
        .and_then(|count| count.as_u64().or_else(|| count.as_str()?.parse().ok()))
        .unwrap_or(0);
    let message = partial.and_then(|partial| partial.get("errorMessage")).and_then(|text| text.as_str());
    Some(PartialSuccess { rejected, message: message.unwrap_or_default().into() })
}

/// The first words of a foreign text, on one line, without control characters.
pub(crate) fn one_line(text: &str) -> String {
    const MAX_CHARS: usize = 240;
    let words = text.split(|char: char| char.is_whitespace() || char.is_control()).filter(|word| !word.is_empty());
    let mut line = String::new();
    let mut left = MAX_CHARS;
    for word in words {
        if !line.is_empty() {
            line.push(' ');
        }
        let mut chars = word.chars();
        line.extend(chars.by_ref().take(left));
        left = left.saturating_sub(1 + word.chars().count());
        if left == 0 {
            line.push('…');
            break;
        }
    }
    line
}
