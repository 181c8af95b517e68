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

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use tempfile::NamedTempFile;

/// Fails where tests that need root, network namespaces and eBPF cannot run.
///
/// Such tests carry `#[ignore]`: `cargo test` lists them as ignored, and `make e2e` runs them with `--include-ignored`.
///
/// # Errors
/// What this host lacks.
pub fn require_root() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "this test needs root, for network namespaces and eBPF");
    ensure!(Path::new("/sys/kernel/btf/vmlinux").exists(), "this kernel has no BTF (CONFIG_DEBUG_INFO_BTF)");
    Ok(())
}

/// A configuration file, removed when dropped.
///
/// # Errors
/// It cannot be written.
pub fn configuration_file(text: &str) -> Result<NamedTempFile> {
    let file = tempfile::Builder::new().prefix("reset-collector-").suffix(".yaml").tempfile()?;
    std::fs::write(file.path(), text)?;
    Ok(file)
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
