//! No core dumps: the memory of the process holds tokens, and what it read of other processes.

use rustix::{
    io,
    process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit},
};

/// Forbids core files, and dumps to a program (core_pattern with `|`), which disregard the limit. As a side effect
/// /proc/PID belongs to root, and only root may attach a debugger.
///
/// # Errors
/// The kernel refuses.
pub fn forbid() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}
