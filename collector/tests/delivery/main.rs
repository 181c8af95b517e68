//! Delivery against scripted backends: every answer, every fault, and the conservation law throughout.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod answers;
mod backend;
mod disk;
mod law;
mod lines;
mod own_health;
mod peers;
mod sending;
mod strangers;
mod throughput;
mod tls;
