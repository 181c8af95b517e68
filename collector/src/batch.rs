//! A batch: what one request to a backend carries, as bytes.

use bytes::Bytes;

/// Resets encoded for OTLP, not compressed.
#[derive(Clone, Debug)]
pub struct Batch {
    /// How many resets.
    pub resets: u32,
    /// An `ExportLogsServiceRequest` message, where logs go out.
    pub logs: Option<Bytes>,
    /// An `ExportTraceServiceRequest` message, where traces go out and at least one span is ours.
    pub traces: Option<Bytes>,
}
