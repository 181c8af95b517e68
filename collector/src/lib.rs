//! Reset Collector: why did this TCP connection die, who did it, and which request did it break?
//!
//! One way through the program: probe → [`kernel`] → [`reset`] (decode) → [`enrich`] (owner) → `correlate` (trace) →
//! [`filter`] → [`sampler`] → [`encode`] (OTLP) → `batch` → `export`. Past decoding nothing can fail but the edges.

#![forbid(unsafe_code)]

pub mod account;
pub mod address;
pub mod answer;
pub mod attribute;
pub mod batch;
pub mod bounded;
pub mod btf;
pub mod cause;
pub mod cgroup;
pub mod client;
mod connect;
pub mod console;
pub mod container;
pub mod deadline;
pub mod demo;
pub mod encode;
pub mod enrich;
pub mod environment;
pub mod explain;
pub mod export;
pub mod filter;
pub mod host;
pub mod kernel;
mod namespace;
mod netlink;
mod notice;
pub mod otel_context;
pub mod pods;
pub mod printable;
pub mod process;
pub mod protobuf;
mod queue;
pub mod reason;
pub mod reset;
pub mod resource;
pub mod retry;
pub mod rfc3339;
#[cfg(test)]
mod sample;
pub mod sampler;
mod segment;
pub mod sentence;
pub mod settings;
pub mod signal;
mod storage;
mod tls;
pub mod told;
