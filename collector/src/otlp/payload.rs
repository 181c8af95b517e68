//! The body of one OTLP request as an application sent it: kept unchanged, decoded only where its spans are needed.

use std::io::{self, Read};

use bytes::Bytes;
use hyper::header::HeaderValue;

use crate::{
    model::signal::Signal,
    otlp::json::{self, JsonError},
};

/// A request's body, without gRPC's prefix.
#[derive(Clone, Debug)]
pub struct Payload {
    /// The bytes, in the chunks in which they arrived.
    pub chunks: Vec<Bytes>,
    /// How the chunks are compressed.
    pub encoding: Encoding,
    /// The format below the compression.
    pub format: Format,
}

/// How a body is compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Not compressed.
    Identity,
    /// gzip
    Gzip,
    /// zstd
    Zstd,
    /// An encoding that is not decoded here: the body is forwarded, and the backend decides.
    Other(HeaderValue),
}

/// The format of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Protobuf
    Protobuf,
    /// OTLP/JSON
    Json,
}

/// Why a body cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// Larger than the limit once decoded.
    #[error("the request has more than {limit} bytes after decompression (correlation.otlp_receiver.max_request_size)")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// Not what its headers declare.
    #[error("the body is not valid {what}: {source}")]
    Undecodable {
        /// The compression.
        what: &'static str,
        /// The decoder's error.
        source: io::Error,
    },
    /// Not OTLP/JSON.
    #[error("the body is not OTLP/JSON: {0}")]
    Json(#[source] serde_json::Error),
    /// A compression that is not decoded here.
    #[error("unknown content encoding")]
    UnknownEncoding,
}

/// deflate compresses to a 1,032nd at best (zlib, "Maximum Compression Factor").
const GZIP_FACTOR: usize = 1032;
/// zstd's window, log2: 8 MiB, which RFC 8878 recommends to support (section 3.1.1.1.2). A larger one is memory that a
/// few bytes ask for.
const ZSTD_WINDOW_LOG: u32 = 23;
/// Protobuf made of JSON is at most this much larger: `0,` of a list of doubles is 2 bytes, and 8 of protobuf.
const JSON_FACTOR: usize = 4;
const GZIP_BUFFER: usize = 32 << 10;

impl Encoding {
    /// The name that `content-encoding` and `grpc-encoding` carry.
    pub fn name(&self) -> Option<HeaderValue> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some(HeaderValue::from_static("gzip")),
            Self::Zstd => Some(HeaderValue::from_static("zstd")),
            Self::Other(name) => Some(name.clone()),
        }
    }
}

impl Payload {
    /// Length as it arrived, bytes.
    pub fn len(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }

    /// There are no bytes.
    pub fn is_empty(&self) -> bool {
        self.chunks.iter().all(Bytes::is_empty)
    }

    /// The bytes in one piece, decompressed. Never allocates more than `limit` bytes.
    pub fn plain(&self, limit: usize) -> Result<Bytes, PayloadError> {
        match &self.encoding {
            Encoding::Identity if self.len() > limit => Err(PayloadError::TooLarge { limit }),
            Encoding::Identity => Ok(self.concat()),
            Encoding::Gzip => read(self.gzip(), "gzip", self.declared_len().min(self.max_plain_len(limit)), limit),
            Encoding::Zstd => read(self.zstd()?, "zstd", self.declared_len(), limit),
            Encoding::Other(_) => Err(PayloadError::UnknownEncoding),
        }
    }

    /// The bytes that [`Self::plain`] allocates at most.
    pub(crate) fn max_plain_len(&self, limit: usize) -> usize {
        match self.encoding {
            Encoding::Identity | Encoding::Other(_) if self.chunks.len() == 1 => 0,
            Encoding::Identity | Encoding::Other(_) => self.len(),
            Encoding::Gzip => self.len().saturating_mul(GZIP_FACTOR),
            Encoding::Zstd => limit,
        }
        .min(limit)
    }

    /// Fails where the body would be larger than `limit` once decompressed. Nothing is kept, and nothing is decompressed
    /// where the length suffices.
    pub fn check_size(&self, limit: usize) -> Result<(), PayloadError> {
        let size = match &self.encoding {
            Encoding::Identity | Encoding::Other(_) => self.len() as u64,
            Encoding::Gzip if self.len().saturating_mul(GZIP_FACTOR) <= limit => return Ok(()),
            Encoding::Gzip => count(self.gzip(), "gzip", limit)?,
            Encoding::Zstd => count(self.zstd()?, "zstd", limit)?,
        };
        if size > limit as u64 { Err(PayloadError::TooLarge { limit }) } else { Ok(()) }
    }

