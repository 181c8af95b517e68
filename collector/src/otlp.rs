//! OTLP as bytes: records encoded, requests decoded and spliced, and the client that sends both.
//!
//! Knows the wire format and the transport; not which requests are sent when ([`crate::export`]), nor what a span means
//! ([`crate::correlate`]).

pub mod batch;
pub mod client;
pub(crate) mod connect;
pub mod encode;
pub mod json;
pub mod payload;
pub mod protobuf;
pub(crate) mod request;
pub mod response;
pub mod splice;
pub mod splice_json;
pub(crate) mod tls;
