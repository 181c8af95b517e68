//! OTLP/gRPC as applications speak it: one message in, framed; no generated service, since the bytes go on as they came.

use bytes::{Buf, Bytes};
use hyper::{HeaderMap, Method, http::request::Parts};
use tonic::Status;

use crate::{
    model::signal::Signal,
    otlp::payload::{Encoding, Format, Payload},
};

/// gRPC's prefix: compressed or not, the message's length.
const PREFIX: usize = 5;

/// The signal that a request's path names.
pub(crate) fn signal(head: &Parts) -> Result<Signal, Status> {
    let path = head.uri.path();
    let signal = Signal::ALL.iter().find(|signal| signal.grpc_path() == path);
    let signal = signal.filter(|_| head.method == Method::POST);
    signal.copied().ok_or_else(|| Status::unimplemented(format!("{path} is not a method of OTLP/gRPC")))
}

/// The one message of a request's body.
pub(crate) fn payload(headers: &HeaderMap, chunks: Vec<Bytes>) -> Result<Payload, Status> {
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
            b"identity" => return Err(Status::internal("the message is compressed, and grpc-encoding says it is not")),
            _ => Encoding::Other(name.clone()),
        },
        (1, None) => return Err(Status::internal("the message is compressed, and grpc-encoding is missing")),
        _ => return Err(Status::internal("the message's first byte is neither 0 nor 1")),
    };
    Ok(payload)
}

/// Takes the first bytes off, wherever they are cut.
fn take_prefix(chunks: &mut [Bytes]) -> Option<[u8; PREFIX]> {
    let mut prefix = [0; PREFIX];
    for byte in &mut prefix {
        *byte = chunks.iter_mut().find(|chunk| !chunk.is_empty())?.get_u8();
    }
    Some(prefix)
}
