//! What this process may do: its capabilities, and what each of them is needed for here.
//!
//! Each row was tried on Linux 6.18, as another user than root with these capabilities only: CAP_BPF and CAP_PERFMON
//! load and attach every hook; either alone does not.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

/// A capability of Linux that matters here (include/uapi/linux/capability.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Capability {
    /// `CAP_DAC_READ_SEARCH`
    ReadSearch,
    /// `CAP_NET_ADMIN`
    NetAdmin,
    /// `CAP_NET_RAW`
    NetRaw,
    /// `CAP_SYS_PTRACE`
    Ptrace,
    /// `CAP_SYS_ADMIN`
    Admin,
    /// `CAP_PERFMON`, since Linux 5.8
    Perfmon,
    /// `CAP_BPF`, since Linux 5.8
    Bpf,
}

/// What of the collector a capability is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Need {
    /// Without it nothing is captured.
    Capture,
    /// Without it resets are captured, and less is known of their owners.
    Owners,
    /// Without it the self-test is left out, and `demo` makes less or nothing.
    Demo,
}

/// Every capability that matters, with its need and what it does; the indispensable first.
pub const CAPABILITIES: &[(Capability, Need, &str)] = &[
    (Capability::Bpf, Need::Capture, "load the eBPF programs and their maps"),
    (Capability::Perfmon, Need::Capture, "attach them to the kernel's tracepoints"),
    (
        Capability::Ptrace,
        Need::Owners,
        "read the executable, environment and published context of other users' processes",
    ),
    (
        Capability::ReadSearch,
        Need::Owners,
        "open the environment of other users' processes, together with CAP_SYS_PTRACE",
    ),
    (Capability::Admin, Need::Demo, "make a network namespace, for demo and the self-test"),
    (
        Capability::NetAdmin,
        Need::Demo,
        "attach to control groups, for correlation.http_headers; set up a loopback, for demo and the self-test",
    ),
    (Capability::NetRaw, Need::Demo, "send segments made by hand, for demo"),
];

impl Capability {
    /// Its name in setcap(8), systemd and `capabilities(7)`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReadSearch => "CAP_DAC_READ_SEARCH",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
            Self::Ptrace => "CAP_SYS_PTRACE",
            Self::Admin => "CAP_SYS_ADMIN",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }

    const fn bit(self) -> u32 {
        match self {
            Self::ReadSearch => 2,
            Self::NetAdmin => 12,
            Self::NetRaw => 13,
            Self::Ptrace => 19,
            Self::Admin => 21,
            Self::Perfmon => 38,
            Self::Bpf => 39,
        }
    }
}

/// The capabilities of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The effective set, a bit each; `None` where it is not known.
    effective: Option<u64>,
    /// Capabilities of a user namespace count for nothing in eBPF, which asks for the host's own.
    pub in_user_namespace: bool,
}

impl Held {
    /// Reads those of this process from a procfs.
    pub fn read(proc: &Path) -> Self {
        /// Inode of the first user namespace (`PROC_USER_INIT_INO`, include/linux/proc_ns.h).
        const FIRST_USER_NAMESPACE: u64 = 0xeffffffd;
        let status = fs::read_to_string(proc.join("self/status")).unwrap_or_default();
        let namespace = fs::metadata(proc.join("self/ns/user"));
        let in_user_namespace = namespace.is_ok_and(|namespace| namespace.ino() != FIRST_USER_NAMESPACE);
        Self { in_user_namespace, ..Self::from_status(&status) }
    }

    /// Those that a /proc/PID/status tells of.
    pub(crate) fn from_status(status: &str) -> Self {
        Self { effective: effective(status), in_user_namespace: false }
    }

    /// Whether it is held, or another that includes it; where nothing is known, it is taken to be.
    pub fn has(self, capability: Capability) -> bool {
        let Some(effective) = self.effective else { return true };
        let bit = |capability: Capability| effective >> capability.bit() & 1 != 0;
        // bpf_capable() and perfmon_capable() (include/linux/capability.h) take CAP_SYS_ADMIN as well.
        let included = matches!(capability, Capability::Bpf | Capability::Perfmon) && bit(Capability::Admin);
        bit(capability) || included
    }

    /// Those that are missing for a need.
    pub fn missing(self, need: Need) -> Vec<Capability> {
        let of_need = CAPABILITIES.iter().filter(|(_, other, _)| *other == need);
        of_need.map(|(capability, ..)| *capability).filter(|capability| !self.has(*capability)).collect()
    }
}

/// `CapEff` of /proc/PID/status, proc_pid_status(5).
fn effective(status: &str) -> Option<u64> {
    let digits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(digits.trim(), 16).ok()
}

/// How to get them, by the ways in which people run programs: a line each.
pub fn how_to_get(missing: &[Capability]) -> Vec<String> {
    if missing.is_empty() {
        return Vec::new();
    }
    let names: Vec<&str> = missing.iter().map(|capability| capability.name()).collect();
    let bare: Vec<&str> = names.iter().map(|name| name.trim_start_matches("CAP_")).collect();
    let docker: Vec<String> = bare.iter().map(|name| format!("--cap-add {name}")).collect();
    vec![
        "by hand: run as root (sudo)".to_owned(),
        format!("systemd: AmbientCapabilities={}", names.join(" ")),
        format!("Docker: {}", docker.join(" ")),
        format!("Kubernetes: securityContext: {{ capabilities: {{ add: [{}] }} }}", bare.join(", ")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(bits: &[u32]) -> Held {
        let set = bits.iter().fold(0u64, |set, bit| set | 1 << bit);
        Held::from_status(&format!("Name:\tx\nCapEff:\t{set:016x}\nCapBnd:\t0\n"))
    }

    #[test]
    fn says_what_is_missing() {
        assert_eq!(held(&[]).missing(Need::Capture), [Capability::Bpf, Capability::Perfmon]);
        assert_eq!(held(&[39]).missing(Need::Capture), [Capability::Perfmon]);
        assert_eq!(held(&[38]).missing(Need::Capture), [Capability::Bpf]);
        assert_eq!(held(&[38, 39]).missing(Need::Capture), []);
        assert_eq!(held(&[21]).missing(Need::Capture), [], "CAP_SYS_ADMIN includes both");
        assert_eq!(held(&[21]).missing(Need::Owners), [Capability::Ptrace, Capability::ReadSearch]);
        assert_eq!(held(&[2, 19]).missing(Need::Owners), []);
        // A procfs that says nothing is no proof of anything.
        assert_eq!(Held::from_status("no such line").missing(Need::Capture), []);
    }

    #[test]
    fn every_way_names_them_as_it_wants_them_named() {
        let ways = how_to_get(&[Capability::Bpf, Capability::Ptrace]).join("\n");
        for expected in [
            "AmbientCapabilities=CAP_BPF CAP_SYS_PTRACE",
            "--cap-add BPF --cap-add SYS_PTRACE",
            "add: [BPF, SYS_PTRACE]",
        ] {
            assert!(ways.contains(expected), "{ways}");
        }
        assert!(how_to_get(&[]).is_empty());
    }
}
