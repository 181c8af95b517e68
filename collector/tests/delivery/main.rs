//! Delivery against scripted backends: every answer, every fault, and the conservation law throughout.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod answers;
mod backend;
mod sending;
mod strangers;
