//! Least privilege: once the programs are attached, the process gives up what the rest of its life does not need.
//! Capabilities, no_new_privs, and a filter of system calls ([`calls`]).
//!
//! Threads inherit all three and cannot give them to others: call [`harden`] while there is one thread only.
//!
//! Why not Landlock: a thread in any Landlock domain may not look at processes outside of it (`hook_ptrace_access_check`,
//! security/landlock/task.c), so /proc/PID/exe and environ of the workloads, which are the owners, would be out of reach;
//! tried on Linux 6.18. Where files may be written is for the unit or the container to say.

use std::thread;

use rustix::{
    io,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
        set_capabilities, set_no_new_privs,
    },
};

use crate::{
    config::settings::{Hardening, Settings},
    host::seccomp,
};

/// Ports below this one are for CAP_NET_BIND_SERVICE (`PROT_SOCK`; net.ipv4.ip_unprivileged_port_start may be lower).
const FIRST_FREE_PORT: u16 = 1_024;

/// A step that `hardening: required` asks for and that cannot be done.
#[derive(Debug, thiserror::Error)]
#[error("hardening: {step}: {why}; `hardening: auto` goes on without it")]
pub struct HardeningError {
    step: &'static str,
    why: String,
}

/// What has been given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hardened {
    /// The capabilities that the process still has.
    pub kept: Vec<String>,
    /// Each step by its word, and why it was not done.
    pub steps: Vec<(&'static str, Result<(), String>)>,
}

/// Gives up what is not needed any more. `still_works` tries, in another thread, whether the programs can still be spoken
/// to with the capabilities of that thread.
///
/// # Errors
/// `hardening: required`, and a step cannot be done.
pub fn harden(settings: &Settings, mut still_works: impl FnMut() -> bool + Send) -> Result<Hardened, HardeningError> {
    let mut hardened = Hardened { kept: held(), steps: Vec::new() };
    if settings.hardening == Hardening::Off {
        return Ok(hardened);
    }
    let capabilities =
        needed(settings, &mut still_works).and_then(|kept| reduce(kept).map_err(|errno| errno.to_string()));
    hardened.kept = held();
    hardened.steps = vec![
        ("capabilities", capabilities),
        ("no_new_privs", set_no_new_privs(true).map_err(|errno| errno.to_string())),
        ("seccomp", seccomp::filter()),
    ];
    match hardened.steps.iter().find_map(|(step, done)| Some((*step, done.as_ref().err()?.clone()))) {
        Some((step, why)) if settings.hardening == Hardening::Required => Err(HardeningError { step, why }),
        _ => Ok(hardened),
    }
}

impl Hardened {
    /// Says what was done and what was not, a line each.
    pub fn announce(&self) {
        for (step, why) in self.steps.iter().filter_map(|(step, done)| Some((step, done.as_ref().err()?))) {
            tracing::warn!(event = "hardening_step_failed", step, error = why, "hardening step failed");
        }
        let done: Vec<&str> = self.steps.iter().filter(|(_, done)| done.is_ok()).map(|(step, _)| *step).collect();
        if !done.is_empty() {
            let kept = if self.kept.is_empty() { "none".to_owned() } else { self.kept.join(", ") };
            tracing::info!(event = "hardened", steps = done.join(", "), capabilities = kept, "hardened");
        }
    }
}

/// The capabilities that the rest of the process's life needs.
fn needed(settings: &Settings, still_works: &mut (impl FnMut() -> bool + Send)) -> Result<CapabilitySet, String> {
    let held = capabilities(None).map_err(|errno| errno.to_string())?.effective;
    // Owners: /proc/PID of other users' processes.
    let mut base = CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH;
    let correlation = &settings.correlation;
    let mut addresses = [settings.admin, correlation.grpc, correlation.http].into_iter().flatten();
    base.set(CapabilitySet::NET_BIND_SERVICE, addresses.any(|address| (1..FIRST_FREE_PORT).contains(&address.port())));
    // Since Linux 5.19 whoever has a map's descriptor may use it; before, with kernel.unprivileged_bpf_disabled, every
    // bpf() needs CAP_BPF (kernel/bpf/syscall.c, __sys_bpf). It is tried rather than known.
    let candidates = [
        CapabilitySet::empty(),
        CapabilitySet::BPF,
        CapabilitySet::BPF | CapabilitySet::PERFMON,
        CapabilitySet::SYS_ADMIN,
    ];
    for more in candidates {
        let kept = (base | more) & held;
        let tried = thread::scope(|scope| {
            let try_it = || reduce(kept).is_ok() && still_works();
            let thread = thread::Builder::new().name("capabilities".into()).spawn_scoped(scope, try_it);
            thread.map_err(|error| error.to_string())?.join().map_err(|_| "the trial failed".to_owned())
        })?;
        if tried {
            return Ok(kept);
        }
    }
    Err("the programs in the kernel cannot be spoken to with fewer".to_owned())
}

/// Leaves the calling thread these capabilities, of those that it has.
fn reduce(kept: CapabilitySet) -> io::Result<()> {
    let CapabilitySets { effective, permitted, .. } = capabilities(None)?;
    if effective.contains(CapabilitySet::SETPCAP) {
        // Programs that it starts could get those only; it starts none.
        for capability in CapabilitySet::all().difference(kept).iter() {
            if let Err(errno) = remove_capability_from_bounding_set(capability) {
                tracing::debug!("this kernel does not know {capability:?}: {errno}");
            }
        }
    }
    if let Err(errno) = clear_ambient_capability_set() {
        tracing::debug!("no ambient capabilities here: {errno}");
    }
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: effective & kept, permitted: permitted & kept, inheritable })
}

fn held() -> Vec<String> {
    let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    effective.iter_names().map(|(name, _)| format!("CAP_{name}")).collect()
}
