//! How a span failed, by its status, its last exception and its attributes, in the words of the SDKs' errors.

use std::net::SocketAddr;

use crate::{
    model::Endpoint,
    otlp::splice::{Malformed, Span, Value, event_attributes},
};

/// How a span failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Failure {
    /// It did not.
    #[default]
    None,
    /// By the answer of the other end, which so was whole: an HTTP status.
    ErrorResponse,
    /// The connection was refused.
    Refused,
    /// The connection was reset.
    Reset,
    /// The connection broke, or ended too soon.
    ConnectionLost,
    /// It was cancelled or ran out of time.
    Cancelled,
    /// In a way that does not tell.
    Other,
}

/// The attributes that tell how a call went.
#[derive(Default)]
pub(crate) struct Outcome<'a> {
    http_status: Option<i64>,
    grpc_status: Option<GrpcStatus>,
    error_type: Option<&'a [u8]>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum GrpcStatus {
    Ok,
    Cancelled,
    DeadlineExceeded,
    Unavailable,
    Other,
}

impl<'a> Outcome<'a> {
    pub(crate) fn take(&mut self, key: &[u8], value: Value<'a>) {
        match (key, value) {
            (b"http.response.status_code" | b"http.status_code", Value::Integer(code)) => self.http_status = Some(code),
            (b"rpc.grpc.status_code", Value::Integer(code)) => self.grpc_status = Some(GrpcStatus::from_code(code)),
            (b"rpc.response.status_code", Value::Text(word)) => self.grpc_status = Some(GrpcStatus::from_word(word)),
            (b"error.type", Value::Text(text)) => self.error_type = Some(text),
            _ => {}
        }
    }
}

impl GrpcStatus {
    const fn from_code(code: i64) -> Self {
        match code {
            0 => Self::Ok,
            1 => Self::Cancelled,
            4 => Self::DeadlineExceeded,
            14 => Self::Unavailable,
            _ => Self::Other,
        }
    }

    fn from_word(word: &[u8]) -> Self {
        match word {
            b"OK" => Self::Ok,
            b"CANCELLED" => Self::Cancelled,
            b"DEADLINE_EXCEEDED" => Self::DeadlineExceeded,
            b"UNAVAILABLE" => Self::Unavailable,
            _ => Self::Other,
        }
    }
}

/// How the span failed, and both ends of the connection where its error's text names them, the span's own first.
pub(crate) fn read(
    span: &Span<'_>,
    outcome: &Outcome<'_>,
) -> Result<(Failure, Option<(Endpoint, Endpoint)>), Malformed> {
    const ERROR: u64 = 2;
    let (code, status_message) = span.status()?;
    let (mut exception_message, mut exception_type): (&[u8], &[u8]) = (b"", b"");
    let exception = span.last_event(b"exception")?;
    if let Some(event) = exception {
        event_attributes(event, |key, value| match (key, value) {
            (b"exception.message", Value::Text(text)) => exception_message = text,
            (b"exception.type", Value::Text(text)) => exception_type = text,
            _ => {}
        })?;
    }
    let numeric = |text: &&[u8]| text.iter().all(u8::is_ascii_digit);
    let error_type = outcome.error_type.filter(|text| !numeric(text)).unwrap_or_default();
    let texts = [status_message, exception_message, exception_type, error_type].map(first_part);
    let failed = code == ERROR || exception.is_some() || outcome.error_type.is_some();
    let failure = match by_grpc_status(outcome.grpc_status) {
        Some(failure) => by_words(&texts).unwrap_or(failure),
        None if !failed => Failure::None,
        None => by_words(&texts).unwrap_or(match outcome.http_status {
            Some(400..) => Failure::ErrorResponse,
            _ => Failure::Other,
        }),
    };
    let connection = if failed { texts.iter().find_map(|text| connection_named(text)) } else { None };
    Ok((failure, connection))
}

const fn by_grpc_status(status: Option<GrpcStatus>) -> Option<Failure> {
    Some(match status {
        Some(GrpcStatus::Cancelled | GrpcStatus::DeadlineExceeded) => Failure::Cancelled,
        Some(GrpcStatus::Unavailable) => Failure::ConnectionLost,
        Some(GrpcStatus::Other) => Failure::ErrorResponse,
        Some(GrpcStatus::Ok) | None => return None,
    })
}

/// The words that errors of Go, Node, Python, Java and .NET have in them; the first that is found decides.
const WORDS: &[(&[u8], Failure)] = &[
    // A proxy's answer about its own connection: Envoy's "upstream connect error … reset reason: connection reset".
    (b"upstream", Failure::ErrorResponse),
    (b"refused", Failure::Refused),
    // Node's "socket hang up" has the code ECONNRESET and tells of no reset: the stream ended, or the application
    // destroyed its request. A reset is "read ECONNRESET".
    (b"hang up", Failure::ConnectionLost),
    (b"connection reset", Failure::Reset),
    (b"connectionreset", Failure::Reset),
    (b"econnreset", Failure::Reset),
    (b"timed out", Failure::Cancelled),
    (b"timeout", Failure::Cancelled),
    (b"deadline", Failure::Cancelled),
    (b"cancel", Failure::Cancelled),
    (b"operation was aborted", Failure::Cancelled),
    (b"broken pipe", Failure::Reset),
    (b"epipe", Failure::Reset),
    (b"aborted", Failure::ConnectionLost),
    (b"closed", Failure::ConnectionLost),
    (b"disconnect", Failure::ConnectionLost),
    (b"terminated", Failure::ConnectionLost),
    (b"eof", Failure::ConnectionLost),
    // httpx on asyncio says no more; the end of a stream is a RemoteProtocolError there.
    (b"httpx.readerror", Failure::Reset),
    (b"httpx.writeerror", Failure::Reset),
];

fn by_words(texts: &[&[u8]]) -> Option<Failure> {
    let found = WORDS.iter().find(|(word, _)| texts.iter().any(|text| contains(text, word)));
    found.map(|(_, failure)| *failure)
}

/// Case does not matter; the word is in lower case.
fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window.eq_ignore_ascii_case(word))
}

/// Errors say what they have to say at once; a megabyte of text is not searched.
fn first_part(text: &[u8]) -> &[u8] {
    const MAX_SEARCHED: usize = 2048;
    &text[..text.len().min(MAX_SEARCHED)]
}

/// Go's `read tcp 127.0.0.1:43210->127.0.0.1:8080: read: connection reset by peer`.
fn connection_named(text: &[u8]) -> Option<(Endpoint, Endpoint)> {
    let endpoint = |text: &[u8]| -> Option<Endpoint> {
        let text = std::str::from_utf8(text).ok()?;
        text.parse::<SocketAddr>().ok().map(Endpoint::from)
    };
    text.split(|byte| byte.is_ascii_whitespace()).find_map(|word| {
        let arrow = word.windows(2).position(|pair| pair == b"->")?;
        let peer = word[arrow + 2..].strip_suffix(b":").unwrap_or(&word[arrow + 2..]);
        Some((endpoint(&word[..arrow])?, endpoint(peer)?))
    })
}
