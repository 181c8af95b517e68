//! The bodies of requests: compressed and framed once, sent as often as needed, never copied into one piece.

use std::{
    collections::VecDeque,
    io::Write,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{BufMut, Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};

use crate::{
    config::settings::{Compression, Protocol},
    model::signal::Signal,
    otlp::payload::Payload,
};

/// gRPC's prefix of a message: compressed or not, its length.
pub(crate) const GRPC_PREFIX: usize = 5;

/// A compressed and framed request, which can be sent more than once.
#[derive(Clone, Debug)]
pub struct PreparedRequest {
    pub(crate) signal: Signal,
    pub(crate) body: ChunkedBody,
    pub(crate) encoding: Option<&'static str>,
}

/// A request's body in chunks, which are never copied into one.
#[derive(Clone, Debug)]
pub(crate) struct ChunkedBody(VecDeque<Bytes>);

impl PreparedRequest {
    pub(crate) fn new(signal: Signal, protocol: Protocol, compression: Compression, message: Bytes) -> Self {
        let (message, encoding) = match compress(compression, &message) {
            Some((compressed, encoding)) => (compressed, Some(encoding)),
            None => (message, None),
        };
        let mut chunks = VecDeque::with_capacity(2);
        if protocol == Protocol::Grpc {
            chunks.push_back(grpc_prefix(encoding.is_some(), message.len()));
        }
        if !message.is_empty() {
            chunks.push_back(message);
        }
        Self { signal, body: ChunkedBody(chunks), encoding }
    }
}

impl ChunkedBody {
    /// The body of a forwarded request.
    pub(crate) fn of_payload(payload: &Payload, protocol: Protocol) -> Self {
        let mut chunks: VecDeque<Bytes> = payload.chunks.iter().filter(|chunk| !chunk.is_empty()).cloned().collect();
        if protocol == Protocol::Grpc {
            chunks.push_front(grpc_prefix(payload.encoding.name().is_some(), payload.len()));
        }
        Self(chunks)
    }
}

/// gRPC's five bytes before a message: compressed or not, its length.
fn grpc_prefix(compressed: bool, length: usize) -> Bytes {
    let mut prefix = BytesMut::with_capacity(GRPC_PREFIX);
    prefix.put_u8(u8::from(compressed));
    // Requests are far smaller than 4 GiB.
    prefix.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    prefix.freeze()
}

/// `None` without compression, and where it fails: then the message goes out as it is.
fn compress(compression: Compression, message: &[u8]) -> Option<(Bytes, &'static str)> {
    // Records repeat themselves: the fast levels lose little and cost a fraction.
    const ZSTD_LEVEL: i32 = 1;
    match compression {
        Compression::None => None,
        Compression::Gzip => {
            let buffer = Vec::with_capacity(message.len() / 4);
            let mut encoder = flate2::write::GzEncoder::new(buffer, flate2::Compression::fast());
            encoder.write_all(message).and_then(|()| encoder.finish()).ok().map(|bytes| (bytes.into(), "gzip"))
        }
        Compression::Zstd => zstd::bulk::compress(message, ZSTD_LEVEL).ok().map(|bytes| (bytes.into(), "zstd")),
    }
}

impl Body for ChunkedBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.pop_front().map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|chunk| chunk.len() as u64).sum())
    }
}
