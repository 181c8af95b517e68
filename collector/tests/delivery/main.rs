//! Delivery against scripted backends: every answer, every fault, and the accounting invariant throughout.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod accounting;
mod answers;
mod backend;
mod client;
mod comparison;
mod disk;
mod health;
mod log_lines;
mod refusals;
#[path = "../skip/mod.rs"]
mod skip;
mod throughput;
mod tls;
mod wrong_endpoints;
