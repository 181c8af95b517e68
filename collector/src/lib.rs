//! Reset Collector: why did this TCP connection die, who did it, and which request did it break?
//!
//! One way through the program: probe → [`kernel`] → [`reset`] (decode) → [`enrich`] (owner) → `correlate` (trace) →
//! [`filter`] → [`sampler`] → [`encode`] (OTLP) → `batch` → `export`. Past decoding nothing can fail but the edges.

#![forbid(unsafe_code)]

pub mod account;
pub mod address;
pub mod admin;
pub mod answer;
pub mod attribute;
pub mod batch;
pub mod bounded;
pub mod btf;
mod candidates;
pub mod capability;
pub mod cause;
pub mod cgroup;
pub mod check;
pub mod client;
pub mod config;
mod connect;
pub mod console;
pub mod container;
pub mod correlate;
pub mod coverage;
pub mod deadline;
pub mod demo;
pub mod doubt;
mod drop_reason;
pub mod encode;
pub mod enrich;
pub mod environ;
pub mod environment;
pub mod evidence;
mod exchange;
pub mod explain;
pub mod export;
pub mod failure;
pub mod filter;
pub mod forward;
mod group;
pub mod host;
mod intake;
pub mod kernel;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod logging;
mod namespace;
mod netlink;
mod notice;
pub mod otel_context;
pub mod owners;
pub mod payload;
pub mod pipeline;
pub mod plan;
pub mod pods;
pub mod printable;
pub mod process;
pub mod prometheus;
pub mod protobuf;
pub mod pushdown;
mod queue;
pub mod reader;
pub mod reason;
pub mod receive;
mod receive_grpc;
mod receive_http;
mod recent;
pub mod reload;
mod reply;
pub mod reset;
pub mod resource;
pub mod retry;
pub mod rfc3339;
pub mod run;
#[cfg(test)]
mod sample;
pub mod sampler;
mod segment;
pub mod selftest;
pub mod sender;
pub mod sentence;
pub mod settings;
pub mod signal;
pub mod signals;
pub mod snapshot;
pub mod splice;
pub mod splice_json;
mod storage;
pub mod tally;
pub mod telemetry;
mod tls;
pub mod told;
pub mod traffic;
pub mod vintage;
mod waiting;