    /// A request of this signal as uncompressed protobuf in one piece. Neither the text nor the protobuf exceeds `limit`.
    pub fn protobuf(&self, signal: Signal, limit: usize) -> Result<Bytes, PayloadError> {
        let plain = self.plain(limit)?;
        match self.format {
            Format::Protobuf => Ok(plain),
            Format::Json => protobuf_of_json(signal, &plain, limit),
        }
    }

    /// The bytes that [`protobuf_of_json`] allocates at most for a text of this length.
    pub(crate) fn max_protobuf_len(text: usize, limit: usize) -> usize {
        text.saturating_mul(JSON_FACTOR).min(limit)
    }

    fn concat(&self) -> Bytes {
        match self.chunks.as_slice() {
            [one] => one.clone(),
            chunks => chunks.concat().into(),
        }
    }

    /// The length that the compressed body declares, which may be wrong: room to begin with.
    fn declared_len(&self) -> usize {
        let declared = match self.encoding {
            // RFC 1952, section 2.3.1: ISIZE is the last field, the length modulo 2^32.
            Encoding::Gzip => {
                let mut last = [0; 4];
                let bytes = self.chunks.iter().rev().flat_map(|chunk| chunk.iter().rev());
                last.iter_mut().rev().zip(bytes).for_each(|(place, byte)| *place = *byte);
                Some(u64::from(u32::from_le_bytes(last)))
            }
            Encoding::Zstd => {
                let first = self.chunks.iter().find(|chunk| !chunk.is_empty());
                first.and_then(|first| zstd::zstd_safe::get_frame_content_size(first).ok().flatten())
            }
            Encoding::Identity | Encoding::Other(_) => None,
        };
        usize::try_from(declared.unwrap_or(0)).unwrap_or(usize::MAX)
    }

    fn gzip(&self) -> impl Read {
        flate2::bufread::MultiGzDecoder::new(io::BufReader::with_capacity(GZIP_BUFFER, Chunks::of(self)))
    }

    fn zstd(&self) -> Result<impl Read, PayloadError> {
        let failed = |source| PayloadError::Undecodable { what: "zstd", source };
        let mut decoder = zstd::stream::read::Decoder::new(Chunks::of(self)).map_err(failed)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(failed)?;
        Ok(decoder)
    }
}

/// Converts an OTLP/JSON request to protobuf of at most `limit` bytes.
pub fn protobuf_of_json(signal: Signal, text: &[u8], limit: usize) -> Result<Bytes, PayloadError> {
    json::to_protobuf(signal, text, Payload::max_protobuf_len(text.len(), limit)).map(Bytes::from).map_err(|error| {
        match error {
            JsonError::TooLarge => PayloadError::TooLarge { limit },
            JsonError::Syntax(error) => PayloadError::Json(error),
        }
    })
}

/// Reads into one allocation, which starts at the declared length and never exceeds the limit.
fn read(mut decoder: impl Read, what: &'static str, declared: usize, limit: usize) -> Result<Bytes, PayloadError> {
    const STEP: usize = 64 << 10;
    let failed = |source| PayloadError::Undecodable { what, source };
    let mut out = Vec::with_capacity(declared.min(limit));
    loop {
        if out.len() == out.capacity() {
            // Only a byte more than was declared costs another allocation, only one more than the limit an error.
            let mut next = [0];
            if decoder.read(&mut next).map_err(failed)? == 0 {
                return Ok(out.into());
            }
            if out.len() >= limit {
                return Err(PayloadError::TooLarge { limit });
            }
            let more = out.len().max(STEP).min(limit - out.len());
            out.reserve_exact(more);
            out.push(next[0]);
        }
        let room = (out.capacity() - out.len()) as u64;
        if decoder.by_ref().take(room).read_to_end(&mut out).map_err(failed)? as u64 != room {
            out.shrink_to_fit();
            return Ok(out.into());
        }
    }
}

fn count(decoder: impl Read, what: &'static str, limit: usize) -> Result<u64, PayloadError> {
    io::copy(&mut decoder.take(limit as u64 + 1), &mut io::sink())
        .map_err(|source| PayloadError::Undecodable { what, source })
}

/// Reads the chunks one after the other.
struct Chunks<'a> {
    rest: &'a [Bytes],
    at: usize,
}

impl<'a> Chunks<'a> {
    fn of(payload: &'a Payload) -> Self {
        Self { rest: &payload.chunks, at: 0 }
    }
}

impl Read for Chunks<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while let Some((first, rest)) = self.rest.split_first() {
            let left = &first[self.at..];
            if left.is_empty() {
                (self.rest, self.at) = (rest, 0);
                continue;
            }
            let length = left.len().min(out.len());
            out[..length].copy_from_slice(&left[..length]);
            self.at += length;
            return Ok(length);
        }
        Ok(0)
    }
}
