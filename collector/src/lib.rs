//! Reset Collector: why did this TCP connection die, who did it, and which request did it break?
//!
//! One way through the program: probe → [`kernel`] → [`reset`] (decode) → [`enrich`] (owner) → `correlate` (trace) →
//! [`filter`] → [`sampler`] → [`encode`] (OTLP) → `batch` → `export`. Past decoding nothing can fail but the edges.

#![forbid(unsafe_code)]

pub mod address;
pub mod attribute;
pub mod batch;
pub mod btf;
pub mod cause;
pub mod console;
pub mod encode;
pub mod enrich;
pub mod explain;
pub mod filter;
pub mod kernel;
pub mod protobuf;
pub mod reason;
pub mod reset;
pub mod rfc3339;
#[cfg(test)]
mod sample;
pub mod sampler;
pub mod sentence;
pub mod settings;
pub mod told;
