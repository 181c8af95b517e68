//! Any text as an OTLP/JSON request of each signal: never more protobuf than the limit, never a panic, and what is made
//! is protobuf that a backend reads.

use opentelemetry_proto::tonic::collector::{
    logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest,
};
use prost::Message;
use reset_collector::{model::signal::Signal, otlp::json};

pub(crate) fn run(text: &[u8]) {
    for signal in Signal::ALL {
        let limit = 4 * text.len();
        let Ok(bytes) = json::to_protobuf(*signal, text, limit) else { continue };
        assert!(bytes.len() <= limit && bytes.capacity() <= limit, "{} bytes of {}", bytes.capacity(), text.len());
        let error = match signal {
            Signal::Logs => ExportLogsServiceRequest::decode(&bytes[..]).err(),
            Signal::Traces => ExportTraceServiceRequest::decode(&bytes[..]).err(),
            Signal::Metrics => ExportMetricsServiceRequest::decode(&bytes[..]).err(),
        };
        // prost goes 100 messages deep, and no further.
        let error = error.filter(|error| !error.to_string().contains("recursion limit"));
        assert!(error.is_none(), "{error:?}");
    }
}
