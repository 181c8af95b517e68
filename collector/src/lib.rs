//! Reset Collector: why did this TCP connection die, who did it, and which request did it break?
//!
//! One way through the program: probe → `kernel` → [`reset`] (decode) → [`enrich`] (owner) → `correlate` (trace) →
//! [`filter`] → [`sampler`] → [`encode`] (OTLP) → `batch` → `export`. Past decoding nothing can fail but the edges.

#![forbid(unsafe_code)]

pub mod account;
pub mod admin;
pub mod answer;
pub mod attribute;
pub mod batch;
pub mod client;
mod connect;
mod drop_reason;
pub mod encode;
pub mod enrich;
pub mod environment;
pub mod export;
pub mod filter;
pub mod logging;
mod notice;
pub mod prometheus;
mod queue;
pub mod reset;
pub mod retry;
pub mod sampler;
mod segment;
pub mod settings;
pub mod signal;
mod storage;
pub mod telemetry;
mod tls;
