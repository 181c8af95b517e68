//! Reset Collector: why did this TCP connection die, who did it, and which request did it break?
//!
//! One way through the program: probe → `kernel` → [`reset`] (decode) → [`enrich`] (owner) → `correlate` (trace) →
//! [`filter`] → [`sampler`] → [`encode`] (OTLP) → `batch` → `export`. Past decoding nothing can fail but the edges.

#![forbid(unsafe_code)]

pub mod attribute;
mod candidates;
pub mod correlate;
pub mod encode;
pub mod enrich;
pub mod evidence;
mod exchange;
pub mod failure;
pub mod filter;
pub mod forward;
mod group;
mod intake;
pub mod payload;
pub mod receive;
mod receive_grpc;
mod receive_http;
mod recent;
mod reply;
pub mod reset;
pub mod sampler;
pub mod sender;
pub mod settings;
pub mod signal;
pub mod splice;
pub mod splice_json;
pub mod tally;
pub mod traffic;
mod waiting;
