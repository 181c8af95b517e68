//! The body of one OTLP request as an application sent it: kept as it came, opened only where it must be looked at.

use std::io::{self, Read};

use bytes::Bytes;
use hyper::header::HeaderValue;
use opentelemetry_proto::tonic::collector::{
    logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest,
};
use prost::Message;

use crate::model::signal::Signal;

/// A request's body, without gRPC's prefix.
#[derive(Clone, Debug)]
pub struct Payload {
    /// The bytes, in the pieces in which they came.
    pub chunks: Vec<Bytes>,
    /// How they are compressed.
    pub coding: Coding,
    /// What they are once they are not.
    pub format: Format,
}

/// How a body is compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Coding {
    /// Not at all.
    Identity,
    /// gzip
    Gzip,
    /// zstd
    Zstd,
    /// One that is not read here: it goes on, and the backend says what it thinks of it.
    Other(HeaderValue),
}

/// What a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Protobuf
    Protobuf,
    /// OTLP/JSON
    Json,
}

/// Why a body cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// More bytes than `max_request_bytes` once decompressed.
    #[error("the request has more than {limit} bytes after decompression (correlation.max_request_bytes)")]
    TooLarge {
        /// `max_request_bytes`
        limit: usize,
    },
    /// Not what its headers say.
    #[error("the body is not valid {what}: {source}")]
    Undecodable {
        /// The compression.
        what: &'static str,
        /// What the decoder says.
        source: io::Error,
    },
    /// Not OTLP/JSON.
    #[error("the body is not OTLP/JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A compression that is not read here.
    #[error("the compression is not known here")]
    UnknownCoding,
}

/// deflate makes 1 byte out of 1,032 at best (zlib, "Maximum Compression Factor").
const GZIP_FACTOR: usize = 1032;
/// zstd's window, log2: 32 MiB is what encoders use at their best levels; a larger one is memory for nothing.
const ZSTD_WINDOW_LOG: u32 = 25;

impl Payload {
    /// Length as it came, bytes.
    pub fn len(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }

    /// Nothing came.
    pub fn is_empty(&self) -> bool {
        self.chunks.iter().all(Bytes::is_empty)
    }

    /// The bytes in one piece, decompressed to `limit` at most.
    pub fn plain(&self, limit: usize) -> Result<Bytes, PayloadError> {
        match &self.coding {
            Coding::Identity if self.len() > limit => Err(PayloadError::TooLarge { limit }),
            Coding::Identity => Ok(self.joined()),
            Coding::Gzip => read(self.gzip(), "gzip", limit),
            Coding::Zstd => read(self.zstd()?, "zstd", limit),
            Coding::Other(_) => Err(PayloadError::UnknownCoding),
        }
    }

    /// What [`Self::plain`] may come to, bytes.
    pub(crate) fn most_plain_bytes(&self, limit: usize) -> usize {
        match self.coding {
            Coding::Identity | Coding::Other(_) => self.len(),
            Coding::Gzip => self.len().saturating_mul(GZIP_FACTOR),
            Coding::Zstd => limit,
        }
        .min(limit)
    }

    /// Fails where the body would be larger than `limit` once decompressed, as far as possible without decompressing:
    /// nothing is kept.
    pub fn check_size(&self, limit: usize) -> Result<(), PayloadError> {
        let too_large = || PayloadError::TooLarge { limit };
        let size = match &self.coding {
            Coding::Identity | Coding::Other(_) => self.len() as u64,
            Coding::Gzip if self.len().saturating_mul(GZIP_FACTOR) <= limit => return Ok(()),
            Coding::Gzip => count(self.gzip(), "gzip", limit)?,
            Coding::Zstd => count(self.zstd()?, "zstd", limit)?,
        };
        if size > limit as u64 { Err(too_large()) } else { Ok(()) }
    }

    /// A request of this signal as protobuf, with one piece, not compressed: what a gRPC backend takes.
    pub fn protobuf(&self, signal: Signal, limit: usize) -> Result<Bytes, PayloadError> {
        let plain = self.plain(limit)?;
        match self.format {
            Format::Protobuf => Ok(plain),
            Format::Json => protobuf_of_json(signal, &plain),
        }
    }

    fn joined(&self) -> Bytes {
        match self.chunks.as_slice() {
            [one] => one.clone(),
            chunks => chunks.concat().into(),
        }
    }

    fn gzip(&self) -> impl Read {
        flate2::bufread::MultiGzDecoder::new(io::BufReader::with_capacity(GZIP_INPUT, Chunks::of(self)))
    }

    fn zstd(&self) -> Result<impl Read, PayloadError> {
        let failed = |source| PayloadError::Undecodable { what: "zstd", source };
        let mut decoder = zstd::stream::read::Decoder::new(Chunks::of(self)).map_err(failed)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(failed)?;
        Ok(decoder)
    }
}

const GZIP_INPUT: usize = 32 << 10;

fn protobuf_of_json(signal: Signal, json: &[u8]) -> Result<Bytes, PayloadError> {
    let encoded = match signal {
        Signal::Logs => serde_json::from_slice::<ExportLogsServiceRequest>(json)?.encode_to_vec(),
        Signal::Traces => serde_json::from_slice::<ExportTraceServiceRequest>(json)?.encode_to_vec(),
        Signal::Metrics => serde_json::from_slice::<ExportMetricsServiceRequest>(json)?.encode_to_vec(),
    };
    Ok(encoded.into())
}

fn read(decoder: impl Read, what: &'static str, limit: usize) -> Result<Bytes, PayloadError> {
    let mut out = Vec::new();
    decoder
        .take(limit as u64 + 1)
        .read_to_end(&mut out)
        .map_err(|source| PayloadError::Undecodable { what, source })?;
    if out.len() > limit { Err(PayloadError::TooLarge { limit }) } else { Ok(out.into()) }
}

fn count(decoder: impl Read, what: &'static str, limit: usize) -> Result<u64, PayloadError> {
    io::copy(&mut decoder.take(limit as u64 + 1), &mut io::sink())
        .map_err(|source| PayloadError::Undecodable { what, source })
}

/// Reads the pieces one after the other.
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
