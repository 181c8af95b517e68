//! Reset Collector: why did this TCP connection die, who did it, and which request did it break?
//!
//! One way through the program: probe → `kernel` → [`reset`] (decode) → [`enrich`] (owner) → `correlate` (trace) →
//! [`filter`] → [`sampler`] → [`encode`] (OTLP) → `batch` → `export`. Past decoding nothing can fail but the edges.

#![forbid(unsafe_code)]

pub mod attribute;
pub mod bounded;
pub mod cgroup;
pub mod container;
pub mod deadline;
pub mod encode;
pub mod enrich;
pub mod environment;
pub mod filter;
pub mod host;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod otel_context;
pub mod pods;
pub mod printable;
pub mod process;
pub mod reset;
pub mod resource;
pub mod sampler;
pub mod settings;
