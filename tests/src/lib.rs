//! What the end-to-end tests share: hosts that are network namespaces, `tcpdump` on each as the judge, the collector
//! under test, and the list of scenarios with what is due for each.
//!
//! A scenario itself is a Python function in `actors/`; [`suite`] runs them all and says what was missed.

#![forbid(unsafe_code)]

pub mod backend;
pub mod capture;
pub mod collector;
pub mod compare;
pub mod container;
pub mod flood;
pub mod instrumented;
pub mod jaeger;
pub mod metrics;
pub mod network;
pub mod owner;
pub mod poll;
pub mod process;
pub mod processes;
pub mod record;
pub mod reference;
pub mod scenario;
pub mod storm;
pub mod suite;

use std::path::PathBuf;

/// Why the tests that need root and network namespaces cannot run here; `None` when they can.
///
/// # Panics
/// In CI (`CI=true`), where a skipped test is an error.
pub fn skip_reason() -> Option<String> {
    let reason = if !rustix::process::geteuid().is_root() {
        "not root: network namespaces and eBPF need it"
    } else if !std::path::Path::new("/sys/kernel/btf/vmlinux").exists() {
        "this kernel has no BTF (CONFIG_DEBUG_INFO_BTF)"
    } else {
        return None;
    };
    assert!(
        std::env::var("CI").is_ok_and(|ci| ci != "true" && ci != "1") || std::env::var_os("CI").is_none(),
        "{reason}"
    );
    Some(format!("skipped: {reason}"))
}

/// The directory of this crate: the actors lie under it. `RESET_TESTS_DIRECTORY` names it where the tests were built
/// on another machine.
pub fn crate_directory() -> PathBuf {
    std::env::var_os("RESET_TESTS_DIRECTORY").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// Whether this is CI, where a skip is an error.
pub fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|ci| ci == "true" || ci == "1")
}
