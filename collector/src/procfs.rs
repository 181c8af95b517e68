//! Parsers for files of procfs that more than one module reads: `stat`, `status`, `mountinfo`, and the pid namespace.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Inode of the first pid namespace (`PROC_PID_INIT_INO`, `include/linux/proc_ns.h`).
pub const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;
/// Maximum bytes of a mount table.
const MAX_MOUNTS: usize = 4 << 20;

/// Fields of `/proc/PID/stat`, see proc_pid_stat(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Name of the main thread, as it is.
    pub comm: Vec<u8>,
    /// The process has ended.
    pub dead: bool,
    /// Its parent.
    pub parent: u32,
    /// Its start in clock ticks since boot.
    pub start_ticks: u64,
}

impl Stat {
    /// The name stands in parentheses and may hold any byte, parentheses and newlines too; the numbers after it hold none.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let open = text.iter().position(|byte| *byte == b'(')?;
        let close = text.iter().rposition(|byte| *byte == b')')?;
        let comm = text.get(open + 1..close)?.to_vec();
        let mut fields = std::str::from_utf8(&text[close + 1..]).ok()?.split_ascii_whitespace();
        // Fields 3, 4 and 22.
        let (state, parent) = (fields.next()?, fields.next()?.parse().ok()?);
        let start_ticks = fields.nth(17)?.parse().ok()?;
        Some(Self { comm, dead: matches!(state, "Z" | "X" | "x"), parent, start_ticks })
    }
}

/// The value of a field in the text of `/proc/PID/status`, see proc_pid_status(5).
pub fn status_field<'a>(status: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut lines = status.split(|byte| *byte == b'\n');
    let value = lines.find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b":"))?;
    Some(value.trim_ascii())
}

/// The numbers in a field of `/proc/PID/status`.
pub fn status_numbers(status: &[u8], name: &str) -> impl Iterator<Item = u32> {
    let value = status_field(status, name).and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default();
    value.split_ascii_whitespace().filter_map(|number| number.parse().ok())
}

/// The pids of a process, from the namespace of the procfs inwards (`NSpid`).
pub fn namespace_pids(status: &[u8]) -> impl Iterator<Item = u32> {
    status_numbers(status, "NSpid")
}

/// Whether this process is in another pid namespace than the first.
pub fn in_pid_namespace(proc: &Path) -> bool {
    fs::metadata(proc.join("self/ns/pid")).is_ok_and(|namespace| namespace.ino() != FIRST_PID_NAMESPACE)
}

/// Whether the numbers in this procfs are those of a pid namespace and not the kernel's own.
///
/// A procfs of our own namespace shows us under one number; one of an outer namespace, as the host's in a container,
/// shows every number down to ours, and is taken for the kernel's.
pub fn has_foreign_pids(proc: &Path) -> bool {
    let status = fs::read(proc.join("self/status")).unwrap_or_default();
    in_pid_namespace(proc) && namespace_pids(&status).count() == 1
}

/// The pids in a procfs.
pub fn pids(proc: &Path) -> impl Iterator<Item = u32> {
    let processes = fs::read_dir(proc).into_iter().flatten().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Where cgroup v2 is mounted, by a mount table as in proc_pid_mountinfo(5).
pub fn cgroup2_mounts(mountinfo: &Path) -> Vec<PathBuf> {
    let text = fs::read(mountinfo).ok().filter(|text| text.len() <= MAX_MOUNTS).unwrap_or_default();
    let mount_point = |line: &str| {
        let (mount, file_system) = line.split_once(" - ")?;
        // Spaces, tabs, newlines and backslashes are octal there; such a cgroup mount is not supported.
        let point = mount.split(' ').nth(4).filter(|point| !point.contains('\\'))?;
        (file_system.split(' ').next()? == "cgroup2").then(|| PathBuf::from(point))
    };
    String::from_utf8_lossy(&text).lines().filter_map(mount_point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_hostile_names() {
        let rest = " S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 1000 5 18446744073709551615\n";
        for name in ["nginx", "a) S 9 (b", "new\nline", "", "((((", "1 (x) Z 0 0"] {
            let stat = Stat::parse(format!("17 ({name}){rest}").as_bytes()).expect(name);
            let expected = Stat { comm: name.as_bytes().to_vec(), dead: false, parent: 1, start_ticks: 12345 };
            assert_eq!(stat, expected, "{name}");
        }
        let zombie = Stat::parse(format!("17 (x){}", rest.replacen('S', "Z", 1)).as_bytes()).expect("zombie");
        assert!(zombie.dead);
        for text in
            ["", "17", "17 (x)", "17 )x( S 1", "17 (x) S 1 2 3", "17 (x) S 1 1 1 0 -1 1 1 0 0 0 0 0 0 0 20 0 1 0 many"]
        {
            assert!(Stat::parse(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn fields_of_status() {
        let pids = |text: &str| namespace_pids(text.as_bytes()).collect::<Vec<_>>();
        assert_eq!(pids("Name:\tx\nNSpid:\t4026\t17\t1\nNSpgid:\t9\n"), [4026, 17, 1]);
        assert_eq!(pids("Name:\tx\n"), [0; 0]);
        assert_eq!(pids("NSpid:\tx\t99999999999\n"), [0; 0]);
        assert_eq!(status_field(b"Seccomp:\t2\nSeccomp_filters:\t1\n", "Seccomp"), Some(&b"2"[..]));
        assert_eq!(status_field(b"Seccomp_filters:\t2\n", "Seccomp"), None);
    }
}
