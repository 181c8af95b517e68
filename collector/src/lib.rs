//! Reset Collector: why did this TCP connection die, who did it, and which request did it break?
//!
//! One way through the program: probe → `kernel` → [`reset`] (decode) → [`enrich`] (owner) → `correlate` (trace) →
//! [`filter`] → [`sampler`] → [`encode`] (OTLP) → `batch` → `export`. Past decoding nothing can fail but the edges.

#![forbid(unsafe_code)]

pub mod attribute;
pub mod check;
pub mod config;
pub mod encode;
pub mod enrich;
pub mod filter;
pub mod pushdown;
pub mod reload;
pub mod reset;
pub mod sampler;
pub mod settings;
