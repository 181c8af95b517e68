//! Reset Collector: why did this TCP connection die, who did it, and which request did it break?
//!
//! One way through the program: probe → [`kernel`] → [`reset`] (decode) → [`enrich`] (owner) → `correlate` (trace) →
//! [`filter`] → [`sampler`] → [`encode`] (OTLP) → `batch` → `export`. Past decoding nothing can fail but the edges.

#![forbid(unsafe_code)]

pub mod account;
pub mod check;
pub mod config;
pub mod confine;
pub mod correlate;
pub mod demo;
pub mod encode;
pub mod enrich;
pub mod explain;
pub mod export;
pub mod filter;
pub mod kernel;
pub mod pipeline;
pub mod pushdown;
pub mod receive;
pub mod reset;
pub mod run;
pub mod sampler;
pub mod signals;
pub mod telemetry;
pub mod told;
