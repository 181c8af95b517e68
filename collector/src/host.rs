//! What this host offers and how the process is hardened: capabilities, sandbox, namespaces, the start-up self-test.
//!
//! Reads the host; attaches no probe ([`crate::kernel`]).

pub mod capability;
pub mod core_dumps;
pub mod descriptors;
pub mod hardening;
pub(crate) mod namespace;
pub(crate) mod netlink;
pub mod report;
pub mod sandbox;
pub(crate) mod seccomp;
pub mod selftest;
