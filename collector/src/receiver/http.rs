//! OTLP/HTTP as applications speak it: protobuf and JSON by POST to `/v1/traces`, `/v1/logs`, `/v1/metrics`.

use hyper::{
    HeaderMap, Method, Response, StatusCode,
    header::{self, HeaderValue},
    http::request::Parts,
};

use crate::{
    model::signal::Signal,
    otlp::payload::{Encoding, Format},
    receiver::response::{self, AnswerBody},
};

/// The signal and format of a request, or the answer to one that is no OTLP.
pub(crate) fn signal_and_format(head: &Parts) -> Result<(Signal, Format), Box<Response<AnswerBody>>> {
    let path = head.uri.path();
    let signal = Signal::ALL.iter().find(|signal| signal.http_path() == path);
    let not_found = || response::plain(StatusCode::NOT_FOUND, "OTLP/HTTP is at /v1/traces, /v1/logs and /v1/metrics\n");
    let signal = *signal.ok_or_else(not_found)?;
    if head.method != Method::POST {
        let mut response = response::plain(StatusCode::METHOD_NOT_ALLOWED, "OTLP/HTTP takes POST\n");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return Err(response.into());
    }
    let unsupported = "OTLP/HTTP takes application/x-protobuf and application/json\n";
    let format =
        format(&head.headers).ok_or_else(|| response::plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, unsupported))?;
    Ok((signal, format))
}

/// `None` for a content type that OTLP does not have.
fn format(headers: &HeaderMap) -> Option<Format> {
    let content_type = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    match kind {
        _ if kind.eq_ignore_ascii_case("application/x-protobuf") => Some(Format::Protobuf),
        _ if kind.eq_ignore_ascii_case("application/json") => Some(Format::Json),
        _ => None,
    }
}

/// How the body is compressed.
pub(crate) fn encoding(headers: &HeaderMap) -> Encoding {
    match headers.get(header::CONTENT_ENCODING) {
        None => Encoding::Identity,
        Some(name) if name.is_empty() || name.as_bytes().eq_ignore_ascii_case(b"identity") => Encoding::Identity,
        Some(name) if name.as_bytes().eq_ignore_ascii_case(b"gzip") => Encoding::Gzip,
        Some(name) if name.as_bytes().eq_ignore_ascii_case(b"zstd") => Encoding::Zstd,
        Some(name) => Encoding::Other(name.clone()),
    }
}
