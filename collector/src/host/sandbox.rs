//! What fences this process in beside its capabilities: a container's pid namespace, seccomp filter, AppArmor profile and
//! mounts.
//!
//! Reads in one place ([`Fences::read`]); what is made of it is [`crate::host::report`]'s.

use std::{fs, path::Path};

use crate::procfs::{in_pid_namespace, status_field};

/// The fences of this process; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fences {
    /// A seccomp filter looks at its system calls, so that a capability alone may not be enough.
    pub has_seccomp_filter: bool,
    /// `/proc` shows the processes of a pid namespace only.
    pub in_pid_namespace: bool,
    /// The AppArmor profile that is enforced on it.
    pub apparmor: Option<String>,
    /// There is no sysfs, and so no `/sys/kernel/btf/vmlinux`.
    pub lacks_sysfs: bool,
}

impl Fences {
    /// Reads those of this process from a procfs, and looks at where sysfs should be.
    pub fn read(proc: &Path, sys: &Path) -> Self {
        let text = |file: &str| fs::read_to_string(proc.join(file)).unwrap_or_default();
        Self {
            has_seccomp_filter: has_seccomp_filter(&text("self/status")),
            in_pid_namespace: in_pid_namespace(proc),
            apparmor: enforced_profile(&text("self/attr/apparmor/current")),
            lacks_sysfs: !sys.join("kernel").exists(),
        }
    }
}

/// `Seccomp` of /proc/PID/status, proc_pid_status(5): 2 is `SECCOMP_MODE_FILTER`.
fn has_seccomp_filter(status: &str) -> bool {
    status_field(status.as_bytes(), "Seccomp") == Some(b"2")
}

/// Of `docker-default (enforce)`; none of `unconfined` and of profiles that only complain.
fn enforced_profile(current: &str) -> Option<String> {
    Some(current.trim().strip_suffix(" (enforce)")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_procfs_says() {
        assert!(has_seccomp_filter("NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n"));
        assert!(!has_seccomp_filter("Seccomp:\t0\nSeccomp_filters:\t2\n") && !has_seccomp_filter(""));
        assert_eq!(enforced_profile("docker-default (enforce)\n").as_deref(), Some("docker-default"));
        for free in ["unconfined\n", "docker-default (complain)", "", "system_u:system_r:spc_t:s0"] {
            assert_eq!(enforced_profile(free), None, "{free}");
        }
    }

    #[test]
    fn a_host_without_any_fence() {
        let nowhere = Path::new("/nonexistent");
        assert_eq!(Fences::read(nowhere, Path::new("/sys")), Fences::default());
        assert!(Fences::read(nowhere, nowhere).lacks_sysfs);
    }
}
