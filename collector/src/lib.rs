//! Reset Collector: why did this TCP connection die, who did it, and which request did it break?
//!
//! One way through the program: probe → [`kernel`] → [`reset`] (decode) → [`enrich`] (owner) → `correlate` (trace) →
//! [`filter`] → [`sampler`] → [`encode`] (OTLP) → `batch` → `export`. Past decoding nothing can fail but the edges.

#![forbid(unsafe_code)]

pub mod account;
pub mod app;
pub mod config;
pub mod correlate;
pub mod enrich;
pub mod event;
pub mod export;
pub mod filter;
pub mod host;
pub mod kernel;
pub mod model;
pub mod otlp;
pub mod pipeline;
pub mod procfs;
pub mod pushdown;
pub mod receiver;
pub mod sampler;
pub mod telemetry;
pub mod text;
