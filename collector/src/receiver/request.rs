//! Requests as applications send them: OTLP/gRPC (one framed message) and OTLP/HTTP (protobuf and JSON by POST to
//! `/v1/traces`, `/v1/logs`, `/v1/metrics`). There is no generated service, since the bytes are forwarded unchanged.

use bytes::{Buf, Bytes};
use hyper::{
    HeaderMap, Method, Response, StatusCode,
    header::{self, HeaderValue},
    http::request::Parts,
};
use tonic::Status;

use crate::{
    model::signal::Signal,
    otlp::payload::{Encoding, Format, Payload},
    receiver::response::{self, AnswerBody},
};

/// gRPC's prefix: compressed or not, the message's length.
const PREFIX: usize = 5;

/// The signal that the path of a gRPC request names.
pub(crate) fn grpc_signal(head: &Parts) -> Result<Signal, Status> {
    let path = head.uri.path();
    let signal = Signal::ALL.iter().find(|signal| signal.grpc_path() == path);
    let signal = signal.filter(|_| head.method == Method::POST);
    signal.copied().ok_or_else(|| Status::unimplemented(format!("{path} is not a method of OTLP/gRPC")))
}

/// The single message of a gRPC request's body.
pub(crate) fn grpc_payload(headers: &HeaderMap, chunks: Vec<Bytes>) -> Result<Payload, Status> {
    let mut chunks = chunks;
    let prefix = take_prefix(&mut chunks).ok_or_else(|| Status::invalid_argument("the request has no message"))?;
    let [compressed, length @ ..] = prefix;
    let mut payload = Payload { chunks, encoding: Encoding::Identity, format: Format::Protobuf };
    if u64::from(u32::from_be_bytes(length)) != payload.len() as u64 {
        return Err(Status::invalid_argument("the request is not one whole message"));
    }
    payload.encoding = match (compressed, headers.get("grpc-encoding")) {
        (0, _) => Encoding::Identity,
        (1, Some(name)) => match name.as_bytes() {
            b"gzip" => Encoding::Gzip,
            b"zstd" => Encoding::Zstd,
            b"identity" => return Err(Status::internal("the message is compressed, but grpc-encoding is identity")),
            _ => Encoding::Other(name.clone()),
        },
        (1, None) => return Err(Status::internal("the message is compressed, but grpc-encoding is missing")),
        _ => return Err(Status::internal("the message's first byte is neither 0 nor 1")),
    };
    Ok(payload)
}

/// Takes the first bytes off, wherever the chunks are cut.
fn take_prefix(chunks: &mut [Bytes]) -> Option<[u8; PREFIX]> {
    let mut prefix = [0; PREFIX];
    for byte in &mut prefix {
        *byte = chunks.iter_mut().find(|chunk| !chunk.is_empty())?.get_u8();
    }
    Some(prefix)
}

/// The signal and format of a request, of OTLP/HTTP, or the response to a request that is not OTLP.
pub(crate) fn http_signal_and_format(head: &Parts) -> Result<(Signal, Format), Box<Response<AnswerBody>>> {
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

/// How the body of an OTLP/HTTP request is compressed.
pub(crate) fn http_encoding(headers: &HeaderMap) -> Encoding {
    match headers.get(header::CONTENT_ENCODING) {
        None => Encoding::Identity,
        Some(name) if name.is_empty() || name.as_bytes().eq_ignore_ascii_case(b"identity") => Encoding::Identity,
        Some(name) if name.as_bytes().eq_ignore_ascii_case(b"gzip") => Encoding::Gzip,
        Some(name) if name.as_bytes().eq_ignore_ascii_case(b"zstd") => Encoding::Zstd,
        Some(name) => Encoding::Other(name.clone()),
    }
}
